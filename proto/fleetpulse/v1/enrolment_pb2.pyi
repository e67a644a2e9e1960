from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class GetTrustRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTrustResponse(_message.Message):
    __slots__ = ("ca_bundle",)
    CA_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ca_bundle: bytes
    def __init__(self, ca_bundle: _Optional[bytes] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("token", "host_id", "hostname", "machine_id", "hardware_id", "agent_version", "csr")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    token: str
    host_id: str
    hostname: str
    machine_id: str
    hardware_id: str
    agent_version: str
    csr: bytes
    def __init__(self, token: _Optional[str] = ..., host_id: _Optional[str] = ..., hostname: _Optional[str] = ..., machine_id: _Optional[str] = ..., hardware_id: _Optional[str] = ..., agent_version: _Optional[str] = ..., csr: _Optional[bytes] = ...) -> None: ...

class EnrollResponse(_message.Message):
    __slots__ = ("chain", "ca_bundle", "name")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    CA_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    chain: bytes
    ca_bundle: bytes
    name: str
    def __init__(self, chain: _Optional[bytes] = ..., ca_bundle: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

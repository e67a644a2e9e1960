from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_OK: _ClassVar[State]
    STATE_WARNING: _ClassVar[State]
    STATE_CRITICAL: _ClassVar[State]
    STATE_UNKNOWN: _ClassVar[State]
STATE_UNSPECIFIED: State
STATE_OK: State
STATE_WARNING: State
STATE_CRITICAL: State
STATE_UNKNOWN: State

class StreamRequest(_message.Message):
    __slots__ = ("hello", "layout", "facts", "reports", "certificate_request")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    layout: Layout
    facts: Facts
    reports: ReportBatch
    certificate_request: CertificateRequest
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., facts: _Optional[_Union[Facts, _Mapping]] = ..., reports: _Optional[_Union[ReportBatch, _Mapping]] = ..., certificate_request: _Optional[_Union[CertificateRequest, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("welcome", "ack", "throttle", "goodbye", "certificate", "trust")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    ack: Ack
    throttle: Throttle
    goodbye: Goodbye
    certificate: Certificate
    trust: Trust
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., throttle: _Optional[_Union[Throttle, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., certificate: _Optional[_Union[Certificate, _Mapping]] = ..., trust: _Optional[_Union[Trust, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("host_id", "hostname", "machine_id", "boot_id", "epoch", "agent_version", "interval_ms", "ttl_ms", "groups", "instance", "hardware_id", "trust_id")
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_ID_FIELD_NUMBER: _ClassVar[int]
    TRUST_ID_FIELD_NUMBER: _ClassVar[int]
    host_id: str
    hostname: str
    machine_id: str
    boot_id: str
    epoch: int
    agent_version: str
    interval_ms: int
    ttl_ms: int
    groups: _containers.RepeatedScalarFieldContainer[str]
    instance: str
    hardware_id: str
    trust_id: bytes
    def __init__(self, host_id: _Optional[str] = ..., hostname: _Optional[str] = ..., machine_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., epoch: _Optional[int] = ..., agent_version: _Optional[str] = ..., interval_ms: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., groups: _Optional[_Iterable[str]] = ..., instance: _Optional[str] = ..., hardware_id: _Optional[str] = ..., trust_id: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("committed_seq", "max_batch_reports", "max_message_bytes")
    COMMITTED_SEQ_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_REPORTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    committed_seq: int
    max_batch_reports: int
    max_message_bytes: int
    def __init__(self, committed_seq: _Optional[int] = ..., max_batch_reports: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("id", "checks")
    ID_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    checks: _containers.RepeatedCompositeFieldContainer[CheckLayout]
    def __init__(self, id: _Optional[bytes] = ..., checks: _Optional[_Iterable[_Union[CheckLayout, _Mapping]]] = ...) -> None: ...

class CheckLayout(_message.Message):
    __slots__ = ("name", "instance", "measurements")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    instance: str
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    def __init__(self, name: _Optional[str] = ..., instance: _Optional[str] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("name", "unit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ...) -> None: ...

class Facts(_message.Message):
    __slots__ = ("facts",)
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FACTS_FIELD_NUMBER: _ClassVar[int]
    facts: _containers.ScalarMap[str, str]
    def __init__(self, facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ReportBatch(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("seq", "measured_at_ms", "layout_id", "values", "results", "dropped")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_ID_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    measured_at_ms: int
    layout_id: bytes
    values: _containers.RepeatedScalarFieldContainer[float]
    results: _containers.RepeatedCompositeFieldContainer[CheckResult]
    dropped: int
    def __init__(self, seq: _Optional[int] = ..., measured_at_ms: _Optional[int] = ..., layout_id: _Optional[bytes] = ..., values: _Optional[_Iterable[float]] = ..., results: _Optional[_Iterable[_Union[CheckResult, _Mapping]]] = ..., dropped: _Optional[int] = ...) -> None: ...

class CheckResult(_message.Message):
    __slots__ = ("check", "state", "message")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    check: int
    state: State
    message: str
    def __init__(self, check: _Optional[int] = ..., state: _Optional[_Union[State, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class Throttle(_message.Message):
    __slots__ = ("retry_after_ms",)
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    retry_after_ms: int
    def __init__(self, retry_after_ms: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reconnect_after_ms",)
    RECONNECT_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reconnect_after_ms: int
    def __init__(self, reconnect_after_ms: _Optional[int] = ...) -> None: ...

class CertificateRequest(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("chain",)
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    chain: bytes
    def __init__(self, chain: _Optional[bytes] = ...) -> None: ...

class Trust(_message.Message):
    __slots__ = ("ca_bundle", "renew_within_ms")
    CA_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RENEW_WITHIN_MS_FIELD_NUMBER: _ClassVar[int]
    ca_bundle: bytes
    renew_within_ms: int
    def __init__(self, ca_bundle: _Optional[bytes] = ..., renew_within_ms: _Optional[int] = ...) -> None: ...

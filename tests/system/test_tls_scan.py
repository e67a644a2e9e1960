"""Both ports, looked at from outside by sslyze: no weak protocol or cipher, no gap in what is verified.

sslyze does not speak HTTP/2, and gRPC closes a connection that does not ask for it once the handshake is
over. All that is looked at here is over by then. Left out are headers of HTTP/1, which are none of ours,
and early data, for which a request would have to be answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sslyze import (
    ClientAuthenticationCredentials,
    ClientAuthRequirementEnum,
    ScanCommandsExtraArguments,
    Scanner,
    ServerConnectivityStatusEnum,
    ServerNetworkConfiguration,
    ServerNetworkLocation,
    ServerScanRequest,
    ServerScanResult,
)
from sslyze.mozilla_tls_profile.tls_config_checker import (
    SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
    MozillaTlsConfiguration,
    TlsConfigurationEnum,
    check_server_against_tls_configuration,
)
from sslyze.plugins.certificate_info.implementation import CertificateInfoExtraArgument

from tests.conftest import running_site
from tests.processes import Site

# sslyze reads certificates of its trust stores that are not quite as they should be.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("scanned")
    with running_site(f"sqlite:///{folder}/fleet.db", folder) as site:
        site.collector(tls="on")
        site.enroll("one")
        yield site


def scan(
    site: Site,
    address: str,
    name: str = "localhost",
    credentials: ClientAuthenticationCredentials | None = None,
) -> ServerScanResult:
    host, _, port = address.rpartition(":")
    scanner = Scanner()
    scanner.queue_scans(
        [
            ServerScanRequest(
                ServerNetworkLocation(name, int(port), ip_address=host),
                ServerNetworkConfiguration(name, tls_client_auth_credentials=credentials),
                scan_commands=SCAN_COMMANDS_NEEDED_BY_MOZILLA_CHECKER,
                scan_commands_extra_arguments=ScanCommandsExtraArguments(
                    certificate_info=CertificateInfoExtraArgument(site.ca_bundle)
                ),
            )
        ]
    )
    [result] = scanner.get_results()
    return result


def host_credentials(site: Site, folder: Path) -> ClientAuthenticationCredentials:
    """What the agent has, in the two files that sslyze wants."""
    own = (site.folder / "one" / "host.pem").read_bytes()
    begin = own.index(b"-----BEGIN CERTIFICATE-----")
    (folder / "key.pem").write_bytes(own[:begin])
    (folder / "chain.pem").write_bytes(own[begin:])
    return ClientAuthenticationCredentials(folder / "chain.pem", folder / "key.pem")


def judge(site: Site, result: ServerScanResult) -> None:
    """No weak protocol, cipher, curve or certificate, none of the known holes, and a chain that verifies."""
    profile = MozillaTlsConfiguration.get(TlsConfigurationEnum.MOZILLA_INTERMEDIATE)
    # gRPC's library has this one, too. It is not in Mozilla's list because few use it, not because it is weak.
    profile = profile.model_copy(update={"tls_curves": profile.tls_curves | {"secp521r1"}})
    check_server_against_tls_configuration(result, profile)
    assert result.scan_result is not None
    found = result.scan_result
    for old in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert not getattr(found, f"{old}_cipher_suites").result.accepted_cipher_suites
    assert found.tls_1_3_cipher_suites.result is not None
    assert found.tls_1_3_cipher_suites.result.accepted_cipher_suites
    assert found.certificate_info.result is not None
    [deployment] = found.certificate_info.result.certificate_deployments
    [ours] = [
        validation
        for validation in deployment.path_validation_results
        if validation.trust_store.path == site.ca_bundle
    ]
    assert ours.was_validation_successful, ours  # the chain, and the name
    assert deployment.received_chain_has_valid_order
    assert not deployment.verified_chain_has_sha1_signature


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_report_port_passes_a_scan(site: Site, tmp_path: Path, name: str) -> None:
    result = scan(site, site.address, name, host_credentials(site, tmp_path))
    judge(site, result)


def test_the_report_port_lets_nobody_in_without_a_certificate(site: Site) -> None:
    result = scan(site, site.address)
    if result.connectivity_result is not None:
        assert result.connectivity_result.client_auth_requirement is ClientAuthRequirementEnum.REQUIRED
    else:  # closed before sslyze could ask for anything
        assert result.connectivity_status is ServerConnectivityStatusEnum.ERROR
        assert "closed the connection" in str(result.connectivity_error_trace)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_enrolment_port_passes_a_scan(site: Site, name: str) -> None:
    result = scan(site, site.enroll_address, name)
    judge(site, result)
    assert result.connectivity_result is not None
    assert result.connectivity_result.client_auth_requirement is ClientAuthRequirementEnum.DISABLED

"""Who may speak: machines enrol, renew, are revoked, renamed, removed and cloned. Real processes, real TLS."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import ssl
import stat
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from agent.certificate import pem_blocks
from agent.credential_files import CredentialFiles
from agent.keys import make_key_and_request
from bench.attackers import METHOD
from bench.simulated_host import LAYOUT
from collector.identity.authority import Authority, parse_certificates, parse_keys
from fleetpulse import convert
from fleetpulse.model import Hello, HostId, Report
from fleetpulse.v1 import ingest_pb2 as pb
from tests.conftest import require
from tests.mariadb_server import MariadbServer, database_of
from tests.processes import PROGRAMS, Program, Site, running_site, wait_until
from tests.relay import Relay
from tests.reporting_fleet import ReportingFleet

DAY = 86_400


def host(site: Site, name: str) -> Any:
    """What `hosts` says of one."""
    return next((entry for entry in site.json("hosts")["hosts"] if entry["hostname"] == name), None)


def is_fresh(site: Site, name: str) -> bool:
    found = host(site, name)
    return found is not None and found["presence"] == "fresh"


def wait_for_report(site: Site, name: str, seconds: float = 60) -> None:
    """Until a report arrives that was measured after this call."""
    before = time.time()

    def has_come() -> bool:
        measured = site.json("show", name)["measured_at"] if host(site, name) else None
        return measured is not None and parsed(measured) > before

    wait_until(has_come, seconds=seconds, what=f"a report of {name}")


def parsed(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def kinds(site: Site, name: str) -> list[str]:
    return [
        event["kind"]
        for event in site.json("events", "--limit", "10000")["events"]
        if event["hostname"] == name
    ]


def host_id(site: Site, name: str) -> HostId:
    return HostId((site.folder / name / "host_id").read_text().strip())


def test_an_enrolled_agent_reports_over_tls_and_its_key_is_its_own(site: Site) -> None:
    collector = site.collector(tls="on")
    done = site.enroll("one", groups="from-agent", token=site.token("--host", "one", "--group", "from-token"))
    assert host_id(site, "one") in done.stdout
    found = host(site, "one")
    assert found["presence"] == "never_seen"
    assert "from-token" in found["groups"]
    agent = site.agent("one", groups="from-agent")
    wait_until(lambda: is_fresh(site, "one"), what="a report")
    assert set(host(site, "one")["groups"]) == {"from-agent", "from-token"}
    assert kinds(site, "one").count("enrolled") == 1
    for folder in (site.folder / "one", site.identity_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in (
        site.folder / "one" / "host.pem",
        site.identity_dir / "ca.key",
        site.identity_dir / "server.pem",
    ):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # Enrolled is enrolled: again changes nothing, and needs no other token.
    certificate = (site.folder / "one" / "host.pem").read_bytes()
    assert "already" in site.enroll("one", token="fpt_" + "x" * 43).stdout
    assert (site.folder / "one" / "host.pem").read_bytes() == certificate
    assert agent.stop() == 0
    assert collector.stop() == 0
    assert "Traceback" not in collector.log + agent.log


def test_revoking_ends_the_stream_and_enrolling_again_works(sqlite_site: Site) -> None:
    site = sqlite_site
    site.collector(tls="on")
    site.enroll("one")
    site.enroll("two")
    agent, other = site.agent("one"), site.agent("two")
    wait_until(lambda: is_fresh(site, "one") and is_fresh(site, "two"), what="reports")
    identity = host(site, "one")["host_id"]

    site.cli("revoke", "one", "--yes", check=True)
    agent.wait_for_log("revoked")
    wait_for_report(site, "two")  # and with it, what the first one had sent before
    seen = site.json("show", "one")["measured_at"]
    wait_for_report(site, "two")
    assert site.json("show", "one")["measured_at"] == seen
    assert agent.stop() == 0
    again = site.agent("one")
    again.wait_for_log("revoked")
    assert site.json("show", "one")["measured_at"] == seen
    assert again.stop() == 0

    site.enroll("one", "--force")
    site.agent("one")
    wait_for_report(site, "one")
    assert host(site, "one")["host_id"] == identity
    assert {"enrolled", "revoked"} <= set(kinds(site, "one"))
    assert other.is_running
    assert "revoked" not in other.log


def test_a_removed_host_is_refused_and_enrols_again(sqlite_site: Site) -> None:
    site = sqlite_site
    site.collector(tls="on")
    site.enroll("one")
    agent = site.agent("one")
    wait_until(lambda: is_fresh(site, "one"), what="a report")
    identity = host(site, "one")["host_id"]
    site.cli("remove", "one", "--yes", check=True)
    agent.wait_for_log("enrol")
    assert host(site, "one") is None
    assert agent.stop() == 0
    site.enroll("one", "--force")
    site.agent("one")
    wait_for_report(site, "one")
    assert host(site, "one")["host_id"] == identity


def test_a_renamed_host_keeps_its_name_whatever_its_machine_says(sqlite_site: Site) -> None:
    site = sqlite_site
    site.collector(tls="on")
    site.enroll("one")
    agent = site.agent("one")
    wait_until(lambda: is_fresh(site, "one"), what="a report")
    site.cli("rename", "one", "web", check=True)
    wait_for_report(site, "web")
    assert agent.stop() == 0
    site.agent("one")
    wait_for_report(site, "web")
    assert [entry["hostname"] for entry in site.json("hosts")["hosts"]] == ["web"]
    assert site.json("show", "web")["own_name"] == "one"
    assert "renamed" in kinds(site, "web")


def test_a_reimaged_machine_takes_its_history_over_and_loses_nothing(
    mariadb_site: Site, mariadb: MariadbServer
) -> None:
    site = mariadb_site
    site.collector(tls="on")
    site.enroll("old")
    agent = site.agent("old")
    wait_until(lambda: is_fresh(site, "old"), what="a report")
    agent.kill()
    history = kinds(site, "old")
    # The re-imaged machine has come back as a new host. Each of its reports is a change of state.
    with ReportingFleet(site.address, 1, 0.2, enroller=site.enroller()) as fleet:
        wait_until(lambda: min(fleet.acked.values()) > 5, what="reports of the new one")
        now = min(fleet.made.values())
        site.cli("rebind", "old", "host-0", "--yes", "--force", check=True)
        wait_until(lambda: min(fleet.acked.values()) > now + 10, what="reports after that")
        fleet.drain()
        [(identity, made)] = fleet.made.items()
    [entry] = site.json("hosts")["hosts"]
    assert (entry["hostname"], entry["host_id"]) == ("old", identity)
    events = site.json("events", "--limit", "100000")["events"]
    swings = [event for event in events if event["subject"] == "swing" and event["kind"] == "state"]
    numbers = [int(event["message"].split()[0]) for event in swings]
    assert sorted(numbers) == list(range(1, made + 1)), "each once"
    database = database_of(site.database_url)
    assert mariadb.query("SELECT seq FROM host_seen", database=database) == [(made,)]
    told = kinds(site, "old")
    assert "rebound" in told
    assert set(history) <= set(told)


def test_a_cloned_machine_is_quarantined_and_the_original_undisturbed(sqlite_site: Site) -> None:
    require(missing_namespaces())
    site = sqlite_site
    collector = site.collector(tls="on")
    site.enroll("one")
    original = site.agent("one")
    wait_until(lambda: is_fresh(site, "one"), what="a report")
    clone_folder = site.folder / "clone"
    shutil.copytree(site.folder / "one", clone_folder, ignore=shutil.ignore_patterns("lock", "spool*"))

    with Relay(site.address, source="127.0.0.2") as network:
        clone = start_elsewhere(site, "clone", collector=network.address, hostname="one")
        refused = clone.wait_for_log("another machine has this identity")
        assert "127.0.0.1" in refused
        for command in (["status"], ["stale"]):
            [conflict] = site.json(*command)["conflicts"]
            assert_both_are_named(conflict)
        assert_both_are_named(site.json("show", "one")["conflict"])
        for command in (["status"], ["stale"], ["show", "one"]):
            shown = site.cli(*command).stdout
            assert "127.0.0.1" in shown
            assert "127.0.0.2" in shown
        # Again and again, also as another process: refused at once, and nothing moves.
        assert clone.stop() == 0
        clone = start_elsewhere(site, "clone", collector=network.address, hostname="one")
        clone.wait_for_log("another machine has this identity")
        wait_for_report(site, "one")
        found = host(site, "one")
        assert (found["address"], found["presence"]) == ("127.0.0.1", "fresh")
        assert original.is_running
        assert "ended" not in original.log
        assert kinds(site, "one").count("conflict") == 1
        assert {"silent", "reboot", "new-epoch"}.isdisjoint(kinds(site, "one"))
        assert clone.stop() == 0

        # The way out that the message names.
        site.enroll("clone", "--new-identity")
        start_elsewhere(site, "clone", collector=network.address)
        wait_for_report(site, "clone")
    assert is_fresh(site, "one")
    assert host(site, "clone")["host_id"] != host(site, "one")["host_id"]
    assert collector.stop() == 0
    assert "Traceback" not in collector.log


def assert_both_are_named(conflict: Any) -> None:
    accepted, [refused] = conflict["accepted"], conflict["refused"]
    assert (accepted["address"], refused["address"]) == ("127.0.0.1", "127.0.0.2")
    assert accepted["machine_id"]
    assert refused["machine_id"]
    assert accepted["machine_id"] != refused["machine_id"]


_OTHER_MACHINE = 'mount --bind "$0" /etc/machine-id && exec "$@"'


def unshare() -> list[str]:
    return ["unshare", "--mount", "--map-root-user"]


def missing_namespaces() -> str:
    """What keeps a process from having a machine-id of its own; empty when nothing does."""
    try:
        subprocess.run(
            [*unshare(), "sh", "-c", _OTHER_MACHINE, "/dev/null", "true"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return (
            f"no process can have a machine-id of its own here ({error}): that takes root or user namespaces"
        )
    return ""


def start_elsewhere(site: Site, name: str, **settings: str) -> Program:
    """An agent that finds itself on a machine with another id."""
    machine_id = site.folder / f"{name}.machine-id"
    machine_id.write_text(f"{uuid.uuid5(uuid.NAMESPACE_DNS, name).hex}\n")
    command = [*unshare(), "sh", "-c", _OTHER_MACHINE, str(machine_id), str(PROGRAMS / "fleet-agent"), "run"]
    return site.start(name, command, site.agent_environ(name, **settings))


class Client(NamedTuple):
    """What somebody shows at the report port. PEM."""

    key: bytes
    chain: bytes


def certificate_of(
    authority: Authority, name: str, *, at: float | None = None, lifetime: float = DAY
) -> Client:
    """A certificate for a host that nobody asked for."""
    key, request = make_key_and_request()
    [csr] = pem_blocks(request, "CERTIFICATE REQUEST")
    now = int((at or time.time()) * 1000)
    return Client(key, authority.sign_host(csr, name, now, lifetime).chain)


def own_certificate(site: Site, name: str) -> Client:
    stored = CredentialFiles(site.folder / name).load(host_id(site, name))
    return Client(stored.key, stored.chain)


def speak(site: Site, as_host: str, client: Client | None, *, plaintext: bool = False) -> tuple[str, str]:
    """Say Hello as a host and report; the status with which that ends."""
    hello = Hello(HostId(as_host), "hostile", "m", "b", 1, "1", 1000, 3000, instance="x")
    messages = [
        convert.encode_hello(hello),
        convert.encode_layout(LAYOUT),
        convert.encode_batch([convert.encode_report(Report(1, 1, LAYOUT, (0.5,) * LAYOUT.series_count))]),
    ]
    root = site.ca_bundle.read_bytes()
    credentials = grpc.ssl_channel_credentials(root, *(client or (None, None)))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    opened = (
        grpc.insecure_channel(site.address, options)
        if plaintext
        else grpc.secure_channel(site.address, credentials, options)
    )
    with opened as channel:
        call = channel.stream_stream(
            METHOD,
            request_serializer=pb.StreamRequest.SerializeToString,
            response_deserializer=pb.StreamResponse.FromString,
        )(iter(messages), timeout=60)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code().name, call.details()


def authority_of(site: Site) -> Authority:
    """The site's CA, as somebody has it who stole its key."""
    [key] = parse_keys((site.identity_dir / "ca.key").read_bytes())
    return Authority(parse_certificates(site.ca_bundle.read_bytes())[0], key)


def test_hostile_clients_get_nowhere_and_are_counted(sqlite_site: Site) -> None:
    site = sqlite_site
    collector = site.collector(tls="on")
    for name in ("victim", "insider", "outcast"):
        site.enroll(name)
    site.cli("revoke", "outcast", "--yes", check=True)
    victim = host_id(site, "victim")
    ours, theirs = authority_of(site), Authority.create(int(time.time() * 1000))
    expired = certificate_of(ours, victim, at=time.time() - DAY, lifetime=60)

    # Closed in the handshake, before a Hello is read.
    assert speak(site, victim, None)[0] == "UNAVAILABLE"
    assert speak(site, victim, certificate_of(theirs, victim))[0] == "UNAVAILABLE"
    assert speak(site, victim, expired)[0] == "UNAVAILABLE"
    assert speak(site, victim, None, plaintext=True)[0] == "UNAVAILABLE"
    # Signed by our CA, and not on the list: whoever has its key.
    code, details = speak(site, victim, certificate_of(ours, victim))
    assert code == "UNAUTHENTICATED", details
    # Another host's.
    code, details = speak(site, victim, own_certificate(site, "insider"))
    assert code == "PERMISSION_DENIED"
    assert victim in details
    code, details = speak(site, host_id(site, "outcast"), own_certificate(site, "outcast"))
    assert (code, "revoked" in details) == ("UNAUTHENTICATED", True)

    listed = site.json("hosts")["hosts"]
    assert {entry["hostname"]: entry["presence"] for entry in listed} == dict.fromkeys(
        ("victim", "insider", "outcast"), "never_seen"
    )
    # Who is who it says is heard, beside all that.
    site.agent("victim")
    wait_until(lambda: is_fresh(site, "victim"), what="a report")
    assert collector.stop() == 0
    counts = json.loads(collector.wait_for_log('"stopped"'))
    assert counts["unauthenticated"] >= 4
    assert counts["unknown_certificate"] >= 1
    assert counts["wrong_host"] >= 1
    assert counts["revoked"] >= 1
    assert "Traceback" not in collector.log


def test_an_agent_speaks_to_nobody_but_its_collector(sqlite_site: Site, tmp_path: Path) -> None:
    """A collector of somebody else's answers in the place of its own."""
    site, elsewhere = sqlite_site, tmp_path / "elsewhere"
    elsewhere.mkdir()
    with running_site(f"sqlite:///{elsewhere}/fleet.db", elsewhere) as impostor:
        site.collector(tls="on")
        impostor.collector(tls="on")
        # At enrolment, where nothing but the fingerprint is known, its token is not shown.
        token = site.token()
        site.address, own = impostor.address, site.address
        fingerprint = site.ca_fingerprint
        done = site.enroll("two", token=token, fingerprint=fingerprint, check=False)
        assert done.returncode != 0
        assert f"has no CA with the fingerprint {fingerprint}" in done.stderr
        site.address = own
        site.enroll("one")
        site.agent("one", collector=impostor.address).wait_for_log("is not of a CA that this machine trusts")
        site.enroll("two", token=token)  # it was not used
        assert impostor.json("hosts")["hosts"] == []
        # Had the fingerprint been wrong, its admin would know who tried.
        wait_until(lambda: impostor.json("events")["events"], what="an event of who left")
        [event] = impostor.json("events")["events"]
        assert event["kind"] == "enrolment-refused"
        assert "and left: wrong fingerprint" in event["message"]
        assert "127.0.0.1" in event["message"]


def test_a_token_is_good_for_what_it_was_made_for(sqlite_site: Site) -> None:
    site = sqlite_site
    site.collector(tls="on")
    used = site.token()
    site.enroll("one", token=used)
    short = site.token("--ttl", "1s")
    expires = time.monotonic() + 1.1
    wait_until(lambda: time.monotonic() > expires, what="the token to expire")
    attempts = {
        "is no token": "not-a-token",
        "not known here": "fpt_" + "A" * 43,
        "used up": used,
        "expired": short,
        "is for another, but this machine is called two": site.token("--host", "another"),
    }
    for said, token in attempts.items():
        done = site.enroll("two", token=token, check=False)
        assert (done.returncode, said in done.stderr) == (2, True), (said, done.stderr)
    # A machine that is known gets in with a token that is for it, and no other.
    done = site.enroll("one", "--force", token=site.token(), check=False)
    assert (done.returncode, "is known as one" in done.stderr) == (2, True), done.stderr
    site.enroll("one", "--force", token=site.token("--host", "one"))
    events = site.json("events", "--kind", "enrolment-refused", "--limit", "100")["events"]
    assert len(events) == len(attempts) + 1
    for said in (*attempts, "is known as one"):
        assert any(said in event["message"] and "127.0.0.1" in event["message"] for event in events), said
    assert [entry["hostname"] for entry in site.json("hosts")["hosts"]] == ["one"]


def test_a_connection_to_the_enrolment_port_is_closed_within_10_s_and_serves_nothing_else(
    sqlite_site: Site,
) -> None:
    site = sqlite_site
    site.collector(tls="on")
    # A machine that is busy with other things may take longer, but not every time.
    assert any(seconds_until_closed(site) < 10 for _ in range(3))


def seconds_until_closed(site: Site) -> float:
    """How long the enrolment port lets connections live, at most: of one that says nothing, and of one that speaks."""
    address, _, port = site.enroll_address.rpartition(":")
    context = ssl.create_default_context(cafile=str(site.ca_bundle))
    context.set_alpn_protocols(["h2"])
    began = time.monotonic()
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_connection((address, int(port)), timeout=40))
        polite = stack.enter_context(
            context.wrap_socket(
                socket.create_connection((address, int(port)), timeout=40), server_hostname=address
            )
        )
        polite.sendall(preface)
        credentials = grpc.ssl_channel_credentials(site.ca_bundle.read_bytes())
        channel = stack.enter_context(grpc.secure_channel(site.enroll_address, credentials))
        for method in (METHOD, "/grpc.health.v1.Health/Check"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=40)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with ThreadPoolExecutor(2) as threads:
            closed = threads.map(until_closed, (silent, polite))
        return max(closed) - began


def until_closed(connection: socket.socket) -> float:
    """When the other side closed it."""
    while connection.recv(4096):
        pass
    return time.monotonic()


def test_a_certificate_that_is_replaced_on_disk_is_used_without_a_restart(sqlite_site: Site) -> None:
    """The site's own CA and certificate; a broken one is told, and changes nothing."""
    site = sqlite_site
    now = int(time.time() * 1000)
    authority = Authority.create(now)
    files = {name: site.folder / name for name in ("ca_bundle", "ca_key", "certificate", "key")}

    def put(name: str, data: bytes) -> None:
        files[name].touch(0o600)
        files[name].write_bytes(data)

    def issue() -> bytes:
        """Replace the collector's certificate; its digest."""
        key, chain = authority.sign_server(["127.0.0.1", "localhost"], now, DAY)
        put("key", key)
        put("certificate", chain)
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(chain.decode())).digest()

    def shown() -> bytes:
        address, _, port = site.enroll_address.rpartition(":")
        pem = ssl.get_server_certificate((address, int(port)))
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()

    put("ca_bundle", authority.certificate_pem)
    put("ca_key", authority.key_pem)
    first = issue()
    collector = site.collector(tls="on", **{f"identity_{name}": str(path) for name, path in files.items()})
    site.enroll("one", fingerprint=authority.fingerprint.hex())
    agent = site.agent("one")
    wait_until(lambda: is_fresh(site, "one"), what="a report")
    assert shown() == first

    put("certificate", b"rubbish")
    collector.wait_for_log("the certificates stay as they were")
    assert shown() == first
    wait_for_report(site, "one")

    second = issue()
    wait_until(lambda: shown() == second, what="the new certificate")
    assert agent.stop() == 0
    agent = site.agent("one")
    wait_for_report(site, "one")
    assert "ended" not in agent.log
    assert collector.is_running


def settle(site: Site, mariadb: MariadbServer, fleet: ReportingFleet) -> None:
    """Everything that the fleet made is acked, and stored once."""
    fleet.drain()
    database = database_of(site.database_url)
    marks = mariadb.query(
        "SELECT h.host_id, s.seq FROM host h JOIN host_seen s ON s.host = h.id WHERE h.hostname LIKE 'host-%%'",
        database=database,
    )
    changes = mariadb.query(
        "SELECT h.host_id, COUNT(*) FROM host h JOIN event e ON e.host = h.id "
        "WHERE e.kind = 'state' AND h.hostname LIKE 'host-%%' GROUP BY h.id",
        database=database,
    )
    assert dict(marks) == fleet.made == fleet.acked
    assert dict(changes) == fleet.made, "each report is one change"


def renewals(site: Site) -> int:
    return len(site.json("events", "--kind", "renewed", "--limit", "100000")["events"])


def test_renewal_under_load_loses_nothing(mariadb_site: Site, mariadb: MariadbServer) -> None:
    """Certificates live for seconds, and every report is a change that would be missed."""
    site, hosts = mariadb_site, 16
    collector = site.collector(tls="on", identity_host_lifetime="18s")  # renewed after 12 s
    site.enroll("one")
    agent = site.agent("one", interval="200ms")
    with ReportingFleet(site.address, hosts, 0.1, enroller=site.enroller()) as fleet:
        wait_until(lambda: renewals(site) > 2 * hosts, seconds=90, what="two renewals each")
        wait_until(
            lambda: kinds(site, "one").count("renewed") >= 2, seconds=90, what="renewals of the real agent"
        )
        settle(site, mariadb, fleet)
    wait_for_report(site, "one")
    assert agent.log.count("certificate renewed") >= 2
    assert "refused" not in agent.log
    assert {"dropped", "new-epoch", "silent"}.isdisjoint(kinds(site, "one"))
    assert collector.stop() == 0
    counts = json.loads(collector.wait_for_log('"stopped"'))
    # Handshakes that failed are no measure here: who leaves in the middle of one, as hosts of a fleet that
    # ends do, looks the same. But who came too late with a certificate would never have come back.
    assert counts.get("expired", 0) == 0
    assert counts["renewed"] > 2 * hosts
    assert "Traceback" not in collector.log + agent.log


def test_a_change_of_the_ca_under_load_loses_nothing(mariadb_site: Site, mariadb: MariadbServer) -> None:
    site, hosts = mariadb_site, 16
    collector = site.collector(tls="on")
    old = site.ca_fingerprint
    for name in ("one", "away"):
        site.enroll(name)
    agent = site.agent("one")
    with ReportingFleet(site.address, hosts, 0.1, enroller=site.enroller()) as fleet:
        wait_until(lambda: min(fleet.acked.values()) > 3, what="reports")
        assert "new CA" in site.cli("ca", "rotate", check=True).stdout
        wait_until(lambda: renewals(site) >= hosts + 1, what="everybody who is there to renew")
        # One machine is off. It would be locked out, so the change waits for it.
        waiting = site.cli("ca", "finish")
        assert waiting.returncode == 3
        assert "1 certificate of the old CA" in waiting.stderr
        away = site.agent("away")  # trusts the old CA only
        wait_until(lambda: site.cli("ca", "finish").returncode == 0, what="the change to end")
        new = str(site.json("ca", "show")["fingerprint"])
        assert new != old
        site.enroll("late", fingerprint=new)
        late = site.agent("late")
        wait_for_report(site, "late")
        before = dict(fleet.made)
        wait_until(
            lambda: all(fleet.acked[one] > before[one] + 3 for one in before), what="reports after the change"
        )
        settle(site, mariadb, fleet)
    for name, program in (("one", agent), ("away", away)):
        assert program.stop() == 0
        site.agent(name)
        wait_for_report(site, name)
    stale = site.enroll("too-late", fingerprint=old, check=False)
    assert stale.returncode != 0
    assert "has no CA with the fingerprint" in stale.stderr
    assert late.is_running
    assert collector.stop() == 0
    assert "Traceback" not in collector.log

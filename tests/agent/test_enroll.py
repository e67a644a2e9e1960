"""`fleet-agent enroll` as admins call it, and the agent that runs afterwards: real processes, real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.config import AgentConfig
from agent.credential_files import CredentialFiles, NotStoredError
from agent.enrolment import EnrolmentOptions
from agent.enrolment import enroll as enroll_here
from agent.identity import stored_host_id
from agent.pinning import EnrolmentFailedError
from agent.target import Endpoint
from fleetpulse import convert
from fleetpulse.enrolment import EnrolRequest
from tests.agent.pki import Ca
from tests.agent.scripted_collector import Script, serving, until
from tests.agent.scripted_enrolment import Office, enrolling

ROOT = Path(__file__).parents[2]
AGENT = [sys.executable, "-m", "agent.cli"]
TOKEN = "fpt_a-secret-that-nobody-may-see"
CA, OTHER = Ca(), Ca("other")


def environ(folder: Path, **settings: str) -> dict[str, str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("FLEETPULSE", "GRPC_"))
    }
    own = {"FLEETPULSE_AGENT_STATE_DIR": str(folder / "state"), "FLEETPULSE_AGENT_INTERVAL": "200ms"}
    return clean | own | {f"FLEETPULSE_AGENT_{key}": value for key, value in settings.items()}


async def call(
    folder: Path, *arguments: str, stdin: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run fleet-agent while the event loop serves."""
    return await asyncio.to_thread(
        subprocess.run,
        [*AGENT, *arguments],
        env=environ(folder, **settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        input=stdin,
        check=False,
        timeout=30,
    )


async def enroll(
    folder: Path, enroll_port: int, *more: str, port: int = 18443, ca: str = CA.fingerprint, **settings: str
) -> subprocess.CompletedProcess[str]:
    token = folder / "token"
    if not token.exists():
        token.write_text(f"{TOKEN}\n")
        token.chmod(0o600)
    own = [
        "--collector", f"127.0.0.1:{port}", "--enroll-port", str(enroll_port),
        "--token-file", str(token), "--ca-fingerprint", ca,
    ]  # fmt: skip
    done = await call(folder, "enroll", *own, *more, **settings)
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environ(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*AGENT, "run"], env=environ(folder, **settings), cwd=ROOT, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def ingest(ca: Ca = CA) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([ca.server()], ca.pem, require_client_auth=True)


def test_a_machine_enrols_and_reports(tmp_path: Path) -> None:
    async def test() -> None:
        office, script, state = Office(CA), Script(), tmp_path / "state"
        before = await call(tmp_path, "run")
        assert before.returncode == 3
        assert before.stderr.startswith("fleet-agent: this machine is not enrolled (no ")
        assert "fleet-agent enroll" in before.stderr
        async with enrolling(office) as enroll_port, serving(script, credentials=ingest()) as port:
            done = await enroll(tmp_path, enroll_port, "--hostname", "web-17", port=port)
            assert (done.returncode, done.stderr) == (0, "")
            host_id = stored_host_id(state / "host_id")
            assert f"enrolled as web-17, {host_id}, with 127.0.0.1:{port}" in done.stdout
            [request] = office.requests
            assert (request.token, request.host_id, request.hostname) == (TOKEN, host_id, "web-17")
            assert office.asked_for_trust == 1
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()}
            assert modes.pop("lock") == 0o600
            assert modes == dict.fromkeys(("host_id", "host.pem", "ca.pem", "enrolment.json"), 0o600)
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
            shown = await call(tmp_path, "check-config")
            assert f"# enrolled as {host_id}, its certificate holds until 20" in shown.stdout
            assert f'\ncollector = "127.0.0.1:{port}"\n' in shown.stdout
            with running(tmp_path) as agent:
                await until(lambda: len(script.reports) >= 3)
                hello = script.hellos[0]
                agent.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(agent.wait, 10) == 0
            assert (hello.host_id, hello.hostname) == (host_id, "web-17")
            assert uuid.UUID(hello.instance).version == 4
            assert hello.hardware_id == request.hardware_id
            assert hello.machine_id == request.machine_id
            with running(tmp_path, HOSTNAME="other-name"):
                await until(lambda: len(script.hellos) == 2)
            assert script.hellos[1].instance != hello.instance
            assert script.hellos[1].hostname == "other-name"

    run(test)


def test_enrolling_again_changes_nothing_unless_asked(tmp_path: Path) -> None:
    async def test() -> None:
        office, host_file = Office(CA), tmp_path / "state" / "host.pem"
        async with enrolling(office) as port:
            assert (await enroll(tmp_path, port, "--hostname", "web-17")).returncode == 0
            first = host_file.read_bytes()
            (tmp_path / "token").unlink()  # used, and not looked at
            token = tmp_path / "token"
            os.mkfifo(token)  # reading it would never end
            again = await enroll(tmp_path, port, "--json")
            assert again.returncode == 0
            content = json.loads(again.stdout)
            assert content["is_new"] is False
            assert content["host_id"] == office.requests[0].host_id
            assert content["collector"] == "127.0.0.1:18443"
            assert abs(content["not_after"] / 1000 - time.time() - 3600) < 60
            assert len(office.requests) == 1
            token.unlink()
            forced = await enroll(tmp_path, port, "--force", "--json")
            assert json.loads(forced.stdout)["is_new"] is True
            assert host_file.read_bytes() != first
            # Each of these makes it another enrolment.
            assert (await enroll(tmp_path, port, port=28443)).returncode == 0
            assert json.loads((tmp_path / "state" / "enrolment.json").read_text())["collector"].endswith(
                ":28443"
            )
            (tmp_path / "state" / "host.pem").write_text("damaged")
            assert (await enroll(tmp_path, port, port=28443)).returncode == 0
            office.lifetime = -1
            assert (await enroll(tmp_path, port, "--force", port=28443)).returncode == 0
            office.lifetime = 3600
            assert (await enroll(tmp_path, port, port=28443)).returncode == 0
        assert len(office.requests) == 6
        assert {(request.host_id, request.hostname) for request in office.requests} == {
            (office.requests[0].host_id, "web-17")
        }

    run(test)


def test_the_first_fingerprint_still_counts_when_the_fleet_has_another_ca(tmp_path: Path) -> None:
    async def test() -> None:
        office = Office(CA)
        async with enrolling(office) as port:
            assert (await enroll(tmp_path, port)).returncode == 0
            CredentialFiles(tmp_path / "state").store_bundle(OTHER.pem)
            for fingerprint in (CA.fingerprint, OTHER.fingerprint):
                again = await enroll(tmp_path, port, ca=fingerprint)
                assert (again.returncode, again.stdout.startswith("already enrolled")) == (0, True)
        assert len(office.requests) == 1

    run(test)


def test_a_collector_that_was_set_up_anew_is_another_enrolment(tmp_path: Path) -> None:
    async def test() -> None:
        async with enrolling(Office(CA)) as port:
            assert (await enroll(tmp_path, port)).returncode == 0
        async with enrolling(Office(OTHER)) as port:
            assert (await enroll(tmp_path, port, ca=OTHER.fingerprint)).returncode == 0
        assert (tmp_path / "state" / "ca.pem").read_bytes() == OTHER.pem

    run(test)


def upper_with_colons(fingerprint: str) -> str:
    digits = fingerprint.upper()
    return "SHA256:" + ":".join(digits[i : i + 2] for i in range(0, 64, 2))


def test_the_fingerprint_as_people_write_it_and_a_bundle_of_two(tmp_path: Path) -> None:
    async def test() -> None:
        async with enrolling(Office(CA, bundle=OTHER.pem + CA.pem)) as port:
            done = await enroll(tmp_path, port, ca=upper_with_colons(CA.fingerprint))
            assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "state" / "ca.pem").read_bytes() == OTHER.pem + CA.pem

    run(test)


def test_an_impostor_gets_no_token(tmp_path: Path) -> None:
    """Whether it has another CA, or shows ours without having its key, or mixes both."""

    async def test() -> None:
        for bundle in (b"", CA.pem, OTHER.pem + CA.pem):
            impostor = Office(OTHER, claimed_bundle=bundle)
            async with enrolling(impostor) as port:
                done = await enroll(tmp_path, port)
            assert done.returncode == 3
            if bundle:
                assert "this is not your collector" in done.stderr
            else:
                assert (
                    f"has no CA with the fingerprint {CA.fingerprint}; it has {OTHER.fingerprint}"
                    in done.stderr
                )
            assert not impostor.requests
        assert not (tmp_path / "state" / "ca.pem").exists()

    run(test)


@pytest.mark.parametrize(
    ("code", "text", "exit_code"),
    [
        ("UNAUTHENTICATED", "this token expired an hour ago", 2),
        ("PERMISSION_DENIED", "this token is for web-18, not for web-17", 2),
        ("ALREADY_EXISTS", "this host is known; collector-cli token create --host", 2),
        ("INVALID_ARGUMENT", "the key is too weak", 2),
        ("RESOURCE_EXHAUSTED", "too many attempts from 127.0.0.1", 3),
        ("UNAVAILABLE", "the database is away", 3),
        ("UNIMPLEMENTED", "takes no enrolments; is the port right?", 3),
    ],
)
def test_a_refusal_is_told_in_the_collectors_words(
    tmp_path: Path, code: str, text: str, exit_code: int
) -> None:
    async def test() -> None:
        async with enrolling(Office(CA, refuse=(grpc.StatusCode[code], f"{text}\x1b[31m"))) as port:
            done = await enroll(tmp_path, port)
        assert (done.returncode, done.stdout) == (exit_code, "")
        assert text in done.stderr
        assert "\x1b" not in done.stderr
        assert done.stderr.startswith("fleet-agent: the collector refused this machine: ") is (exit_code == 2)
        assert done.stderr.count("\n") == 1
        # Nothing that could be taken for an enrolment, and the same machine's next try.
        assert {path.name for path in (tmp_path / "state").iterdir()} == {"host_id", "lock"}

    run(test)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (
            {"names": ("collector.example", "192.0.2.1")},
            "is for collector.example, 192.0.2.1, not for 127.0.0.1",
        ),
        ({"begin": 1000}, "holds only from 20"),
        ({"begin": -100, "end": -50}, "expired on 20"),
    ],
)
def test_a_server_certificate_that_does_not_do(tmp_path: Path, server: dict[str, Any], said: str) -> None:
    async def test() -> None:
        office = Office(CA)
        async with enrolling(office, **server) as port:
            done = await enroll(tmp_path, port)
        assert done.returncode == 3
        assert said in done.stderr
        assert not office.requests
        # The collector's admin gets to know of a wrong name from who asks and does not enrol.
        assert office.asked_for_trust == (1 if "names" in server else 0)

    run(test)


def test_wrong_ports_and_places(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(Script(), credentials=ingest()) as port:
            done = await enroll(tmp_path, port)
            assert (done.returncode, "looks like the port to which hosts report" in done.stderr) == (3, True)
        async with serving(Script()) as port:
            done = await enroll(tmp_path, port)
            assert (done.returncode, "does not speak TLS" in done.stderr) == (3, True)
        done = await enroll(tmp_path, port)
        assert (done.returncode, "Connection refused" in done.stderr) == (3, True)
        done = await call(
            tmp_path, "enroll", "--collector", "nowhere.invalid:1", "--token-file", str(tmp_path / "token"),
            "--ca-fingerprint", CA.fingerprint,
        )  # fmt: skip
        assert (done.returncode, "cannot reach nowhere.invalid:2: " in done.stderr) == (3, True)

    run(test)


@pytest.mark.parametrize(
    ("options", "settings", "said"),
    [
        ({"--collector": None}, {}, "which collector?"),
        ({"--collector": "collector"}, {}, "--collector: expected HOST:PORT"),
        ({"--collector": "unix:/run/x"}, {}, 'a unix socket is for tls = "off"'),
        (
            {"--ca-fingerprint": "abc"},
            {},
            "--ca-fingerprint: expected the SHA-256 of the CA's certificate, 64 hex digits, got 'abc'",
        ),
        ({"--token-file": "missing"}, {}, "cannot read the token from missing: No such file"),
        ({"--token-file": "/dev/null"}, {}, "/dev/null holds no token"),
        ({"--enroll-port": "70000"}, {}, "70000 is no port to enrol at"),
        ({"--hostname": "x" * 300}, {}, "--hostname: longer than 255 characters"),
        ({}, {"TLS": "off"}, 'tls is "off"'),
        ({}, {"COLLECTOR": "nonsense"}, "FLEETPULSE_AGENT_COLLECTOR: expected HOST:PORT"),
    ],
)
def test_wrong_usage_is_one_line_and_3(
    tmp_path: Path, options: dict[str, str | None], settings: dict[str, str], said: str
) -> None:
    good: dict[str, str | None] = {
        "--collector": "127.0.0.1:1", "--token-file": "-", "--ca-fingerprint": CA.fingerprint,
    }  # fmt: skip
    arguments = [word for name, value in (good | options).items() if value for word in (name, value)]
    done = asyncio.run(call(tmp_path, "enroll", *arguments, stdin=TOKEN, **settings))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert said in done.stderr


def test_the_token_from_standard_input_and_one_that_everybody_may_read(tmp_path: Path) -> None:
    async def test() -> None:
        office = Office(CA)
        async with enrolling(office) as port:
            arguments = ["--enroll-port", str(port), "--token-file", "-", "--ca-fingerprint", CA.fingerprint]
            done = await call(tmp_path, "enroll", *arguments, stdin=f"{TOKEN}\n", COLLECTOR="127.0.0.1:5")
            assert (done.returncode, done.stderr) == (0, "")
            (tmp_path / "token").write_text(TOKEN)
            (tmp_path / "token").chmod(0o644)
            done = await enroll(tmp_path, port, "--force")
            assert done.returncode == 0
            assert "is readable by every user of this machine" in done.stderr
            done = await call(tmp_path, "enroll", *arguments, stdin="two words", COLLECTOR="127.0.0.1:6")
            assert (done.returncode, "standard input holds no token: expected one word" in done.stderr) == (
                3,
                True,
            )
        assert [request.token for request in office.requests] == [TOKEN, TOKEN]

    run(test)


def test_a_copy_becomes_a_host_of_its_own(tmp_path: Path) -> None:
    async def test() -> None:
        office, script, state = Office(CA), Script(), tmp_path / "state"
        async with enrolling(office) as enroll_port, serving(script, credentials=ingest()) as port:
            assert (await enroll(tmp_path, enroll_port, port=port)).returncode == 0
            with running(tmp_path) as agent:
                await until(lambda: len(script.reports) >= 1)
                refused = await enroll(tmp_path, enroll_port, "--new-identity", port=port)
                assert refused.returncode == 3
                assert "stop it first" in refused.stderr
                assert len(office.requests) == 1
                # With the same identity the running agent takes the new certificate with its next stream.
                again = await enroll(tmp_path, enroll_port, "--force", port=port)
                assert again.returncode == 0
                assert "the running agent uses the new certificate" in again.stderr
                await script.say(convert.encode_goodbye(0))
                await until(lambda: len(script.shown) == 2)
                assert script.shown[0] != script.shown[1]
                agent.send_signal(signal.SIGKILL)
            old = stored_host_id(state / "host_id")
            enrolment = json.loads((state / "enrolment.json").read_text())
            (state / "enrolment.json").write_text(json.dumps(enrolment | {"hardware_id": "another"}))
            with running(tmp_path):
                await until(
                    lambda: (
                        "this host enrolled on other hardware (another, now "
                        in (tmp_path / "log").read_text()
                    )
                )
            copied = await enroll(tmp_path, enroll_port, port=port)
            assert copied.returncode == 0
            assert "enrol it anew with --new-identity" in copied.stderr
            done = await enroll(tmp_path, enroll_port, "--new-identity", port=port)
            assert done.returncode == 0
            new = stored_host_id(state / "host_id")
            assert new != old
            assert [r.host_id for r in office.requests] == [old, old, new]
            assert any(path.name.startswith("spool.db.before-") for path in state.iterdir())
            assert not (state / "spool.db").exists()
            known = len(script.hellos)
            with running(tmp_path):
                await until(lambda: len(script.hellos) > known)
            assert script.hellos[-1].host_id == new

    run(test)


@pytest.mark.parametrize(
    ("office", "said"),
    [
        (Office(CA, certify_host=str(uuid.uuid4())), "is not a certificate of this host"),
        (Office(CA, forget_csr=True), "key and certificate do not belong together"),
        (
            Office(CA, bundle=b"garbage", claimed_bundle=CA.pem),
            "cannot be used: there is no certificate (PEM)",
        ),
    ],
)
def test_an_answer_that_makes_no_sense_changes_nothing(tmp_path: Path, office: Office, said: str) -> None:
    async def test() -> None:
        state = tmp_path / "state"
        async with enrolling(Office(OTHER)) as port:
            assert (await enroll(tmp_path, port, ca=OTHER.fingerprint)).returncode == 0
        before = {path.name: path.read_bytes() for path in state.iterdir() if path.name != "lock"}
        async with enrolling(office) as port:
            done = await enroll(tmp_path, port, "--new-identity")
        assert done.returncode == 3
        assert said in done.stderr
        assert {path.name: path.read_bytes() for path in state.iterdir() if path.name != "lock"} == before

    run(test)


def test_root_enrols_for_the_user_whose_directory_it_is(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")

    async def test() -> None:
        folder, victim = tmp_path / "home", tmp_path / "victim"
        state = folder / "state"
        state.mkdir(parents=True)
        victim.write_text("root's own")
        for place in (state, *folder.parents):
            if str(place).startswith("/tmp/"):
                place.chmod(0o755)
        os.chown(state, 65534, 65534)
        (state / "lock").symlink_to(victim)
        async with enrolling(Office(CA)) as port:
            done = await enroll(folder, port)
            assert (done.returncode, "cannot use the state directory" in done.stderr) == (3, True)
            (state / "lock").unlink()
            done = await enroll(folder, port)
            assert (done.returncode, done.stderr) == (0, "")
        assert {(path.stat().st_uid, path.stat().st_gid) for path in state.iterdir()} == {(65534, 65534)}
        assert victim.read_text() == "root's own"

    run(test)


def test_the_token_is_in_no_argument_and_in_no_repr(tmp_path: Path) -> None:
    # A port that answers nothing, so that there is time to look.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        (tmp_path / "token").write_text(TOKEN)
        arguments = ["--collector", "127.0.0.1:1", "--enroll-port", port, "--ca-fingerprint", CA.fingerprint]
        process = start([*AGENT, "enroll", *arguments, "--token-file", str(tmp_path / "token")], tmp_path)
        silent.settimeout(10)
        connection, _ = silent.accept()
        with contextlib.closing(connection):
            for what in ("cmdline", "environ"):
                assert TOKEN not in Path(f"/proc/{process.pid}/{what}").read_text()
        process.kill()
        process.communicate()
    request = EnrolRequest(TOKEN, stored_host_id(tmp_path / "state" / "host_id"), "h", "m", "x", "0", b"csr")
    assert TOKEN not in repr(request)


def test_keys_are_made_elsewhere_and_the_library_never_loaded(tmp_path: Path) -> None:
    """A renewal by the real agent: `cryptography` in a process of its own, gone with it."""

    async def test() -> None:
        office, script = (
            Office(CA, begin=-1000, lifetime=300),
            Script(certify=lambda host_id, csr: CA.host(host_id, csr)[1]),
        )
        async with enrolling(office) as enroll_port, serving(script, credentials=ingest()) as port:
            assert (await enroll(tmp_path, enroll_port, port=port)).returncode == 0
            long_ago = time.time() - 900
            os.utime(tmp_path / "state" / "host.pem", (long_ago, long_ago))
            probe = (
                "import asyncio, sys\n"
                "from agent.cli import main\n"
                "try: main(['run'])\n"
                "finally: print(*[name for name in sys.modules if 'cryptography' in name or 'agent.keys' in name])"
            )
            process = start([sys.executable, "-c", probe], tmp_path)
            try:
                await until(lambda: len(set(script.shown)) == 2)
                process.send_signal(signal.SIGTERM)
                output, _ = await asyncio.to_thread(process.communicate, None, 10)
            finally:
                process.kill()
            assert output == "\n"
        holds = (
            CredentialFiles(tmp_path / "state").load(stored_host_id(tmp_path / "state" / "host_id")).validity
        )
        assert holds.not_after > time.time() + 1000
        assert script.seqs() == list(range(1, len(script.seqs()) + 1))

    run(test)


def test_a_key_that_others_could_read_is_closed_to_them_and_told(tmp_path: Path) -> None:
    async def test() -> None:
        script, host_file = Script(), tmp_path / "state" / "host.pem"
        async with enrolling(Office(CA)) as enroll_port, serving(script, credentials=ingest()) as port:
            assert (await enroll(tmp_path, enroll_port, port=port)).returncode == 0
            host_file.chmod(0o644)
            with running(tmp_path):
                await until(lambda: len(script.hellos) == 1)
        assert stat.S_IMODE(host_file.stat().st_mode) == 0o600
        assert "was open to other users" in (tmp_path / "log").read_text()

    run(test)


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        state = tmp_path / "state"
        async with enrolling(Office(CA)) as port:
            assert (await enroll(tmp_path, port)).returncode == 0
        for name, content, said in (
            ("host_id", None, "host_id is missing; restore it, or"),
            ("host_id", f"{uuid.uuid4()}\n", "host.pem: is not a certificate of this host"),
            ("host.pem", None, "host.pem is missing; enrol this machine again"),
            ("host.pem", "", "host.pem cannot be used: no private key and certificate"),
            ("ca.pem", "x", "ca.pem cannot be used: there is no certificate"),
            ("enrolment.json", "{", "enrolment.json is damaged: "),
            ("enrolment.json", None, "this machine is not enrolled"),
        ):
            good = (state / name).read_bytes()
            (state / name).unlink() if content is None else (state / name).write_text(content)
            done = await call(tmp_path, "run")
            (state / name).write_bytes(good)
            assert done.returncode == 3
            assert said in done.stderr.splitlines()[-1], name
            assert "Traceback" not in done.stderr

    run(test)


def test_a_host_that_is_refused_enrols_again_without_being_told_twice(tmp_path: Path) -> None:
    async def test() -> None:
        office, state = Office(CA), tmp_path / "state"
        script = Script(refuse_hello=(grpc.StatusCode.UNAUTHENTICATED, "this host's certificate was revoked"))
        async with enrolling(office) as enroll_port, serving(script, credentials=ingest()) as port:
            assert (await enroll(tmp_path, enroll_port, port=port)).returncode == 0
            with running(tmp_path):
                await until((state / "refused").exists)
            shown = await call(tmp_path, "check-config")
            assert "# the collector does not accept it: refused: this host's certificate was" in shown.stdout
            again = await enroll(tmp_path, enroll_port, port=port)
            assert (again.returncode, len(office.requests)) == (0, 2)
            assert (
                "it is enrolled, but the collector does not accept its certificate (refused: " in again.stderr
            )
            assert not (state / "refused").exists()
            again = await enroll(tmp_path, enroll_port, port=port)
            assert again.stdout.startswith("already enrolled")

    run(test)


def test_a_full_disk_shows_before_the_token_is_spent(tmp_path: Path) -> None:
    async def limited(kib: int, port: int) -> subprocess.CompletedProcess[str]:
        command = [*AGENT, "enroll", "--collector", "127.0.0.1:1", "--enroll-port", str(port),
            "--token-file", "-", "--ca-fingerprint", CA.fingerprint]  # fmt: skip
        return await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", f'ulimit -f {kib}; exec "$@"', "-", *command],
            env=environ(tmp_path) | {"PYTHONDONTWRITEBYTECODE": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            input=TOKEN,
            check=False,
            timeout=30,
        )

    async def test() -> None:
        office = Office(CA)
        async with enrolling(office) as port:
            for kib, said in (
                (0, "cannot store the host's id in "),
                (16, "there is no room for what enrolling"),
            ):
                done = await limited(kib, port)
                assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
                assert done.stderr.startswith(f"fleet-agent: {said}")
                assert "File too large" in done.stderr
            assert not office.requests
            assert {path.name for path in (tmp_path / "state").iterdir()} == {"host_id", "lock"}

    run(test)


def test_a_disk_that_fails_after_the_token_was_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        def fail(*_: object) -> None:
            raise NotStoredError("cannot store host.pem: No space left on device")

        monkeypatch.setattr(CredentialFiles, "store_pair", fail)
        token = tmp_path / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        office = Office(CA, name="web-17")
        async with enrolling(office) as port:
            options = EnrolmentOptions(
                Endpoint("127.0.0.1", 1), port, str(token), bytes.fromhex(CA.fingerprint)
            )
            config = AgentConfig(state_dir=tmp_path / "state")
            with pytest.raises(EnrolmentFailedError) as raised:
                await asyncio.to_thread(enroll_here, options, config, print)
        assert len(office.requests) == 1
        assert str(raised.value) == (
            "cannot store host.pem: No space left on device. The collector knows this machine by now, and the"
            " token may be used up: then get one made for it (collector-cli token create --host web-17) and"
            " enrol again with --force"
        )

    run(test)


def test_grpc_itself_says_nothing_and_leftovers_are_removed(tmp_path: Path) -> None:
    async def test() -> None:
        state = tmp_path / "state"
        async with enrolling(Office(CA)) as enroll_port, serving(Script(), credentials=ingest(OTHER)) as port:
            assert (await enroll(tmp_path, enroll_port, port=port)).returncode == 0
            left = [
                state / f".{name}.0123456789abcdef" for name in ("host.pem", "ca.previous.pem", "host_id")
            ]
            for path in left:
                path.write_text("cut short")
            kept = state / ".host.pem.mine"
            kept.write_text("kept")
            with running(tmp_path):
                await until(lambda: "is not of a CA that" in (tmp_path / "log").read_text())
            assert [path for path in (*left, kept) if path.exists()] == [kept]
            done = await enroll(tmp_path, enroll_port, "--force", "--enroll-port", str(port))
            assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        for line in (tmp_path / "log").read_text().splitlines():
            assert line.startswith("20"), line

    run(test)


def test_an_agent_starts_on_a_full_disk(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "host_id").write_text(f"{uuid.uuid4()}\n")
    command = ["bash", "-c", 'ulimit -f 0; exec "$@"', "-", *AGENT, "run"]
    settings = environ(tmp_path, TLS="off", COLLECTOR="127.0.0.1:1") | {"PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, env=settings, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = [process.stderr.readline() for _ in range(2)]
        finally:
            process.kill()
    assert "reports are kept in memory" in lines[0]
    assert "reports to 127.0.0.1:1 every" in lines[1]

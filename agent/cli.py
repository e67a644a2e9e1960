"""The command `fleet-agent`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from fleetpulse import __version__

if TYPE_CHECKING:
    from agent.config import AgentConfig

_Value = TypeVar("_Value")

UNKNOWN = 3
"""The exit code of monitoring plugins for "could not even try": usage, configuration, start."""
REFUSED = 2
"""The exit code of `enroll` when the collector said no, so that the same again will not help."""

_EXAMPLES = """\
examples:
  fleet-agent once                     what a report of this machine says
  fleet-agent once --json              the same for a program
  fleet-agent check-config             the settings in effect, and where they come from
  fleet-agent enroll --collector collector.example:18443 --token-file token --ca-fingerprint SHA256
  fleet-agent run                      report until stopped
  fleet-agent run --config agent.toml  with a configuration of your own
  FLEETPULSE_AGENT_INTERVAL=5s fleet-agent run

The configuration is /etc/fleetpulse/agent.toml if that exists, or the file that --config or the
variable FLEETPULSE_AGENT_CONFIG names. Every key has an override in the environment: [spool] max_age
is FLEETPULSE_AGENT_SPOOL_MAX_AGE.

exit codes: 0 done, or stopped by SIGTERM or SIGINT; 2 enroll: the collector refused this machine;
3 wrong usage or configuration, could not start, or could not reach the collector to enrol
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(UNKNOWN, f"{self.prog}: {message} (try {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
    # grpc's own messages are for its developers; what matters of them comes as our errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    options = _parser().parse_args(arguments)
    try:
        code = _dispatch(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _parser() -> _Parser:
    parser = _Parser(
        prog="fleet-agent",
        description="Measures this machine and reports to the fleetpulse collector.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fleet-agent {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--config", metavar="FILE", type=Path, help="read this configuration, in TOML")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("run", parents=[common], help="measure and report until stopped")
    once = commands.add_parser("once", parents=[common], help="measure once and print")
    once.add_argument("--json", action="store_true", help="print JSON")
    _add_enroll(commands.add_parser("enroll", parents=[common], help="make this machine a host of the fleet"))
    commands.add_parser("check-config", parents=[common], help="print the settings in effect")
    return parser


def _add_enroll(enroll: argparse.ArgumentParser) -> None:
    enroll.add_argument(
        "--collector",
        metavar="HOST:PORT",
        help="the port to which hosts report (default: the configuration's)",
    )
    enroll.add_argument(
        "--token-file",
        metavar="FILE",
        required=True,
        help="what collector-cli token create printed; - is stdin",
    )
    enroll.add_argument(
        "--ca-fingerprint",
        metavar="SHA256",
        required=True,
        help="of the collector's CA: collector-cli ca show",
    )
    enroll.add_argument("--hostname", metavar="NAME", default="", help="what this host is called")
    enroll.add_argument(
        "--enroll-port", metavar="N", type=int, default=0, help="the port to enrol at (default: the next)"
    )
    enroll.add_argument(
        "--new-identity", action="store_true", help="become another host: this is a copy of one"
    )
    enroll.add_argument("--force", action="store_true", help="enrol even if this machine is enrolled")
    enroll.add_argument("--json", action="store_true", help="print JSON")


def _dispatch(options: argparse.Namespace) -> int:
    # Imported late: --help and --version should answer at once.
    from agent.config import ConfigError, load_agent_config

    try:
        loaded = load_agent_config(options.config, os.environ)
    except ConfigError as error:
        return _fail(str(error))
    if options.command == "check-config":
        from agent.config import as_toml

        origin = str(loaded.path) if loaded.path else "defaults"
        for variable in loaded.variables:
            origin += f", {variable}"
        print(f"# from {origin}")
        enrolled_at = _print_enrolment(loaded.config) if loaded.config.tls == "on" else None
        print(as_toml(loaded.config, enrolled_at))
        return 0
    if options.command == "enroll":
        return _enroll(options, loaded.config)
    if options.command == "once":
        from agent.once import as_json, as_table, measure_twice

        measured = measure_twice(loaded.config)
        print(as_json(measured) if options.json else as_table(measured))
        return 0

    from agent.credential_files import CredentialsError
    from agent.identity import IdentityError
    from agent.logs import configure_logging
    from agent.service import run
    from agent.state_dir import StateDirError

    configure_logging(loaded.config.log.format, loaded.config.log.level)
    try:
        run(loaded.config)
    except (StateDirError, IdentityError, CredentialsError) as error:
        return _fail(str(error))
    return 0


def _print_enrolment(config: AgentConfig) -> str | None:
    """As what this machine is enrolled, as a comment; where it enrolled, None: nowhere."""
    from agent.credential_files import CredentialFiles, CredentialsError
    from agent.identity import IdentityError, existing_host_id
    from agent.refusal import noted_refusal
    from agent.terminal import escape

    files = CredentialFiles(config.state_dir)
    collector = None
    try:
        collector = files.enrolment().collector
        host_id = existing_host_id(config.state_dir / "host_id")
        stored = files.load(host_id or "")
    except (CredentialsError, IdentityError) as error:
        print(f"# {error}")
    else:
        print(f"# enrolled as {host_id}, its certificate holds until {stored.validity.until}")
        refused = noted_refusal(config.state_dir, stored.chain)
        if refused:
            print(f"# the collector does not accept it: {escape(refused)}")
    return collector


def _enroll(options: argparse.Namespace, config: AgentConfig) -> int:
    from agent.credential_files import CredentialFiles, CredentialsError
    from agent.enrolment import EnrolmentOptions, enroll
    from agent.identity import IdentityError
    from agent.pinning import EnrolmentFailedError, EnrolmentRefusedError, parse_fingerprint
    from agent.state_dir import StateDirError
    from agent.target import parse_endpoint
    from fleetpulse.convert import MAX_NAME

    if config.tls == "off":
        return _fail('tls is "off" in the configuration; only with TLS there is something to enrol for')
    if len(options.hostname) > MAX_NAME:
        return _fail(f"--hostname: longer than {MAX_NAME} characters")
    try:
        collector = (
            options.collector
            or config.target(None)
            or CredentialFiles(config.state_dir).enrolment().collector
        )
    except CredentialsError:
        return _fail("which collector? Give --collector HOST:PORT, or set collector in the configuration")
    try:
        asked = EnrolmentOptions(
            collector=_named("--collector", parse_endpoint, collector),
            enroll_port=options.enroll_port,
            token_file=options.token_file,
            ca_fingerprint=_named("--ca-fingerprint", parse_fingerprint, options.ca_fingerprint),
            hostname=options.hostname,
            new_identity=options.new_identity,
            force=options.force,
        )
    except ValueError as error:
        return _fail(str(error))
    try:
        standing = enroll(asked, config, warn=lambda text: print(f"fleet-agent: {text}", file=sys.stderr))
    except EnrolmentRefusedError as error:
        _fail(f"the collector refused this machine: {error}")
        return REFUSED
    except (EnrolmentFailedError, CredentialsError, IdentityError, StateDirError) as error:
        return _fail(str(error))
    if options.json:
        shown = {
            "host_id": standing.host_id,
            "name": standing.name,
            "collector": standing.collector,
            "not_after": standing.validity.not_after * 1000,
            "is_new": standing.is_new,
        }
        print(json.dumps(shown))
    else:
        from agent.terminal import escape

        how = "enrolled" if standing.is_new else "already enrolled (--force enrols again)"
        print(f"{how} as {escape(standing.name)}, {standing.host_id}, with {standing.collector}")
        print(f"the certificate holds until {standing.validity.until} and is renewed before")
    return 0


def _named(option: str, parse: Callable[[str], _Value], text: str) -> _Value:
    """Raises ValueError with the option's name in it."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _fail(problem: str) -> int:
    print(f"fleet-agent: {problem}", file=sys.stderr)
    return UNKNOWN


if __name__ == "__main__":
    main()

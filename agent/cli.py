"""The command `fleet-agent`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fleetpulse import __version__

UNKNOWN = 3
"""The exit code of monitoring plugins for "could not even try": usage, configuration, start."""

_EXAMPLES = """\
examples:
  fleet-agent once                     what a report of this machine says
  fleet-agent once --json              the same for a program
  fleet-agent check-config             the settings in effect, and where they come from
  fleet-agent run                      report until stopped
  fleet-agent run --config agent.toml  with a configuration of your own
  FLEETPULSE_AGENT_INTERVAL=5s fleet-agent run

The configuration is /etc/fleetpulse/agent.toml if that exists, or the file that --config or the
variable FLEETPULSE_AGENT_CONFIG names. Every key has an override in the environment: [spool] max_age
is FLEETPULSE_AGENT_SPOOL_MAX_AGE.

exit codes: 0 done, or stopped by SIGTERM or SIGINT; 3 wrong usage or configuration, or could not start
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(UNKNOWN, f"{self.prog}: {message} (try {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script."""
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
    commands.add_parser("check-config", parents=[common], help="print the settings in effect")
    return parser


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
        print(as_toml(loaded.config))
        return 0
    if options.command == "once":
        from agent.once import as_json, as_table, measure_twice

        measured = measure_twice(loaded.config)
        print(as_json(measured) if options.json else as_table(measured))
        return 0

    from agent.identity import IdentityError
    from agent.logs import configure_logging
    from agent.service import run
    from agent.state_dir import StateDirError

    configure_logging(loaded.config.log.format, loaded.config.log.level)
    try:
        run(loaded.config)
    except (StateDirError, IdentityError) as error:
        return _fail(str(error))
    return 0


def _fail(problem: str) -> int:
    print(f"fleet-agent: {problem}", file=sys.stderr)
    return UNKNOWN


if __name__ == "__main__":
    main()

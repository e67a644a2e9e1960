"""The entry point of collector-cli: commands loaded when they are run, and every way to end."""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from fleetpulse import __version__

# Command: its module and what it does in a few words. Kept here, so that `--help` loads none of them.
COMMANDS = {
    "stale": ("collector.cli.stale", "Who is silent, since when, and why."),
    "status": ("collector.cli.status", "The fleet at a glance, the worst hosts first."),
    "hosts": ("collector.cli.hosts", "Every host."),
    "show": ("collector.cli.show", "All that is known of one host."),
    "events": ("collector.cli.events", "What changed."),
    "token": ("collector.cli.token", "Let machines enroll: make, list or revoke tokens."),
    "ssh": ("collector.cli.ssh", "Machines reached over SSH: how, and whom to trust."),
    "rename": ("collector.cli.rename", "Call a host something else."),
    "rebind": ("collector.cli.rebind", "Let a re-imaged machine go on with its history."),
    "revoke": ("collector.cli.revoke", "Accept a host's certificate no more."),
    "remove": ("collector.cli.remove", "Forget hosts that are gone for good."),
    "ca": ("collector.cli.ca", "Make, show or change the CA that signs certificates."),
    "db": ("collector.cli.db", "Upgrade or check the database's schema."),
    "doctor": ("collector.cli.doctor", "Is the collector's own house in order?"),
}

EXIT_UNKNOWN = 3  # of the monitoring plugins: the question could not be answered
EXIT_INTERRUPTED = 130  # what shells show for SIGINT
EXIT_BROKEN_PIPE = 141  # and for SIGPIPE

# Objects made before the first look for cycles. An answer about 100,000 hosts is a million objects without any:
# with the default of 700, looking through them took half of the time of `hosts` (bench/read.py).
_GARBAGE_THRESHOLD = 1_000_000


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order in which an admin needs them."""
        return list(COMMANDS)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; how it ended. A reader that left, as `head` does, is no error."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _silence_stdout()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list in `--help`, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The collector's configuration. [default: $FLEETPULSE_CONFIG, else /etc/fleetpulse/collector.toml]",
)
@click.option("--no-color", is_flag=True, help="No colours on a terminal; NO_COLOR=1 does the same.")
@click.version_option(__version__, prog_name="collector-cli")
@click.pass_context
def cli(ctx: click.Context, config_path: Path | None, *, no_color: bool) -> None:
    """Say how every machine is, what changed, and which went silent.

    Reads the collector's database. Tables on a terminal, plain columns in a pipe, --json for programs.

    \b
    Examples:
      collector-cli stale --older-than 5m
      collector-cli status --watch
      collector-cli show web-17
      collector-cli events --since 1h --follow

    Exit codes are those of the monitoring plugins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (also for
    a wrong command line or a database that cannot be read).
    """
    from collector.cli.session import Session

    ctx.obj = Session(config_path, color=not no_color)


def main() -> NoReturn:
    """Run the command line and end the process."""
    gc.set_threshold(_GARBAGE_THRESHOLD)
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _silence_stdout()
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run a command line; its exit code. Nothing but a defect leaves a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal may know fewer characters than hosts do
    try:
        status = cli.main(arguments, prog_name="collector-cli", standalone_mode=False)
    except click.UsageError as error:
        _show(error)
        return EXIT_UNKNOWN
    except click.ClickException as error:
        return _fail(error.message)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except _expected_errors() as error:  # evaluated only when something was raised
        return _fail(str(error))
    return status if isinstance(status, int) else 0


def _expected_errors() -> tuple[type[Exception], ...]:
    from collector.store.errors import StoreError
    from fleetpulse.config import ConfigError

    return StoreError, ConfigError


def _show(error: click.UsageError) -> None:
    """As click does, but harmless: what was typed may be what a host calls itself."""
    from collector.core.render import escape

    text = io.StringIO()
    error.show(text)
    click.echo("\n".join(map(escape, text.getvalue().split("\n"))), err=True, nl=False)


def _fail(message: str) -> int:
    from collector.cli.session import complain

    complain(message)
    return EXIT_UNKNOWN


def _silence_stdout() -> int:
    """See that what is still buffered does not complain at exit, and end as SIGPIPE would."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE


if __name__ == "__main__":
    main()

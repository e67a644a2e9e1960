"""collector-cli ssh trust: which host keys are trusted."""

from __future__ import annotations

from pathlib import Path

import click

from collector.cli import options
from collector.cli.change import yes_option
from collector.cli.session import Session


@click.command("trust", short_help="Trust the keys that hosts show.")
@click.argument("names", nargs=-1, metavar="[HOST]...")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="The hosts of this group; may be repeated."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=options.label,
    metavar="KEY[=VALUE]",
    help="The hosts with this label; may be repeated, and all must match.",
)
@click.option("--untrusted", is_flag=True, help="The polled hosts of which nothing is trusted yet.")
@yes_option
@click.option("--replace", is_flag=True, help="Also where another key was trusted, which is forgotten.")
@click.option("--fingerprint", metavar="SHA256:...", help="Only the key of this fingerprint; asks nothing.")
@click.option(
    "--known-hosts",
    "known_hosts",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Trust the keys in a known_hosts file; - is standard input.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Trust the hosts that show a certificate of this CA, a public key.",
)
@click.option("--for", "pattern", metavar="PATTERN", help="With --ca: only hosts called so.  [default: *]")
@click.option("--list", "is_list", is_flag=True, help="List the trusted keys.")
@click.option(
    "--forget", multiple=True, metavar="NAME", help="Trust no key of NAME any more; may be repeated."
)
@options.json_option
@click.pass_obj
def command(
    session: Session,
    names: tuple[str, ...],
    groups: tuple[str, ...],
    labels: options.Labels,
    known_hosts: Path | None,
    ca: Path | None,
    pattern: str | None,
    forget: tuple[str, ...],
    fingerprint: str | None,
    *,
    untrusted: bool,
    yes: bool,
    replace: bool,
    is_list: bool,
    as_json: bool,
) -> int:
    """Trust the keys that hosts show, once somebody has compared their fingerprints.

    The collector talks to no host whose key is not trusted: somebody in between could answer for it.
    HOST, a whole hostname or UUID, or a jump host on the way to one, [USER@]HOST[:PORT], is asked for its
    keys, which are shown, and trusted for that host if you say so. Compare them with what the machine itself says, on
    its console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub

    A host that shows another key than the trusted one is refused, and its collector's event says so,
    until it is trusted with --replace.

    \b
    Examples:
      collector-cli ssh trust printer-3 printer-4
      collector-cli ssh trust printer-3 --fingerprint SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU
      collector-cli ssh trust --untrusted --group lab-3
      collector-cli ssh trust --known-hosts ~/.ssh/known_hosts
      collector-cli ssh trust --ca /etc/ssh/host_ca.pub --for '*.lab.example.org'
      collector-cli ssh trust --list
      collector-cli ssh trust --forget printer-3

    Exit codes: 0 all of them are trusted; 1 a host did not show a key; 2 a host shows another key than
    the trusted one; 3 nothing was done, and the message says why.
    """
    from collector.cli import ssh_trust_hosts, ssh_trust_lines

    is_asking = bool(names or groups or labels or untrusted)
    ways = [is_asking, known_hosts is not None, ca is not None, is_list, bool(forget)]
    if sum(ways) != 1 or (names and (groups or labels or untrusted)):
        raise click.UsageError(
            "give one of: HOST..., --group and --label and --untrusted, --known-hosts, --ca, --list, --forget"
        )
    if not all((*names, *groups, *forget)):
        raise click.UsageError("a name is empty")
    if replace and not is_asking and known_hosts is None:
        raise click.UsageError("--replace goes with HOST, --group, --label and --known-hosts")
    if fingerprint is not None and len(names) != 1:
        raise click.UsageError("--fingerprint is of one HOST")
    if pattern is not None and ca is None:
        raise click.UsageError("--for goes with --ca")
    if is_asking:
        wanted = ssh_trust_hosts.Wish(
            names, groups, labels, fingerprint or "", untrusted=untrusted, replace=replace, yes=yes
        )
        return ssh_trust_hosts.trust_hosts(session, wanted, as_json=as_json)
    if known_hosts is not None:
        return ssh_trust_lines.take_file(session, known_hosts, replace=replace, as_json=as_json)
    if ca is not None:
        return ssh_trust_lines.take_authority(
            session, ca, "*" if pattern is None else pattern, as_json=as_json
        )
    if is_list:
        return ssh_trust_lines.show_lines(session, as_json=as_json)
    return ssh_trust_lines.forget(session, forget, as_json=as_json)

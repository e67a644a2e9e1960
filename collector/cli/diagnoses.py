"""Why silent hosts are silent, and where what is known of a host comes from, as the commands show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from collector.cli.times import utc
from collector.config import Ssh
from collector.core.diagnosis import DiagnosisKind
from collector.store.diagnoses import StoredDiagnosis, current, load_diagnoses
from collector.store.reading import HostLine
from collector.store.ssh_hosts import load_group_settings, load_ssh_hosts
from collector.store.store import Transaction


def find_current(tx: Transaction, hosts: Iterable[HostLine]) -> dict[int, StoredDiagnosis]:
    """What was found out about the present silence of these hosts, by their numbers."""
    heard = {host.host: host.received_at for host in hosts}
    stored = load_diagnoses(tx, heard)
    return {host: one for host in stored if (one := current(stored, host, heard[host])) is not None}


def without_unasked(
    tx: Transaction, found: dict[int, StoredDiagnosis], site: Ssh
) -> dict[int, StoredDiagnosis]:
    """For a summary: that a host was not probed is no news where SSH is not in use at all."""
    if site.has_credentials or load_ssh_hosts(tx) or load_group_settings(tx):
        return found
    return {host: one for host, one in found.items() if one.kind is not DiagnosisKind.NOT_PROBED}


def source(found: StoredDiagnosis | None, *, polled: bool) -> str:
    """Where what is known of a host comes from: "agent", or "ssh" if it is polled or SSH is asked instead."""
    return "ssh" if polled or (found is not None and found.health_at) else "agent"


def kinds(found: Iterable[str]) -> str:
    """For a summary: " (2 host dead; 1 agent dead, host up)", the most frequent first; empty for none."""
    counts = Counter(found)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f" ({'; '.join(f'{number} {kind}' for kind, number in ordered)})" if ordered else ""


def diagnosis_json(found: StoredDiagnosis | None) -> dict[str, object] | None:
    """See docs/cli.md."""
    if found is None:
        return None
    return {
        "kind": found.kind.value,
        "evidence": found.evidence,
        "since": utc(found.since),
        "probed_at": utc(found.probed_at),
        "health_at": utc(found.health_at),
    }

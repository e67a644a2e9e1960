"""What a host's record is called, and which machine it stands for.

A record is a host's rows: its number, name, groups, labels, history. Each change is part of one transaction, and
raises StoreConflict where that has to be tried again.
"""

from __future__ import annotations

from typing import NamedTuple

from collector.core.status import Event, EventKind, Silence
from collector.store.certificates import revoke_host
from collector.store.errors import StoreConflict
from collector.store.ssh_hosts import note_change
from collector.store.ssh_known_hosts import rename_known_host
from collector.store.statuses import write_events
from collector.store.store import Transaction
from collector.store.tokens import end_tokens

# What a machine says of itself; it goes wherever the machine goes.
_PLACE = "machine_id, boot_id, agent_version, address, interval_ms, ttl_ms, hardware_id, instance, collector"
_SET_PLACE = ", ".join(f"{column} = %s" for column in _PLACE.split(", "))


class _Record(NamedTuple):
    host_id: str
    hostname: str
    own_name: str
    place: tuple[object, ...]

    @property
    def machines_name(self) -> str:
        return self.own_name or self.hostname


class _Seen(NamedTuple):
    epoch: int
    seq: int
    received_at: int
    measured_at: int
    silence: Silence


def rename_host(tx: Transaction, host: int, name: str, now: int) -> str:
    """Call a host something else than it calls itself; the name that it had. Writes the event.

    Its own name ends that. A stream that is open goes on under the old name until its next Hello. The SSH host
    keys that are trusted of the old name are from now on those of the new one.
    Raises StoreConflict if the host was removed meanwhile.
    """
    record = _lock(tx, (host,))[host]
    if record.hostname == name:
        return name
    own_name = "" if record.machines_name == name else record.machines_name
    tx.execute("UPDATE host SET hostname = %s, own_name = %s WHERE id = %s", (name, own_name, host))
    # Every collector's writer reads the host anew.
    tx.execute("UPDATE host_seen SET version = version + 1 WHERE host = %s", (host,))
    is_shared = bool(tx.query("SELECT 1 FROM host WHERE hostname = %s AND id <> %s", (record.hostname, host)))
    if rename_known_host(tx, record.hostname, name, now, keep=is_shared):
        note_change(tx)
    write_events(tx, [(host, name, Event(now, EventKind.RENAMED, old=record.hostname, new=name))])
    return record.hostname


def revoke(tx: Transaction, host: int, hostname: str, now: int) -> int:
    """Accept none of a host's certificates and tokens any more; how many certificates. Writes the event.

    A token that was made for the host earlier may be in the same wrong hands.
    """
    end_tokens(tx, host, now)
    revoked = revoke_host(tx, host, now)
    if revoked:
        write_events(tx, [(host, hostname, Event(now, EventKind.REVOKED))])
    return revoked


def rebind(tx: Transaction, old: int, new: int, now: int) -> None:
    """Let the record `old` stand for the machine of `new`, whose own record ends. Writes the event.

    The name, the groups, the labels, the check states, facts, values and events of `old` stay, so that the machine's next
    report is compared with them; checks that only `new` has keep their state. Its identity, certificates, place and high-water mark are from now on
    those of `new`, so that its stream goes on where it is after another Hello. Tokens for either are no
    longer valid, and neither are the certificates of `old`. Raises StoreConflict if one of the two was
    removed meanwhile.
    """
    records = _lock(tx, (old, new))
    before, after = _lock_seen(tx, old), _lock_seen(tx, new)
    revoke_host(tx, old, now)
    tx.execute("DELETE FROM conflict WHERE host = %s", (old,))
    for host in (old, new):
        end_tokens(tx, host, now)
    for table in ("certificate", "conflict", "event", "enrolment_token"):
        tx.execute(f"UPDATE {table} SET host = %s WHERE host = %s", (old, new))  # noqa: S608 - names of ours
    if before.received_at:
        _take_unknown_checks(tx, old, new)
    else:
        _take_history(tx, old, new)
    if not tx.execute("DELETE FROM host WHERE id = %s", (new,)):  # its UUID must be free before it is given
        raise StoreConflict("a host was removed while it was rebound")
    machine, record = records[new], records[old]
    own_name = "" if machine.machines_name == record.hostname else machine.machines_name
    tx.execute(
        f"UPDATE host SET host_id = %s, own_name = %s, {_SET_PLACE} WHERE id = %s",  # noqa: S608 - names of ours
        (machine.host_id, own_name, *machine.place, old),
    )
    seen = _continue(before, after)
    tx.execute(
        "UPDATE host_seen SET version = version + 1, epoch = %s, seq = %s, received_at = %s, measured_at = %s, "
        "silence = %s WHERE host = %s",
        (*seen, old),
    )
    events = [
        Event(
            now,
            EventKind.REBOUND,
            old=record.host_id,
            new=machine.host_id,
            message=f"the machine known as {machine.hostname} until now",
        )
    ]
    if before.silence is Silence.ALONE and seen.silence is Silence.NONE:
        events.append(Event(now, EventKind.BACK))
    write_events(tx, [(old, record.hostname, event) for event in events])


def _lock(tx: Transaction, hosts: tuple[int, ...]) -> dict[int, _Record]:
    """The records of these hosts, which nobody else changes until the commit."""
    found: dict[int, _Record] = {}
    for host in sorted(hosts):  # all who lock several go upwards
        rows = tx.query(
            f"SELECT host_id, hostname, own_name, {_PLACE} FROM host WHERE id = %s{tx.dialect.for_update}",  # noqa: S608 - names of ours
            (host,),
        )
        if not rows:
            raise StoreConflict("a host was removed meanwhile")
        host_id, hostname, own_name, *place = rows[0]
        found[host] = _Record(host_id, hostname, own_name, tuple(place))
    return found


def _lock_seen(tx: Transaction, host: int) -> _Seen:
    rows = tx.query(
        "SELECT epoch, seq, received_at, measured_at, silence FROM host_seen "  # noqa: S608 - a constant
        f"WHERE host = %s{tx.dialect.for_update}",
        (host,),
    )
    if not rows:
        raise StoreConflict("a host was removed meanwhile")
    epoch, seq, received_at, measured_at, silence = rows[0]
    return _Seen(epoch, seq, received_at, measured_at, Silence(silence))


def _take_history(tx: Transaction, old: int, new: int) -> None:
    """For a record that never had a report: what is known of its machine is that of its present record."""
    for table in ("check_state", "host_fact", "host_latest"):
        tx.execute(f"DELETE FROM {table} WHERE host = %s", (old,))  # noqa: S608 - names of ours
        tx.execute(f"UPDATE {table} SET host = %s WHERE host = %s", (old, new))  # noqa: S608 - names of ours
    facts = tx.query("SELECT facts_hash FROM host WHERE id = %s", (new,))
    tx.execute("UPDATE host SET facts_hash = %s WHERE id = %s", (*facts[0], old))


def _take_unknown_checks(tx: Transaction, old: int, new: int) -> None:
    """Checks of which the record never heard go on as they are: a change of state may be next."""
    known = set(tx.query("SELECT name, instance FROM check_state WHERE host = %s", (old,)))
    found = tx.query("SELECT name, instance FROM check_state WHERE host = %s ORDER BY name, instance", (new,))
    tx.execute_many(
        "UPDATE check_state SET host = %s WHERE host = %s AND name = %s AND instance = %s",
        [(old, new, *check) for check in found if check not in known],
    )


def _continue(before: _Seen, after: _Seen) -> _Seen:
    """How the record stands once it has gone on to the machine of another."""
    if not after.received_at:  # nothing heard of it yet: what was heard last is what the record heard
        return before._replace(epoch=after.epoch, seq=after.seq)
    if after.silence is not Silence.NONE and before.silence is Silence.ALONE:
        return after._replace(silence=Silence.ALONE)  # announced once is enough
    return after

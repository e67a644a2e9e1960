"""What enrolment has to know of a record, and how another machine takes one over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from collector.core.render import listed
from collector.core.silence import Presence, presence
from collector.core.status import Silence
from collector.store.collectors import Listening
from collector.store.errors import StoreConflict
from collector.store.store import Transaction

_RECORDS = (
    "SELECT h.id, h.host_id, h.hostname, h.own_name, h.machine_id, h.hardware_id, h.address, h.ttl_ms, "
    "s.received_at, s.silence FROM host h JOIN host_seen s ON s.host = h.id"
)


class KnownRecord(NamedTuple):
    """A record, as far as it matters for who may enrol as it. Times and durations in milliseconds.

    `own_name` is what the machine calls itself, if the record is called something else; `silence` a `Silence`.
    """

    host: int
    host_id: str
    hostname: str
    own_name: str
    machine_id: str
    hardware_id: str
    address: str
    ttl: int
    received_at: int
    silence: int

    def presence(self, listening: Listening) -> Presence:
        """Whether its host is silent."""
        silence = Silence(self.silence)
        return presence(self.received_at, self.ttl, silence, listening.now, listening.since)

    def is_alive(self, now: int) -> bool:
        """Whether it has reported within its time-to-live."""
        return bool(self.received_at) and now - self.received_at <= self.ttl


def record_of(tx: Transaction, host_id: str) -> KnownRecord | None:
    """The record of that UUID, if there is one."""
    rows = tx.query(f"{_RECORDS} WHERE h.host_id = %s", (host_id,))
    return KnownRecord(*rows[0]) if rows else None


def record_number(tx: Transaction, host: int) -> KnownRecord | None:
    """The record of that number, if it is still there."""
    rows = tx.query(f"{_RECORDS} WHERE h.id = %s", (host,))
    return KnownRecord(*rows[0]) if rows else None


def take_over(tx: Transaction, record: KnownRecord, host_id: str, machine_id: str, hardware_id: str) -> None:
    """Let a machine go on as `record`, with its name, groups, history and events, under the UUID `host_id`.

    Where the record was before is forgotten, so that its next Hello may come from anywhere; so are the
    machines that were in conflict with it, because this may be one of them. Raises StoreConflict if the
    record is not stored as `record` any more.
    """
    locked = tx.query(
        f"SELECT 1 FROM host WHERE id = %s AND host_id = %s{tx.dialect.for_update}",  # noqa: S608 - a keyword of ours
        (record.host, record.host_id),
    )
    if not locked:
        raise StoreConflict("somebody else changed the same record")
    tx.execute(
        "UPDATE host SET host_id = %s, machine_id = %s, hardware_id = %s, boot_id = '', instance = '', "
        "collector = '' WHERE id = %s",
        (host_id, machine_id, hardware_id, record.host),
    )
    if host_id != record.host_id:
        # Another machine counts its reports anew. The version tells writers that what they remember is old.
        tx.execute(
            "UPDATE host_seen SET epoch = 0, seq = 0, version = version + 1 WHERE host = %s", (record.host,)
        )
    tx.execute("DELETE FROM conflict WHERE host = %s", (record.host,))


class AmbiguousName(Exception):
    """More than one record may be meant by a name; the text says which."""


class KnownNames:
    """Every record, by its UUID and by the names that it and its machine have, in any case of letters."""

    def __init__(self, records: Sequence[KnownRecord]):
        self._by_id = {record.host_id: record for record in records}
        self._by_name: dict[str, list[KnownRecord]] = {}
        self._by_own_name: dict[str, list[KnownRecord]] = {}
        for record in records:
            self._by_name.setdefault(record.hostname.casefold(), []).append(record)
            self._by_own_name.setdefault(record.own_name.casefold(), []).append(record)

    def find(self, name: str) -> KnownRecord | None:
        """The record with that UUID, else called so, else whose machine calls itself so. Raises AmbiguousName."""
        record = self._by_id.get(name.lower())
        if record is not None:
            return record
        found = self._by_name.get(name.casefold()) or self._by_own_name.get(name.casefold()) or []
        if len(found) > 1:
            candidates = listed([f"{record.hostname} ({record.host_id})" for record in found])
            raise AmbiguousName(f"{name!r} may be any of {len(found)} hosts: {candidates}")
        return found[0] if found else None


def load_known_names(tx: Transaction) -> KnownNames:
    """The names of every record."""
    return KnownNames([KnownRecord(*row) for row in tx.query(_RECORDS)])


def load_certified(tx: Transaction, now: int) -> set[int]:
    """The hosts that have a certificate that is accepted at that moment."""
    rows = tx.query(
        "SELECT DISTINCT host FROM certificate WHERE not_after > %s AND revoked_at IS NULL", (now,)
    )
    return {host for (host,) in rows}

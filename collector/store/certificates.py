"""The certificates with which hosts may speak. One that is not in here is refused, whoever signed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from collector.store.store import Transaction

_COLUMNS = "fingerprint, host, issuer, issued_at, not_after, revoked_at"


class CertificateRow(NamedTuple):
    """One certificate. `fingerprint` and `issuer` are the SHA-256 of a DER form, times milliseconds."""

    fingerprint: bytes
    host: int
    issuer: bytes
    issued_at: int
    not_after: int
    revoked_at: int | None = None

    def is_valid(self, now: int) -> bool:
        """Whether it is accepted at that moment."""
        return self.revoked_at is None and now < self.not_after


def add_certificate(tx: Transaction, row: CertificateRow) -> None:
    """Accept a certificate from now on."""
    tx.execute(f"INSERT INTO certificate ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s)", row)  # noqa: S608 - names of ours


def find_certificates(tx: Transaction, fingerprints: Sequence[bytes]) -> dict[bytes, CertificateRow]:
    """The known certificates among these."""
    rows = tx.query_in(f"SELECT {_COLUMNS} FROM certificate WHERE fingerprint IN (%s)", fingerprints)  # noqa: S608 - names of ours
    return {bytes(row[0]): _row(row) for row in rows}


def load_certificates(tx: Transaction, hosts: Sequence[int]) -> dict[int, list[CertificateRow]]:
    """Every certificate of these hosts, each host's newest first."""
    rows = tx.query_in(f"SELECT {_COLUMNS} FROM certificate WHERE host IN (%s)", hosts)  # noqa: S608 - names of ours
    found: dict[int, list[CertificateRow]] = {}
    for row in sorted(map(_row, rows), key=lambda row: row.issued_at, reverse=True):
        found.setdefault(row.host, []).append(row)
    return found


def supersede(tx: Transaction, used: CertificateRow) -> int:
    """Forget the host's certificates that are older than the one it uses now; how many."""
    return tx.execute(
        "DELETE FROM certificate WHERE host = %s AND issued_at < %s AND fingerprint <> %s AND revoked_at IS NULL",
        (used.host, used.issued_at, used.fingerprint),
    )


def forget_certificates(tx: Transaction, fingerprints: Sequence[bytes]) -> int:
    """Accept these certificates no more; how many there were."""
    return tx.execute_many(
        "DELETE FROM certificate WHERE fingerprint = %s", [(fingerprint,) for fingerprint in fingerprints]
    )


def revoke_host(tx: Transaction, host: int, now: int) -> int:
    """Accept none of the host's certificates any more; how many were accepted until now."""
    lock_certificates(tx, host)
    return tx.execute(
        "UPDATE certificate SET revoked_at = %s WHERE host = %s AND revoked_at IS NULL", (now, host)
    )


def lock_certificates(tx: Transaction, host: int) -> None:
    """Keep everybody else who calls this from adding or revoking certificates until the transaction ends.

    The host's row stands for them: one that is not there yet cannot be locked itself.
    """
    tx.query(f"SELECT id FROM host WHERE id = %s{tx.dialect.for_update}", (host,))  # noqa: S608 - a keyword of ours


def load_revoked(tx: Transaction, since: int) -> set[bytes]:
    """The fingerprints that were revoked at or after that moment."""
    rows = tx.query("SELECT fingerprint FROM certificate WHERE revoked_at >= %s", (since,))
    return {bytes(fingerprint) for (fingerprint,) in rows}


def count_by_issuer(tx: Transaction, now: int) -> dict[bytes, int]:
    """How many certificates are valid, by the fingerprint of the CA that signed them."""
    rows = tx.query(
        "SELECT issuer, COUNT(*) FROM certificate WHERE not_after > %s AND revoked_at IS NULL GROUP BY issuer",
        (now,),
    )
    return {bytes(issuer): int(count) for issuer, count in rows}


def forget_expired(tx: Transaction, before: int, limit: int) -> int:
    """Forget `limit` certificates at most that expired before that moment: the handshake refuses them. How many."""
    rows = tx.query("SELECT fingerprint FROM certificate WHERE not_after < %s LIMIT %s", (before, limit))
    return tx.execute_many("DELETE FROM certificate WHERE fingerprint = %s", rows)


def _row(row: Sequence[object]) -> CertificateRow:
    fingerprint, host, issuer, issued_at, not_after, revoked_at = row
    assert isinstance(fingerprint, bytes)
    assert isinstance(issuer, bytes)
    assert isinstance(host, int)
    assert isinstance(issued_at, int)
    assert isinstance(not_after, int)
    assert revoked_at is None or isinstance(revoked_at, int)
    return CertificateRow(fingerprint, host, issuer, issued_at, not_after, revoked_at)

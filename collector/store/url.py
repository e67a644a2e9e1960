"""Database addresses: sqlite:///path, mysql://user@host:port/db, mysql:///db?unix_socket=/path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from collector.store.errors import StoreMisconfigured

_SQLITE_FORM = "sqlite:///relative/path.db or sqlite:////absolute/path.db"
_MYSQL_FORM = "mysql://USER@HOST:PORT/DATABASE or mysql://USER@/DATABASE?unix_socket=/path"


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """An embedded database in one file."""

    path: Path

    def __str__(self) -> str:
        return f"sqlite:///{self.path}"


@dataclass(frozen=True, slots=True)
class MysqlUrl:
    """A MariaDB or MySQL server. The password travels apart, so that this is safe to print."""

    user: str
    host: str
    port: int
    unix_socket: str
    database: str

    def __str__(self) -> str:
        if self.unix_socket:
            return f"mysql://{self.user}@/{self.database}?unix_socket={self.unix_socket}"
        return f"mysql://{self.user}@{self.host}:{self.port}/{self.database}"


def parse_url(text: str) -> SqliteUrl | MysqlUrl:
    """Raises StoreMisconfigured for anything but the forms in this module's first line."""
    scheme, separator, rest = text.partition("://")
    if scheme == "sqlite" and separator:
        path = rest.removeprefix("/")
        if not rest.startswith("/") or not path:
            raise StoreMisconfigured(f"database {text!r}: expected {_SQLITE_FORM}")
        return SqliteUrl(_expand(path))
    if scheme == "mysql" and separator:
        return _parse_mysql(text)
    raise StoreMisconfigured(f"database {scheme!r}: expected {_SQLITE_FORM}, or {_MYSQL_FORM}")


def _expand(path: str) -> Path:
    try:
        if "\0" not in path:
            return Path(path).expanduser()
    except RuntimeError:  # a home folder that nobody has
        pass
    raise StoreMisconfigured(f"database: {path!r} is no path; expected {_SQLITE_FORM}")


def _parse_mysql(text: str) -> MysqlUrl:
    try:
        parts = urlsplit(text)
        port = parts.port or 3306
    except ValueError as error:
        raise StoreMisconfigured(f"database: {error}; expected {_MYSQL_FORM}") from None
    if parts.password is not None:
        raise StoreMisconfigured(
            "database: a password in the address would show up in process lists and logs; put it into "
            "a file named by database_password_file, or into FLEETPULSE_DATABASE_PASSWORD"
        )
    database = unquote(parts.path.removeprefix("/"))
    options = dict(parse_qsl(parts.query))
    unix_socket = options.pop("unix_socket", "")
    if options or not database or "/" in database or not parts.username:
        raise StoreMisconfigured(f"database {text!r}: expected {_MYSQL_FORM}")
    return MysqlUrl(unquote(parts.username), parts.hostname or "127.0.0.1", port, unix_socket, database)

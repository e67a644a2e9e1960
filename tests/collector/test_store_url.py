from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.store.errors import StoreMisconfigured
from collector.store.url import MysqlUrl, SqliteUrl, parse_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqlite:///fleet.db", SqliteUrl(Path("fleet.db"))),
        ("sqlite:////var/lib/fleet.db", SqliteUrl(Path("/var/lib/fleet.db"))),
        ("sqlite:///~/fleet.db", SqliteUrl(Path("~/fleet.db").expanduser())),
        ("mysql://u@db.example/fleet", MysqlUrl("u", "db.example", 3306, "", "fleet")),
        ("mysql://u@127.0.0.1:3307/fleet", MysqlUrl("u", "127.0.0.1", 3307, "", "fleet")),
        ("mysql://u@[::1]:3307/fleet", MysqlUrl("u", "::1", 3307, "", "fleet")),
        (
            "mysql://u%40x@/f%2Dt?unix_socket=/run/s%20q",
            MysqlUrl("u@x", "127.0.0.1", 3306, "/run/s q", "f-t"),
        ),
    ],
)
def test_forms(text: str, expected: object) -> None:
    assert parse_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fleet.db",
        "sqlite://fleet.db",
        "sqlite:///",
        "sqlite:///~nobody-of-that-name/f.db",
        "sqlite:///a\0b",
        "postgres://u@h/d",
        "mysql://h/d",
        "mysql://u@h",
        "mysql://u@h/a/b",
        "mysql://u@h:port/d",
        "mysql://u@h:99999/d",
        "mysql://u@h/d?ssl=1",
        "mysql://u@[::1/d",
    ],
)
def test_anything_else_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(StoreMisconfigured, match=r"expected (sqlite|mysql)://"):
        parse_url(text)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(StoreMisconfigured, match="FLEETPULSE_DATABASE_PASSWORD") as caught:
        parse_url("mysql://u:hunter2@h/d")
    assert "hunter2" not in str(caught.value)


@given(st.text())
def test_no_other_error(text: str) -> None:
    for prefix in ("", "sqlite:///", "mysql://", "mysql://u@h/"):
        with suppress(StoreMisconfigured):
            parse_url(prefix + text)

"""Which ends of streams a restart explains, and which are errors."""

from __future__ import annotations

import pytest

from bench.herd import sorted_out

GOODBYE = "the collector said goodbye"
LOST = "Stream removed (Socket closed) (UNAVAILABLE)"
REFUSED = "failed to connect to all addresses; last error: UNKNOWN: Connection refused (UNAVAILABLE)"
HANDSHAKE = (
    "the collector closed the connection in the TLS handshake: it does not accept this host's certificate"
)


def test_what_the_restart_explains_is_counted_and_no_error() -> None:
    endings = [(-3.0, GOODBYE), (-2.5, LOST), (-2.0, REFUSED), (-1.0, HANDSHAKE), (0.5, REFUSED)]
    found = sorted_out(endings, hosts=2)
    assert found == {
        "streams_ended": 5,
        "goodbye": 1,
        "lost": 1,
        "nobody": 3,
        "late": 1,
        "last_late_s": 0.5,
        "errors": {},
    }


@pytest.mark.parametrize(
    "ending",
    [
        (0.1, HANDSHAKE),
        (21.0, REFUSED),
        (-1.0, "no ack within 30 s"),
        (-1.0, "refused: no (INVALID_ARGUMENT)"),
    ],
)
def test_anything_else_is_an_error(ending: tuple[float, str]) -> None:
    assert sum(sorted_out([ending], hosts=100)["errors"].values()) == 1


def test_errors_that_differ_in_numbers_only_are_one() -> None:
    endings = [(1.0, "no ack within 30 s"), (2.0, "no ack within 31 s")]
    assert sorted_out(endings, hosts=100)["errors"] == {"no ack within 0 s": 2}


def test_a_stream_to_the_new_collector_that_breaks_is_one_more_than_the_collector_before_had() -> None:
    endings = [(-3.0, GOODBYE), (-2.0, LOST), (4.0, LOST)]
    assert sorted_out(endings, hosts=2)["errors"] == {"more streams ended than the collector before had": 1}


def test_each_host_has_one_try_under_way_when_the_collector_begins_to_listen() -> None:
    endings = [(1.0, REFUSED), (2.0, REFUSED), (3.0, REFUSED)]
    assert sorted_out(endings, hosts=2)["errors"] == {"more streams ended late than had begun before": 1}

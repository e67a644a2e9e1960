"""What is made of several rounds: medians, spreads, goals and comparisons."""

from __future__ import annotations

from itertools import islice
from typing import Any

from bench import ingest, rows, workers
from bench.everything import Everything

VARIANT = {"change": 0.01, "ratio": 1.2, "tuned_ratio": 1.444, "tls": False}
FOUND: dict[str, Any] = {
    "variants": [VARIANT, {**VARIANT, "tuned_ratio": 9.0}, {**VARIANT, "change": 1.0, "tuned_ratio": 1.7}],
    "rated": [
        {"hosts": 100, "collector_us": 100.0, "tuned_us": 50.0},
        {"hosts": 1000, "collector_us": 130.0, "tuned_us": 75.0},
    ],
    "half": {"p99_ms": 30.4},
}


def test_goals_are_of_the_first_variant():
    assert [goal.value for goal in ingest.goals(FOUND)] == [1.2, 1.3, 30]


def test_the_tuned_echo_is_beside_the_first_variant_of_each_share_of_changes():
    assert dict(ingest.comparisons(FOUND)) == {
        "collector CPU per report / tuned echo, 1% with a change": 1.44,
        "collector CPU per report / tuned echo, 100% with a change": 1.7,
        "tuned echo's CPU per report, dearest / cheapest of 100,1000 hosts": 1.5,
    }


def test_what_tls_adds_is_there_if_it_was_measured():
    assert ingest.comparisons({**FOUND, "tls_ratio": 1.251})[-1].value == 1.25


def test_a_table_that_was_not_written_in_a_round_counts_as_none():
    rounds = [{"rows": 2.0, "tables": {"seen": 1.0}}, {"rows": 2.2, "tables": {"seen": 1.0, "event": 0.2}}]
    assert rows.repeated(rounds) == {
        "rows": 2.1,
        "tables": {"seen": 1.0, "event": 0.1},
        "spread": {"rows": [2.0, 2.2]},
    }


class Connection:
    """Takes what is executed, and counts commits."""

    commits = 0

    def cursor(self) -> Connection:
        return self

    def execute(self, _: str) -> None: ...

    def executemany(self, _: str, __: Any) -> None: ...

    def commit(self) -> None:
        self.commits += 1


def test_everything_is_written_to_whole_batches():
    connection = Connection()
    assert Everything(connection, hosts=5).write(6, batch=2) == 7
    assert connection.commits == 4


def test_batches_go_round_all_hosts():
    batches = Everything(Connection(), hosts=5)._batches(2)
    assert [list(hosts) for hosts in islice(batches, 4)] == [[0, 1], [2, 3], [4], [0, 1]]


def test_connections_are_shared_out_but_none_has_too_few():
    assert [workers.pool_of_each(processes) for processes in (1, 2, 4)] == [8, 4, 4]

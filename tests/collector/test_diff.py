"""The comparison at the heart: what differs is written, what does not is not."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.core import diff
from collector.core.diff import Changes
from collector.core.rules import Direction, Rule, RuleSet
from collector.core.status import EventKind, HostRecord, HostStatus, Silence
from fleetpulse.model import CheckKey, CheckLayout, CheckResult, Layout, Measurement, Report, State

UTILIZATION = Measurement("system.filesystem.utilization", "1")
ROOT, HOME = CheckKey("filesystem", "/"), CheckKey("filesystem", "/home")
LAYOUT = Layout((CheckLayout(ROOT, (UTILIZATION,)), CheckLayout(HOME, (UTILIZATION,))))
RULES = RuleSet(
    [
        Rule(
            "filesystem",
            UTILIZATION.name,
            warning=0.8,
            warning_clear=0.7,
            critical=0.9,
            critical_clear=0.85,
        )
    ]
)
EPOCH = 7


class Host:
    """A host whose reports are taken one after another."""

    def __init__(self, rules=RULES, layout=LAYOUT):
        self.status = HostStatus()
        self.rules = rules
        self.layout = layout
        self.seq = 0
        self.now = 1_000

    def report(self, *values, results=(), epoch=EPOCH, layout=None, dropped=0, seq=None):
        self.seq = self.seq + 1 if seq is None else seq
        self.now += 15_000
        layout = layout or self.layout
        changes = Changes()
        report = Report(self.seq, self.now - 5, layout, values, tuple(results), dropped)
        self.status = diff.begin_epoch(self.status, epoch)
        self.status = diff.take_report(self.status, report, self.rules.plan(layout), self.now, changes)
        return changes

    def state(self, key=ROOT):
        return self.status.checks[key].state


def kinds(changes):
    return [event.kind for event in changes.events]


def test_the_first_report_writes_its_checks_and_no_events():
    host = Host()
    changes = host.report(0.1, 0.2)
    assert set(changes.checks) == {ROOT, HOME}
    assert changes.events == []
    assert (host.status.epoch, host.status.seq) == (EPOCH, 1)


def test_an_unchanged_report_changes_nothing_but_the_mark():
    host = Host()
    host.report(0.1, 0.2)
    changes = host.report(0.3, 0.4)
    assert (changes.checks, changes.events) == ({}, [])
    assert host.status.seq == 2
    assert host.status.received_at == host.now


def test_an_unchanged_bad_state_changes_nothing_either():
    host = Host()
    host.report(0.95, 0.2)
    changes = host.report(0.96, 0.2)
    assert (changes.checks, changes.events) == ({}, [])


def test_a_transition_is_one_event_that_names_value_and_threshold():
    host = Host()
    host.report(0.1, 0.2)
    changes = host.report(0.93, 0.2)
    (event,) = changes.events
    assert (event.kind, event.subject, event.instance) == (EventKind.STATE, "filesystem", "/")
    assert (event.old, event.new) == ("OK", "CRITICAL")
    assert event.message == "system.filesystem.utilization 0.93 >= 0.9"
    assert event.measured_at == host.now - 5
    assert set(changes.checks) == {ROOT}


def test_a_new_host_that_is_bad_says_so():
    changes = Host().report(0.93, 0.2)
    assert [(event.kind, event.new) for event in changes.events] == [(EventKind.STATE, "CRITICAL")]


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_what_took_effect_takes_none_again(seq):
    host = Host()
    for _ in range(3):
        host.report(0.1, 0.2)
    before = host.status
    changes = host.report(0.95, 0.95, seq=seq)
    assert host.status is before
    assert (changes.checks, changes.events) == ({}, [])


def test_hysteresis_holds_a_state_until_the_clear_value_is_passed():
    host = Host()
    states = []
    for value in (0.82, 0.75, 0.69, 0.75, 0.91, 0.86, 0.84, 0.71, 0.6):
        host.report(value, 0.1)
        states.append(host.state().name)
    assert states == [
        "WARNING", "WARNING", "OK", "OK", "CRITICAL", "CRITICAL", "WARNING", "WARNING", "OK",
    ]  # fmt: skip


def test_a_threshold_below():
    free = Measurement("free", "By")
    layout = Layout((CheckLayout(ROOT, (free,)),))
    rules = RuleSet(
        [Rule("filesystem", "free", direction=Direction.BELOW, warning=10, warning_clear=12, critical=5)]
    )
    host = Host(rules, layout)
    states = []
    for value in (11, 10, 11, 12.5, 5, 6, 13):
        changes = host.report(value)
        states.append(host.state().name)
        if value == 5:
            assert changes.events[0].message == "free 5 <= 5 By"
    assert states == ["OK", "WARNING", "WARNING", "OK", "CRITICAL", "WARNING", "OK"]


def test_a_state_counts_when_it_was_seen_often_enough_in_a_row():
    rules = RuleSet([Rule("filesystem", UTILIZATION.name, warning=0.8, occurrences=3)])
    host = Host(rules)
    values = (0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1)
    events = [[event.new for event in host.report(value, 0.1).events] for value in values]
    assert events == [[], [], [], [], [], ["WARNING"], [], [], [], [], ["OK"]]


def test_each_rule_of_a_check_asks_for_its_own_occurrences():
    busy = Measurement("busy", "1")
    layout = Layout((CheckLayout(ROOT, (UTILIZATION, busy)),))
    rules = RuleSet(
        [
            Rule("filesystem", UTILIZATION.name, critical=0.9),
            Rule("filesystem", "busy", warning=0.5, occurrences=3),
        ]
    )
    host = Host(rules, layout)
    states = []
    for values in (
        (0.95, 0.1),
        (0.1, 0.1),
        (0.1, 0.9),
        (0.1, 0.9),
        (0.1, 0.9),
        (0.1, 0.1),
        (0.1, 0.1),
        (0.1, 0.1),
    ):
        host.report(*values)
        states.append(host.state().name)
    assert states == ["CRITICAL", "OK", "OK", "OK", "WARNING", "WARNING", "WARNING", "OK"]


def test_a_failed_check_is_unknown_and_not_removed():
    host = Host()
    host.report(0.1, 0.2)
    failed = CheckResult(1, State.UNKNOWN, "timed out after 5 s")
    changes = host.report(0.1, math.nan, results=[failed])
    assert host.state(HOME) is State.UNKNOWN
    assert host.status.checks[HOME].message == "timed out after 5 s"
    assert [(e.instance, e.old, e.new) for e in changes.events] == [("/home", "OK", "UNKNOWN")]
    assert host.report(0.1, math.nan, results=[failed]).checks == {}
    back = host.report(0.1, 0.2)
    assert [(e.old, e.new) for e in back.events] == [("UNKNOWN", "OK")]
    assert host.status.is_calm


def test_an_own_message_that_changes_is_written_without_an_event():
    host = Host()
    host.report(0.1, 0.1, results=[CheckResult(0, State.WARNING, "3 users")])
    changes = host.report(0.1, 0.1, results=[CheckResult(0, State.WARNING, "4 users")])
    assert changes.checks[ROOT].message == "4 users"
    assert changes.events == []


def test_a_missing_value_does_not_clear_what_it_raised():
    host = Host()
    host.report(0.95, 0.1)
    changes = host.report(math.nan, 0.1)
    assert host.state() is State.CRITICAL
    assert (changes.checks, changes.events) == ({}, [])


def test_a_check_that_the_agent_dropped_is_removed():
    host = Host()
    host.report(0.1, 0.95)
    changes = host.report(0.1, layout=Layout(LAYOUT.checks[:1]))
    assert changes.checks == {HOME: None}
    assert [(e.kind, e.instance, e.old) for e in changes.events] == [
        (EventKind.CHECK_REMOVED, "/home", "CRITICAL")
    ]
    assert set(host.status.checks) == {ROOT}


def test_a_check_that_appears_is_one_event():
    host = Host(layout=Layout(LAYOUT.checks[:1]))
    host.report(0.1)
    changes = host.report(0.1, 0.1, layout=LAYOUT)
    assert [(e.kind, e.instance) for e in changes.events] == [(EventKind.CHECK_APPEARED, "/home")]


def test_a_new_epoch_is_a_baseline_without_a_storm():
    host = Host(layout=Layout(LAYOUT.checks[:1]))
    host.report(0.1)
    changes = host.report(0.95, 0.1, layout=LAYOUT, epoch=EPOCH + 1, seq=1)
    assert kinds(changes) == [EventKind.NEW_EPOCH, EventKind.STATE]
    assert (host.status.epoch, host.status.seq) == (EPOCH + 1, 1)


def test_dropped_reports_are_told():
    host = Host()
    host.report(0.1, 0.1)
    changes = host.report(0.1, 0.1, dropped=12)
    assert [(e.kind, e.new) for e in changes.events] == [(EventKind.DROPPED, "12")]


@pytest.mark.parametrize(("silence", "expected"), [(Silence.ALONE, [EventKind.BACK]), (Silence.FLEET, [])])
def test_who_was_announced_alone_comes_back_alone(silence, expected):
    host = Host()
    host.report(0.1, 0.1)
    host.status = host.status._replace(silence=silence)
    assert kinds(host.report(0.1, 0.1)) == expected
    assert host.status.silence is Silence.NONE
    assert kinds(host.report(0.1, 0.1)) == []


def test_new_rules_judge_stored_values():
    host = Host()
    host.report(0.5, 0.1, results=[CheckResult(1, State.WARNING, "own word")])
    stricter = RuleSet([Rule("filesystem", UTILIZATION.name, critical=0.4)])
    changes = Changes()
    status = diff.judge_again(
        host.status,
        stricter.plan(LAYOUT),
        (0.5, 0.1),
        (CheckResult(1, State.WARNING, "own word"),),
        host.now,
        changes,
    )
    assert [(e.instance, e.new) for e in changes.events] == [("/", "CRITICAL")]
    assert status.checks[HOME].state is State.WARNING
    assert status.seq == host.status.seq


def test_a_report_that_is_judged_again_is_no_second_sighting():
    patient = RuleSet([Rule("filesystem", UTILIZATION.name, critical=0.9, occurrences=2)])
    host = Host(patient)
    host.report(0.5, 0.1)
    host.report(0.95, 0.1)
    changes = Changes()
    status = host.status
    for _ in range(3):
        status = diff.judge_again(status, patient.plan(LAYOUT), (0.95, 0.1), (), host.now, changes)
    assert not changes.events
    assert status.checks[ROOT].pending_count == 1


RECORD = HostRecord("id", "name", "machine", "boot-1", "1.0", "10.0.0.1", 15_000, 45_000)


def test_a_hello_tells_what_changed():
    assert kinds_of(diff.compare_records(None, RECORD, 1)) == [EventKind.ADDED]
    assert diff.compare_records(RECORD, RECORD, 1) == []
    changed = HostRecord("id", "other", "machine", "boot-2", "1.1", "10.0.0.1", 15_000, 45_000)
    events = diff.compare_records(RECORD, changed, 1)
    assert [(e.kind, e.subject) for e in events] == [
        (EventKind.REBOOT, ""),
        (EventKind.FACT, "host.name"),
        (EventKind.FACT, "agent.version"),
    ]


def kinds_of(events):
    return [event.kind for event in events]


def test_facts_are_compared_by_name():
    changed, events = diff.compare_facts({}, {"os": "a"}, 1)
    assert (changed, events) == ({"os": "a"}, [])
    changed, events = diff.compare_facts(
        {"os": "a", "cpu": "x", "gone": "1"}, {"os": "b", "cpu": "x", "new": "2"}, 1
    )
    assert changed == {"os": "b", "gone": None, "new": "2"}
    assert [(e.subject, e.old, e.new) for e in events] == [
        ("gone", "1", ""),
        ("new", "", "2"),
        ("os", "a", "b"),
    ]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1) | st.just(math.nan),
            st.floats(0, 1),
            st.sampled_from([None, *State]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_events_and_written_states_tell_the_same_story(steps):
    """Replaying what was written gives the status; replaying the events gives the states."""
    host = Host()
    written = {}
    told = {ROOT: "OK", HOME: "OK"}
    for first, second, own in steps:
        results = [] if own is None else [CheckResult(0, own, "own")]
        changes = host.report(first, second, results=results)
        written.update(changes.checks)
        for event in changes.events:
            key = CheckKey(event.subject, event.instance)
            assert told[key] == event.old
            assert event.old != event.new
            told[key] = event.new
        assert written == dict(host.status.checks)
        assert {key: status.state.name for key, status in written.items()} == told
        assert host.status.is_calm == all(status.is_calm for status in written.values())


class Suspicious(RuleSet):
    """Rules whose plans alarm at every value, so that no check is passed over."""

    def plan(self, layout):
        plan = super().plan(layout)
        always = tuple((series, sign, -math.inf, check) for series, sign, _, check in plan.alarms)
        return dataclasses.replace(plan, alarms=always)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, None, *State])),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_passed_over_would_have_changed_nothing(steps):
    fast, slow = Host(), Host(Suspicious(RULES.rules))
    for first, second, own in steps:
        results = [] if own is None else [CheckResult(1, own, "own")]
        assert fast.report(first, second, results=results) == slow.report(first, second, results=results)
        assert fast.status == slow.status

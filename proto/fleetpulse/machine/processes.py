"""How many processes there are, and in which state."""

from __future__ import annotations

from collections.abc import Mapping

from fleetpulse.model import Measurement

COUNT = Measurement("system.process.count", "{process}")
CREATED = Measurement("system.process.created", "{process}/s")
# The state letters of `man 5 proc_pid_stat` in OpenTelemetry's words; it has none for uninterruptible
# sleep, which is how a process looks whose disk or server does not answer.
_STATES = {"R": "running", "S": "sleeping", "I": "sleeping", "D": "blocked", "T": "stopped", "t": "stopped"}
_STATES |= {"Z": "defunct", "X": "defunct"}
_BY_STATE = {
    state: Measurement(f"system.process.count{{process.state={state}}}", "{process}")
    for state in sorted(set(_STATES.values()))
}


def count(by_letter: Mapping[str, int]) -> dict[Measurement, float]:
    """The number of processes, and of those in each state that has a name, from that of each letter."""
    values = {COUNT: float(sum(by_letter.values()))} | dict.fromkeys(_BY_STATE.values(), 0.0)
    for letter, number in by_letter.items():
        if letter in _STATES:
            values[_BY_STATE[_STATES[letter]]] += number
    return values

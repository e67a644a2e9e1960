from __future__ import annotations

import math

from fleetpulse.machine.rates import CounterRates, TableRates
from fleetpulse.model import Measurement

M = Measurement("system.network.io{network.io.direction=receive}", "By/s")


def test_change_divided_by_time():
    rates: CounterRates[str] = CounterRates()
    rates.update(100.0, {"a": 10, "b": 5})
    assert rates.update(102.0, {"a": 30, "b": 5}) == {"a": 10.0, "b": 0.0}


def test_the_first_sample_has_no_rate():
    rates: CounterRates[str] = CounterRates()
    assert math.isnan(rates.update(100.0, {"a": 10})["a"])


def test_a_counter_that_went_backwards_has_no_rate_once():
    rates: CounterRates[str] = CounterRates()
    rates.update(0.0, {"a": 2**32 - 1, "b": 0})
    after_wrap = rates.update(1.0, {"a": 3, "b": 7})
    assert math.isnan(after_wrap["a"])
    assert after_wrap["b"] == 7
    assert rates.update(2.0, {"a": 5, "b": 7})["a"] == 2


def test_no_time_passed():
    rates: CounterRates[str] = CounterRates()
    rates.update(1.0, {"a": 1})
    assert math.isnan(rates.update(1.0, {"a": 2})["a"])


def test_an_instance_that_was_away_starts_from_the_beginning():
    table = TableRates()
    table.update(0.0, {"eth0": {M: 0}, "eth1": {M: 0}})
    assert table.update(1.0, {"eth0": {M: 5}}) == {"eth0": {M: 5.0}}
    again = table.update(2.0, {"eth0": {M: 5}, "eth1": {M: 1000}})
    assert again["eth0"] == {M: 0.0}
    assert math.isnan(again["eth1"][M])

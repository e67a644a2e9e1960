"""A host whose agent is silent: whether it may be asked over SSH why, and what the answer means."""

from __future__ import annotations

import math

from collector.core.diagnosis import Diagnosis, DiagnosisKind, of_probe
from collector.core.ssh_settings import SshSettings
from collector.ssh.measure import HostMeasurer, Measured
from collector.ssh.target import Target
from collector.store.ssh_hosts import SilentHost
from fleetpulse.model import CheckKey, Report

_UPTIME = (CheckKey("uptime"), "system.uptime")


class SilentAgent:
    """One of them, as long as it is silent.

    `heard_at` is when it was heard last, in milliseconds (0: never), `boot_id` that of then, `report_interval`
    how often its agent reports, in milliseconds.
    """

    def __init__(self, target: Target, heard_at: int, report_interval: int, boot_id: str):
        self.target = target
        self.heard_at = heard_at
        self.report_interval = report_interval
        self._boot_id = boot_id
        self.is_suspect = True
        """Nothing speaks for its being up before it has answered."""
        self.measurer = HostMeasurer()

    def report(self, measured: Measured, now: int) -> Report:
        """What SSH says of the host's health. It has no number: it is not the host that speaks."""
        content = measured.content
        return Report(0, measured.measured_at or now, content.layout, content.values, content.results)

    def diagnose(self, measured: Measured, now: int) -> Diagnosis:
        """The host is up. Why its agent is not heard."""
        known = bool(self._boot_id and measured.boot_id)
        return of_probe(
            measured.agent,
            _uptime(measured),
            now - self.heard_at if self.heard_at else 0,
            is_another_boot=known and self._boot_id != measured.boot_id,
        )


def why_not(silent: SilentHost, effective: SshSettings, *, has_credentials: bool) -> str:
    """Why a silent host is not asked; empty if it is.

    A host that was given settings of its own is meant to be asked, unless they say otherwise.
    """
    own = silent.ssh.settings.fallback
    if silent.ssh.problem:
        return silent.ssh.problem
    if own is False or (effective.fallback is False and not (silent.is_configured and own is None)):
        return "asking silent hosts over SSH is off for it, its groups or the site (fallback)"
    if not has_credentials and not effective.key:
        return "nothing to log in with: set ssh.keys or ssh.agent"
    if not effective.address and silent.ssh.address.startswith("unix"):
        return "its agent reports over a socket of the collector's own machine"
    return ""


def not_probed(why: str) -> Diagnosis:
    """Nobody has looked."""
    return Diagnosis(DiagnosisKind.NOT_PROBED, why)


def _uptime(measured: Measured) -> float:
    """Seconds since the host booted; NaN if it did not say."""
    for (key, measurement), value in zip(
        measured.content.layout.series, measured.content.values, strict=True
    ):
        if (key, measurement.name) == _UPTIME:
            return value
    return math.nan

"""One look at a host over SSH, stage by stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from collector.cli.find import find_host
from collector.cli.output import Cell, Line, Page, Table, line, state_cell, summary
from collector.cli.session import CliError, Session
from collector.cli.ssh_places import hop_name, way
from collector.cli.ssh_targets import ssh_hosts_of
from collector.core.diagnosis import Diagnosis, DiagnosisKind
from collector.core.diff import Changes, take_report
from collector.core.render import count, duration
from collector.core.rules import RuleSet
from collector.core.standing import worst
from collector.core.status import CheckStatus, HostStatus
from collector.rules_file import load_rules
from collector.ssh.connection import Dialer
from collector.ssh.failure import ProbeFailure, Stage
from collector.ssh.links import Links
from collector.ssh.measure import HostMeasurer, Measured
from collector.ssh.parse import NotAProbe
from collector.ssh.target import Hop, Resolver, Target
from collector.ssh.trust import TrustedKeys, fingerprint_of
from collector.store.ssh_hosts import load_group_settings
from collector.store.ssh_known_hosts import load_known_hosts
from fleetpulse.model import CheckKey, Report, State

_NAMES = {Stage.RESOLVE: "address", Stage.CONNECT: "tcp", Stage.LOGIN: "login"}
_NEXT = {
    "": "address",
    "address": "tcp",
    "jump": "tcp",
    "tcp": "login",
    "login": "probe",
    "probe": "measured",
}
_OF_JUMP = "jump host"  # so begins what is said of one
_DEFAULT_PORT = 22


class Passed(NamedTuple):
    """A stage that was passed, or the one at which it ended. Times in seconds; None: it is part of the next one's."""

    name: str
    seconds: float | None
    text: str
    is_good: bool = True


@dataclass(frozen=True)
class Trial:
    """What came of it. `failure` is None if the host answered, `checks` how its checks would be judged."""

    target: Target
    hops: Sequence[Hop]
    trusted: Sequence[str]
    stages: Sequence[Passed]
    failure: Diagnosis | None
    checks: dict[CheckKey, CheckStatus]
    facts: int
    agent: str

    @property
    def state(self) -> State:
        """Whether the host can be asked."""
        return State.OK if self.failure is None else State.CRITICAL

    @property
    def summary(self) -> str:
        """What is the case, in one line."""
        if self.failure is not None:
            return f"{self.target.name}: {self.failure.kind.value}"
        return f"{self.target.name} answers over SSH"

    def page(self, rows: int | None) -> Page:
        """A summary, the stages, what went wrong, or what was measured."""
        cells = [
            (
                Cell(stage.name, "dim"),
                Cell("ok", "ok") if stage.is_good else Cell("failed", "critical"),
                Cell(_took(stage.seconds)),
                Cell(stage.text),
            )
            for stage in self.stages
        ]
        settings = self._settings()
        width = max(len(name) for name, _ in settings) + 2
        page: list[Line | Table] = [
            summary(self.state, self.summary),
            *(line(Cell(f"  {name:<{width}}", "dim"), text) for name, text in settings),
            line(),
            Table(("STAGE", "", "TOOK", "FOUND"), cells),
        ]
        if self.failure is not None:
            advice = advise(self.target, self.hops, self.failure)
            return [*page, line(), line(Cell("To do: ", "strong"), advice)] if advice else page
        bad = [(key, check) for key, check in self.checks.items() if check.state is not State.OK]
        if bad:
            table = [
                (Cell(str(key)), state_cell(check.state), Cell(check.message or "-")) for key, check in bad
            ]
            page += [line(), Table(("CHECK", "STATE", "MESSAGE"), table[:rows])]
        return page

    def as_json(self) -> dict[str, object]:
        """See docs/cli.md."""
        target = self.target
        return {
            "state": self.state.name,
            "summary": self.summary,
            "hostname": target.name,
            "host_id": target.host_id,
            "address": target.address,
            "port": target.port,
            "user": target.user,
            "keys": [str(key) for key in target.keys],
            "agent": str(target.agent) if target.agent else None,
            "jump": [hop.host for hop in target.jump],
            "trusted": list(self.trusted),
            "stages": [
                {"name": stage.name, "ok": stage.is_good, "seconds": stage.seconds, "text": stage.text}
                for stage in self.stages
            ],
            "diagnosis": {"kind": self.failure.kind.value, "evidence": self.failure.evidence}
            if self.failure is not None
            else None,
            "advice": (advise(target, self.hops, self.failure) or None) if self.failure is not None else None,
            "checks": [
                {
                    "check": key.name,
                    "instance": key.instance,
                    "state": check.state.name,
                    "message": check.message,
                }
                for key, check in self.checks.items()
            ],
            "facts": self.facts,
            "unit": self.agent or None,
        }

    def _settings(self) -> list[tuple[str, str]]:
        target = self.target
        jump = ", ".join(map(hop_name, target.jump))
        rows = [
            ("address", f"{target.address}, port {target.port}"),
            ("user", target.user),
            ("keys", ", ".join(map(str, target.keys)) or ("none" if target.agent is None else "")),
            ("ssh-agent", str(target.agent or "")),
            ("jump", jump),
            ("timeout", f"{target.timeout:g} s"),
            *target.options.items(),
            ("trusted keys", self.trusted[0] if self.trusted else "none"),
            *(("", key) for key in self.trusted[1:]),
        ]
        return [(name, value) for name, value in rows if value]


def try_host(session: Session, name: str, *, as_json: bool) -> int:
    """Ask the host, and say what was found; the exit code. Raises CliError, ConfigError."""
    config = session.loaded.config
    rules = load_rules(config.rules)
    with session.store() as store, store.transaction(write=False) as tx:
        host = find_host(tx, name, exactly=True)
        [ssh] = ssh_hosts_of(tx, [host])
        resolver = Resolver(config.ssh)
        target = resolver.target(ssh, load_group_settings(tx))
        known = load_known_hosts(tx)
    if not ssh.is_polled and not ssh.settings.address and ssh.address.startswith("unix"):
        raise CliError(
            f"{name}: its agent reports over a socket of this machine; say --address: collector-cli ssh add"
        )
    session.show_progress(f"asking {target.name} ({way(target)}) ...")
    trial = asyncio.run(
        _try(
            resolver, TrustedKeys(known, config.ssh.known_hosts), target, rules, with_agent=not ssh.is_polled
        )
    )
    return session.answer(trial, as_json=as_json)


async def _try(
    resolver: Resolver, trusted: TrustedKeys, target: Target, rules: RuleSet, *, with_agent: bool
) -> Trial:
    known = trusted.of((target.key_alias, target.address), target.port)
    names = [fingerprint_of(key) for key in known.keys]
    names += [f"CA {fingerprint_of(key)}" for key in known.authorities]
    links = Links(Dialer(resolver, trusted), 1)
    hops = tuple(resolver.hop(hop, target.user) for hop in target.jump)
    watch = _StopWatch(target)
    try:
        answer = await links.ask(target, with_agent=with_agent, on_stage=watch.note)
        took = (watch.stages[-1].seconds or 0.0) if watch.stages else 0.0
        watch.end("probe", f"{count(len(answer.output), 'byte')}")
        try:
            measured = HostMeasurer().measure(answer.output, took)
        except NotAProbe as error:
            said = str(error) if answer.output else answer.complaint.decode(errors="replace").strip()
            raise ProbeFailure(
                DiagnosisKind.PROBE_FAILED, f"what it printed is no probe's answer: {said or 'nothing'}"
            ) from None
    except ProbeFailure as failure:
        watch.fail(failure.diagnosis)
        return Trial(target, hops, names, watch.stages, failure.diagnosis, {}, 0, "")
    finally:
        links.drop_all()
        links.dialer.close()
    checks = _judge(measured, rules)
    state = worst(check.state for check in checks.values()).name
    facts = count(len(measured.facts), "fact")
    watch.end("measured", f"{count(len(checks), 'check')}, the worst is {state}; {facts}")
    if with_agent:
        watch.end("agent", measured.agent.replace("\n", "; ") or "nothing is known of it")
    return Trial(target, hops, names, watch.stages, None, checks, len(measured.facts), measured.agent)


class _StopWatch:
    """How long each stage took."""

    def __init__(self, target: Target) -> None:
        self.stages: list[Passed] = []
        self._target = target
        self._last = time.monotonic()

    def note(self, stage: Stage, text: str) -> None:
        """A stage of the connection was passed."""
        self._pass_jump()
        self.end(_NAMES.get(stage, stage.value), f"host key {text}" if stage is Stage.LOGIN else text)

    def end(self, name: str, text: str, *, is_good: bool = True) -> None:
        """A stage ended now."""
        now = time.monotonic()
        self.stages.append(Passed(name, now - self._last, text, is_good))
        self._last = now

    def fail(self, diagnosis: Diagnosis) -> None:
        """The stage after the last one did not come to its end."""
        evidence = diagnosis.evidence
        if is_of_keys(self._target, diagnosis):
            name = "key"
        elif evidence.startswith(_OF_JUMP):
            name = "jump"
        else:
            self._pass_jump()
            last = self.stages[-1].name if self.stages else ""
            name = _NEXT[last]
            if name in ("tcp", "login") and (
                diagnosis.kind is DiagnosisKind.HOST_KEY_CHANGED
                or (diagnosis.kind is DiagnosisKind.NOT_PROBED and not _is_of_tunnel(self._target, evidence))
            ):
                name = "host key"
            elif name == "tcp" and diagnosis.kind in (DiagnosisKind.KEY_REFUSED, DiagnosisKind.FROZEN):
                name = "login"
        self.end(name, evidence, is_good=False)

    def _pass_jump(self) -> None:
        """Nothing tells of the way to the last jump host but what comes behind it."""
        if self._target.jump and not self.stages:
            self.stages.append(Passed("jump", None, ", ".join(map(hop_name, self._target.jump))))


def is_of_keys(target: Target, diagnosis: Diagnosis) -> bool:
    """Whether the collector has nothing to log in with: that is told before anything is asked, or of a jump host."""
    evidence = diagnosis.evidence
    return diagnosis.kind is DiagnosisKind.NOT_PROBED and (
        "nothing to log in with" in evidence
        or "ssh.agent: " in evidence
        or any(str(key) in evidence for key in target.keys)
    )


def _is_of_tunnel(target: Target, evidence: str) -> bool:
    """Whether a jump host says why it cannot connect any further."""
    return bool(target.jump) and f": {target.jump[-1].host} says: " in evidence


def _took(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return duration(seconds * 1000) if seconds >= 10 else f"{seconds * 1000:.0f} ms"


def _judge(measured: Measured, rules: RuleSet) -> dict[CheckKey, CheckStatus]:
    """How the checks of a host would stand that said this for the first time."""
    content = measured.content
    report = Report(1, measured.measured_at, content.layout, content.values, content.results)
    status = take_report(HostStatus(), report, rules.plan(content.layout), 0, Changes())
    return dict(sorted(status.checks.items(), key=lambda item: (-item[1].state.severity, item[0])))


def advise(target: Target, hops: Sequence[Hop], failure: Diagnosis) -> str:
    """What somebody can do about it; empty where the evidence says it. `hops` are the jump hosts as they are reached."""
    if "run: " in failure.evidence or is_of_keys(target, failure):
        return ""
    if failure.evidence.startswith(_OF_JUMP):
        return _advise_jump(hops, failure.evidence)
    port = _port_option(target.port)
    jump = _jump_option(hops)
    place = f"{target.user}@{target.address}"
    match failure.kind:
        case DiagnosisKind.KEY_REFUSED:
            key = f" -i {target.keys[0]}.pub" if target.keys else ""
            copy_jump = f" -o ProxyJump={jump.split()[-1]}" if jump else ""
            return f"let the key in: ssh-copy-id{key}{port}{copy_jump} {place}; or name another user: --user"
        case DiagnosisKind.HOST_DEAD:
            return f"is it on, and is that its address? ping {target.address}. A firewall may drop port {target.port}"
        case DiagnosisKind.NETWORK_UNREACHABLE:
            return f"there is no way from here: ip route get {target.address}"
        case DiagnosisKind.SSH_CLOSED:
            return f"is sshd running there, and on port {target.port}? On its console: systemctl status ssh"
        case DiagnosisKind.FROZEN:
            return "it takes connections and does nothing more: look at its console, it may be out of memory or hang on a disk"
        case DiagnosisKind.PROBE_FAILED:
            return f"does a shell start there? ssh{port}{jump} {place} true"
        case DiagnosisKind.NOT_PROBED if "cannot be resolved" in failure.evidence:
            return f"say where it is: collector-cli ssh add {target.name} --address ADDRESS"
    return ""


def _advise_jump(hops: Sequence[Hop], evidence: str) -> str:
    """How to get to the jump host at which the way ends."""
    said = evidence.removeprefix(_OF_JUMP).strip()
    for place, hop in enumerate(hops):
        if said.startswith(f"{hop.host}:"):
            way_there = f"ssh{_port_option(hop.port)}{_jump_option(hops[:place])} {hop.user}@{hop.host}"
            return f"the way leads over {hop.host}: {way_there}"
    return ""


def _port_option(port: int) -> str:
    return f" -p {port}" if port != _DEFAULT_PORT else ""


def _jump_option(hops: Sequence[Hop]) -> str:
    return f" -J {','.join(map(hop_name, hops))}" if hops else ""

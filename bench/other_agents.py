"""Other programs that watch a machine, as Debian's packages have them start.

Nothing of their configurations is changed but where they write and listen, so that they run beside others
that may be here. None is asked for more than it does by itself, but for node_exporter, which does nothing
unless it is scraped.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class OtherAgent(NamedTuple):
    """`command` makes ready to run in a folder of its own, on a port on which nobody listens."""

    name: str
    package: str
    program: str
    command: Callable[[Path, int], list[str]]
    scraped: bool = False

    @property
    def is_here(self) -> bool:
        """Whether it is installed."""
        return shutil.which(self.program, path=_PATH) is not None

    @property
    def path(self) -> str:
        """Where it is, as it is known to be here."""
        return str(shutil.which(self.program, path=_PATH))


_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # daemons are where users do not look


def _node_exporter(_: Path, port: int) -> list[str]:
    return [f"--web.listen-address=127.0.0.1:{port}"]


def _collectd(folder: Path, _: int) -> list[str]:
    changed = {"/var/lib/collectd": str(folder)}
    return ["-f", "-C", _configuration("/etc/collectd/collectd.conf", changed, folder), "-P", f"{folder}/pid"]


def _netdata(folder: Path, port: int) -> list[str]:
    command = ["-D", "-i", "127.0.0.1", "-p", str(port), "-P", f"{folder}/log/pid"]
    for name in ("cache", "lib", "log"):
        (folder / name).mkdir()
        with suppress(KeyError, PermissionError):  # it runs as its own user when it is started by root
            os.chown(folder / name, *pwd.getpwnam("netdata")[2:4])
        command += ["-W", "set", "directories", name, f"{folder}/{name}"]
    return command


def _zabbix(folder: Path, port: int) -> list[str]:
    changed = {r"(?m)^ListenPort=.*\n": "", r"\./(?=zabbix_agent2\.d)": "/etc/zabbix/"}
    changed |= {r"/var/log/zabbix(-agent)?": str(folder), r"/tmp/agent\.sock": f"{folder}/socket"}
    file = _configuration("/etc/zabbix/zabbix_agent2.conf", changed, folder)
    with Path(file).open("a", encoding="utf-8") as more:
        more.write(f"\nListenPort={port}\n")
    return ["-f", "-c", file]


OTHER_AGENTS = (
    OtherAgent(
        "node_exporter", "prometheus-node-exporter", "prometheus-node-exporter", _node_exporter, scraped=True
    ),
    OtherAgent("collectd", "collectd", "collectd", _collectd),
    OtherAgent("netdata", "netdata", "netdata", _netdata),
    OtherAgent("zabbix-agent2", "zabbix-agent2", "zabbix_agent2", _zabbix),
)


def _configuration(original: str, changed: dict[str, str], folder: Path) -> str:
    """A copy in which whatever matches a pattern is replaced."""
    text = Path(original).read_text(encoding="utf-8")
    for pattern, replacement in changed.items():
        text = re.sub(pattern, replacement, text)
    copy = folder / Path(original).name
    copy.write_text(text, encoding="utf-8")
    return str(copy)

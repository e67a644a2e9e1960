"""Outputs of the probe as they came from machines of many kinds."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "captured"
PROBES = sorted(path.stem for path in FOLDER.glob("*.txt") if b"fleetpulse-probe" in path.read_bytes())


def captured(name: str) -> bytes:
    return (FOLDER / f"{name}.txt").read_bytes()

"""What the benchmarks share: alternating runs of ours and its peers, and the report of their ratio."""

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Instructions that decide how fast a machine can be at what is measured here.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "sha_ni")
CPU_INFO = Path("/proc/cpuinfo")


def alternate(subjects: Mapping[str, Callable[[], float]], *, repeats: int) -> dict[str, list[float]]:
    """Take every subject's figure once a repeat, in turn, so that a machine's moods meet all of them."""
    figures: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, measured in subjects.items():
            figures[name].append(measured())
    return figures


def show(figures: Mapping[str, Sequence[float]], unit: str) -> None:
    """Print the processor's relevant instructions, and median and spread of each subject."""
    found = CPU_INFO.read_text(encoding="utf-8").split() if CPU_INFO.exists() else []
    flags = " ".join(flag if flag in found else f"no-{flag}" for flag in CPU_FLAGS)
    print(f"{len(os.sched_getaffinity(0))} cores, {flags}, load {os.getloadavg()[0]:.1f}")
    width = max(map(len, figures))
    for name, values in figures.items():
        print(f"{name:{width}}  {statistics.median(values):10.4g} {unit}  ({min(values):.4g} to {max(values):.4g})")


def ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """How many times less than its peer ours needs: the median over the repeats, each of which ran both."""
    return statistics.median(theirs / own for own, theirs in zip(ours, peer, strict=True))


def extra_mb(call: Callable[[], object]) -> float:
    """Peak memory of a call above what this process held before, in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    before = _status_mb("VmRSS")
    call()
    return _status_mb("VmHWM") - before


def report(
    figures: Mapping[str, Sequence[float]], *, name: str, unit: str, ours: str, peer: str, detail: Mapping[str, Any]
) -> None:
    """Print what was measured and, as the last line, the JSON record of it; smaller figures are better.

    Args:
        figures: Of each subject, one a repeat.
        name: Of the benchmark.
        unit: Of the figures.
        ours: The subject that the ratio is about.
        peer: The subject that it is compared with.
        detail: Whatever else was found; medians of all subjects are added.
    """
    show(figures, unit)
    medians = {subject: _rounded(statistics.median(values)) for subject, values in figures.items()}
    record = {
        "name": name,
        "unit": unit,
        "ours": medians[ours],
        "peer": medians[peer],
        "peer_name": peer,
        "ratio": _rounded(ratio(figures[ours], figures[peer])),
        "repeats": len(figures[ours]),
        "detail": {**detail, "medians": medians},
    }
    print(json.dumps(record))


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")

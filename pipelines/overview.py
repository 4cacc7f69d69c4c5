"""What `plan` says of a study: its tasks, what it would cost, and what is missing; as text and as JSON."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medssl.config import Study
from medssl.exit_codes import BadInputError
from medssl.progress import counted
from medssl.store import Store
from pipelines import availability
from pipelines.estimate import Assumptions, Estimate, estimate
from pipelines.plan import Plan, make_plan

_WIDTH = 120
_EXA = 1e18


@dataclass(frozen=True)
class Overview:
    """A study before it runs.

    Attributes:
        study: As its file says.
        plan: Of the arms whose weights and pretraining data are at hand; None where there are none.
        not_run: Arms that cannot, with the reason.
        missing: What they lack, see `availability.missing`.
        assumptions: Of the estimates.
        whole: Cost of the study with nothing missing.
        now: Cost of the arms whose weights and pretraining data are at hand.
    """

    study: Study
    plan: Plan | None
    not_run: Mapping[str, str]
    missing: Mapping[str, Sequence[str]]
    assumptions: Assumptions
    whole: Estimate
    now: Estimate | None

    @classmethod
    def of(cls, study: Study, store: Store, assumptions: Assumptions) -> "Overview":
        """Look what is there, and count."""
        missing, whole = availability.missing(study, store), estimate(study, assumptions)
        try:
            left = availability.without(study, availability.absent(study, store))
        except BadInputError as error:
            return cls(study, None, {arm.name: str(error) for arm in study.arms}, missing, assumptions, whole, None)
        return cls(study, make_plan(left), left.not_run, missing, assumptions, whole, estimate(left, assumptions))

    def as_json(self) -> dict[str, Any]:
        """In JSON types."""
        return {
            "study": self.study.name,
            "tasks": self.plan.tasks if self.plan else [],
            "not_run": dict(self.not_run),
            "missing": {
                section: {"names": list(names), "remedy": availability.REMEDIES[section]}
                for section, names in self.missing.items()
            },
            "assumptions": {
                "peak_tflops": dict(self.assumptions.peak_tflops),
                "utilization": self.assumptions.utilization,
                "images": dict(self.assumptions.images),
                "images_per_unit": self.whole.images_per_unit,
            },
            "whole": _as_json(self.whole),
            "now": _as_json(self.now) if self.now else None,
        }

    def lines(self) -> Iterator[str]:
        """As text for people; the totals come last."""
        tasks = self.plan.tasks if self.plan else []
        yield from (f"{number:3d}  {task}" for number, task in enumerate(tasks, start=1))
        if self.not_run:
            yield from (
                "",
                f"arms that cannot run without what is missing: {len(self.not_run)} of {len(self.study.arms)}",
            )
            yield from _wrapped(self.not_run)
        for section, names in self.missing.items():
            yield from ("", f"missing, of the section {section}:")
            yield from _wrapped(names)
            yield f"  → {availability.REMEDIES[section]}"
        yield ""
        yield from self._costs()
        yield ""
        yield from (f"  {line}" for line in self._assumed())
        yield ""
        yield self._total()

    def _costs(self) -> Iterator[str]:
        heads = ("stage", "tasks", "runs", "steps", "EFLOP", "GPU hours", "arms that can run")
        rows: list[tuple[str, ...]] = [heads]
        now = self.now.work if self.now else ()
        for name, whole, own in [
            *((one.stage, (one,), tuple(w for w in now if w.stage == one.stage)) for one in self.whole.work),
            ("all", self.whole.work, now),
        ]:
            numbers = (sum(w.num_tasks for w in whole), sum(w.num_runs for w in whole), sum(w.num_steps for w in whole))
            flops, hours = sum(w.flops for w in whole) / _EXA, sum(w.gpu_hours for w in whole)
            reals = (flops, hours, sum(w.gpu_hours for w in own))
            rows.append((name, *(f"{number:,}" for number in numbers), *map(_rounded, reals)))
        yield from _columns(rows if self.missing else [row[:-1] for row in rows])
        yield ""
        kept = [("kept", "bytes")]
        kept += [
            (what, ("≤ " if what == "shards" and n else "") + _size(n)) for what, n in self.whole.num_bytes.items()
        ]
        yield from _columns(kept)

    def _assumed(self) -> Iterator[str]:
        """The assumptions beside the numbers that rest on them."""
        used = {run.precision for run in self.study.pretraining}
        used |= {self.study.finetune.precision, self.study.predict.precision}
        peaks = ", ".join(f"{self.assumptions.peak_tflops[p]:g} TFLOP/s in {p}" for p in sorted(used))
        yield f"GPU hours: of a GPU with a peak of {peaks}, of which {self.assumptions.utilization:.0%} is reached"
        yield "(--peak-tflops, --utilization; by default an A100, and what is published for ResNet-50)"
        if self.whole.images_per_unit != 1:
            yield f"images of a case: {self.whole.images_per_unit:g} (--images-per-case; by default the most of a step)"
        if self.whole.uncounted:
            names = ", ".join(self.whole.uncounted)
            yield f"not counted, their number of images being unknown (--images NAME=NUMBER): {names}"
            yield "  (evaluation on these sets, their shards and predictions)"

    def _total(self) -> str:
        tasks = "no task" if self.plan is None else counted(self.plan.num_tasks, "task")
        trained = 0 if self.plan is None else self.plan.num_training_processes
        total = f"{_rounded(self.whole.gpu_hours)} GPU hours, {_size(sum(self.whole.num_bytes.values()))}"
        if self.missing:
            of_now = _rounded(self.now.gpu_hours if self.now else 0.0)
            return f"whole study: {total}; arms that can run: {tasks}, {trained} of them train, {of_now} GPU hours"
        return f"{tasks}, {trained} of them train; {total}"


def _as_json(one: Estimate) -> dict[str, Any]:
    return {
        "stages": [asdict(work) for work in one.work],
        "gpu_hours": one.gpu_hours,
        "bytes": dict(one.num_bytes),
        "uncounted": list(one.uncounted),
    }


def _wrapped(names: Mapping[str, str] | Sequence[str]) -> list[str]:
    return textwrap.wrap(", ".join(names), _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        yield "  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))])


def _rounded(value: float) -> str:
    """Three digits, or whole from 100 on; a dash for nothing, or nothing counted."""
    if value == 0:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else "< 0.001"


def _size(num_bytes: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{_rounded(num_bytes / factor)} {unit}"
    return f"{_rounded(num_bytes / 1e3)} kB" if num_bytes else "–"

"""Who is compared on one split: the selected run of each arm, and for each group of arms the run that stands for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medssl.analysis.measures import primary_row
from medssl.analysis.runs import Row, Run, selected_runs
from medssl.metrics import PRIMARY

# Where choices are made; models of all data sets were chosen on the study's own.
VALIDATION = "validation"


@dataclass(frozen=True)
class Contender:
    """An arm, or a group of arms of which validation chose one.

    Attributes:
        name: Of the arm or the group.
        run: The selected run of the arm.
        rows: Of the run, under this name and as "selected"; no intervals yet.
        note: Which arm stands for a group, and why; "" for an arm.
    """

    name: str
    run: Run
    rows: Sequence[Row]
    note: str


@dataclass(frozen=True)
class Field:
    """All contenders on one data set, split, label fraction and draw.

    Attributes:
        contenders: By name; arms before groups.
        runs: The runs of the arms, each once.
        absent: Names of groups that no arm can stand for, with the reason.
    """

    contenders: Mapping[str, Contender]
    runs: Sequence[Run]
    absent: Mapping[str, str]

    @property
    def first(self) -> Run:
        """Any of the runs: all have the units, classes and truth in common."""
        return self.runs[0]

    def place(self, name: str) -> int:
        """Place of a contender's run among `runs`."""
        return self.runs.index(self.contenders[name].run)


def fields(measured: Mapping[Run, Sequence[Row]], groups: Mapping[str, Sequence[str]]) -> list[Field]:
    """Gather what is compared with one another.

    A group is represented by the arm whose selected run has the best primary metric on validation at that label
    fraction and draw (supplement B.1.1); of equal ones the first by name. Test predictions have no say in it.

    Args:
        measured: Every run with its rows.
        groups: Name of each group to its arms.

    Raises:
        ValueError: As `selected_runs`; or a group is named like an arm.
    """
    if clashing := sorted(groups.keys() & {run.arm_id for run in measured}):
        raise ValueError(f"groups: {clashing} are names of arms too; choose others")
    scores = _validation_scores(measured)
    found = []
    for arms in selected_runs(measured):
        contenders = {arm_id: Contender(arm_id, run, _named(measured[run], arm_id), "") for arm_id, run in arms.items()}
        absent = {}
        for name, members in groups.items():
            best, note = _representative(arms, members, scores)
            if best is None:
                absent[name] = note
            else:
                rows = _named(measured[best], name, note)
                contenders[name] = Contender(name, best, rows, note)
        found.append(Field(contenders, list(arms.values()), absent))
    return found


def _named(rows: Iterable[Row], name: str, note: str = "") -> list[Row]:
    return [
        row | {"arm_a": name, "repeat": "selected", "reason": "; ".join(filter(None, (row["reason"], note)))}
        for row in rows
    ]


_Key = tuple[str, float, int, int]


def _key(run: Run) -> _Key:
    return run.arm_id, run.label_fraction, run.draw, run.repeat


def _validation_scores(measured: Mapping[Run, Sequence[Row]]) -> dict[_Key, float]:
    """The primary metric of each run on validation, where it is defined.

    Raises:
        ValueError: There are validation sets of several data sets.
    """
    validated = {run: rows for run, rows in measured.items() if run.split == VALIDATION}
    if len(datasets := {run.dataset for run in validated}) > 1:
        raise ValueError(f"predictions: {len(datasets)} data sets have a validation split; models are chosen on one")
    scores = {_key(run): primary_row(rows, run)["estimate"] for run, rows in validated.items()}
    return {key: score for key, score in scores.items() if score is not None}


def _representative(
    arms: Mapping[str, Run], members: Sequence[str], scores: Mapping[_Key, float]
) -> tuple[Run | None, str]:
    """The run that stands for a group, or None, and why."""
    present = sorted(set(members) & set(arms))
    if not present:
        return None, "no predictions of its arms"
    scored = {name: scores[_key(arms[name])] for name in present if _key(arms[name]) in scores}
    if missing := sorted(set(present) - set(scored)):
        # To choose among the others would favour those that happen to have been evaluated.
        return None, f"no validation score of {len(missing)} of its {len(present)} arms"
    best = max(present, key=lambda name: scored[name])
    metric = PRIMARY[arms[best].unit_kind].log_name
    return arms[best], f"{best} stands for it: best of {len(present)} by validation {metric} ({scored[best]:.4f})"

"""How often a test set has been used: counted over the records of a store, and part of no result.

A test set that many models were tried on no longer tells how good the best of them is; so each prediction of one leaves
a note in its step's record, and the next one tells how many there are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from medssl.progress import counted, say
from medssl.stages.step import Step
from medssl.store import Store

EVALUATED = "evaluated"  # key of a step's record: the sets that it predicted


@dataclass(frozen=True)
class Evaluation:
    """One set that a step predicts.

    Attributes:
        dataset: Its name.
        dataset_digest: Of its index.
        split: "test", or "external" for a whole data set.
        study_id: Whose models.
        models: Digests of their weights.
    """

    dataset: str
    dataset_digest: str
    split: str
    study_id: str
    models: tuple[str, ...]

    def noted(self) -> dict[str, Any]:
        """As a step's record holds it."""
        return {**vars(self), "models": list(self.models)}


@dataclass(frozen=True)
class Uses:
    """How often a set has been used.

    Attributes:
        num_tasks: Steps that predicted it.
        num_models: Distinct models among theirs.
        num_studies: Distinct studies.
    """

    num_tasks: int
    num_models: int
    num_studies: int

    @classmethod
    def count(cls, records: Iterable[Mapping[str, Any]], of: Evaluation, step_key: str) -> Self:
        """Uses of the set that `of` names: those in the records of other steps, and `of` itself.

        Args:
            records: From `Store.records`.
            of: What the present step predicts.
            step_key: Of the present step, whose earlier record does not count twice.
        """
        noted: Sequence[Mapping[str, Any]] = [
            note
            for record in records
            if record["step_key"] != step_key
            for note in record.get(EVALUATED, ())
            if (note["dataset_digest"], note["split"]) == (of.dataset_digest, of.split)
        ]
        noted = [*noted, of.noted()]
        models = {model for note in noted for model in note["models"]}
        return cls(len(noted), len(models), len({note["study_id"] for note in noted}))


def told_uses(
    store: Store, step: Step, evaluated: Sequence[Evaluation], *, most: int | None = None
) -> list[tuple[str, int, float]]:
    """Say how often each set has now been used; returns that as metrics, which MLflow shows.

    Args:
        store: Whose records are counted.
        step: The present one.
        evaluated: The sets that it uses.
        most: Above so many tasks, a warning is given.
    """
    metrics = []
    records = store.records()
    for one in evaluated:
        uses = Uses.count(records, one, step.key)
        say(
            f"{step.name}: {one.split} of {one.dataset} has now been used by "
            f"{counted(uses.num_models, 'model')} in {counted(uses.num_tasks, 'task')} of "
            f"{uses.num_studies} {'study' if uses.num_studies == 1 else 'studies'} of this store"
        )
        if most is not None and uses.num_tasks > most:
            say(
                f"warning: {one.split} of {one.dataset} has been used more than {most} times: models that were chosen "
                "by it look better on it than they are; collect a new test set"
            )
        metrics.append((f"uses_of_{one.split}/{one.dataset}", 0, float(uses.num_tasks)))
        metrics.append((f"models_on_{one.split}/{one.dataset}", 0, float(uses.num_models)))
    return metrics

"""What of a study can run here: arms whose weights or pretraining data are absent are left out, and said to be."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from medssl.config import DataConfig, Study
from medssl.exit_codes import BadInputError
from medssl.store import Store, StoreError

# What brings a thing that is missing, by the section of the study that names it; NAME stands for its name there.
REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "data": "--set data.root=FOLDER",
        "external": "--set external.NAME.root=FOLDER, or without external sets: --set external=[]",
        "pretraining_data": "--set pretraining_data.NAME.root=FOLDER",
        "weights": "medssl import-weights FILE --name NAME --store STORE, then --set weights.NAME.checkpoint=DIGEST",
    }
)

_NO_CHECKPOINT = "no checkpoint is given; `medssl import-weights` makes one"


def missing(study: Study, store: Store) -> dict[str, tuple[str, ...]]:
    """Names of what is not at hand, by the section of the study; sections that lack nothing are left out."""
    reasons = absent(study, store)
    found = {
        "data": [study.data.name] if _lacks(study.data) else [],
        "external": [one.name for one in study.external if _lacks(one)],
        "pretraining_data": [one.name for one in study.pretraining_data if one.name in reasons],
        "weights": [one.name for one in study.weights if one.name in reasons],
    }
    return {section: tuple(names) for section, names in found.items() if names}


def require_data(study: Study) -> None:
    """Refuse to begin without the folders of the study's own set and of all external ones: no arm can do without.

    Raises:
        BadInputError: Names every one that is not there, with the remedy.
    """
    lacking = {"data": [study.data.name] if _lacks(study.data) else []}
    lacking["external"] = [one.name for one in study.external if _lacks(one)]
    said = [
        f"{key}: no folder of {', '.join(names)} is there; {REMEDIES[key]}" for key, names in lacking.items() if names
    ]
    if said:
        raise BadInputError(". ".join(said))


def _lacks(data: DataConfig) -> bool:
    """Whether the folder of a set that is not generated is absent; what else may be wrong with it, reading tells."""
    return data.root is not None and not os.path.lexists(Path(data.root).expanduser())


def absent(study: Study, store: Store) -> dict[str, str]:
    """By name, the weights and the pretraining data that are not at hand, each with the reason."""
    reasons = unnamed(study)
    for weights in study.weights:
        if weights.name in reasons:
            continue
        try:
            store.open(store.uri("checkpoint", weights.checkpoint), kind="checkpoint", verify="size")
        except StoreError:
            reasons[weights.name] = "its checkpoint is not in the store; run `medssl import-weights` with that store"
    for one in study.pretraining_data:
        if not Path(str(one.root)).expanduser().is_dir():
            reasons[one.name] = "the folder of the data set is not there"
    return reasons


def unnamed(study: Study) -> dict[str, str]:
    """By name, the weights that the study file gives no checkpoint for: absent wherever it is run."""
    return {one.name: _NO_CHECKPOINT for one in study.weights if not one.checkpoint}


def without(study: Study, reasons: Mapping[str, str]) -> Study:
    """The study without the runs and arms that need what is absent; `not_run` then says which arms, and why.

    Random weights never take the place of weights that are absent.

    Raises:
        BadInputError: No arm is left.
    """
    lost = dict(reasons)
    for run in (run for level in study.levels for run in level):
        for need in (run.init, run.dataset):
            if need in lost:
                lost.setdefault(run.name, f"needs {need}: {lost[need]}")
    not_run = {arm.name: f"needs {arm.init}: {lost[arm.init]}" for arm in study.arms if arm.init in lost}
    arms = tuple(arm for arm in study.arms if arm.name not in not_run)
    if not arms:
        raise BadInputError("no arm can run: " + "; ".join(f"{arm} {reason}" for arm, reason in not_run.items()))
    pretraining = tuple(run for run in study.pretraining if run.name not in lost)
    used = {run.dataset for run in pretraining}
    left = study.model_copy(update={"arms": arms})
    compare = study.compare
    pairs, efficiency = (
        tuple(pair for pair in listed if set(pair) <= left.comparable)
        for listed in (compare.pairs, compare.label_efficiency)
    )
    # A family without pairs would mean all pairs, so one that has lost all of its own goes.
    families = tuple(
        family.model_copy(update={"pairs": kept})
        for family in compare.families
        if (kept := tuple(pair for pair in family.pairs if set(pair) <= left.comparable)) or not family.pairs
    )
    # Where the candidate cannot be trained, nothing is promoted.
    promote = study.promote.model_copy(update={"enabled": study.promote.enabled and study.promote.arm not in not_run})
    updates = {"pairs": pairs, "label_efficiency": efficiency, "families": families}
    return left.model_copy(
        update={
            "weights": tuple(one for one in study.weights if one.name not in lost),
            "pretraining_data": tuple(one for one in study.pretraining_data if one.name in used),
            "pretraining": pretraining,
            "not_run": not_run,
            "compare": compare.model_copy(update=updates),
            "promote": promote,
        }
    )

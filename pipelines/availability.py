"""What of a study can run here: arms whose weights or pretraining data are absent are left out, and said to be."""

from collections.abc import Mapping
from pathlib import Path

from medssl.config import Study
from medssl.exit_codes import BadInputError
from medssl.store import Store, StoreError


def absent(study: Study, store: Store) -> dict[str, str]:
    """By name, the weights and the pretraining data that are not at hand, each with the reason."""
    reasons: dict[str, str] = {}
    for weights in study.weights:
        if not weights.checkpoint:
            reasons[weights.name] = "no checkpoint is given; `medssl import-weights` makes one"
            continue
        try:
            store.open(store.uri("checkpoint", weights.checkpoint), kind="checkpoint", verify="size")
        except StoreError:
            reasons[weights.name] = "its checkpoint is not in the store; run `medssl import-weights` with that store"
    for one in study.pretraining_data:
        if not Path(str(one.root)).expanduser().is_dir():
            reasons[one.name] = "the folder of the data set is not there"
    return reasons


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
    updates = {"pairs": pairs, "label_efficiency": efficiency, "families": families}
    return left.model_copy(
        update={
            "weights": tuple(one for one in study.weights if one.name not in lost),
            "pretraining_data": tuple(one for one in study.pretraining_data if one.name in used),
            "pretraining": pretraining,
            "not_run": not_run,
            "compare": compare.model_copy(update=updates),
        }
    )

"""The arms of a study as a table: what each classifier starts from, named as the paper's tables name it."""

from collections.abc import Mapping, Sequence, Set

import pyarrow as pa

from medssl import schema
from medssl.config import RANDOM_INITIALIZATION, ArmConfig, EncoderConfig, PretrainRun


def table(
    arms: Sequence[ArmConfig],
    encoders: Mapping[str, EncoderConfig],
    runs: Sequence[PretrainRun],
    imported: Sequence[str] = (),
) -> pa.Table:
    """Describe each arm by its architecture and the pretraining that its weights went through.

    `num_steps` counts every pretraining run of the study on the way, since a MICLe run continues a SimCLR run; those
    of imported weights are not known. Batch size and augmentation are those of the last run, null for an arm that
    starts from random or imported weights.

    Args:
        arms: One row each, in this order.
        encoders: By name, as `arms` and `runs` refer to them.
        runs: The study's pretraining runs, in any order.
        imported: Names of weights that the study did not train.

    Raises:
        ValueError: An arm or a run starts from a run that is not there, or runs start from one another.
    """
    run_by_name = {run.name: run for run in runs}
    ends = {RANDOM_INITIALIZATION, *imported}
    rows = []
    for arm in arms:
        chain = _chain(arm.init, run_by_name, ends)
        encoder = encoders[arm.encoder].display_name
        rows.append(
            {
                "arm_id": arm.name,
                "architecture": encoder,
                "method": arm.method,
                "num_steps": sum(run.num_steps for run in chain),
                "batch_size": chain[0].batch_size if chain else None,
                "augmentation": chain[0].augmentation if chain else None,
                "display_name": f"{encoder}, {arm.method}",
            }
        )
    return pa.Table.from_pylist(rows, schema=schema.ARMS.columns)


def _chain(init: str, run_by_name: Mapping[str, PretrainRun], ends: Set[str]) -> list[PretrainRun]:
    """The runs behind a checkpoint, the last one first, back to one of `ends`."""
    chain: list[PretrainRun] = []
    while init not in ends:
        if init not in run_by_name or run_by_name[init] in chain:
            raise ValueError(
                f"pretraining run {init!r} is unknown or starts from itself; expected one of {sorted(run_by_name)}"
            )
        chain.append(run_by_name[init])
        init = chain[-1].init
    return chain

"""Component of the stage `pretrain`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("train"))
def pretrain(
    index: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Dataset],
    shards: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    config: dict,  # type: ignore[type-arg]
    code_version: str,
    catalog: dsl.Input[dsl.Artifact] = None,  # absent on the first level
    datasets: dsl.Input[dsl.Artifact] = None,  # absent where all runs see the study's own set
) -> None:
    """Train one encoder without labels."""
    from medssl.config import EncoderConfig, PretrainRun, TaskConfig
    from medssl.stages import train
    from medssl.store import Store

    store = Store.from_environment()
    made = train.pretrain(
        store,
        PretrainRun.model_validate(config["run"]),
        EncoderConfig.model_validate(config["encoder"]),
        train.Data(store, index_uri=index.uri, splits_uri=splits.uri, shards_uri=shards.uri),
        task=TaskConfig.model_validate(config["task"]) if "task" in config else None,
        catalog_uri=catalog.uri if catalog else None,
        datasets_uri=datasets.uri if datasets else None,
        imported=config["imported"],
        code_version=code_version,
    )
    checkpoint.uri, checkpoint.metadata = made.uri, made.metadata

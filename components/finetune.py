"""Component of the stage `finetune`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("train"))
def finetune(
    index: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Dataset],
    shards: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Artifact],
    models: dsl.Output[dsl.Model],
    batch: dict,  # type: ignore[type-arg]
    config: dict,  # type: ignore[type-arg]
    draws: int,
    code_version: str,
    catalog: dsl.Input[dsl.Artifact] = None,  # absent where all arms start at random
) -> None:
    """Fine-tune one arm with its chosen settings at every label fraction, several times."""
    from medssl.config import ArmConfig, EncoderConfig, FinetuneConfig, TaskConfig
    from medssl.stages import train
    from medssl.store import Store

    store = Store.from_environment()
    made = train.finetune(
        store,
        FinetuneConfig.model_validate(config["finetune"]),
        TaskConfig.model_validate(config["task"]),
        ArmConfig.model_validate(batch["arm"]),
        EncoderConfig.model_validate(batch["encoder"]),
        train.Data(store, index_uri=index.uri, splits_uri=splits.uri, shards_uri=shards.uri),
        draws=draws,
        selection_uri=selection.uri,
        catalog_uri=catalog.uri if catalog else None,
        imported=batch["imported"],
        code_version=code_version,
    )
    models.uri, models.metadata = made.uri, made.metadata

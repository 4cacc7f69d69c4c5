"""Component of the stage `search_hyperparameters`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("train"))
def search_hyperparameters(
    index: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Dataset],
    shards: dsl.Input[dsl.Dataset],
    scores: dsl.Output[dsl.Dataset],
    batch: dict,  # type: ignore[type-arg]
    config: dict,  # type: ignore[type-arg]
    code_version: str,
    catalog: dsl.Input[dsl.Artifact] = None,  # absent where all arms start at random
) -> None:
    """Fine-tune one arm over the grid; only validation scores leave this stage."""
    from medssl.config import ArmConfig, EncoderConfig, FinetuneConfig, TaskConfig
    from medssl.stages import train
    from medssl.store import Store

    store = Store.from_environment()
    made = train.search_hyperparameters(
        store,
        FinetuneConfig.model_validate(config["finetune"]),
        TaskConfig.model_validate(config["task"]),
        ArmConfig.model_validate(batch["arm"]),
        EncoderConfig.model_validate(batch["encoder"]),
        train.Data(store, index_uri=index.uri, splits_uri=splits.uri, shards_uri=shards.uri),
        catalog_uri=catalog.uri if catalog else None,
        imported=batch["imported"],
        code_version=code_version,
    )
    scores.uri, scores.metadata = made.uri, made.metadata

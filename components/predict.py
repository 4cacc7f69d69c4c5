"""Component of the stage `predict`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("train"))
def predict(
    index: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Dataset],
    shards: dsl.Input[dsl.Dataset],
    catalog: dsl.Input[dsl.Artifact],
    predictions: dsl.Output[dsl.Dataset],
    batch: dict,  # type: ignore[type-arg]
    config: dict,  # type: ignore[type-arg]
    code_version: str,
    external: dsl.Input[dsl.Artifact] = None,  # absent where the study has no external set
) -> None:
    """Predict validation, test and external sets with every model of one arm."""
    from medssl.config import ArmConfig, EncoderConfig, PredictConfig, TaskConfig
    from medssl.stages import train
    from medssl.store import Store

    store = Store.from_environment()
    made = train.predict(
        store,
        PredictConfig.model_validate(config["predict"]),
        TaskConfig.model_validate(config["task"]),
        ArmConfig.model_validate(batch["arm"]),
        EncoderConfig.model_validate(batch["encoder"]),
        train.Data(store, index_uri=index.uri, splits_uri=splits.uri, shards_uri=shards.uri),
        study_id=config["study_id"],
        dataset=config["dataset"],
        image_size_px=int(config["image_size_px"]),
        catalog_uri=catalog.uri,
        external_uri=external.uri if external else None,
        code_version=code_version,
    )
    predictions.uri, predictions.metadata = made.uri, made.metadata

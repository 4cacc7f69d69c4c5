"""Component of the stage `promote`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("train"))
def promote(
    index: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Dataset],
    shards: dsl.Input[dsl.Dataset],
    models: dsl.Input[dsl.Artifact],
    comparison: dsl.Input[dsl.Dataset],
    promotion: dsl.Output[dsl.Artifact],
    config: dict,  # type: ignore[type-arg]
    code_version: str,
) -> None:
    """Compare the study's candidate with the champion, and let it take the place if it is better."""
    from medssl.config import CompareConfig, EncoderConfig, PredictConfig, PromoteConfig, SubgroupConfig, TaskConfig
    from medssl.stages import promotion as stage
    from medssl.stages import train
    from medssl.stages.contest import Rules
    from medssl.store import Store

    store = Store.from_environment()
    made = stage.promote(
        store,
        Rules(
            promote=PromoteConfig.model_validate(config["promote"]),
            compare=CompareConfig.model_validate(config["compare"]),
            subgroups=SubgroupConfig.model_validate(config["subgroups"]),
            predict=PredictConfig.model_validate(config["predict"]),
            task=TaskConfig.model_validate(config["task"]),
        ),
        encoder=EncoderConfig.model_validate(config["encoder"]),
        data=train.Data(store, index_uri=index.uri, splits_uri=splits.uri, shards_uri=shards.uri),
        study_id=config["study_id"],
        dataset=config["dataset"],
        image_size_px=int(config["image_size_px"]),
        catalog_uri=models.uri,
        comparison_uri=comparison.uri,
        code_version=code_version,
    )
    promotion.uri, promotion.metadata = made.uri, made.metadata

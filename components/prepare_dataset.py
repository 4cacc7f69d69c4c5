"""Component of the stage `prepare_dataset`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("data"))
def prepare_dataset(
    dataset: dsl.Output[dsl.Dataset],
    config: dict,  # type: ignore[type-arg]
    shards: dict,  # type: ignore[type-arg]
    key_id: str,
    code_versions: dict,  # type: ignore[type-arg]
) -> None:
    """Read and store a data set that finished models are evaluated on."""
    from medssl.config import DataConfig, ShardConfig
    from medssl.stages import data
    from medssl.store import Store

    made = data.prepare_dataset(
        Store.from_environment(),
        DataConfig.model_validate(config),
        ShardConfig.model_validate(shards),
        key_id=key_id,
        code_versions=code_versions,
    )
    dataset.uri, dataset.metadata = made.uri, made.metadata

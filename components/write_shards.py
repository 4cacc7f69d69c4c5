"""Component of the stage `write_shards`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("data"))
def write_shards(
    index: dsl.Input[dsl.Dataset],
    shards: dsl.Output[dsl.Dataset],
    config: dict,  # type: ignore[type-arg]
    root: str,
    data_digest: str,
    code_version: str,
) -> None:
    """Decode, resize and store the images, all of a patient side by side."""
    from medssl.config import ShardConfig
    from medssl.stages import data
    from medssl.store import Store

    made = data.write_shards(
        Store.from_environment(),
        ShardConfig.model_validate(config),
        root=root,
        data_digest=data_digest,
        index_uri=index.uri,
        code_version=code_version,
    )
    shards.uri, shards.metadata = made.uri, made.metadata

"""Component of the stage `ingest`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("data"))
def ingest(
    index: dsl.Output[dsl.Dataset],
    config: dict,  # type: ignore[type-arg]
    root: str,
    data_digest: str,
    key_id: str,
    code_version: str,
) -> None:
    """Read the label tables into the index."""
    from medssl.config import DataConfig
    from medssl.stages import data
    from medssl.store import Store

    made = data.ingest(
        Store.from_environment(),
        DataConfig.model_validate(config),
        root=root,
        data_digest=data_digest,
        key_id=key_id,
        code_version=code_version,
    )
    index.uri, index.metadata = made.uri, made.metadata

"""Component of the stage `assign_splits`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("data"))
def assign_splits(
    index: dsl.Input[dsl.Dataset],
    splits: dsl.Output[dsl.Dataset],
    config: dict,  # type: ignore[type-arg]
    code_version: str,
) -> None:
    """Assign every patient to train, validation or test, and to nested label fractions."""
    from medssl.config import SplitConfig
    from medssl.stages import data
    from medssl.store import Store

    made = data.assign_splits(
        Store.from_environment(),
        SplitConfig.model_validate(config),
        index_uri=index.uri,
        code_version=code_version,
    )
    splits.uri, splits.metadata = made.uri, made.metadata

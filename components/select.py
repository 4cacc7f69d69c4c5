"""Component of the stage `select`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("analysis"))
def select(
    scores: dsl.Input[list[dsl.Dataset]],
    selection: dsl.Output[dsl.Artifact],
    code_version: str,
) -> None:
    """Choose each arm's settings by validation score."""
    from medssl.stages import train
    from medssl.store import Store

    made = train.select(
        Store.from_environment(),
        [table.uri for table in scores],
        code_version=code_version,
    )
    selection.uri, selection.metadata = made.uri, made.metadata

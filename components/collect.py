"""Components of the stage `collect`: KFP hands no list of artifacts into a loop, but one catalog."""

from kfp import dsl

from components.images import component


@dsl.component(**component("analysis"))
def collect(
    items: dsl.Input[list[dsl.Artifact]],
    catalog: dsl.Output[dsl.Artifact],
    kind: str,
    code_version: str,
    previous: dsl.Input[dsl.Artifact] = None,  # absent on the first level
) -> None:
    """List several artifacts by name in one."""
    from medssl.stages import train
    from medssl.store import Store

    made = train.collect(
        Store.from_environment(),
        kind,
        [item.uri for item in items],
        previous_uri=previous.uri if previous else None,
        code_version=code_version,
    )
    catalog.uri, catalog.metadata = made.uri, made.metadata

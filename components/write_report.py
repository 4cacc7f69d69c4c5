"""Component of the stage `write_report`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("analysis"))
def write_report(
    index: dsl.Input[dsl.Dataset],
    splits: dsl.Input[dsl.Dataset],
    shards: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Artifact],
    models: dsl.Input[dsl.Artifact],
    comparison: dsl.Input[dsl.Dataset],
    subgroups: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    study: dict,  # type: ignore[type-arg]
    code_version: str,
    checkpoints: dsl.Input[dsl.Artifact] = None,  # absent without pretraining
) -> None:
    """Write the report page and the study's one table of metrics."""
    from medssl.config import Study
    from medssl.stages import analysis
    from medssl.store import Store

    made = analysis.write_report(
        Store.from_environment(),
        Study.model_validate(study),
        index_uri=index.uri,
        splits_uri=splits.uri,
        shards_uri=shards.uri,
        checkpoints_uri=checkpoints.uri if checkpoints else None,
        selection_uri=selection.uri,
        models_uri=models.uri,
        comparison_uri=comparison.uri,
        subgroups_uri=subgroups.uri,
        code_version=code_version,
    )
    report.uri, report.metadata = made.uri, made.metadata

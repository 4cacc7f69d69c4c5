"""Component of the stage `analyze_subgroups`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("analysis"))
def analyze_subgroups(
    comparison: dsl.Input[dsl.Dataset],
    subgroups: dsl.Output[dsl.Dataset],
    config: dict,  # type: ignore[type-arg]
    code_version: str,
) -> None:
    """Score the selected models within each subgroup, and their drop on external sets."""
    from medssl.config import SubgroupConfig
    from medssl.stages import analysis
    from medssl.store import Store

    made = analysis.analyze_subgroups(
        Store.from_environment(),
        SubgroupConfig.model_validate(config["subgroups"]),
        arm_pairs=[(a, b) for a, b in config["pairs"]],
        groups=config["groups"],
        specificity=config["specificity"],
        comparison_uri=comparison.uri,
        code_version=code_version,
    )
    subgroups.uri, subgroups.metadata = made.uri, made.metadata

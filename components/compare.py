"""Component of the stage `compare`."""

from kfp import dsl

from components.images import component


@dsl.component(**component("analysis"))
def compare(
    predictions: dsl.Input[list[dsl.Dataset]],
    comparison: dsl.Output[dsl.Dataset],
    config: dict,  # type: ignore[type-arg]
    code_version: str,
) -> None:
    """Join the predictions of all arms and test their differences by paired bootstrap."""
    from medssl.config import ArmConfig, CompareConfig, EncoderConfig, PretrainRun, WeightsConfig
    from medssl.stages import analysis
    from medssl.store import Store

    made = analysis.compare(
        Store.from_environment(),
        CompareConfig.model_validate(config["compare"]),
        arms=[ArmConfig.model_validate(arm) for arm in config["arms"]],
        encoders={name: EncoderConfig.model_validate(e) for name, e in config["encoders"].items()},
        pretraining=[PretrainRun.model_validate(run) for run in config["pretraining"]],
        weights=[WeightsConfig.model_validate(one) for one in config["weights"]],
        predictions_uris=[table.uri for table in predictions],
        code_version=code_version,
    )
    comparison.uri, comparison.metadata = made.uri, made.metadata

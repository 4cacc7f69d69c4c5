"""The last stage: a fine-tuned model of the study against the present champion.

What it compares with stands in MLflow's registry and changes without any input changing, so it is never cached. No
weights and no patient's row leave the store: the registry gets digests, counts and differences.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medssl import layout, schema
from medssl.config import EncoderConfig, PromoteConfig, TaskConfig
from medssl.exit_codes import BadInputError
from medssl.progress import say
from medssl.references import Cohort, Reference
from medssl.registry import Registry
from medssl.stages import step as steps
from medssl.stages import train
from medssl.stages.contest import Champion, Contest, Rules, units_digest
from medssl.stages.evaluations import EVALUATED, told_uses
from medssl.store import Artifact, Store, write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from medssl.analysis.promotion import Decision


def promote(
    store: Store,
    rules: Rules,
    *,
    encoder: EncoderConfig,
    data: train.Data,
    study_id: str,
    dataset: str,
    image_size_px: int,
    catalog_uri: str,
    comparison_uri: str,
    code_version: str,
) -> steps.Made:
    """Compare the study's candidate with the champion, and let it take the place if it is better in every respect.

    Args:
        store: Where artifacts are found and put.
        rules: What decides.
        encoder: Of the candidate's arm.
        data: The study's own, with its test set.
        study_id: Name of the study.
        dataset: Name of its data set.
        image_size_px: Side of the candidate's input.
        catalog_uri: Fine-tuned models by arm.
        comparison_uri: With the candidate's predictions.
        code_version: Of this stage.

    Raises:
        BadInputError: There is no registry, or the champion's weights are gone.
        OutrunError: Another model became champion while this one was compared.
    """
    registry = Registry.from_environment(rules.promote.model or study_id)
    models, catalog = train.from_catalog(store, rules.promote.arm, catalog_uri)
    comparison = store.open(comparison_uri, kind="comparison")
    champion = Champion.find(store, registry)
    chosen = _chosen(models)
    tested = _tested(comparison, chosen, dataset)
    candidate = Reference(
        study=study_id,
        models=models.digest,
        **{name: chosen[name] for name in ("folder", "checkpoint_digest", *_KEY)},
        encoder=encoder.dump(),
        fusion=rules.task.fusion,
        task=rules.task.kind,
        classes=_classes(data, rules.task),
        channels=data.channels,
        image_size_px=image_size_px,
        cohort=_cohort(tested, data, dataset),
    )
    with steps.start(
        "promote",
        store=store,
        code_version=code_version,
        config={
            **rules.dump(),
            "model": registry.name,
            "champion": champion.version.reference.checkpoint_digest if champion else "",
        },
        inputs={**data.artifacts, "models": models, "comparison": comparison, **_of_champion(champion)},
        lineage={"catalog": catalog},
        item=rules.promote.arm,
        reuse=False,
    ) as step:
        contest = Contest(store, rules, data, models, candidate, tested, champion, code_version)
        decision, evaluated = contest.decide()
        uses = told_uses(store, step, evaluated, most=rules.promote.max_test_uses)
        record = {
            "model": registry.name,
            "candidate": candidate.as_json(),
            "champion": champion.version.reference.as_json() if champion else None,
            "champion_version": champion.version.number if champion else None,
            "first_test_cohort": asdict(champion.move.cohort if champion else candidate.cohort),
            "rules": rules.dump(),
            "test_uses": {name: int(value) for name, _, value in uses},
            **decision.as_json(),
        }
        write_json(step.folder / layout.DECISION, record)
        summary = {"name": registry.name, "verdict": decision.verdict}
        step.finish("promotion", summary, uses, notes={EVALUATED: [one.noted() for one in evaluated]})
        _settle(registry, rules.promote, candidate, models, decision, champion, _run_of(store, models))
    return step.result


_KEY = ("arm_id", "label_fraction", "draw", "repeat")


def _chosen(models: Artifact) -> dict[str, Any]:
    """The entry of the repeat that validation chose, at the largest label fraction and of the first draw."""
    listed = json.loads((models.folder / layout.MODELS).read_text())
    selected = [one for one in listed if one["is_selected"] and one["draw"] == 0]
    return dict(max(selected, key=lambda one: float(one["label_fraction"])))


def _tested(comparison: Artifact, chosen: Mapping[str, Any], dataset: str) -> "pa.Table":
    """The candidate's predictions on its study's test set."""
    from medssl.analysis.promotion import only_model

    table = schema.read(comparison.folder / layout.PREDICTIONS, schema.PREDICTIONS)
    try:
        return only_model(table, dataset=dataset, split="test", model={name: chosen[name] for name in _KEY})
    except ValueError as error:
        raise BadInputError(str(error)) from None


def _classes(data: train.Data, task: TaskConfig) -> tuple[str, ...]:
    from medssl import labels

    index = schema.read(data.index.folder / layout.INDEX, schema.INDEX)
    return labels.classes(index, schema.read(data.splits.folder / layout.SPLITS, schema.SPLIT_TABLE), task)


def _cohort(predictions: "pa.Table", data: train.Data, dataset: str) -> Cohort:
    units = predictions["unit_id"].unique()
    return Cohort(
        dataset=dataset,
        **{kind: artifact.digest for kind, artifact in data.artifacts.items()},
        units=units_digest(predictions),
        num_units=len(units),
        num_patients=len(predictions["patient_id"].unique()),
    )


def _of_champion(champion: Champion | None) -> dict[str, Artifact]:
    if champion is None:
        return {}
    first = {f"first {kind}": artifact for kind, artifact in champion.first.artifacts.items()}
    return {"champion": champion.models, **first}


def _run_of(store: Store, models: Artifact) -> str:
    """The MLflow run that made an artifact, "" where it is not known."""
    made = [one for one in store.records() if one["output"]["digest"] == models.digest]
    return str(made[-1].get("mlflow_run_id", "")) if made else ""


def _note(decision: "Decision") -> Iterator[str]:
    """The reasons, and all differences as a table, in Markdown; names of groups are the study's own words."""
    from medssl.analysis.markdown import escaped

    yield from (f"- {escaped(reason)}" for reason in decision.reasons)
    if not decision.checks:
        return
    yield ""
    yield "| where | metric | candidate | champion | difference [interval] | margin | |"
    yield "|---|---|---|---|---|---|---|"
    for one in decision.checks:
        values = [f"{value:.4f}" if value is not None else "–" for value in (one.candidate, one.champion)]
        shown = "–"
        if one.estimate is not None and one.ci_low is not None and one.ci_high is not None:
            shown = f"{one.estimate:+.4f} [{one.ci_low:+.4f}, {one.ci_high:+.4f}]"
        cells = [one.name, one.metric, *values, shown, f"{one.margin:g}", one.status]
        yield f"| {' | '.join(map(escaped, cells))} |"


def _settle(
    registry: Registry,
    config: PromoteConfig,
    candidate: Reference,
    models: Artifact,
    decision: "Decision",
    champion: Champion | None,
    run_id: str,
) -> None:
    """Write the decision to the registry, and carry it out."""
    if decision.verdict == "is champion":
        say(f"promote: {registry.name}: {decision.reasons[0]}")
        return
    version = registry.register(candidate, uri=models.uri, run_id=run_id)
    version = registry.decide(
        version,
        verdict=decision.verdict,
        reasons=decision.reasons,
        checks=[json.dumps(asdict(check)) for check in decision.checks],
        note=list(_note(decision)),
        after=champion.move.number if champion else 0,
    )
    say(f"promote: {registry.name} version {version.number}: {decision.verdict}")
    for reason in decision.reasons:
        say(f"promote: {reason}")
    if decision.verdict == "promote" or (decision.verdict == "first" and config.auto_first):
        why = "better" if champion else "first"
        registry.promote(version, after=champion.move if champion else None, why=why)
        say(f"promote: version {version.number} of {registry.name} is champion now")
    elif decision.verdict in ("first", "needs approval", "not comparable"):
        say(f"promote: to make it champion: medssl promote --model {registry.name} --approve {version.number}")

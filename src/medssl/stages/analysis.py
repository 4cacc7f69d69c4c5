"""The analysis stages, in pipeline order: right of the predictions there is no image and no torch."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from medssl import layout, schema
from medssl.config import (
    ArmConfig,
    CompareConfig,
    EncoderConfig,
    PretrainRun,
    Study,
    SubgroupConfig,
    WeightsConfig,
    arm_groups,
)
from medssl.metrics import PRIMARY, unit_kind
from medssl.stages import step as steps
from medssl.store import Artifact, Store

if TYPE_CHECKING:
    import pyarrow as pa


def compare(
    store: Store,
    config: CompareConfig,
    *,
    arms: Sequence[ArmConfig],
    encoders: dict[str, EncoderConfig],
    pretraining: Sequence[PretrainRun],
    weights: Sequence[WeightsConfig] = (),
    predictions_uris: Sequence[str],
    code_version: str,
) -> steps.Made:
    """Join the predictions of all arms and test their differences by paired bootstrap."""
    import pyarrow as pa

    from medssl.analysis import arms as arm_table
    from medssl.analysis import multiplicity
    from medssl.progress import Progress

    artifacts = {str(a.summary["name"]): a for a in (store.open(uri, kind="predictions") for uri in predictions_uris)}
    settings = {
        "compare": config.dump(),
        "arms": [arm.dump() for arm in arms],
        "encoders": {name: encoder.dump() for name, encoder in encoders.items()},
        "pretraining": [run.dump() for run in pretraining],
        "weights": [one.dump() for one in weights],
    }
    with steps.start("compare", store=store, code_version=code_version, config=settings, inputs=artifacts) as step:
        if step.made is None:
            tables = [schema.read(a.folder / layout.PREDICTIONS, schema.PREDICTIONS) for a in artifacts.values()]
            predictions = pa.concat_tables(tables)
            schema.write(predictions, schema.PREDICTIONS, step.folder / layout.PREDICTIONS)
            schema.write(
                arm_table.table(arms, encoders, pretraining, [one.name for one in weights]),
                schema.ARMS,
                step.folder / layout.ARMS,
            )
            bar = Progress("compare", 1, unit="cells")
            paths = (step.folder / layout.METRICS, step.folder / layout.CALIBRATION)
            groups = arm_groups(arms)
            names = {*(arm.name for arm in arms), *groups}
            rows = write_comparison(predictions, config, *paths, groups=groups, study_names=names, progress=bar.of)
            summary: dict[str, Any] = {"num_predictions": predictions.num_rows}
            if notes := multiplicity.idle_families(config.families, rows):
                summary["notes"] = notes
            step.finish("comparison", summary, headline_metrics(rows))
    return step.result


def write_comparison(
    predictions: "pa.Table",
    config: CompareConfig,
    metrics_path: Path,
    curves_path: Path,
    *,
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
    study_names: Collection[str] = (),
    more: Sequence[dict[str, Any]] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Write the metrics of a table of predictions, and its reliability curves; returns the metrics.

    Args:
        predictions: The predictions table.
        config: What is compared.
        metrics_path: Of the metrics.
        curves_path: Of the reliability curves.
        groups: Name to arms that are variants of one method.
        study_names: As `compare.compare_runs`.
        more: Further rows of the same table.
        progress: Called with steps done, steps in all, and what is done.

    Raises:
        ValueError: The predictions cannot be compared in this way.
    """
    import pyarrow as pa

    from medssl.analysis import compare
    from medssl.analysis.runs import read_runs

    runs = read_runs(predictions)
    rows = compare.compare_runs(runs, **dict(config), groups=groups, study_names=study_names, progress=progress)
    rows += more
    schema.write(pa.Table.from_pylist(rows, schema=schema.METRICS.columns), schema.METRICS, metrics_path)
    curves = pa.Table.from_pylist(compare.reliability_curves(runs), schema=schema.CALIBRATION.columns)
    schema.write(curves, schema.CALIBRATION, curves_path)
    return rows


def subgroup_rows(
    predictions: "pa.Table",
    config: SubgroupConfig,
    *,
    arm_pairs: Sequence[tuple[str, str]],
    groups: Mapping[str, Sequence[str]],
    specificity: float,
    progress: Callable[[int, int, str], None] | None,
) -> list[dict[str, Any]]:
    """Rows of the metrics table on subgroups and external sets; see `analysis.subgroups.analyze`."""
    from medssl.analysis import subgroups

    return subgroups.analyze(
        predictions,
        by=config.by,
        age_edges=config.age_edges,
        skin_type_groups=config.skin_type_groups,
        min_patients=config.min_patients,
        num_replicates=config.num_replicates,
        alpha=config.alpha,
        seed=config.seed,
        attribute_pairs=config.attribute_pairs,
        arm_pairs=arm_pairs,
        arm_groups=groups,
        specificity=specificity,
        progress=progress,
    )


def analyze_subgroups(
    store: Store,
    config: SubgroupConfig,
    *,
    arm_pairs: Sequence[tuple[str, str]],
    groups: Mapping[str, Sequence[str]],
    specificity: float,
    comparison_uri: str,
    code_version: str,
) -> steps.Made:
    """Score the selected models within each subgroup, and their drop on external sets."""
    import pyarrow as pa

    from medssl.progress import Progress

    comparison = store.open(comparison_uri, kind="comparison")
    with steps.start(
        "analyze_subgroups",
        store=store,
        code_version=code_version,
        config={
            "subgroups": config.dump(),
            "pairs": [list(pair) for pair in arm_pairs],
            "groups": {name: list(arms) for name, arms in groups.items()},
            "specificity": specificity,
        },
        inputs={"comparison": comparison},
    ) as step:
        if step.made is None:
            bar = Progress("analyze_subgroups", 1, unit="cells")
            predictions = schema.read(comparison.folder / layout.PREDICTIONS, schema.PREDICTIONS)
            rows = subgroup_rows(
                predictions, config, arm_pairs=arm_pairs, groups=groups, specificity=specificity, progress=bar.of
            )
            metrics = pa.Table.from_pylist(rows, schema=schema.METRICS.columns)
            schema.write(metrics, schema.METRICS, step.folder / layout.METRICS)
            step.finish("subgroups", {"num_rows": metrics.num_rows}, [("rows", 0, metrics.num_rows)])
    return step.result


def write_report(
    store: Store,
    study: Study,
    *,
    index_uri: str,
    splits_uri: str,
    shards_uri: str,
    checkpoints_uri: str | None,
    selection_uri: str,
    models_uri: str,
    comparison_uri: str,
    subgroups_uri: str,
    code_version: str,
) -> steps.Made:
    """Write the report page and the study's one table of metrics."""
    import pyarrow as pa

    from medssl.analysis import report
    from medssl.analysis.inputs import ReportInputs

    uris = {
        "index": index_uri,
        "splits": splits_uri,
        "shards": shards_uri,
        "selection": selection_uri,
        "comparison": comparison_uri,
        "subgroups": subgroups_uri,
    }
    inputs = {role: store.open(uri, kind=role) for role, uri in uris.items()}
    catalogs = {"models": store.open(models_uri, kind="catalog")}
    if checkpoints_uri:
        catalogs["checkpoints"] = store.open(checkpoints_uri, kind="catalog")
    with steps.start(
        "write_report",
        store=store,
        code_version=code_version,
        config={"study": study.without_roots(exclude=("resources",))},
        unlogged=("study",),
        inputs={**inputs, **catalogs},
    ) as step:
        if step.made is None:
            listed = {role: _entries(store, catalog) for role, catalog in catalogs.items()}
            folders = [a.folder for entries in listed.values() for a in entries]
            metrics = pa.concat_tables(
                schema.read(inputs[role].folder / layout.METRICS, schema.METRICS)
                for role in ("comparison", "subgroups")
            )
            schema.write(metrics, schema.METRICS, step.folder / layout.METRICS)
            report.write(
                ReportInputs(
                    study=study.model_dump(mode="json"),
                    index_summary=_json(inputs["index"].folder / layout.SUMMARY),
                    splits_summary=_json(inputs["splits"].folder / layout.SUMMARY),
                    shards_summary=_json(inputs["shards"].folder / layout.SHARDS),
                    selection=_json(inputs["selection"].folder / layout.SELECTION),
                    models=[m for a in listed["models"] for m in _json(a.folder / layout.MODELS)],
                    history=pa.concat_tables(schema.read(f / layout.HISTORY, schema.HISTORY) for f in folders),
                    arms=schema.read(inputs["comparison"].folder / layout.ARMS, schema.ARMS),
                    metrics=metrics,
                    calibration=schema.read(inputs["comparison"].folder / layout.CALIBRATION, schema.CALIBRATION),
                    lineage={role: artifact.digest for role, artifact in (inputs | catalogs).items()},
                ),
                step.folder,
            )
            step.finish("report", {"title": study.report.title}, [("rows", 0, metrics.num_rows)])
            step.run.artifact(str(store.open(step.result.uri).folder), "report")
    return step.result


def headline_metrics(rows: Sequence[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """Primary test metric of each arm and label fraction, as MLflow shows it."""
    primary = PRIMARY[unit_kind({row["metric"] for row in rows})]
    return [
        (f"test_{primary.log_name}/{row['arm_a']}/fraction{row['label_fraction']:g}", 0, row["estimate"])
        for row in rows
        if (row["split"], row["metric"], row["k"]) == ("test", primary.name, primary.k)
        and (row["repeat"], row["subgroup"]) == ("mean", "all")
        and row["arm_b"] is None
        and row["estimate"] is not None
        and row["draw"] == 0
    ]


def _entries(store: Store, catalog: Artifact) -> list[Artifact]:
    entries = _json(catalog.folder / layout.CATALOG)
    return [store.open(store.uri(e["kind"], e["digest"]), verify="size") for _, e in sorted(entries.items())]


def _json(path: Path) -> Any:
    return json.loads(path.read_text())

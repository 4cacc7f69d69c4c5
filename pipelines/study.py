"""The DAG of a study.

One flat loop a level: inside a loop, only artifacts, the loop's item and pipeline parameters are used, and what comes
out is gathered by one task. Everything else that KFP's language allows here is wrong in `kfp.local` 2.17 or on a
cluster (`pipelines/lint.py` refuses it in the compiled form).
"""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from kfp import compiler, dsl

from components.analyze_subgroups import analyze_subgroups
from components.assign_splits import assign_splits
from components.collect import collect
from components.compare import compare
from components.finetune import finetune
from components.fingerprint import fingerprint
from components.ingest import ingest
from components.predict import predict
from components.prepare_dataset import prepare_dataset
from components.pretrain import pretrain
from components.promote import promote
from components.search_hyperparameters import search_hyperparameters
from components.select import select
from components.write_report import write_report
from components.write_shards import write_shards
from medssl.stages.data import DATASET_STAGES
from pipelines import lint
from pipelines.plan import Item, Plan

PIPELINE_NAME = "medssl"
TRAINING_PARALLELISM = 1  # pretraining runs at a time on one machine: each uses all of it


class Outputs(NamedTuple):
    """What a run of the pipeline leaves, besides what stays inside."""

    index: dsl.Dataset
    splits: dsl.Dataset
    shards: dsl.Dataset
    selection: dsl.Artifact
    models: dsl.Artifact
    comparison: dsl.Dataset
    report: dsl.Artifact


class PromotedOutputs(NamedTuple):
    """What a run that promotes leaves."""

    index: dsl.Dataset
    splits: dsl.Dataset
    shards: dsl.Dataset
    selection: dsl.Artifact
    models: dsl.Artifact
    comparison: dsl.Dataset
    report: dsl.Artifact
    promotion: dsl.Artifact


def make_pipeline(plan: Plan, *, parallel_tasks: int = 1) -> Any:
    """The pipeline of one study.

    Args:
        plan: From `make_plan`.
        parallel_tasks: Fine-tuning tasks at a time.
    """
    sections, versions = plan.sections, plan.code_versions
    returned = PromotedOutputs if plan.promotes else Outputs

    @dsl.pipeline(name=PIPELINE_NAME, description="Pretraining without labels, fine-tuning, comparison, report.")
    def study_pipeline(
        root: str,
        key_id: str,
        pretraining_sets: list = list(plan.pretraining_sets),  # type: ignore[type-arg]  # noqa: B006  # KFP reads it
        level_1_runs: list = _level(plan, 1),  # type: ignore[type-arg]  # noqa: B008
        level_2_runs: list = _level(plan, 2),  # type: ignore[type-arg]  # noqa: B008
        level_3_runs: list = _level(plan, 3),  # type: ignore[type-arg]  # noqa: B008
        external_sets: list = list(plan.external),  # type: ignore[type-arg]  # noqa: B006
        arms: list = list(plan.arms),  # type: ignore[type-arg]  # noqa: B006
    ) -> returned:  # type: ignore[valid-type]
        source = fingerprint(config=sections["fingerprint"], root=root, code_version=versions["fingerprint"])
        source.set_caching_options(enable_caching=False)
        indexed = ingest(
            config=sections["ingest"],
            root=root,
            data_digest=source.output,
            key_id=key_id,
            code_version=versions["ingest"],
        )
        index = indexed.outputs["index"]
        split = assign_splits(index=index, config=sections["assign_splits"], code_version=versions["assign_splits"])
        sharded = write_shards(
            index=index,
            config=sections["write_shards"],
            root=root,
            data_digest=source.output,
            code_version=versions["write_shards"],
        )
        data = {"index": index, "splits": split.outputs["splits"], "shards": sharded.outputs["shards"]}

        def datasets(sets: Any) -> Any:
            """The catalog of further data sets, each prepared in a task of its own."""
            with dsl.ParallelFor(sets, parallelism=TRAINING_PARALLELISM) as one:
                prepared = prepare_dataset(
                    config=one,
                    shards=sections["write_shards"],
                    key_id=key_id,
                    code_versions={stage: versions[stage] for stage in DATASET_STAGES},
                )
                prepared.set_caching_options(enable_caching=False)  # it fingerprints
            listed = collect(
                items=dsl.Collected(prepared.outputs["dataset"]), kind="dataset", code_version=versions["collect"]
            )
            return listed.outputs["catalog"]

        others: dict[str, Any] = {"datasets": datasets(pretraining_sets)} if plan.pretraining_sets else {}
        catalog: dict[str, Any] = {}  # the checkpoints so far, as optional inputs
        for runs in (level_1_runs, level_2_runs, level_3_runs)[: len(plan.levels)]:
            with dsl.ParallelFor(runs, parallelism=TRAINING_PARALLELISM) as run:
                trained = pretrain(**data, **others, **catalog, config=run, code_version=versions["pretrain"])
            gathered = collect(
                items=dsl.Collected(trained.outputs["checkpoint"]),
                kind="checkpoint",
                code_version=versions["collect"],
                **({"previous": catalog["catalog"]} if catalog else {}),
            )
            catalog = {"catalog": gathered.outputs["catalog"]}

        with dsl.ParallelFor(arms, parallelism=parallel_tasks) as arm:
            searched = search_hyperparameters(
                **data,
                **catalog,
                batch=arm,
                config=sections["search_hyperparameters"],
                code_version=versions["search_hyperparameters"],
            )
        selected = select(
            scores=dsl.Collected(searched.outputs["scores"]),
            code_version=versions["select"],
        )
        with dsl.ParallelFor(arms, parallelism=parallel_tasks) as arm:
            tuned = finetune(
                **data,
                **catalog,
                selection=selected.outputs["selection"],
                batch=arm,
                config=sections["finetune"],
                draws=sections["assign_splits"]["draws"],
                code_version=versions["finetune"],
            )
        models = collect(items=dsl.Collected(tuned.outputs["models"]), kind="models", code_version=versions["collect"])
        external: dict[str, Any] = {"external": datasets(external_sets)} if plan.external else {}
        with dsl.ParallelFor(arms, parallelism=parallel_tasks) as arm:
            predicted = predict(
                **data,
                **external,
                catalog=models.outputs["catalog"],
                batch=arm,
                config=sections["predict"],
                code_version=versions["predict"],
            )
        compared = compare(
            predictions=dsl.Collected(predicted.outputs["predictions"]),
            config=sections["compare"],
            code_version=versions["compare"],
        )
        analysed = analyze_subgroups(
            comparison=compared.outputs["comparison"],
            config=sections["analyze_subgroups"],
            code_version=versions["analyze_subgroups"],
        )
        reported = write_report(
            **data,
            selection=selected.outputs["selection"],
            models=models.outputs["catalog"],
            comparison=compared.outputs["comparison"],
            subgroups=analysed.outputs["subgroups"],
            study=sections["write_report"],
            code_version=versions["write_report"],
            **({"checkpoints": catalog["catalog"]} if catalog else {}),
        )
        outputs: dict[str, Any] = {
            "index": index,
            "splits": data["splits"],
            "shards": data["shards"],
            "selection": selected.outputs["selection"],
            "models": models.outputs["catalog"],
            "comparison": compared.outputs["comparison"],
            "report": reported.outputs["report"],
        }
        if plan.promotes:
            promoted = promote(
                **data,
                models=models.outputs["catalog"],
                comparison=compared.outputs["comparison"],
                config=sections["promote"],
                code_version=versions["promote"],
            )
            promoted.set_caching_options(enable_caching=False)  # who is champion changes without any input changing
            outputs["promotion"] = promoted.outputs["promotion"]
        return returned(**outputs)

    return study_pipeline


def _level(plan: Plan, number: int) -> list[Item]:
    """The pretraining runs of a level, counted from 1; none where the study has fewer levels."""
    return list(plan.levels[number - 1]) if number <= len(plan.levels) else []


def compile_pipeline(plan: Plan, path: Path, *, parallel_tasks: int = 1) -> None:
    """Write the pipeline's intermediate representation as YAML.

    Raises:
        ValueError: It holds a construct that KFP compiles but runs wrongly.
    """
    compiler.Compiler().compile(make_pipeline(plan, parallel_tasks=parallel_tasks), str(path))
    lint.check(next(yaml.safe_load_all(path.read_text())))

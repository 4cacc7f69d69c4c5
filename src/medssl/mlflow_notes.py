"""Descriptions of runs in MLflow, whose links lead from each task to what it was made from and to what it led."""

import json

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, LoggedModelInput, Run

from medssl.lineage import MODELS, MODELS_FILE
from medssl.mlflow_runs import (
    CACHED_FROM_TAG,
    OUTPUT_TAG,
    PARENT_TAG,
    PART_OF_TAG,
    RAW_DATA_TAG,
    URI_TAG,
    find_maker,
    find_model,
    model_page,
    page,
    run_or_none,
    runs_that_read,
    search,
)

NOTE_TAG = "mlflow.note.content"
CONTEXT_TAG = "mlflow.data.context"
STUDY_FILE = "study.json"
UNKNOWN = "not in MLflow yet"
DIRECT = "input"  # context of a data set that the task itself read
STUDY_TAG = "medssl.study_digest"
_COMMIT_TAG = "mlflow.source.git.commit"
_KFP_URL_TAG = "kfp.pipeline_run_url"  # KFP's plugin sets it on the run of a pipeline
_DIGITS = 12  # of a digest that stands whole elsewhere
_MAX_CHARS = 7500  # MLflow cuts a tag at 8000


def describe(client: MlflowClient, run: Run) -> None:
    """Say in a task's description what it is part of, what it read, and what became of its result, all as links."""
    tags, experiment = run.data.tags, run.info.experiment_id
    parent = run_or_none(client, tags.get(PARENT_TAG, ""))
    lines = []
    if original := run_or_none(client, tags.get(CACHED_FROM_TAG, "")):
        lines.append(f"Result reused. The work was done in run [{original.info.run_id}]({page(original)}).\n")
    if parent:
        origin = _origin(parent, tags)
        lines.append(
            f"Part of the study run [{parent.info.run_name}]({page(parent)}){': ' if origin else ''}{origin}.\n"
        )
    lines += _inputs(client, run)
    if output := tags.get(OUTPUT_TAG, ""):
        users = runs_that_read(experiment, output.rpartition("/")[2])
        lines.append(f"\nMade `{output}`, kept at `{tags.get(URI_TAG, '')}`: [runs that build on it]({users}).")
    if raw := tags.get(RAW_DATA_TAG):
        lines.append(f"\nDigest of the raw data: `{raw}`.")
    if model := find_model(client, experiment, output) if output else None:
        each = f", [each with the digest of its weights]({page(run, MODELS_FILE)})" if output.startswith(MODELS) else ""
        lines.append(f"\nModel [{model.name}]({model_page(model)}){each}.")
    client.set_tag(run.info.run_id, NOTE_TAG, _fitting(lines))


def describe_study(client: MlflowClient, run: Run) -> None:
    """List a study's tasks in its description, each a link, in the order in which they began."""
    children = search(client, run.info.experiment_id, PARENT_TAG, run.info.run_id)
    lines = [f"Study **{run.info.run_name}**: {_origin(run, run.data.tags)}.\n", "| task | result |", "|---|---|"]
    for child in children:
        kind, _, digest = child.data.tags.get(OUTPUT_TAG, "").partition("/")
        lines.append(f"| [{child.info.run_name}]({page(child)}) | {kind or child.info.status} {digest[:_DIGITS]} |")
    client.set_tag(run.info.run_id, NOTE_TAG, _fitting(lines))


def is_incomplete(run: Run) -> bool:
    """Whether a task was described before MLflow knew all that it read."""
    return UNKNOWN in run.data.tags.get(NOTE_TAG, "")


def _origin(parent: Run, tags: dict[str, str]) -> str:
    """Study file, code, image and run of Kubeflow Pipelines of a task with `tags`."""
    known = {**parent.data.tags, **tags}
    parts = []
    if study := parent.data.tags.get(STUDY_TAG):
        parts.append(f"[study file]({page(parent, STUDY_FILE)}) `{study[:_DIGITS]}`")
    if version := tags.get("medssl.code_version"):
        parts.append(f"code version `{version}`")
    if commit := known.get(_COMMIT_TAG):
        parts.append(f"commit `{commit}`")
    if image := known.get("medssl.container_image"):
        parts.append(f"container image `{image}`")
    if url := known.get(_KFP_URL_TAG):
        parts.append(f"[run of Kubeflow Pipelines]({url})")
    return ", ".join(parts)


def _inputs(client: MlflowClient, run: Run) -> list[str]:
    """A row for everything that a task read; models among it are logged as its inputs too."""
    read = [one for one in (run.inputs.dataset_inputs if run.inputs else []) if _context(one) == DIRECT]
    known = {one.model_id for one in (run.inputs.model_inputs if run.inputs else [])}
    lines = ["| read | what | made by |", "|---|---|---|"] if read else []
    for one in sorted(read, key=lambda one: str(one.dataset.name)):
        output = "/".join(json.loads(one.dataset.source)["uri"].rstrip("/").split("/")[-2:])
        maker = find_maker(client, run.info.experiment_id, output, run.data.tags.get(PART_OF_TAG, ""))
        made_by = f"[{maker.info.run_name}]({page(maker)})" if maker else UNKNOWN
        what = f"`{output.partition('/')[0]}/{output.partition('/')[2][:_DIGITS]}`"
        if model := find_model(client, run.info.experiment_id, output):
            what += f" [model]({model_page(model)})"
            if model.model_id not in known:
                client.log_inputs(run.info.run_id, models=[LoggedModelInput(model.model_id)])
        lines.append(f"| {one.dataset.name} | {what} | {made_by} |")
    return lines


def _context(one: DatasetInput) -> str:
    return next((str(tag.value) for tag in one.tags if tag.key == CONTEXT_TAG), "")


def _fitting(lines: list[str]) -> str:
    """As many lines as fit into a description."""
    text, left = "", len(lines)
    for line in lines:
        if len(text) + len(line) > _MAX_CHARS:
            return f"{text}\n\n… and {left} more lines; the list of runs has all.\n"
        text, left = f"{text}{line}\n", left - 1
    return text

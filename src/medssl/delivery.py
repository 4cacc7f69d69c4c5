"""Carries what an outbox holds to MLflow: one parent run a study run, one nested run a task, two levels and no more.

A run is found by a tag before it is made, so a retried, resumed or repeated task writes into the run it had. Every
entry may arrive twice: MLflow keeps one of equal settings, inputs and tags, and of metrics that it already has for a
step the first one stays.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from medssl.lineage import TRAINED_KINDS
from medssl.mlflow_notes import CONTEXT_TAG, describe, describe_study, is_incomplete
from medssl.mlflow_runs import (
    CACHED_FROM_TAG,
    MAX_DIGEST_CHARS,
    OUTPUT_TAG,
    PARENT_TAG,
    PART_OF_TAG,
    RAW_DATA_TAG,
    REFUSALS,
    RUN_KEY_TAG,
    STEP_KEY_TAG,
    URI_TAG,
    connect,
    experiment_id,
    find,
    find_model,
    page,
    patiently,
    root_of,
    run_or_none,
    search,
)
from medssl.outbox import Journal, reason
from medssl.progress import say

_BATCH = 1000  # metrics that one request may carry
_PARAMS_PER_REQUEST = 100


def deliver(journal: Journal) -> None:
    """Hand over what is pending in a journal whose lock this process holds.

    Raises:
        Exception: MLflow cannot be reached or refuses for now; what it has taken is marked as delivered.
    """
    client = connect()
    for entry in journal.pending():
        run_id = journal.state.run_id
        try:
            run_id = patiently(_TAKE[entry.kind], client, run_id, entry.content)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            say(f"warning: MLflow refuses the {entry.kind} of this run ({reason(error)}); the rest goes on")
        journal.mark(entry, run_id)
    journal.shorten()


def page_of(run_id: str) -> str:
    """As `page`, for a run id."""
    return page(connect().get_run(run_id))


def runs_of(run_key: str, experiment: str) -> dict[str, tuple[str, str]]:
    """By step key, run id and page of every task of a study run."""
    client = connect()
    found = search(client, experiment_id(client, experiment), PART_OF_TAG, run_key)
    return {
        run.data.tags[STEP_KEY_TAG]: (run.info.run_id, page(run))
        for run in reversed(found)
        if STEP_KEY_TAG in run.data.tags
    }


def _take_task(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    """Open the nested run of a task: that of KFP's plugin, one found by its step key, or a new one."""
    experiment, parent = "", ""
    tags = {STEP_KEY_TAG: content["step_key"], **content["tags"]}
    if content["run_key"]:
        tags[PART_OF_TAG] = content["run_key"]
    if plugin := run_or_none(client, content["plugin_run_id"]):
        root = root_of(client, plugin)
        experiment, parent = plugin.info.experiment_id, root.info.run_id
        if content["is_whole_task"]:
            if parent not in (plugin.info.run_id, plugin.data.tags.get(PARENT_TAG)):
                tags[PARENT_TAG] = parent  # a loop's iteration lies between: two levels, no more
            return _reopen(client, plugin.info.run_id, tags)
    else:
        experiment = experiment_id(client, content["experiment"])
        parent = find(client, experiment, RUN_KEY_TAG, content["run_key"]) if content["run_key"] else ""
    if parent:
        tags[PARENT_TAG] = parent
    same = f" and tags.`{PART_OF_TAG}` = '{content['run_key']}'" if content["run_key"] else ""
    same += f" and tags.`{PARENT_TAG}` = '{parent}'" if parent and not content["run_key"] else ""
    if found := find(client, experiment, STEP_KEY_TAG, content["step_key"], same):
        return _reopen(client, found, tags)
    return _create(client, experiment, content, tags)


def _take_study(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    """Open the parent run of a study run: found by its run key or new."""
    is_local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
    experiment = experiment_id(client, content["experiment"], content["artifact_location"] if is_local else None)
    tags = {RUN_KEY_TAG: content["run_key"], **content["tags"]}
    if found := find(client, experiment, RUN_KEY_TAG, content["run_key"]):
        return _reopen(client, found, tags)
    return _create(client, experiment, content, tags)


def _create(client: MlflowClient, experiment: str, content: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    run = client.create_run(experiment, start_time=content["time_ms"], run_name=content["name"], tags=dict(tags))
    return str(run.info.run_id)


def _reopen(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> str:
    client.update_run(run_id, status="RUNNING")
    return _take_tags(client, run_id, {"values": tags})


def _take_tags(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in content["values"].items()])
    return run_id


def _take_output(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    """Tell what a task made; weights also become a model, which names them by address and digest."""
    told = {OUTPUT_TAG: content["output"], URI_TAG: content["uri"]}
    _take_tags(client, run_id, {"values": told | ({RAW_DATA_TAG: raw} if (raw := content["raw_data"]) else {})})
    if content["output"].partition("/")[0] in TRAINED_KINDS:
        _add_model(client, client.get_run(run_id), content["name"], told)
    return run_id


def _add_model(client: MlflowClient, run: Run, name: str, tags: Mapping[str, str]) -> None:
    """Let a run have made the model with these tags, which other runs may have made too."""
    model = find_model(client, run.info.experiment_id, tags[OUTPUT_TAG])
    if model is None:
        known = {**tags, MLFLOW_MODEL_IS_EXTERNAL: "true"}
        free = re.sub(r"[/:.%\"']", "-", name)  # which MLflow does not take
        shown = {"weights": tags[OUTPUT_TAG], "uri": tags[URI_TAG]}  # a model's page shows no tags
        model = client.create_logged_model(run.info.experiment_id, free, run.info.run_id, known, shown)
    if str(model.status) != str(LoggedModelStatus.READY):
        client.finalize_logged_model(model.model_id, "READY")
    if model.model_id not in {one.model_id for one in (run.outputs.model_outputs if run.outputs else [])}:
        client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])


def _take_params(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    flat = [Param(key, value) for key, value in content["values"].items()]
    for start in range(0, len(flat), _PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=flat[start : start + _PARAMS_PER_REQUEST])
    return run_id


def _take_metrics(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    """Log the numbers of steps for which the run has none yet."""
    has = set(client.get_run(run_id).data.metrics)
    names = {name for name, *_ in content["values"]}
    known = {(name, one.step) for name in names & has for one in client.get_metric_history(run_id, name)}
    new = [
        Metric(name, float(value), content["time_ms"], step)
        for name, step, value in content["values"]
        if (name, step) not in known
    ]
    for start in range(0, len(new), _BATCH):
        client.log_batch(run_id, metrics=new[start : start + _BATCH])
    return run_id


def _take_inputs(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    entries = [
        DatasetInput(
            Dataset(name, digest[:MAX_DIGEST_CHARS], "uri", json.dumps({"uri": uri})),
            [InputTag(CONTEXT_TAG, context)],
        )
        for name, digest, uri, context in content["values"]
    ]
    if entries:
        client.log_inputs(run_id, entries)
    describe(client, client.get_run(run_id))
    return run_id


def _take_artifact(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    path = Path(content["path"])
    if path.is_dir():
        client.log_artifacts(run_id, str(path), content["folder"] or None)
    elif path.is_file():
        client.log_artifact(run_id, str(path), content["folder"] or None)
    return run_id


def _take_text(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    client.log_text(run_id, content["text"], content["name"])
    return run_id


def _take_end(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    client.set_terminated(run_id, content["status"], content["time_ms"])
    run = client.get_run(run_id)
    if OUTPUT_TAG in run.data.tags:  # the note names the result
        describe(client, run)
    return run_id


def _take_tasks(client: MlflowClient, parent: str, content: Mapping[str, Any]) -> str:
    """Complete the tree below a study's run.

    Tasks that KFP took from its cache get a run that leads to the one that did the work; a run whose process was
    killed gets the end that its result tells of; of two runs for one task, which a request repeated after its time
    limit leaves, the first stays.
    """
    run = client.get_run(parent)
    experiment, run_key = run.info.experiment_id, run.data.tags.get(RUN_KEY_TAG, "")
    found = {one.info.run_id: one for one in search(client, experiment, PARENT_TAG, parent)}
    found |= {one.info.run_id: one for one in search(client, experiment, PART_OF_TAG, run_key)}
    children: dict[str, Run] = {}
    for child in sorted(found.values(), key=lambda one: int(one.info.start_time)):
        step_key = child.data.tags.get(STEP_KEY_TAG, "")
        if step_key and step_key in children:
            client.delete_run(child.info.run_id)
            continue
        children[step_key or child.info.run_id] = child
        is_orphan = PARENT_TAG not in child.data.tags
        if is_orphan:
            client.set_tag(child.info.run_id, PARENT_TAG, parent)
        if child.info.status in ("RUNNING", "KILLED"):
            _end_child(client, child, content["tasks"].get(step_key))
        if is_orphan or is_incomplete(child):
            describe(client, client.get_run(child.info.run_id))
    if content["is_finished"]:
        for step_key, task in content["tasks"].items():
            if step_key not in children:
                _add_child(client, run, step_key, task)
    describe_study(client, client.get_run(parent))
    return parent


def _end_child(client: MlflowClient, child: Run, task: Mapping[str, Any] | None) -> None:
    if CACHED_FROM_TAG in child.data.tags:
        _fill_link(client, child)
    elif task and 1000 * task["finished_unix_s"] >= child.info.start_time:
        _complete(client, child.info.run_id, task)
    elif child.info.status == "RUNNING":  # its process was killed before it could say so
        client.set_terminated(child.info.run_id, "KILLED")


def _add_child(client: MlflowClient, parent: Run, step_key: str, task: Mapping[str, Any]) -> None:
    tags = {STEP_KEY_TAG: step_key, PARENT_TAG: parent.info.run_id}
    tags[PART_OF_TAG] = parent.data.tags.get(RUN_KEY_TAG, "")
    if task["is_reused"]:
        made = search(client, parent.info.experiment_id, STEP_KEY_TAG, step_key)
        original = next((run.info.run_id for run in reversed(made) if CACHED_FROM_TAG not in run.data.tags), "unknown")
        tags[CACHED_FROM_TAG] = original
        _fill_link(client, client.create_run(parent.info.experiment_id, run_name=f"{task['name']} (cached)", tags=tags))
        return
    run = client.create_run(parent.info.experiment_id, run_name=task["name"], tags=tags)
    _complete(client, run.info.run_id, task)


def _complete(client: MlflowClient, run_id: str, task: Mapping[str, Any]) -> None:
    """Give a run the end that did not reach it."""
    end_ms = round(1000 * task["finished_unix_s"])
    _take_metrics(client, run_id, {"values": task["metrics"], "time_ms": end_ms})
    _take_output(client, run_id, task["output"])
    _take_end(client, run_id, {"status": "FINISHED", "time_ms": end_ms})


def _fill_link(client: MlflowClient, linked: Run) -> None:
    """Show a reused task: a finished run with the records of the run that did the work."""
    run_id = linked.info.run_id
    if original := run_or_none(client, linked.data.tags[CACHED_FROM_TAG]):
        kept = {key: value for key, value in original.data.tags.items() if key.startswith("medssl.")}
        _take_tags(client, run_id, {"values": {**kept, **linked.data.tags}})
        _take_params(client, run_id, {"values": original.data.params})
        ended_ms = original.info.end_time or 0
        metrics = [Metric(key, value, ended_ms, 0) for key, value in original.data.metrics.items()]
        client.log_batch(run_id, metrics=metrics[:_BATCH])
        inputs = original.inputs.dataset_inputs if original.inputs else []
        if entries := [DatasetInput(one.dataset, one.tags) for one in inputs]:
            client.log_inputs(run_id, entries)
        describe(client, client.get_run(run_id))
    client.set_terminated(run_id, "FINISHED")


_TAKE: Mapping[str, Callable[[MlflowClient, str, Mapping[str, Any]], str]] = {
    "task": _take_task,
    "study": _take_study,
    "tags": _take_tags,
    "output": _take_output,
    "params": _take_params,
    "metrics": _take_metrics,
    "inputs": _take_inputs,
    "artifact": _take_artifact,
    "text": _take_text,
    "tasks": _take_tasks,
    "end": _take_end,
}

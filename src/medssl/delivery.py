"""Carries what an outbox holds to MLflow: one parent run a study run, one nested run a task, two levels and no more.

A run is found by a tag before it is made, so a retried, resumed or repeated task writes into the run it had. Every
entry may arrive twice: MLflow keeps one of equal settings, inputs and tags, and of metrics that it already has for a
step the first one stays.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.version import VERSION

from medssl.outbox import Journal, reason
from medssl.progress import say

STEP_KEY_TAG = "medssl.step_key"
RUN_KEY_TAG = "medssl.run_key"  # of a study's run
PART_OF_TAG = "medssl.part_of"  # of a task's run: the run key of its study, which may become known to MLflow later
CACHED_FROM_TAG = "medssl.cached_from"
OUTPUT_TAG = "medssl.output"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
_CONTEXT_TAG = "mlflow.data.context"
_BATCH = 1000  # metrics that one request may carry
_PARAMS_PER_REQUEST = 100
_MAX_DIGEST_CHARS = 36
_MAX_RUNS = 1000  # that one search returns
# What MLflow will never take, however often it is told; anything else is tried again.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
# Two tasks that write to one SQLite file at the same moment: one of them is refused at once, without a wait.
_PATIENCE_S = 5.0
_FIRST_WAIT_S = 0.1

P = ParamSpec("P")
R = TypeVar("R")

for _name in ("mlflow", "alembic"):  # its own and its database tool's chatter
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each refusal


def connect() -> MlflowClient:
    """A client of the server or database that MLFLOW_TRACKING_URI names; a SQLite file is made where there is none."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri.startswith("sqlite:///"):
        create_database(uri)
    return MlflowClient()


def create_database(uri: str) -> None:
    """Make or upgrade the tables of a SQLite store, once, however many processes ask for it at the same time."""
    import mlflow.store.db.utils as database

    tools: Any = database  # not typed
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if path.exists() and lock.read() == VERSION:
            return
        engine = tools.create_sqlalchemy_engine(uri)
        tools._initialize_tables(engine)
        engine.dispose()
        lock.truncate(0)
        lock.write(VERSION)


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
            if error.error_code not in _REFUSALS:
                raise
            say(f"warning: MLflow refuses the {entry.kind} of this run ({reason(error)}); the rest goes on")
        journal.mark(entry, run_id)
    journal.shorten()


def page(run: Run) -> str:
    """Where a run is shown, below the address of MLflow's server."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def page_of(run_id: str) -> str:
    """As `page`, for a run id."""
    return page(connect().get_run(run_id))


def runs_of(run_key: str, experiment: str) -> dict[str, tuple[str, str]]:
    """By step key, run id and page of every task of a study run."""
    client = connect()
    found = _search(client, _experiment(client, experiment), PART_OF_TAG, run_key)
    return {
        run.data.tags[STEP_KEY_TAG]: (run.info.run_id, page(run))
        for run in reversed(found)
        if STEP_KEY_TAG in run.data.tags
    }


def patiently(call: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """The result of `call`, which is tried again while a database refuses it, for at most `_PATIENCE_S`.

    A server is not asked again at once: its journal stays for a later delivery.
    """
    began_s, wait_s = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return call(*arguments, **options)
        except Exception as error:
            is_refusal = isinstance(error, MlflowException) and error.error_code in _REFUSALS
            is_remote = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
            if is_refusal or is_remote or time.monotonic() + wait_s - began_s > _PATIENCE_S:
                raise
        time.sleep(wait_s)
        wait_s *= 2


def _take_task(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    """Open the nested run of a task: that of KFP's plugin, one found by its step key, or a new one."""
    experiment, parent = "", ""
    tags = {STEP_KEY_TAG: content["step_key"], **content["tags"]}
    if content["run_key"]:
        tags[PART_OF_TAG] = content["run_key"]
    if plugin := _run_or_none(client, content["plugin_run_id"]):
        root = _root(client, plugin)
        experiment, parent = plugin.info.experiment_id, root.info.run_id
        if content["is_whole_task"]:
            if parent not in (plugin.info.run_id, plugin.data.tags.get(PARENT_TAG)):
                tags[PARENT_TAG] = parent  # a loop's iteration lies between: two levels, no more
            return _reopen(client, plugin.info.run_id, tags)
    else:
        experiment = _experiment(client, content["experiment"])
        parent = _find(client, experiment, RUN_KEY_TAG, content["run_key"]) if content["run_key"] else ""
    if parent:
        tags[PARENT_TAG] = parent
    same = f" and tags.`{PART_OF_TAG}` = '{content['run_key']}'" if content["run_key"] else ""
    same += f" and tags.`{PARENT_TAG}` = '{parent}'" if parent and not content["run_key"] else ""
    if found := _find(client, experiment, STEP_KEY_TAG, content["step_key"], same):
        return _reopen(client, found, tags)
    return _create(client, experiment, content, tags)


def _take_study(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> str:
    """Open the parent run of a study run: found by its run key or new."""
    is_local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
    if is_local and client.get_experiment_by_name(content["experiment"]) is None:
        client.create_experiment(content["experiment"], artifact_location=content["artifact_location"])
    experiment = _experiment(client, content["experiment"])
    tags = {RUN_KEY_TAG: content["run_key"], **content["tags"]}
    if found := _find(client, experiment, RUN_KEY_TAG, content["run_key"]):
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
    return _take_tags(client, run_id, {"values": {OUTPUT_TAG: content["output"]}})


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
            Dataset(name, digest[:_MAX_DIGEST_CHARS], "uri", json.dumps({"uri": uri})),
            [InputTag(_CONTEXT_TAG, context)],
        )
        for name, digest, uri, context in content["values"]
    ]
    if entries:
        client.log_inputs(run_id, entries)
    _write_note(client, client.get_run(run_id))
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
        _write_note(client, run)
    return run_id


def _take_tasks(client: MlflowClient, parent: str, content: Mapping[str, Any]) -> str:
    """Complete the tree below a study's run.

    Tasks that KFP took from its cache get a run that leads to the one that did the work; a run whose process was
    killed gets the end that its result tells of; of two runs for one task, which a request repeated after its time
    limit leaves, the first stays.
    """
    run = client.get_run(parent)
    experiment, run_key = run.info.experiment_id, run.data.tags.get(RUN_KEY_TAG, "")
    found = {one.info.run_id: one for one in _search(client, experiment, PARENT_TAG, parent)}
    found |= {one.info.run_id: one for one in _search(client, experiment, PART_OF_TAG, run_key)}
    children: dict[str, Run] = {}
    for child in sorted(found.values(), key=lambda one: int(one.info.start_time)):
        step_key = child.data.tags.get(STEP_KEY_TAG, "")
        if step_key and step_key in children:
            client.delete_run(child.info.run_id)
            continue
        children[step_key or child.info.run_id] = child
        if PARENT_TAG not in child.data.tags:
            client.set_tag(child.info.run_id, PARENT_TAG, parent)
        if child.info.status in ("RUNNING", "KILLED"):
            _end_child(client, child, content["tasks"].get(step_key))
    if content["is_finished"]:
        for step_key, task in content["tasks"].items():
            if step_key not in children:
                _add_child(client, run, step_key, task)
    _write_study_note(client, client.get_run(parent))
    return parent


def _end_child(client: MlflowClient, child: Run, task: Mapping[str, Any] | None) -> None:
    if task and 1000 * task["finished_unix_s"] >= child.info.start_time:
        _complete(client, child.info.run_id, task)
    elif child.info.status == "RUNNING":  # its process was killed before it could say so
        client.set_terminated(child.info.run_id, "KILLED")


def _add_child(client: MlflowClient, parent: Run, step_key: str, task: Mapping[str, Any]) -> None:
    tags = {STEP_KEY_TAG: step_key, PARENT_TAG: parent.info.run_id}
    tags[PART_OF_TAG] = parent.data.tags.get(RUN_KEY_TAG, "")
    if task["is_reused"]:
        _link(client, parent.info.experiment_id, task["name"], tags)
        return
    made = client.create_run(parent.info.experiment_id, run_name=task["name"], tags=tags)
    _complete(client, made.info.run_id, task)


def _complete(client: MlflowClient, run_id: str, task: Mapping[str, Any]) -> None:
    """Give a run the end that did not reach it."""
    end_ms = round(1000 * task["finished_unix_s"])
    _take_metrics(client, run_id, {"values": task["metrics"], "time_ms": end_ms})
    _take_output(client, run_id, task)
    _take_end(client, run_id, {"status": "FINISHED", "time_ms": end_ms})


def _link(client: MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> None:
    """Show a reused task: a finished run with the records of the run that did the work."""
    made = _search(client, experiment, STEP_KEY_TAG, tags[STEP_KEY_TAG])
    original = next((run for run in reversed(made) if CACHED_FROM_TAG not in run.data.tags), None)
    tags[CACHED_FROM_TAG] = original.info.run_id if original else "unknown"
    linked = client.create_run(experiment, run_name=f"{name} (cached)", tags=tags).info.run_id
    if original:
        kept = {key: value for key, value in original.data.tags.items() if key.startswith("medssl.")}
        _take_tags(client, linked, {"values": {**kept, **tags}})
        _take_params(client, linked, {"values": original.data.params})
        ended_ms = original.info.end_time or 0
        metrics = [Metric(key, value, ended_ms, 0) for key, value in original.data.metrics.items()]
        client.log_batch(linked, metrics=metrics[:_BATCH])
        inputs = original.inputs.dataset_inputs if original.inputs else []
        if entries := [DatasetInput(one.dataset, one.tags) for one in inputs]:
            client.log_inputs(linked, entries)
        _write_note(client, client.get_run(linked))
    client.set_terminated(linked, "FINISHED")


def _write_note(client: MlflowClient, run: Run) -> None:
    """Say in a task's description, with links, what it is part of, what it read and what became of its result."""
    tags, experiment = run.data.tags, run.info.experiment_id
    lines = []
    if original := _run_or_none(client, tags.get(CACHED_FROM_TAG, "")):
        lines.append(f"Result reused. The work was done in run [{original.info.run_id}]({page(original)}).\n")
    if parent := _run_or_none(client, tags.get(PARENT_TAG, "")):
        lines.append(f"Part of the study run [{parent.info.run_name}]({page(parent)}).\n")
    inputs = [one for one in (run.inputs.dataset_inputs if run.inputs else []) if _context(one) == "input"]
    if inputs:
        lines += ["| read | digest | made by |", "|---|---|---|"]
    for one in sorted(inputs, key=lambda one: str(one.dataset.name)):
        output = "/".join(json.loads(one.dataset.source)["uri"].rstrip("/").split("/")[-2:])
        maker = _maker(client, experiment, output, tags.get(PART_OF_TAG, ""))
        made_by = f"[{maker.info.run_name}]({page(maker)})" if maker else "an earlier run, unknown here"
        lines.append(f"| {one.dataset.name} | `{output}` | {made_by} |")
    if output := tags.get(OUTPUT_TAG, ""):
        uses = _where(experiment, f"dataset.digest = '{output.rpartition('/')[2][:_MAX_DIGEST_CHARS]}'")
        lines.append(f"\nMade `{output}`: [runs that build on it]({uses}).")
    client.set_tag(run.info.run_id, NOTE_TAG, "\n".join(lines))


def _write_study_note(client: MlflowClient, run: Run) -> None:
    """List a study's tasks in its description, each a link, in the order in which they began."""
    tags = run.data.tags
    children = _search(client, run.info.experiment_id, PARENT_TAG, run.info.run_id)
    lines = [f"Study **{run.info.run_name}**, digest `{tags.get('medssl.study_digest', '')}`.\n"]
    if url := tags.get("kfp.pipeline_run_url", ""):
        lines.append(f"[Run of Kubeflow Pipelines]({url})\n")
    lines += ["| task | result |", "|---|---|"]
    lines += [
        f"| [{one.info.run_name}]({page(one)}) | `{one.data.tags.get(OUTPUT_TAG, one.info.status)}` |"
        for one in children
    ]
    client.set_tag(run.info.run_id, NOTE_TAG, "\n".join(lines))


def _where(experiment: str, condition: str) -> str:
    """Address of the list of runs that meet a condition."""
    from urllib.parse import quote

    return f"#/experiments/{experiment}/runs?searchFilter={quote(condition)}"


def _context(one: DatasetInput) -> str:
    return next((str(tag.value) for tag in one.tags if tag.key == _CONTEXT_TAG), "")


def _maker(client: MlflowClient, experiment: str, output: str, run_key: str) -> Run | None:
    """The run that made an artifact: that of the same study run, else the one that did the work."""
    found = _search(client, experiment, OUTPUT_TAG, output)
    same = [run for run in found if run_key and run.data.tags.get(PART_OF_TAG) == run_key]
    worked = [run for run in found if CACHED_FROM_TAG not in run.data.tags]
    return next(iter([*same, *reversed(worked), *found]), None)


def _search(client: MlflowClient, experiment: str, tag: str, value: str, more: str = "") -> list[Run]:
    """Runs with a tag, the earliest first."""
    if not value:
        return []
    condition = f"tags.`{tag}` = '{value}'{more}"
    return list(client.search_runs([experiment], condition, max_results=_MAX_RUNS, order_by=["start_time ASC"]))


def _find(client: MlflowClient, experiment: str, tag: str, value: str, more: str = "") -> str:
    found = _search(client, experiment, tag, value, more)
    return str(found[0].info.run_id) if found else ""


def _run_or_none(client: MlflowClient, run_id: str) -> Run | None:
    try:
        return client.get_run(run_id) if run_id and run_id != "unknown" else None
    except MlflowException as error:
        if error.error_code in _REFUSALS:
            return None
        raise


def _root(client: MlflowClient, run: Run) -> Run:
    """The run without a parent above `run`."""
    parent = _run_or_none(client, run.data.tags.get(PARENT_TAG, ""))
    return run if parent is None else _root(client, parent)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another process has just made it
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)


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

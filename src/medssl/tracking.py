"""The only MLflow client: one parent run a study run, one nested run a task, two levels and no more.

A run is found by a tag before it is made, so a retried, resumed or repeated task writes into the run it had. Without
MLFLOW_TRACKING_URI nothing is tracked and MLflow is not imported. A tracking server that fails costs a warning,
never a result.
"""

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medssl.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY_VARIABLE = "MEDSSL_RUN_KEY"
RUN_KEY_TAG = "medssl.run_key"
STEP_KEY_TAG = "medssl.step_key"
CACHED_FROM_TAG = "medssl.cached_from"
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"
_DEFAULT_EXPERIMENT = "medssl"
_BATCH = 1000  # metrics that one request may carry
_PARAMS_PER_REQUEST = 100
_MAX_PARAM_CHARS = 6000
_MAX_DIGEST_CHARS = 36


@dataclass(frozen=True)
class Input:
    """A data set that a task read: its name, content digest and place."""

    name: str
    digest: str
    uri: str


@dataclass
class TaskRun:
    """The nested run of one task; every method does nothing where tracking is off or broken."""

    run_id: str = ""
    _client: "MlflowClient | None" = field(default=None, repr=False)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; nested mappings become dotted names."""
        from mlflow.entities import Param

        flat = [Param(k, v[:_MAX_PARAM_CHARS]) for k, v in _flatten(values)]
        for start in range(0, len(flat), _PARAMS_PER_REQUEST):
            self._do("log_batch", self.run_id, params=flat[start : start + _PARAMS_PER_REQUEST])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self._do("set_tag", self.run_id, key, value)

    def metrics(self, values: Iterable[tuple[str, int, float]]) -> None:
        """Log (name, step, value) triples."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(name, float(value), now_ms, step) for name, step, value in values]
        for start in range(0, len(entries), _BATCH):
            self._do("log_batch", self.run_id, metrics=entries[start : start + _BATCH])

    def inputs(self, datasets: Sequence[Input]) -> None:
        """Log what the task read as data set inputs; searchable by name and digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entries = [
            DatasetInput(
                Dataset(d.name, d.digest[:_MAX_DIGEST_CHARS], "uri", _json({"uri": d.uri})),
                [InputTag("mlflow.data.context", "input")],
            )
            for d in datasets
        ]
        if entries:
            self._do("log_inputs", self.run_id, entries)

    def artifact(self, path: str, folder: str = "") -> None:
        """Upload a small file or folder."""
        upload = "log_artifacts" if os.path.isdir(path) else "log_artifact"  # noqa: PTH112
        self._do(upload, self.run_id, path, folder or None)

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self._do("set_terminated", self.run_id, status)

    def _do(self, method: str, *arguments: object, **options: object) -> None:
        """Call a method of the client, where there is one and it still answers."""
        if self._client is None:
            return
        try:
            getattr(self._client, method)(*arguments, **options)
        except Exception as error:  # tracking must never cost a result
            say(f"warning: MLflow does not take this task's records ({type(error).__name__}); the task goes on")
            self._client = None


def is_on() -> bool:
    """Whether this process tracks."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def start_task(name: str, step_key: str) -> TaskRun:
    """Open the nested run of a task: adopted, found by its step key, or new."""
    if not is_on():
        return TaskRun()
    try:
        client = _client()
        if adopted := os.environ.get("MLFLOW_RUN_ID"):  # KFP's MLflow plugin has made it
            client.set_tag(adopted, STEP_KEY_TAG, step_key)
            return TaskRun(adopted, client)
        experiment, parent = _experiment(client), _find_parent(client)
        filters = f"tags.`{STEP_KEY_TAG}` = '{step_key}'"
        if parent:
            filters += f" and tags.`{_PARENT_TAG}` = '{parent}'"
        if found := client.search_runs([experiment], filters, max_results=1):
            run_id = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            tags = {STEP_KEY_TAG: step_key} | ({_PARENT_TAG: parent} if parent else {})
            run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow cannot be reached ({type(error).__name__}); the task goes on without it")
        return TaskRun()
    return TaskRun(run_id, client)


def create_database(uri: str) -> None:
    """Make or upgrade the tables of a SQLite store, once, before several processes open it at the same time."""
    import mlflow.store.db.utils as database

    _hush()
    tools: Any = database  # not typed
    engine = tools.create_sqlalchemy_engine(uri)
    tools._initialize_tables(engine)
    engine.dispose()


def start_study(
    name: str, run_key: str, params: Mapping[str, Any], tags: Mapping[str, str], *, artifact_location: str
) -> str:
    """Open the parent run of a study run, found by its run key or new; returns its run id, "" without an answer.

    Args:
        name: Shown in MLflow.
        run_key: Names this run of the study.
        params: The study's settings.
        tags: Further tags.
        artifact_location: Where a new experiment on a store without a server keeps its files.
    """
    try:
        return _start_study(name, run_key, params, tags, artifact_location=artifact_location)
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow cannot be reached ({type(error).__name__}); the study goes on without it")
        return ""


def _start_study(
    name: str, run_key: str, params: Mapping[str, Any], tags: Mapping[str, str], *, artifact_location: str
) -> str:
    client = _client()
    local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
    if local and client.get_experiment_by_name(experiment_name()) is None:
        client.create_experiment(experiment_name(), artifact_location=artifact_location)
    parent = _find_parent(client, run_key)
    if parent:
        client.update_run(parent, status="RUNNING")
    else:
        experiment = _experiment(client)
        parent = client.create_run(experiment, run_name=name, tags={RUN_KEY_TAG: run_key}).info.run_id
    run = TaskRun(parent, client)
    run.tags(tags)
    run.params(params)
    return parent


def end_study(
    parent: str, status: str, *, cached: Mapping[str, str], metrics: Mapping[str, float], report: str
) -> None:
    """Complete the tree and close the parent run.

    Args:
        parent: Run id of the parent.
        status: FINISHED, FAILED or KILLED.
        cached: Run name by step key, for every task whose result was reused.
        metrics: Headline numbers of the study.
        report: Path of the report's folder, or "" where there is none.
    """
    if not parent:
        return
    try:
        _end_study(_client(), parent, status, cached=cached, metrics=metrics, report=report)
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow does not take the end of this study ({type(error).__name__}); its results are complete")


def close_study(run_key: str) -> None:
    """Close the runs of a study run that was killed and will not be taken up again."""
    try:
        client = _client()
        if parent := _find_parent(client, run_key):
            _end_study(client, parent, "KILLED", cached={}, metrics={}, report="")
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow cannot be reached ({type(error).__name__}); an unfinished run stays open there")


def _end_study(
    client: "MlflowClient",
    parent: str,
    status: str,
    *,
    cached: Mapping[str, str],
    metrics: Mapping[str, float],
    report: str,
) -> None:
    experiment = _experiment(client)
    children = client.search_runs([experiment], f"tags.`{_PARENT_TAG}` = '{parent}'", max_results=1000)
    for child in children:
        if child.info.status == "RUNNING":  # its process was killed before it could say so
            client.set_terminated(child.info.run_id, "KILLED")
    present = {child.data.tags.get(STEP_KEY_TAG) for child in children}
    for step_key, name in cached.items():
        if step_key not in present:
            _link(client, experiment, parent, step_key, name)
    run = TaskRun(parent, client)
    run.metrics((key, 0, value) for key, value in metrics.items())
    if report:
        run.artifact(report, "report")
    run.end(status)


def _link(client: "MlflowClient", experiment: str, parent: str, step_key: str, name: str) -> None:
    """Show a reused task under `parent`: a finished run with the records of the run that did the work."""
    from mlflow.entities import DatasetInput, Metric, Param

    made = client.search_runs([experiment], f"tags.`{STEP_KEY_TAG}` = '{step_key}'", max_results=100)
    original: Run | None = next((run for run in reversed(made) if CACHED_FROM_TAG not in run.data.tags), None)
    tags = {
        _PARENT_TAG: parent,
        STEP_KEY_TAG: step_key,
        CACHED_FROM_TAG: original.info.run_id if original else "unknown",
    }
    if original:
        place = f"#/experiments/{experiment}/runs/{original.info.run_id}"
        tags[_NOTE_TAG] = f"Result reused. The work was done in run [{original.info.run_id}]({place})."
    linked = client.create_run(experiment, run_name=f"{name} (cached)", tags=tags).info.run_id
    if original:
        params = [Param(k, v) for k, v in original.data.params.items()]
        metrics = [Metric(k, v, original.info.end_time or 0, 0) for k, v in original.data.metrics.items()]
        client.log_batch(linked, params=params[:_PARAMS_PER_REQUEST], metrics=metrics[:_BATCH])
        inputs = original.inputs.dataset_inputs if original.inputs else []
        entries = [DatasetInput(d.dataset, d.tags) for d in inputs]
        if entries:
            client.log_inputs(linked, entries)
    client.set_terminated(linked, "FINISHED")


def _client() -> "MlflowClient":
    # A dead server would otherwise block each call for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    _hush()
    return MlflowClient()


def _hush() -> None:
    """Keep MLflow's and its database tool's own chatter out of the run's output."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _experiment(client: "MlflowClient") -> str:
    found = client.get_experiment_by_name(experiment_name())
    return str(found.experiment_id if found else client.create_experiment(experiment_name()))


def experiment_name() -> str:
    """Name of the MLflow experiment that runs are logged to."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", _DEFAULT_EXPERIMENT)


def _find_parent(client: "MlflowClient", run_key: str | None = None) -> str:
    run_key = run_key or os.environ.get(RUN_KEY_VARIABLE)
    if not run_key:
        return ""
    found = client.search_runs([_experiment(client)], f"tags.`{RUN_KEY_TAG}` = '{run_key}'", max_results=1)
    return str(found[0].info.run_id) if found else ""


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _json(value: object) -> str:
    import json

    return json.dumps(value)

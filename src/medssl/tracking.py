"""The only MLflow client: one parent run a study run, one nested run a task, two levels and no more.

A run is found by a tag before it is made, so a retried, resumed or repeated task writes into the run it had. Without
MLFLOW_TRACKING_URI nothing is tracked and MLflow is not imported. A tracking server that fails costs a warning,
never a result; what a run lost meanwhile is completed from the store when the study ends.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from medssl.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY_VARIABLE = "MEDSSL_RUN_KEY"
RUN_KEY_TAG = "medssl.run_key"
STEP_KEY_TAG = "medssl.step_key"
CACHED_FROM_TAG = "medssl.cached_from"
OUTPUT_TAG = "medssl.output"
# For every process that imports MLflow: it reports its use to its makers unless told otherwise.
ENVIRONMENT: Mapping[str, str] = MappingProxyType({"MLFLOW_DISABLE_TELEMETRY": "true"})
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"
_DEFAULT_EXPERIMENT = "medssl"
_BATCH = 1000  # metrics that one request may carry
_PARAMS_PER_REQUEST = 100
_MAX_PARAM_CHARS = 6000
_MAX_DIGEST_CHARS = 36
# Two tasks that write to one SQLite file at the same moment: one of them is refused at once, without a wait.
_PATIENCE_S = 5.0
_FIRST_WAIT_S = 0.1
_PATH = re.compile(r"\S*[/\\]\S*")
_MAX_REASON_CHARS = 200

P = ParamSpec("P")
R = TypeVar("R")

Measured = tuple[str, int, float]  # name, step, value


@dataclass(frozen=True)
class Input:
    """A data set that a task read: its name, content digest and place."""

    name: str
    digest: str
    uri: str


@dataclass(frozen=True)
class TaskResult:
    """What the store knows of a finished task: enough to complete a run that missed its end.

    Attributes:
        name: Stage and item.
        output: Kind and digest of the artifact that it made.
        metrics: As it logged them at its end.
        finished_unix_s: When.
        is_reused: Whether an earlier run of the study did the work.
    """

    name: str
    output: str
    metrics: Sequence[Measured]
    finished_unix_s: float
    is_reused: bool = False


@dataclass
class TaskRun:
    """The nested run of one task; every method does nothing where tracking is off or broken."""

    run_id: str = ""
    _client: "MlflowClient | None" = field(default=None, repr=False)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; nested mappings become dotted names."""
        if self._client is None:
            return
        from mlflow.entities import Param

        flat = [Param(k, v[:_MAX_PARAM_CHARS]) for k, v in _flatten(values)]
        for start in range(0, len(flat), _PARAMS_PER_REQUEST):
            self._do("log_batch", self.run_id, params=flat[start : start + _PARAMS_PER_REQUEST])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self._do("set_tag", self.run_id, key, value)

    def metrics(self, values: Iterable[Measured]) -> None:
        """Log numbers."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        entries = [Metric(name, float(value), now_ms, step) for name, step, value in values]
        for start in range(0, len(entries), _BATCH):
            self._do("log_batch", self.run_id, metrics=entries[start : start + _BATCH])

    def inputs(self, datasets: Sequence[Input]) -> None:
        """Log what the task read as data set inputs; searchable by name and digest."""
        if self._client is None:
            return
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

    def end(self, status: str, *, end_unix_s: float | None = None) -> None:
        """Close the run: FINISHED, FAILED or KILLED; now, or at a time that is known."""
        self._do("set_terminated", self.run_id, status, None if end_unix_s is None else round(1000 * end_unix_s))

    def _do(self, method: str, *arguments: object, **options: object) -> None:
        """Call a method of the client, where there is one and it still answers."""
        if self._client is None:
            return
        try:
            _patiently(getattr(self._client, method), *arguments, **options)
        except Exception as error:  # tracking must never cost a result
            say(f"warning: MLflow does not take this task's records ({_reason(error)}); the task goes on")
            self._client = None


def is_on() -> bool:
    """Whether this process tracks."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def start_task(name: str, step_key: str) -> TaskRun:
    """Open the nested run of a task: adopted, found by its step key, or new."""
    if not is_on():
        return TaskRun()
    try:
        return _patiently(_start_task, name, step_key)
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow cannot be reached ({_reason(error)}); the task goes on without it")
        return TaskRun()


def _start_task(name: str, step_key: str) -> TaskRun:
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
    return TaskRun(run_id, client)


def create_database(uri: str) -> None:
    """Make or upgrade the tables of a SQLite store, once, before several processes open it at the same time."""
    _prepare()
    import mlflow.store.db.utils as database

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
        return _patiently(_start_study, name, run_key, params, tags, artifact_location=artifact_location)
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow cannot be reached ({_reason(error)}); the study goes on without it")
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
    parent: str, status: str, *, tasks: Mapping[str, TaskResult], metrics: Mapping[str, float], report: str
) -> None:
    """Complete the tree and close the parent run.

    A run of a task that says nothing of its end gets it from the task's result; a finished study's tasks without a
    run get one.

    Args:
        parent: Run id of the parent.
        status: FINISHED, FAILED or KILLED.
        tasks: By step key, every task that has a result.
        metrics: Headline numbers of the study.
        report: Path of the report's folder, or "" where there is none.
    """
    if not parent:
        return
    try:
        _patiently(_end_study, parent, status, tasks=tasks, metrics=metrics, report=report)
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow does not take the end of this study ({_reason(error)}); its results are complete")


def close_study(run_key: str) -> None:
    """Close the runs of a study run that was killed and will not be taken up again."""
    try:
        if parent := _patiently(_find_parent, _client(), run_key):
            _patiently(_end_study, parent, "KILLED", tasks={}, metrics={}, report="")
    except Exception as error:  # tracking must never cost a result
        say(f"warning: MLflow cannot be reached ({_reason(error)}); an unfinished run stays open there")


def page(run_id: str) -> str:
    """Where a run is shown, below the address of MLflow's server; "" without an answer."""
    try:
        run = _patiently(_client().get_run, run_id)
    except Exception:  # tracking must never cost a result
        return ""
    return _page(run.info.experiment_id, run_id)


def _page(experiment: str, run_id: str) -> str:
    return f"#/experiments/{experiment}/runs/{run_id}"


def _end_study(
    parent: str, status: str, *, tasks: Mapping[str, TaskResult], metrics: Mapping[str, float], report: str
) -> None:
    client = _client()
    experiment = _experiment(client)
    children = client.search_runs([experiment], f"tags.`{_PARENT_TAG}` = '{parent}'", max_results=1000)
    for child in children:
        task = tasks.get(child.data.tags.get(STEP_KEY_TAG, ""))
        if child.info.status not in ("RUNNING", "KILLED"):
            continue
        if task and 1000 * task.finished_unix_s >= child.info.start_time:
            _complete(client, child, task)
        elif child.info.status == "RUNNING":  # its process was killed before it could say so
            client.set_terminated(child.info.run_id, "KILLED")
    present = {child.data.tags.get(STEP_KEY_TAG) for child in children}
    for step_key, task in tasks.items():
        if status != "FINISHED" or step_key in present:
            continue
        if task.is_reused:
            _link(client, experiment, parent, step_key, task.name)
        else:
            tags = {STEP_KEY_TAG: step_key, _PARENT_TAG: parent}
            _complete(client, client.create_run(experiment, run_name=task.name, tags=tags), task)
    run = TaskRun(parent, client)
    run.metrics((key, 0, value) for key, value in metrics.items())
    if report:
        run.artifact(report, "report")
    run.end(status)


def _complete(client: "MlflowClient", child: "Run", task: TaskResult) -> None:
    """Give a run the end that did not reach it."""
    run = TaskRun(child.info.run_id, client)
    run.metrics(entry for entry in task.metrics if entry[0] not in child.data.metrics)
    run.tags({OUTPUT_TAG: task.output})
    run.end("FINISHED", end_unix_s=task.finished_unix_s)


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
        place = _page(experiment, original.info.run_id)
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


def _patiently(call: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """The result of `call`, which is tried again while a database refuses it, for at most `_PATIENCE_S`.

    MLflow's client already tries again where a server stands between.
    """
    began_s, wait_s = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return call(*arguments, **options)
        except Exception:
            is_remote = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
            if is_remote or time.monotonic() + wait_s - began_s > _PATIENCE_S:
                raise
        time.sleep(wait_s)
        wait_s *= 2


def _reason(error: BaseException) -> str:
    """Class and first line of what an error came from, without paths."""
    while error.__cause__:
        error = error.__cause__
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {_PATH.sub('…', first)[:_MAX_REASON_CHARS]}"


def _client() -> "MlflowClient":
    # A dead server would otherwise block each call for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    _prepare()
    from mlflow import MlflowClient

    return MlflowClient()


def _prepare() -> None:
    """Import MLflow without telemetry, and with neither its own nor its database tool's chatter in the output."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  # sets up its loggers, which are then changed

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each refusal


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

"""What a stage tells of itself to MLflow, through an outbox on disk: a task never waits long for a tracking server.

Without MLFLOW_TRACKING_URI nothing is tracked and MLflow is not imported. Everything is written to a journal first and
delivered at the task's start and end, within a time limit; what a server that is away or slow has not taken is
delivered by a later task, at the end of the study or by `medssl deliver`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from medssl import outbox
from medssl.outbox import Journal
from medssl.progress import TASK_VARIABLE, say

RUN_KEY_VARIABLE = "MEDSSL_RUN_KEY"
# Where a task runs, as its surroundings tell it; none of it is part of a key.
_SURROUNDINGS: Mapping[str, str] = MappingProxyType(
    {"run_key": RUN_KEY_VARIABLE, "container_image": "MEDSSL_IMAGE", "kfp_run_id": "KFP_RUN_ID"}
)
# For every process that imports MLflow. It reports its use to its makers unless told otherwise; and it asks a server
# again and again for minutes, while here another delivery follows: a request asked twice might be carried out twice.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
)
_WITHIN_S = 8.0  # what a task's start or end may wait for MLflow, beside the import of its client
AT_THE_END_S = 300.0  # what the end of a study may wait, when nothing trains any more
_MAX_PARAM_CHARS = 6000

Measured = tuple[str, int, float]  # name, step, value


class _TooLongError(TimeoutError):
    """MLflow takes longer than a task may wait; `thread` still works on it."""

    def __init__(self, message: str, thread: threading.Thread) -> None:
        super().__init__(message)
        self.thread = thread


@dataclass(frozen=True)
class Input:
    """A data set that a task read, or that led to one.

    Attributes:
        name: Its role.
        digest: Of its content.
        uri: Where it lies.
        is_direct: Whether the task itself read it.
    """

    name: str
    digest: str
    uri: str
    is_direct: bool = True


class Output(NamedTuple):
    """What a task made.

    Attributes:
        output: Kind and digest, as kind/digest.
        uri: Where it lies.
        name: As people know it.
        raw_data: Digest of the raw data, where the task looked at them.
    """

    output: str
    uri: str
    name: str
    raw_data: str = ""


class Place(NamedTuple):
    """A run, and where it is shown below the address of MLflow's server."""

    run_id: str
    page: str


@dataclass(frozen=True)
class TaskResult:
    """What the store knows of a finished task: enough to complete a run that missed its end.

    Attributes:
        name: Stage and item.
        output: What it made.
        metrics: As it logged them at its end.
        finished_unix_s: When.
        is_reused: Whether an earlier run of the study did the work.
    """

    name: str
    output: Output
    metrics: Sequence[Measured]
    finished_unix_s: float
    is_reused: bool = False


@dataclass
class TaskRun:
    """The run of one task or study; every method does nothing where tracking is off."""

    _journal: Journal | None = None
    _waits_for: threading.Thread | None = field(default=None, repr=False)

    @property
    def run_id(self) -> str:
        """Of the run in MLflow; "" while none is known."""
        return self._journal.state.run_id if self._journal else ""

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings; nested mappings become dotted names."""
        self._tell("params", values={key: value[:_MAX_PARAM_CHARS] for key, value in _flatten(values)})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._tell("tags", values=dict(values))

    def output(self, output: Output) -> None:
        """Tell the task's result."""
        self._tell("output", **output._asdict())

    def metrics(self, values: Iterable[Measured]) -> None:
        """Log numbers."""
        if entries := [(name, int(step), float(value)) for name, step, value in values]:
            self._tell("metrics", values=entries, time_ms=_now_ms())

    def inputs(self, datasets: Sequence[Input]) -> None:
        """Log data set inputs; searchable by name and digest."""
        entries = [(d.name, d.digest, d.uri, "input" if d.is_direct else "ancestor") for d in datasets]
        self._tell("inputs", values=entries)

    def artifact(self, path: str, folder: str = "") -> None:
        """Upload a small file or folder, which stays where it is until then."""
        self._tell("artifact", path=path, folder=folder)

    def text(self, name: str, text: str) -> None:
        """Upload a text as the file `name`."""
        self._tell("text", name=name, text=text)

    def end(self, status: str, *, within_s: float = _WITHIN_S) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self._tell("end", status=status, time_ms=_now_ms())
        self.deliver(within_s=within_s)
        self.release()

    def release(self) -> None:
        """Let other processes deliver the rest."""
        if self._journal and not self._is_stuck:
            self._journal.release()

    def deliver(self, *, within_s: float = _WITHIN_S, eagerly: bool = False) -> bool:
        """Hand over what has been told so far; returns whether MLflow has all of it.

        Args:
            within_s: How long this may take.
            eagerly: Try even if MLflow was away a moment ago.
        """
        if self._journal is None or self._is_stuck:
            return self._journal is None
        folder, journal = self._journal.folder, self._journal
        if outbox.was_unreachable(folder) and not eagerly:
            return False
        try:
            delivery = _delivery()
            _within(within_s, lambda: delivery.deliver(journal))
        except Exception as error:  # tracking must never cost a result
            self._waits_for = error.thread if isinstance(error, _TooLongError) else None
            outbox.note_unreachable(folder)
            say(f"warning: MLflow does not take these records now ({outbox.reason(error)}); they are kept for later")
            return False
        outbox.note_reachable(folder)
        return True

    @property
    def _is_stuck(self) -> bool:
        """Whether an earlier delivery still works on the journal."""
        return self._waits_for is not None and self._waits_for.is_alive()

    def _tell(self, kind: str, **content: Any) -> None:
        if self._journal is None:
            return
        try:
            self._journal.append(kind, **content)
        except OSError as error:  # a full disk: the stage itself will say so, if it matters to it
            say(f"warning: records for MLflow cannot be kept ({error.strerror}); the task goes on without them")
            self._journal = None


def is_on() -> bool:
    """Whether this process tracks."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def experiment_name() -> str:
    """Name of the MLflow experiment that runs are logged to."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "medssl")


def surroundings() -> dict[str, str]:
    """Run of the pipeline, container image and run of KFP in which this process works; "" for what is not known."""
    return {name: os.environ.get(variable, "") for name, variable in _SURROUNDINGS.items()}


def start_task(name: str, step_key: str, folder: Path, tags: Mapping[str, str] = MappingProxyType({})) -> TaskRun:
    """Open the nested run of a task: that of KFP's plugin, found by its step key, or new.

    Args:
        name: Stage and item.
        step_key: Names the work.
        folder: The outbox.
        tags: Of the run.
    """
    known = surroundings()
    run_key = known.pop("run_key")
    return _start(
        Journal(folder, step_key),
        "task",
        name=name,
        step_key=step_key,
        run_key=run_key,
        # KFP's MLflow plugin has made a run for the task; a step within a task gets one of its own beside it.
        plugin_run_id=os.environ.get("MLFLOW_RUN_ID", ""),
        is_whole_task=os.environ.get(TASK_VARIABLE, name) == name,
        tags={**tags, **{f"medssl.{name}": value for name, value in known.items() if value}},
        time_ms=_now_ms(),
    )


def start_study(
    name: str,
    run_key: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    folder: Path,
    artifact_location: str,
) -> TaskRun:
    """Open the parent run of a study run, found by its run key or new.

    Args:
        name: Shown in MLflow.
        run_key: Names this run of the study.
        params: The study's settings, which are also kept as a file.
        tags: Further tags.
        folder: The outbox.
        artifact_location: Where a new experiment on a store without a server keeps its files.
    """
    run = _start(
        Journal(folder, run_key),
        "study",
        name=name,
        run_key=run_key,
        tags=dict(tags),
        artifact_location=artifact_location,
        time_ms=_now_ms(),
    )
    run.params(params)
    run.text("study.json", _json(params))
    run.deliver()
    return run


def complete_study(
    run: TaskRun, run_key: str, tasks: Mapping[str, TaskResult], *, is_finished: bool
) -> dict[str, Place]:
    """Deliver what is left and complete the tree, at the end of a study.

    Args:
        run: The parent run.
        run_key: Its key.
        tasks: By step key, every task that has a result.
        is_finished: Whether the study is: its tasks without a run then get one.

    Returns:
        By step key, the run of each task; nothing if MLflow does not answer.
    """
    journal = run._journal
    if journal is None:
        return {}
    left = deliver_all(journal.folder, without=run)
    known = {
        key: vars(task) | {"output": task.output._asdict(), "metrics": list(task.metrics)}
        for key, task in tasks.items()
    }
    run._tell("tasks", tasks=known, is_finished=is_finished)
    if not run.deliver(within_s=AT_THE_END_S, eagerly=not left):
        return {}
    try:
        delivery = _delivery()
        runs = _within(_WITHIN_S, lambda: delivery.runs_of(run_key, experiment_name()))
        return {key: Place(*place) for key, place in runs.items()}
    except Exception:  # tracking must never cost a result
        return {}


def close_study(run_key: str, folder: Path) -> None:
    """Close the runs of a study run that was killed and will not be taken up again."""
    if not is_on():
        return
    run = TaskRun(Journal(folder, run_key))
    if run._journal and run._journal.claim():
        complete_study(run, run_key, {}, is_finished=False)
        run.end("KILLED")


def deliver_all(folder: Path, *, without: TaskRun | None = None) -> int:
    """Deliver every journal that no living process works on; a task that was killed gets its end first.

    Args:
        folder: The outbox.
        without: A run whose journal is left alone.

    Returns:
        How many journals MLflow has not taken.
    """
    waiting = [one for one in outbox.journals(folder) if is_on() and not (without and one.key == _key(without))]
    for number, journal in enumerate(waiting):
        if not journal.claim():
            continue
        run = TaskRun(journal)
        if not journal.has_ended():
            run._tell("end", status="KILLED", time_ms=_now_ms())
        is_delivered = run.deliver(within_s=AT_THE_END_S, eagerly=True)
        run.release()
        if not is_delivered:
            return len(waiting) - number
    return 0


def page(run_id: str) -> str:
    """Where a run is shown, below the address of MLflow's server; "" without an answer."""
    if not (is_on() and run_id):
        return ""
    try:
        delivery = _delivery()
        return str(_within(_WITHIN_S, lambda: delivery.page_of(run_id)))
    except Exception:  # tracking must never cost a result
        return ""


def create_database(uri: str) -> None:
    """Make the tables of a SQLite store, once, before several processes open it at the same time."""
    _prepare()
    from medssl.mlflow_runs import create_database

    create_database(uri)


def _start(journal: Journal, kind: str, **content: Any) -> TaskRun:
    if not is_on():
        return TaskRun()
    try:
        if not journal.claim():
            say("warning: another process works on the same task; this one is not tracked")
            return TaskRun()
    except OSError as error:
        say(f"warning: records for MLflow cannot be kept ({error.strerror}); the task goes on without them")
        return TaskRun()
    run = TaskRun(journal)
    run._tell(kind, experiment=experiment_name(), **content)
    return run


def _key(run: TaskRun) -> str:
    return run._journal.key if run._journal else ""


def _delivery() -> Any:
    """The part that imports MLflow, which takes seconds."""
    _prepare()
    from medssl import delivery

    return delivery


def _prepare() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of `call`, which is left to itself when it takes longer.

    Time limits of the client alone do not do: they begin anew with every byte and every request.

    Raises:
        _TooLongError: It takes longer.
    """
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.extend((call(), None))
        except BaseException as error:  # handed over to the caller's thread
            outcome.extend((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise _TooLongError(f"no answer within {seconds:g} s", thread)
    result, error = outcome
    if error is not None:
        raise error
    return result


def _now_ms() -> int:
    return int(time.time() * 1000)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=1, sort_keys=True, default=str)

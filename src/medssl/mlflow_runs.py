"""Runs and models in MLflow: how to reach it, and how to find there what was told of a study and its tasks.

A run is known by tags: that of a study by its run key, that of a task by its step key and by what it made.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.version import VERSION

STEP_KEY_TAG = "medssl.step_key"
RUN_KEY_TAG = "medssl.run_key"  # of a study's run
PART_OF_TAG = "medssl.part_of"  # of a task's run: the run key of its study, which may become known to MLflow later
CACHED_FROM_TAG = "medssl.cached_from"
OUTPUT_TAG = "medssl.output"  # kind/digest of what a task made
URI_TAG = "medssl.uri"  # where that lies
RAW_DATA_TAG = "medssl.raw_data"  # digest of what a fingerprint saw
PARENT_TAG = "mlflow.parentRunId"
# What MLflow will never take, however often it is told; anything else is tried again.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
MAX_DIGEST_CHARS = 36  # of a data set
_MAX_RUNS = 1000  # that one search returns
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


def patiently(call: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """The result of `call`, which is tried again while a database refuses it, for at most `_PATIENCE_S`.

    A server is not asked again at once: its journal stays for a later delivery.
    """
    began_s, wait_s = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return call(*arguments, **options)
        except Exception as error:
            is_refusal = isinstance(error, MlflowException) and error.error_code in REFUSALS
            is_remote = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
            if is_refusal or is_remote or time.monotonic() + wait_s - began_s > _PATIENCE_S:
                raise
        time.sleep(wait_s)
        wait_s *= 2


def page(run: Run, file: str = "") -> str:
    """Where a run, or a file kept with it, is shown below the address of MLflow's server."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{f'/artifacts/{file}' if file else ''}"


def model_page(model: LoggedModel) -> str:
    """Where a model is shown below the address of MLflow's server."""
    return f"#/experiments/{model.experiment_id}/models/{model.model_id}"


def runs_that_read(experiment: str, digest: str) -> str:
    """Where the runs are listed that read an artifact, or what was made of it."""
    return f"#/experiments/{experiment}/runs?searchFilter={quote(readers_of(digest))}"


def readers_of(digest: str) -> str:
    """What to search for in MLflow to find the runs that read an artifact, or what was made of it."""
    return f"dataset.digest = '{digest[:MAX_DIGEST_CHARS]}'"


def search(client: MlflowClient, experiment: str, tag: str, value: str, more: str = "") -> list[Run]:
    """Runs with a tag, the earliest first; none for an empty value."""
    if not value:
        return []
    condition = f"tags.`{tag}` = '{value}'{more}"
    return list(client.search_runs([experiment], condition, max_results=_MAX_RUNS, order_by=["start_time ASC"]))


def find(client: MlflowClient, experiment: str, tag: str, value: str, more: str = "") -> str:
    """Id of the earliest run with a tag, or ""."""
    found = search(client, experiment, tag, value, more)
    return str(found[0].info.run_id) if found else ""


def find_maker(client: MlflowClient, experiment: str, output: str, run_key: str) -> Run | None:
    """The run that made an artifact: that of the study run `run_key`, else the latest that did the work itself."""
    found = search(client, experiment, OUTPUT_TAG, output)
    same = [run for run in found if run_key and run.data.tags.get(PART_OF_TAG) == run_key]
    worked = [run for run in found if CACHED_FROM_TAG not in run.data.tags]
    return next(iter([*same, *reversed(worked), *found]), None)


def find_model(client: MlflowClient, experiment: str, output: str) -> LoggedModel | None:
    """The model that stands for an artifact of weights, which lies elsewhere."""
    found = client.search_logged_models([experiment], f"tags.`{OUTPUT_TAG}` = '{output}'", max_results=1)
    return next(iter(found), None)


def run_or_none(client: MlflowClient, run_id: str) -> Run | None:
    """A run, if it is there."""
    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code in REFUSALS:
            return None
        raise


def root_of(client: MlflowClient, run: Run) -> Run:
    """The run without a parent above `run`."""
    parent = run_or_none(client, run.data.tags.get(PARENT_TAG, ""))
    return run if parent is None else root_of(client, parent)


def experiment_id(client: MlflowClient, name: str, artifact_location: str | None = None) -> str:
    """Id of an experiment, which is made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except MlflowException:  # another process has just made it
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)

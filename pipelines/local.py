"""Runs a study's pipeline on this machine, without a cluster.

KFP's local runner works in a child process with its own process group: its chatter goes to a log file, what the
stages say goes to the terminal, and a stop reaches every process. An interrupted run goes on from KFP's cache, from
the store and from saved training state.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medssl import layout, outbox, schema, tracking
from medssl.config import Study, digest, load_study
from medssl.exit_codes import (
    BAD_INPUT,
    FAILURE_FILE_VARIABLE,
    TERMINATED,
    BadInputError,
    TerminatedError,
    sigterm_as_exception,
)
from medssl.progress import MARK, TASK_MARK, counted, duration
from medssl.stages.data import BEAM_OPTIONS_VARIABLE
from medssl.store import STORE_VARIABLE, Store, write_json
from medssl.train.launch import PARALLEL_TASKS_VARIABLE, PROCESSES_VARIABLE, THREADS_VARIABLE
from medssl.train.resources import CACHE_MIB_VARIABLE, LOADER_THREADS_VARIABLE
from pipelines import availability, preflight
from pipelines.plan import make_plan
from pipelines.processes import RUN_DIR_VARIABLE, end_leftovers, only_run_in, stopping
from pipelines.publish import Finished, find_results, public_uri, publish, results

STUDY_FILE = "study.json"
OUTPUTS_FILE = "outputs.json"
PIPELINE_FILE = "pipeline.yaml"
LOG_FILE = "run.log"
LOG_HEADING = "=== run began"  # followed by the time; the file keeps every run in the folder
_NUM_TAIL_LINES = 40  # of the log, shown where a task failed without a reason of its own
STATE_FILE = "state.json"
UI_VARIABLE = "MEDSSL_MLFLOW_UI"  # where people see MLflow, if not where this machine reaches it
UI_ADDRESS = "http://127.0.0.1:5000"  # where `mlflow ui` listens unless told otherwise

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CACHED = re.compile(r"Task ([\w-]+) cache hit")


def run(study_path: Path, out_dir: Path, overrides: Sequence[str]) -> None:
    """Run a study and leave its results in `out_dir`.

    Raises:
        BadInputError: The study or its data cannot be used; nothing has been computed then.
        TerminatedError: The run was stopped; the same call goes on where it stopped.
        RuntimeError: A task failed; its output is in the log file.
    """
    began_s = time.monotonic()
    study = load_study(study_path, overrides)
    out_dir = out_dir.resolve()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise BadInputError("--out is a file, expected a folder for the results; give another --out") from None
    except OSError as error:
        raise BadInputError(f"the folder of the results cannot be made: {error.strerror}; give another --out") from None
    with sigterm_as_exception(), only_run_in(out_dir):
        os.environ.update(_environment(study, out_dir))
        store = Store.from_environment()
        study = _with_resolved_roots(study)
        availability.require_data(study)
        study = availability.without(study, availability.absent(study, store))
        for arm, reason in study.not_run.items():
            _tell(f"not run: {arm}, which {reason}")
        root = data_root(study, out_dir)
        key_id = preflight.check(study, root, store)
        study = _with_parallel_tasks(study)
        os.environ[PARALLEL_TASKS_VARIABLE] = str(study.resources.parallel_tasks)
        plan = make_plan(study)
        _tell(
            f"study {study.name}: {counted(plan.num_tasks, 'task')}, {plan.num_training_processes} of them train; "
            f"results in {out_dir}"
        )
        write_json(out_dir / STUDY_FILE, {"study": study.dump(), "root": str(root), "key_id": key_id})
        finished = _run_tracked(study, out_dir, plan.num_tasks)
        (out_dir / STATE_FILE).unlink()
        _tell_end(out_dir, finished, time.monotonic() - began_s)


def _run_tracked(study: Study, out_dir: Path, num_tasks: int) -> Finished:
    """Execute the pipeline under a parent run that is closed whatever happens."""
    status, started_unix_s = "FAILED", time.time()
    store = Store.from_environment()
    run_key = _open_state(out_dir, study, store)
    run = _start_tracking(study, run_key, out_dir, store)
    is_complete = False
    try:
        _execute_in_child(out_dir, num_tasks)
        finished = find_results(out_dir, store, started_unix_s=started_unix_s)
        places = tracking.complete_study(run, run_key, finished.tasks, is_finished=True)
        is_complete = True
        _record_run(store, study, run_key, run)
        urls = {key: f"{base}/{place.page}" for key, place in places.items() if (base := _ui_base(out_dir))}
        publish(out_dir, store, study, finished, run, places, urls, started_unix_s=started_unix_s)
        status = "FINISHED"
    except (TerminatedError, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        if not is_complete:
            tracking.complete_study(run, run_key, results(store), is_finished=False)
        run.end(status, within_s=tracking.AT_THE_END_S)
    return replace(finished, mlflow_run_id=run.run_id)


def execute(out_dir: Path) -> None:
    """What the child process does: run the compiled pipeline with KFP's local runner."""
    import logging
    import warnings

    from kfp import local

    from pipelines.study import compile_pipeline, make_pipeline

    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    warnings.filterwarnings("ignore", category=FutureWarning)
    prepared = json.loads((out_dir / STUDY_FILE).read_text())
    study = Study.model_validate(prepared["study"])
    plan, parallel_tasks = make_plan(study), study.resources.parallel_tasks
    compile_pipeline(plan, out_dir / PIPELINE_FILE, parallel_tasks=parallel_tasks)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(out_dir / "kfp"),
        enable_caching=True,
        cache_root=str(out_dir / "kfp-cache"),
    )
    pipeline = make_pipeline(plan, parallel_tasks=parallel_tasks)
    outputs = pipeline(root=prepared["root"], key_id=prepared["key_id"]).outputs
    write_json(out_dir / OUTPUTS_FILE, {name: {"uri": a.uri, "metadata": a.metadata} for name, a in outputs.items()})


def ui_command(out_dir: Path) -> list[str]:
    """The command that opens MLflow on the runs of `out_dir`.

    Raises:
        BadInputError: No run has been made there.
    """
    if not (out_dir / "mlflow.db").is_file():
        raise BadInputError(f"{out_dir} holds no MLflow store; run a study with --out {out_dir} first")
    return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", _tracking_uri(out_dir)]


def _environment(study: Study, out_dir: Path) -> dict[str, str]:
    """Environment of all processes of the run; none of it is part of a cache key."""
    os.environ.pop("MLFLOW_RUN_ID", None)  # a run of the caller's is not a run of every task
    return {
        **{name: os.environ.get(name, value) for name, value in tracking.ENVIRONMENT.items()},
        STORE_VARIABLE: str(out_dir / "store"),
        RUN_DIR_VARIABLE: str(out_dir),
        FAILURE_FILE_VARIABLE: str(out_dir / "failure.json"),
        PROCESSES_VARIABLE: str(study.resources.processes),
        THREADS_VARIABLE: str(study.resources.threads_per_process),
        LOADER_THREADS_VARIABLE: str(study.resources.loader_threads),
        CACHE_MIB_VARIABLE: str(study.resources.cache_mib),
        PARALLEL_TASKS_VARIABLE: str(study.resources.parallel_tasks),
        BEAM_OPTIONS_VARIABLE: os.environ.get(BEAM_OPTIONS_VARIABLE) or shlex.join(study.resources.beam_options),
        "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", _tracking_uri(out_dir)),
        "PYTHONUNBUFFERED": "1",
    }


def _tracking_uri(out_dir: Path) -> str:
    return f"sqlite:///{out_dir.resolve() / 'mlflow.db'}"


def _with_resolved_roots(study: Study) -> Study:
    """The study with the folders of its further sets as absolute paths: tasks run in another folder than this."""
    resolved = {
        key: tuple(one.model_copy(update={"root": str(Path(str(one.root)).expanduser().resolve())}) for one in sets)
        for key, sets in (("external", study.external), ("pretraining_data", study.pretraining_data))
    }
    return study.model_copy(update=resolved)


def _with_parallel_tasks(study: Study) -> Study:
    """The study with a number of fine-tuning tasks at a time, where it leaves that to the machine."""
    if study.resources.parallel_tasks:
        return study
    from medssl.train.footprint import parallel_tasks  # takes seconds to import: torch

    number = parallel_tasks(
        [study.encoders[arm.encoder] for arm in study.arms],
        study.finetune,
        study.task,
        study.resources,
        channels=study.shards.channels,
        num_tasks=len(study.arms),
    )
    return study.model_copy(update={"resources": study.resources.model_copy(update={"parallel_tasks": number})})


def data_root(study: Study, out_dir: Path) -> Path:
    """The folder of the raw data; a generated set is made where it does not lie there yet."""
    if study.data.root is not None:
        return Path(study.data.root).expanduser().resolve()
    from medssl.data import generated
    from medssl.progress import Progress

    wanted = study.data.generate
    assert wanted is not None  # the study has a root or generates
    key = digest([wanted.dump(), generated.source_text(wanted.task)])[:16]
    root = out_dir / "generated" / key / "phantoms"
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        bar = Progress("generate", wanted.patients, unit="patients")
        generated.generate(root, **wanted.dump(), progress=bar.of)
    return root


def _open_state(out_dir: Path, study: Study, store: Store) -> str:
    """The run key: that of the unfinished run of the same study in this folder, else a new one."""
    path = out_dir / STATE_FILE
    if path.is_file():
        state = json.loads(path.read_text())
        if state["study_digest"] == study.digest:
            return str(state["run_key"])
        tracking.close_study(state["run_key"], store.outbox)  # killed, and another study takes its place
    run_key = digest([str(out_dir), study.digest, time.time_ns()])[:32]
    write_json(path, {"run_key": run_key, "study_digest": study.digest})
    return run_key


def _start_tracking(study: Study, run_key: str, out_dir: Path, store: Store) -> tracking.TaskRun:
    os.environ[tracking.RUN_KEY_VARIABLE] = run_key
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri == _tracking_uri(out_dir):
        tracking.create_database(uri)
    tags = {"medssl.study": study.name, "medssl.study_digest": study.digest, "mlflow.source.git.commit": _commit()}
    run = tracking.start_study(
        study.name,
        run_key,
        study.for_records(),
        {key: value for key, value in tags.items() if value},
        folder=store.outbox,
        artifact_location=(out_dir / "mlartifacts").as_uri(),
    )
    _record_run(store, study, run_key, run)
    return run


def _record_run(store: Store, study: Study, run_key: str, run: tracking.TaskRun) -> None:
    """Keep in the store of which study and code this run is."""
    known = tracking.surroundings()
    store.record_run(
        run_key,
        {
            "study": study.name,
            "study_digest": study.digest,
            "settings": study.for_records(),
            "code_commit": _commit(),
            "container_image": known["container_image"],
            "kfp_run_id": known["kfp_run_id"],
            "mlflow_run_id": run.run_id,
            "mlflow_tracking_uri": public_uri(os.environ["MLFLOW_TRACKING_URI"]),
        },
    )


def _ui_base(out_dir: Path) -> str:
    """Where people see MLflow in a browser, or ""."""
    if given := os.environ.get(UI_VARIABLE):
        return given.rstrip("/")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri == _tracking_uri(out_dir):
        return UI_ADDRESS
    return public_uri(uri).rstrip("/") if uri.startswith("http") else ""


def _commit() -> str:
    """The commit of the code, or "" where it is not under version control."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def _execute_in_child(out_dir: Path, num_tasks: int) -> None:
    """Run `execute` in its own process group and show what its stages say."""
    failure_file = out_dir / "failure.json"
    for leftover in (failure_file, out_dir / OUTPUTS_FILE):
        leftover.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pipelines", "execute", str(out_dir)]
    project = Path(__file__).parents[1]
    with (
        subprocess.Popen(
            command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as child,
        stopping(child.pid) as stop,
    ):
        assert child.stdout is not None
        with (out_dir / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{LOG_HEADING} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n")
            _follow(child.stdout, log, num_tasks)
        code = child.wait()
    if stop.requested:
        end_leftovers(out_dir)
        raise TerminatedError("the run was stopped; the same command goes on where it stopped")
    if code == 0 and (out_dir / OUTPUTS_FILE).is_file():
        return
    reason = json.loads(failure_file.read_text()) if failure_file.is_file() else {}
    if reason.get("exit_code") == TERMINATED:
        raise TerminatedError(reason["message"])
    if reason.get("exit_code") == BAD_INPUT:
        raise BadInputError(reason["message"])
    written = (out_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace").rpartition(LOG_HEADING)[2]
    sys.stderr.write("".join(written.splitlines(keepends=True)[1:][-_NUM_TAIL_LINES:]))
    raise RuntimeError(f"a task failed ({reason.get('message', 'no reason given')}); see {out_dir / LOG_FILE}")


def _follow(lines: Iterator[str] | Any, log: Any, num_tasks: int) -> None:
    """Copy everything to the log and show task starts and the stages' own lines."""
    seen = 0
    for raw in lines:
        line = _ANSI.sub("", raw)
        log.write(line)
        log.flush()
        if TASK_MARK in line:
            seen += 1
            _tell(f"[{seen}/{num_tasks}] {line.split(TASK_MARK, 1)[1].rstrip()}")
        elif task := _CACHED.search(line):
            seen += 1
            _tell(f"[{seen}/{num_tasks}] {_stage_of(task[1])}: unchanged, reused")
        elif MARK in line:
            _tell("    " + line.split(MARK, 1)[1].rstrip())


def _stage_of(task: str) -> str:
    """Stage of a KFP task name: KFP numbers the second and later uses of a component."""
    return re.sub(r"-\d+$", "", task).replace("-", "_")


def _tell_end(out_dir: Path, finished: Finished, seconds: float) -> None:
    from medssl.analysis import report

    metrics = schema.read(out_dir / layout.METRICS, schema.METRICS)
    arms = schema.read(out_dir / layout.ARMS, schema.ARMS)
    _tell("")
    _tell(report.headline(metrics, arms))
    _tell("")
    _tell(f"report:   {out_dir / 'report' / layout.REPORT}")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    is_own = uri == _tracking_uri(out_dir)
    _tell(f"MLflow:   {' '.join(ui_command(out_dir)) if is_own else public_uri(uri)}")
    if (page := tracking.page(finished.mlflow_run_id)) and (base := _ui_base(out_dir)):
        _tell(f"          {'then ' if is_own else ''}{base}/{page}")
    if left := len(outbox.journals(Store.from_environment().outbox)):
        _tell(f"          does not have the records of {counted(left, 'run')} yet; once it answers: medssl deliver")
    _tell(f"          experiment {tracking.experiment_name()}, run {finished.mlflow_run_id}")
    _tell(
        f"finished in {duration(seconds)}: {counted(finished.num_executed, 'task')} done, {finished.num_reused} reused"
    )


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()

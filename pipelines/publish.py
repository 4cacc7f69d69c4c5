"""What a finished run leaves in its folder: stable links to the results, and `run.json`, which names them all."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl import layout, schema, tracking
from medssl.config import Study
from medssl.exit_codes import BadInputError
from medssl.stages.analysis import headline_metrics
from medssl.store import MANIFEST, Store, file_digest, write_json

RUN_FILE = "run.json"
# Name in the run's folder -> (pipeline output, file in its artifact; "" for the whole artifact).
LINKS: Mapping[str, tuple[str, str]] = {
    layout.INDEX: ("index", layout.INDEX),
    layout.SPLITS: ("splits", layout.SPLITS),
    "shards": ("shards", ""),
    layout.PREDICTIONS: ("comparison", layout.PREDICTIONS),
    layout.ARMS: ("comparison", layout.ARMS),
    layout.METRICS: ("report", layout.METRICS),
    "report": ("report", ""),
}


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        mlflow_run_id: Of the parent run.
        tasks: By step key, with those whose earlier result was used marked.
        num_executed: Tasks that did their work in this run.
        num_reused: The others.
        metrics: Headline numbers.
    """

    mlflow_run_id: str
    tasks: Mapping[str, tracking.TaskResult]
    num_executed: int
    num_reused: int
    metrics: Mapping[str, float]


def publish(out_dir: Path, store: Store, study: Study, mlflow_run_id: str, *, started_unix_s: float) -> Finished:
    """Link the results of the run that has just ended into `out_dir` and write `run.json`.

    Every byte of the results is checked first: KFP's cache sees only that their folders exist.

    Raises:
        BadInputError: An artifact was damaged, or a file of the user's stands where a link should be.
    """
    outputs = json.loads((out_dir / "outputs.json").read_text())
    for output in outputs.values():
        store.open(output["uri"])
    for name, (output, file) in LINKS.items():
        _link(out_dir / name, Path(outputs[output]["uri"]) / file)
    steps = lineage(store, outputs["report"]["metadata"]["digest"])
    reused = [step for step in steps if step["finished_unix_s"] < started_unix_s]
    artifacts: dict[str, dict[str, str]] = {
        f"{step['output']['kind']}: {_name(step)}": {
            "uri": store.uri(step["output"]["kind"], step["output"]["digest"]),
            "sha256": step["output"]["digest"],
        }
        for step in steps
    }
    artifacts |= {
        name: {
            "path": str(name if file else f"{name}/{MANIFEST}"),
            "uri": outputs[output]["uri"],
            "artifact_digest": outputs[output]["metadata"]["digest"],
            "sha256": file_digest(out_dir / name if file else out_dir / name / MANIFEST),
        }
        for name, (output, file) in LINKS.items()
    }
    write_json(
        out_dir / RUN_FILE,
        {
            "study": study.name,
            "study_digest": study.digest,
            "mlflow_run_id": mlflow_run_id,
            "mlflow_tracking_uri": os.environ["MLFLOW_TRACKING_URI"],
            "seconds": round(time.time() - started_unix_s, 2),
            "artifacts": artifacts,
            "tasks": [
                {
                    "task": _name(step),
                    "code_version": step["code_version"],
                    "seconds": step["seconds"],
                    "is_cached": step in reused,
                    "step_key": step["step_key"],
                    "mlflow_run_id": step["mlflow_run_id"],
                    "inputs": step["inputs"],
                    "output": step["output"],
                }
                for step in steps
            ],
        },
    )
    tasks = {step["step_key"]: _result(step, is_reused=step in reused) for step in steps}
    return Finished(mlflow_run_id, tasks, len(steps) - len(reused), len(reused), _headline(out_dir))


def results(store: Store) -> dict[str, tracking.TaskResult]:
    """By step key, every finished task of a store."""
    return {record["step_key"]: _result(record) for record in store.records()}


def _result(step: Mapping[str, Any], *, is_reused: bool = False) -> tracking.TaskResult:
    return tracking.TaskResult(
        name=_name(step),
        output=f"{step['output']['kind']}/{step['output']['digest']}",
        metrics=[(name, number, value) for name, number, value in step["metrics"]],
        finished_unix_s=step["finished_unix_s"],
        is_reused=is_reused,
    )


def lineage(store: Store, digest: str) -> list[dict[str, Any]]:
    """Every step that led to the artifact with `digest`, first steps first.

    Where several steps made the same bytes, the latest counts.
    """
    records = sorted(store.records(), key=lambda r: float(r["finished_unix_s"]))
    maker = {record["output"]["digest"]: record for record in records}
    found: dict[str, dict[str, Any]] = {}
    waiting = [digest]
    while waiting:
        record = maker.get(waiting.pop())
        if record is not None and record["step_key"] not in found:
            found[record["step_key"]] = record
            waiting += [entry["digest"] for entry in record["inputs"].values()]
    return sorted(found.values(), key=lambda r: (float(r["finished_unix_s"]), r["step_key"]))


def _link(link: Path, target: Path) -> None:
    """A relative symbolic link, replaced in one step."""
    if link.exists() and not link.is_symlink():
        raise BadInputError(f"{link.name} in the folder of the results is no link of an earlier run; move it away")
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)


def _name(step: Mapping[str, Any]) -> str:
    return f"{step['stage']} {step['item']}".strip()


def _headline(out_dir: Path) -> dict[str, float]:
    rows = schema.read(out_dir / layout.METRICS, schema.METRICS).to_pylist()
    return {name: value for name, _, value in headline_metrics(rows)}

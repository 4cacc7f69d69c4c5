"""What a finished run leaves in its folder: links to the results, the report, and `run.json`, which names them all."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from medssl import layout, schema, tracking
from medssl.analysis import model_card, page
from medssl.analysis.model_card import ModelCard
from medssl.config import Study
from medssl.exit_codes import BadInputError
from medssl.lineage import RAW_DATA, Graph, Record, task_of
from medssl.stages.analysis import headline_metrics
from medssl.store import MANIFEST, Store, file_digest, write_json
from pipelines.card import card

RUN_FILE = "run.json"
# Name in the run's folder -> (pipeline output, file in its artifact; "" for the whole artifact).
LINKS: Mapping[str, tuple[str, str]] = {
    layout.INDEX: ("index", layout.INDEX),
    layout.SPLITS: ("splits", layout.SPLITS),
    "shards": ("shards", ""),
    layout.PREDICTIONS: ("comparison", layout.PREDICTIONS),
    layout.ARMS: ("comparison", layout.ARMS),
    layout.METRICS: ("report", layout.METRICS),
}
REPORT_FOLDER = "report"
CARD_FILE = "model-card.md"  # in it


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        steps: Records of all that led to the report, first steps first.
        tasks: By step key, with those whose earlier result was used marked.
        metrics: Headline numbers.
        mlflow_run_id: Of the parent run.
    """

    steps: Sequence[Mapping[str, Any]]
    tasks: Mapping[str, tracking.TaskResult]
    metrics: Mapping[str, float]
    mlflow_run_id: str = ""

    @property
    def num_reused(self) -> int:
        """Tasks of which an earlier run had done the work."""
        return sum(task.is_reused for task in self.tasks.values())

    @property
    def num_executed(self) -> int:
        """Tasks that did their work in this run."""
        return len(self.tasks) - self.num_reused


def find_results(out_dir: Path, store: Store, *, started_unix_s: float) -> Finished:
    """The results of the run that has just ended, every byte of which is checked: KFP's cache sees only their folders.

    Raises:
        BadInputError: An artifact was damaged.
    """
    outputs = _outputs(out_dir)
    for output in outputs.values():
        store.open(output["uri"])
    ends = [outputs[name]["metadata"]["digest"] for name in ("report", "promotion") if name in outputs]
    steps = lineage(store, ends)
    tasks = {s["step_key"]: _result(store, s, is_reused=s["finished_unix_s"] < started_unix_s) for s in steps}
    rows = schema.read(Path(outputs["report"]["uri"]) / layout.METRICS, schema.METRICS).to_pylist()
    return Finished(steps, tasks, {name: value for name, _, value in headline_metrics(rows)})


def publish(
    out_dir: Path,
    store: Store,
    study: Study,
    finished: Finished,
    run: tracking.TaskRun,
    places: Mapping[str, tracking.Place],
    urls: Mapping[str, str],
    *,
    started_unix_s: float,
) -> None:
    """Link the results into `out_dir`, write `run.json`, and copy the report with links to MLflow, where it goes too.

    Args:
        out_dir: Folder of the results.
        store: Where they lie.
        study: What was run.
        finished: From `find_results`.
        run: The parent run.
        places: By step key, the run of each task, where MLflow answers.
        urls: By step key, its address for people.
        started_unix_s: When the run began.

    Raises:
        BadInputError: Something of the user's stands where a link or the report should be.
    """
    outputs = _outputs(out_dir)
    for name, (output, file) in LINKS.items():
        _link(out_dir / name, Path(outputs[output]["uri"]) / file)
    _copy_report(
        Path(outputs["report"]["uri"]),
        out_dir / REPORT_FOLDER,
        {finished.tasks[key].name: url for key, url in urls.items() if key in finished.tasks},
        _card(study, store, outputs) if "promotion" in outputs else None,
    )
    run.metrics((name, 0, value) for name, value in finished.metrics.items())
    run.artifact(str(out_dir / REPORT_FOLDER), REPORT_FOLDER)
    artifacts: dict[str, dict[str, str]] = {
        f"{step['output']['kind']}: {task_of(step)}": {
            "uri": store.uri(step["output"]["kind"], step["output"]["digest"]),
            "sha256": step["output"]["digest"],
        }
        for step in finished.steps
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
            "mlflow_run_id": run.run_id,
            "mlflow_tracking_uri": public_uri(os.environ["MLFLOW_TRACKING_URI"]),
            "seconds": round(time.time() - started_unix_s, 2),
            "artifacts": artifacts,
            "tasks": [
                {
                    "task": task_of(step),
                    "code_version": step["code_version"],
                    "seconds": step["seconds"],
                    "is_cached": finished.tasks[step["step_key"]].is_reused,
                    "step_key": step["step_key"],
                    "mlflow_run_id": place.run_id if (place := places.get(step["step_key"])) else step["mlflow_run_id"],
                    "inputs": step["inputs"],
                    "output": step["output"],
                }
                for step in finished.steps
            ],
        },
    )


def public_uri(uri: str) -> str:
    """An address without the user name and password that it may hold."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def results(store: Store) -> dict[str, tracking.TaskResult]:
    """By step key, every finished task of a store."""
    return {record["step_key"]: _result(store, record) for record in store.records()}


def _result(store: Store, step: Mapping[str, Any], *, is_reused: bool = False) -> tracking.TaskResult:
    kind, made = step["output"]["kind"], step["output"]["digest"]
    raw_data = str(step["summary"].get(RAW_DATA, ""))
    return tracking.TaskResult(
        name=task_of(step),
        output=tracking.Output(f"{kind}/{made}", store.uri(kind, made), step["item"] or step["stage"], raw_data),
        metrics=[(name, number, value) for name, number, value in step["metrics"]],
        finished_unix_s=step["finished_unix_s"],
        is_reused=is_reused,
    )


def lineage(store: Store, digests: Iterable[str]) -> list[Record]:
    """Every step that led to one of the artifacts, first steps first.

    Where several steps made the same bytes, the latest counts.
    """
    graph = Graph(store.records(), {}, {})
    behind = dict.fromkeys(one for digest in digests for one in graph.behind(digest, pointers=True))
    steps = [graph.maker[one] for one in behind if one in graph.maker]
    return sorted(steps, key=lambda r: (float(r["finished_unix_s"]), r["step_key"]))


def _outputs(out_dir: Path) -> dict[str, Any]:
    return dict(json.loads((out_dir / "outputs.json").read_text()))


def _card(study: Study, store: Store, outputs: Mapping[str, Any]) -> ModelCard:
    folders = {name: Path(outputs[name]["uri"]) for name in ("promotion", "comparison", "report")}
    return card(study, store, **folders)


def _copy_report(source: Path, target: Path, urls: Mapping[str, str], judged: ModelCard | None) -> None:
    """A copy of the report whose numbers lead to the runs of MLflow in which they were made.

    The report in the store knows no run and no registry, so that equal results have equal reports.

    Args:
        source: The report in the store.
        target: Where the copy goes; an earlier one is replaced.
        urls: By task, the address of its run.
        judged: Card of the model on which the run decided, if it did.

    Raises:
        BadInputError: Something else stands there.
    """
    is_ours = target.is_symlink() or (target / layout.REPORT).is_file() or not target.exists()
    if not is_ours:
        raise BadInputError(f"{target.name} in the folder of the results is no report of an earlier run; move it away")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(MANIFEST))
    html = temporary / layout.REPORT
    text = page.with_links(html.read_text(encoding="utf-8"), urls)
    if judged:
        text = model_card.to_page(judged, text)
        (temporary / CARD_FILE).write_text(model_card.to_markdown(judged), encoding="utf-8")
    html.write_text(text, encoding="utf-8")
    if target.is_symlink():
        target.unlink()  # an earlier version made a link
    elif target.exists():
        shutil.rmtree(target)
    temporary.rename(target)


def _link(link: Path, target: Path) -> None:
    """A relative symbolic link, replaced in one step."""
    if link.exists() and not link.is_symlink():
        raise BadInputError(f"{link.name} in the folder of the results is no link of an earlier run; move it away")
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)

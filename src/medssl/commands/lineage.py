"""`medssl lineage` and `medssl deliver`: what was made from what, from the store alone; and what MLflow still lacks."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from medssl import outbox, tracking
from medssl.exit_codes import FAILURE, BadInputError
from medssl.lineage import TRAINED_KINDS, Found, Graph, weights
from medssl.progress import counted
from medssl.store import Store

_DIGITS = 12  # of a digest, as shown to people
_RUN_KEYS = ("study", "study_digest", "code_commit", "container_image", "kfp_run_id", "mlflow_run_id")

StoreOf = Callable[[argparse.Namespace], Store]


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", store_of: StoreOf) -> list[Any]:
    """Add both commands; returns their parsers, which want --store."""
    shown = commands.add_parser("lineage", help="print what an artifact, model, task or number was made from")
    shown.add_argument("id", help='digest, URI, MLflow run, task ("finetune NAME"), or number ("ARM FRACTION REPEAT")')
    shown.add_argument("--down", action="store_true", help="print what was made from it instead")
    shown.add_argument("--json", action="store_true", help="print it as JSON")
    shown.set_defaults(command=lambda options: _show(store_of(options), options))
    late = commands.add_parser("deliver", help="tell MLflow what it could not be told while it was away")
    late.set_defaults(command=lambda options: _deliver(store_of(options)))
    return [shown, late]


def _show(store: Store, options: argparse.Namespace) -> None:
    graph = Graph(store.records(), store.runs(), outbox.run_ids(store.outbox))
    found = graph.find(options.id)
    if options.json:
        sys.stdout.write(f"{json.dumps(as_json(graph, found, store, down=options.down), indent=1)}\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(graph, found, down=options.down))


def lines(graph: Graph, found: Found, *, down: bool = False) -> Iterator[str]:
    """The chain as a tree, then the runs of the pipeline in which it was made; with `down`, first the models."""
    if down:
        trained = [one for one in graph.ahead(found.digest) if graph.kinds[one] in TRAINED_KINDS]
        yield f"{counted(len(trained), 'trained artifact')} built on {_named(graph, found.digest)}"
        yield from (f"  {_named(graph, one)}" for one in trained)
        yield ""
    if found.model:
        model = found.model
        share, selected = f"{100 * model['label_fraction']:.6g} %", ", selected" if model["is_selected"] else ""
        which = f"draw {model['draw']}, repeat {model['repeat']}{selected}"
        yield f"model {weights(model)[:_DIGITS]}: {share} of the labels, {which}"
    yield from _tree(graph, found.digest, "", set(), down=down)
    shown = graph.ahead(found.digest) if down else graph.behind(found.digest)
    for key, run in graph.study_runs(shown).items():
        yield ""
        yield f"run of the pipeline {key[:_DIGITS]}"
        yield from (f"  {name.replace('_', ' ')}: {run[name]}" for name in _RUN_KEYS if run.get(name))


def _tree(graph: Graph, digest: str, indent: str, shown: set[str], *, down: bool, role: str = "") -> Iterator[str]:
    is_known, kind = digest in shown, graph.kinds[digest]
    neighbours = graph.uses(digest) if down else graph.inputs(digest)
    prefix = f"{role}: " if role not in ("", kind) and not down else ""
    yield f"{prefix}{_named(graph, digest)}{'  (as above)' if is_known and neighbours else ''}"
    shown.add(digest)
    if is_known:
        return
    direct = set(graph.inputs(digest, pointers=False))
    followed = neighbours if down else [one for one in neighbours if one in direct]
    for number, (below, one) in enumerate(followed, start=1):
        is_last = number == len(followed)
        head, rest = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        for i, line in enumerate(_tree(graph, one, f"{indent}{rest}", shown, down=down, role=below)):
            yield f"{head if i == 0 else rest}{line}"


def _named(graph: Graph, digest: str) -> str:
    """One artifact in a line: kind, digest, and who made it, by which code, in which run of MLflow."""
    record = graph.maker.get(digest)
    name = f"{graph.kinds[digest]} {digest[:_DIGITS]}"
    if record is None:
        return f"{name}  not made in this store"
    parts = [name, graph.task(digest), f"code {record['code_version']}"]
    if run_id := graph.run_id(record):
        parts.append(f"MLflow {run_id[:_DIGITS]}")
    if raw := graph.raw_data(digest):
        parts.append(f"raw data {raw[:_DIGITS]}")
    return "  ".join(parts)


def as_json(graph: Graph, found: Found, store: Store, *, down: bool = False) -> dict[str, Any]:
    """The chain as a graph: every artifact once, with what it was made from."""
    reached = graph.ahead(found.digest) if down else graph.behind(found.digest)
    return {
        "artifact": found.digest,
        "model": found.model,
        "artifacts": {one: _artifact(graph, one, store) for one in reached},
        "trained": [one for one in reached if graph.kinds[one] in TRAINED_KINDS],
        "raw_data": [raw for one in reached if (raw := graph.raw_data(one))],
        "runs": graph.study_runs(reached),
    }


def _artifact(graph: Graph, digest: str, store: Store) -> dict[str, Any]:
    kind = graph.kinds[digest]
    record = graph.maker.get(digest)
    made: dict[str, Any] = {"kind": kind, "uri": store.uri(kind, digest)}
    if record is None:
        return made
    kept = ("step_key", "code_version", "finished_unix_s", "run_key", "container_image", "kfp_run_id")
    return {
        **made,
        "task": graph.task(digest),
        "mlflow_run_id": graph.run_id(record),
        **{name: record[name] for name in kept if record.get(name)},
        "inputs": {role: one["digest"] for role, one in record["inputs"].items()},
    }


def _deliver(store: Store) -> None:
    if not tracking.is_on():
        raise BadInputError("MLFLOW_TRACKING_URI is not set; give the address of MLflow's server or database")
    waiting = len(outbox.journals(store.outbox))
    left = tracking.deliver_all(store.outbox)
    sys.stdout.write(f"{counted(waiting - left, 'run')} delivered, {left} left\n")
    if left:
        sys.stderr.write("error: MLflow does not take everything; the rest is kept, run this again when it answers\n")
        raise SystemExit(FAILURE)

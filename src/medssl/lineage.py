"""What an artifact was made from, and what was made from it: a graph over the records that a store keeps of each step.

Nothing is asked but the store: the chain is there when MLflow is away, and where a store was copied.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medssl.exit_codes import BadInputError

Record = Mapping[str, Any]

MODELS = "models"  # key of the record of a fine-tuning: its models, each with MODEL_KEYS
MODEL_KEYS = ("label_fraction", "draw", "repeat", "is_selected", "checkpoint_digest")
RAW_DATA = "fingerprint"  # key of the summary of a source: digest of the raw data
MODELS_FILE = "models.csv"  # the same in MLflow
DATA_KINDS = ("source", "index", "splits", "shards")
TRAINED_KINDS = ("checkpoint", "models")
# Through these a step finds what it reads, and they name other things too: who follows them comes to what did not
# enter the result.
_POINTERS = ("catalog", "selection", "dataset")
_MIN_DIGITS = 6
_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Found:
    """What an ID stands for.

    Attributes:
        digest: Of the artifact.
        model: One of the models in it, by MODEL_KEYS; None for the whole.
    """

    digest: str
    model: Record | None = None


@dataclass(frozen=True)
class Graph:
    """All steps of a store.

    Attributes:
        records: From `Store.records`.
        runs: From `Store.runs`.
        run_ids: By step key, MLflow runs that a record does not name because MLflow was away when it was written.
    """

    records: Sequence[Record]
    runs: Mapping[str, Record]
    run_ids: Mapping[str, str]

    @cached_property
    def maker(self) -> dict[str, Record]:
        """By digest, the step that made an artifact; where several made the same bytes, the latest."""
        found: dict[str, Record] = {}
        for record in sorted(self.records, key=lambda record: float(record["finished_unix_s"])):
            found.pop(record["output"]["digest"], None)  # the order of the keys is that of the latest making
            found[record["output"]["digest"]] = record
        return found

    @cached_property
    def kinds(self) -> dict[str, str]:
        """By digest, the kind of every artifact that a step made or read."""
        found = {str(one["digest"]): str(one["kind"]) for r in self.records for one in r["inputs"].values()}
        return found | {digest: str(record["output"]["kind"]) for digest, record in self.maker.items()}

    @cached_property
    def _readers(self) -> dict[str, list[tuple[str, str]]]:
        """By digest, the role under which it was read, and the digest of what was made of it."""
        readers: dict[str, list[tuple[str, str]]] = {}
        for made, record in self.maker.items():
            for role, one in record["inputs"].items():
                readers.setdefault(one["digest"], []).append((role, made))
        return readers

    def inputs(self, digest: str, *, pointers: bool = True) -> list[tuple[str, str]]:
        """Role and digest of everything that the maker of an artifact read.

        Args:
            digest: Of the artifact.
            pointers: Also what it only found others through.
        """
        record = self.maker.get(digest)
        read = record["inputs"].items() if record else ()
        return [(str(role), str(one["digest"])) for role, one in read if pointers or one["kind"] not in _POINTERS]

    def uses(self, digest: str) -> list[tuple[str, str]]:
        """Role and digest of everything made from an artifact."""
        if self.kinds.get(digest) in _POINTERS:
            return []
        return self._readers.get(digest, [])

    def behind(self, digest: str, *, pointers: bool = False) -> list[str]:
        """The artifact and everything that entered it, nearest first; with `pointers` also pointers."""
        return self._reachable(digest, lambda one: self.inputs(one, pointers=pointers))

    def ahead(self, digest: str) -> list[str]:
        """The artifact and everything that it entered, nearest first."""
        return self._reachable(digest, self.uses)

    def task(self, digest: str) -> str:
        """Stage and item of the step that made an artifact; "" where it was made elsewhere."""
        record = self.maker.get(digest)
        return task_of(record) if record else ""

    def raw_data(self, digest: str) -> str:
        """Digest of the raw data of which an artifact is the fingerprint, or ""."""
        return str(self.maker[digest]["summary"].get(RAW_DATA, "")) if digest in self.maker else ""

    def run_id(self, record: Record) -> str:
        """The MLflow run of a step, or ""."""
        return str(record.get("mlflow_run_id") or self.run_ids.get(record["step_key"], ""))

    def study_runs(self, digests: Iterable[str]) -> dict[str, Record]:
        """By run key, the runs of the pipeline in which artifacts were made."""
        keys = {str(self.maker[digest].get("run_key", "")) for digest in digests if digest in self.maker}
        return {key: self.runs[key] for key in sorted(keys & set(self.runs))}

    def find(self, text: str) -> Found:
        """What `text` stands for.

        Args:
            text: Digest of an artifact, of a model's weights or of raw data, or its first digits; an artifact's URI; a
                step key; an MLflow run; a task such as "finetune micle"; or a number of the report, as arm, share of
                labels and repeat: "micle 0.1 0".

        Raises:
            BadInputError: It stands for nothing, or for several things.
        """
        text = text.strip()
        last = text.rstrip("/").rsplit("/", 1)[-1]
        found = list(dict.fromkeys([*self._by_digits(last.lower()), *self._by_task(text), *self._by_number(text)]))
        if len(found) == 1:
            return Found(found[0][0], next((one for one in self._models(found[0][0]) if _is(one, found[0][1])), None))
        if not found:
            raise BadInputError(
                f"{text[:80]!r} is not in this store; expected a digest or its first {_MIN_DIGITS} digits, a URI, an "
                'MLflow run, a task such as "finetune NAME", or arm, share of labels and repeat such as "NAME 0.1 0"'
            )
        names = [f"{self.kinds[digest]} {digest[:12]}" for digest, _ in found[:_MAX_EXAMPLES]]
        raise BadInputError(f"{text[:80]!r} may be {len(found)} things ({', '.join(names)}); give more digits")

    def _by_digits(self, digits: str) -> Iterator[tuple[str, str]]:
        if len(digits) < _MIN_DIGITS or set(digits) - set("0123456789abcdef"):
            return
        yield from ((digest, "") for digest in self.kinds if digest.startswith(digits))
        for digest, record in self.maker.items():
            names = (record["step_key"], self.run_id(record), self.raw_data(digest))
            if any(str(name).startswith(digits) for name in names):
                yield digest, ""
            yield from ((digest, w) for one in self._models(digest) if (w := weights(one)).startswith(digits))

    def _by_task(self, text: str) -> Iterator[tuple[str, str]]:
        """The latest artifact of a task: it may have been done several times, with other settings."""
        yield from [(digest, "") for digest in self.maker if self.task(digest) == text][-1:]

    def _by_number(self, text: str) -> Iterator[tuple[str, str]]:
        arm, fraction, *more = [*text.rsplit(maxsplit=2), ""][:3] if len(text.split()) > 1 else ("", "", "")
        made = [digest for digest in self.maker if self.task(digest) == f"finetune {arm}"][-1:]
        for digest in made:
            same = [one for one in self._models(digest) if _share(fraction) == float(one["label_fraction"])]
            wanted = more[0] if more else ""
            chosen = [o for o in same if (str(o["repeat"]) == wanted if wanted else o["is_selected"])]
            yield from ((digest, weights(one)) for one in chosen if int(one["draw"]) == 0)

    def _models(self, digest: str) -> Sequence[Record]:
        return self.maker[digest].get(MODELS, ()) if digest in self.maker else ()

    @staticmethod
    def _reachable(digest: str, neighbours: Any) -> list[str]:
        found, waiting = {digest: None}, [digest]
        for one in waiting:  # grows while it is read
            new = [other for _, other in neighbours(one) if other not in found]
            found |= dict.fromkeys(new)
            waiting += dict.fromkeys(new)
        return list(found)


def data_behind(records: Sequence[Record], digests: Iterable[str]) -> list[tuple[str, str, str]]:
    """Name, kind and digest of all data that entered artifacts, themselves included where they are data."""
    graph = Graph(records, {}, {})
    behind = dict.fromkeys(one for digest in digests for one in graph.behind(digest))
    return [
        (graph.task(digest) or kind, kind, digest)
        for digest in behind
        if (kind := graph.kinds.get(digest, "")) in DATA_KINDS
    ]


def task_of(record: Record) -> str:
    """Stage and item, as people know a task."""
    return f"{record['stage']} {record['item']}".strip()


def as_csv(models: Iterable[Record]) -> str:
    """Models as a table, a line each."""
    rows = [MODEL_KEYS, *([model[key] for key in MODEL_KEYS] for model in models)]
    return "".join(f"{','.join(map(str, row))}\n" for row in rows)


def weights(model: Record) -> str:
    """SHA-256 of a model's file of weights, or "" where none was kept."""
    return str(model["checkpoint_digest"])


def _is(model: Record, digest: str) -> bool:
    return bool(digest) and weights(model) == digest


def _share(text: str) -> float | None:
    """A share of labels given as 0.1 or 10%."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None

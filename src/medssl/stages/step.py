"""What every stage does around its work: find a finished result, track, record, put into the store."""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from medssl import tracking
from medssl.config import digest
from medssl.exit_codes import TerminatedError, sigterm_as_exception
from medssl.lineage import RAW_DATA, data_behind
from medssl.progress import begin_task, duration, say
from medssl.store import Artifact, Store


class Made(NamedTuple):
    """What a stage hands to its caller: where the artifact lies, and deterministic metadata."""

    uri: str
    metadata: dict[str, Any]


@dataclass
class Step:
    """One stage at work on given inputs.

    Attributes:
        key: Digest of stage, settings, input digests and code version: names result, run and unfinished work.
        folder: Where the files of the result are made.
        run: Its MLflow run.
        code_version: Of the stage.
        inputs: All artifacts it read, those of the lineage included.
        began_s: Monotonic time of its start.
        made: Set by `finish`.
    """

    stage: str
    item: str
    key: str
    store: Store
    folder: Path
    run: tracking.TaskRun
    code_version: str
    inputs: Mapping[str, Artifact]
    began_s: float
    made: Made | None = None

    @property
    def result(self) -> Made:
        """What was made.

        Raises:
            RuntimeError: The step ended without calling `finish`.
        """
        if self.made is None:
            raise RuntimeError(f"{self.name} ended without a result")
        return self.made

    @property
    def name(self) -> str:
        """Stage and item, as shown to people."""
        return f"{self.stage} {self.item}".strip()

    def finish(
        self,
        kind: str,
        summary: Mapping[str, Any],
        metrics: Iterable[tuple[str, int, float]] = (),
        *,
        notes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Put the files in `folder` into the store as the result; `notes` are kept in the step's record alone."""
        artifact = self.store.put(kind, self.folder, summary)
        # The record before the key: a step that is found finished always has its record.
        measured = list(metrics)
        self.store.record(self.key, self._record(artifact, measured) | dict(notes))
        self.store.remember(self.key, artifact)
        self.store.forget_work(self.key)
        self._tell(artifact, measured)
        self.made = self.describe(artifact)
        say(f"{self.name}: done in {duration(time.monotonic() - self.began_s)}")

    def take(self, artifact: Artifact) -> None:
        """Let what an earlier run of the same step made be the result."""
        self._tell(artifact, self.store.record_of(self.key).get("metrics", ()))

    def _tell(self, artifact: Artifact, measured: Iterable[tracking.Measured]) -> None:
        """Tell MLflow of the result."""
        self.run.metrics(measured)
        output, raw_data = f"{artifact.kind}/{artifact.digest}", str(artifact.summary.get(RAW_DATA, ""))
        self.run.output(tracking.Output(output, artifact.uri, self.item or self.stage, raw_data))

    def _record(self, artifact: Artifact, measured: Sequence[tracking.Measured]) -> dict[str, Any]:
        return {
            "step_key": self.key,
            "stage": self.stage,
            "item": self.item,
            "code_version": self.code_version,
            "inputs": {role: {"kind": a.kind, "digest": a.digest} for role, a in self.inputs.items()},
            "output": {"kind": artifact.kind, "digest": artifact.digest},
            "seconds": round(time.monotonic() - self.began_s, 2),
            "finished_unix_s": round(time.time(), 3),
            "summary": dict(artifact.summary),
            "mlflow_run_id": self.run.run_id,
            **tracking.surroundings(),
            # JSON has no number for what is not finite.
            "metrics": [(name, int(number), float(v)) for name, number, v in measured if math.isfinite(v)],
        }

    def describe(self, artifact: Artifact) -> Made:
        """The caller's view of `artifact`."""
        return Made(artifact.uri, {"digest": artifact.digest, "step_key": self.key, "item": self.item})


@contextmanager
def start(
    stage: str,
    *,
    store: Store,
    code_version: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    lineage: Mapping[str, Artifact] = MappingProxyType({}),
    item: str = "",
    reuse: bool = True,
    unlogged: Collection[str] = (),
) -> Iterator[Step]:
    """Carry out one step; the body works only where `step.made` is None and then calls `step.finish`.

    Args:
        stage: Name of the stage function.
        store: Where results lie.
        code_version: From `medssl.code_version`.
        config: Every setting on which the result depends, as JSON values.
        inputs: Every artifact on which the result depends, by role.
        lineage: Artifacts through which the inputs were found: recorded, but another catalog that leads to the
            same inputs leads to the same result.
        item: Which of several runs of the same stage this is.
        unlogged: Keys of `config` that count for the result but are not written to MLflow.
        reuse: Whether a finished result with the same key is taken instead of doing the work.
    """
    key = digest(
        {
            "stage": stage,
            "item": item,
            "config": config,
            "inputs": {role: artifact.digest for role, artifact in inputs.items()},
            "code_version": code_version,
        }
    )
    began_s = time.monotonic()
    with sigterm_as_exception(), begin_task(f"{stage} {item}".strip()):
        tags = {"medssl.stage": stage, "medssl.item": item, "medssl.code_version": code_version}
        run = tracking.start_task(f"{stage} {item}".strip(), key, store.outbox, tags)
        status = "FAILED"
        try:
            logged = {key: value for key, value in config.items() if key not in unlogged}
            if tracking.is_on():
                run.params(logged)
                run.inputs(_datasets(store, {**inputs, **lineage}))
                run.deliver()
            with store.build() as folder:
                step = Step(stage, item, key, store, folder, run, code_version, {**inputs, **lineage}, began_s)
                known = store.recall(key) if reuse else None
                if known:
                    step.made = step.describe(known)
                    say(f"{step.name}: found finished in the store")
                yield step
                if known:
                    step.take(known)
            status = "FINISHED"
        except TerminatedError:
            status = "KILLED"
            raise
        finally:
            run.end(status)


def _datasets(store: Store, read: Mapping[str, Artifact]) -> list[tracking.Input]:
    """What a step read, and the data behind it: so all that was made from a data set is found by one search."""
    direct = [tracking.Input(role, artifact.digest, artifact.uri) for role, artifact in read.items()]
    behind = data_behind(store.records(), [artifact.digest for artifact in read.values()])
    known = {artifact.digest for artifact in read.values()}
    return direct + [
        tracking.Input(name, digest, store.uri(kind, digest), is_direct=False)
        for name, kind, digest in behind
        if digest not in known
    ]

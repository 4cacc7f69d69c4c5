import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.__main__ import main
from medssl.exit_codes import BAD_INPUT, BadInputError
from medssl.lineage import MODELS, Graph, data_behind
from medssl.stages import step as steps
from medssl.store import Artifact, Store

RAW = "5ae0" * 16
WEIGHTS = {("0.1", 0): "a" * 64, ("0.1", 1): "b" * 64, ("1.0", 0): "c" * 64}


def make(
    store: Store,
    stage: str,
    kind: str,
    inputs: Mapping[str, Artifact] | None = None,
    *,
    item: str = "",
    lineage: Mapping[str, Artifact] | None = None,
    summary: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Artifact:
    """One real step, whose result is a file with its name."""
    with steps.start(
        stage, store=store, code_version="c0de", config={}, inputs=inputs or {}, lineage=lineage or {}, item=item
    ) as step:
        (step.folder / "a.txt").write_text(f"{stage} {item} {sorted(a.digest for a in (inputs or {}).values())}")
        step.finish(kind, summary or {}, notes=notes or {})
    return store.open(step.result.uri)


class Study:
    """A store with two pretraining runs and two arms, made by real steps."""

    def __init__(self, root: Path) -> None:
        self.store = store = Store(str(root))
        self.source = make(store, "fingerprint", "source", summary={"fingerprint": RAW})
        self.index = make(store, "ingest", "index", {"source": self.source})
        self.splits = make(store, "assign_splits", "splits", {"index": self.index})
        self.shards = make(store, "write_shards", "shards", {"index": self.index})
        data = {"splits": self.splits, "shards": self.shards}
        self.simclr = make(store, "pretrain", "checkpoint", data, item="simclr")
        self.other = make(store, "pretrain", "checkpoint", {"shards": self.shards}, item="other")
        self.catalog = make(store, "collect", "catalog", {"simclr": self.simclr, "other": self.other})
        models = [
            {"label_fraction": float(fraction), "draw": 0, "repeat": repeat, "is_selected": repeat == 0}
            | {"checkpoint_digest": digest}
            for (fraction, repeat), digest in WEIGHTS.items()
        ]
        found = {"catalog": self.catalog}
        initial = {**data, "initial": self.simclr}
        self.models = make(store, "finetune", "models", initial, item="micle", lineage=found, notes={MODELS: models})
        self.random = make(store, "finetune", "models", data, item="random")
        self.predictions = make(store, "predict", "predictions", {**data, "models": self.models}, item="micle")

    @property
    def graph(self) -> Graph:
        return Graph(self.store.records(), {}, {})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Study(tmp_path_factory.mktemp("lineage") / "store")


def test_a_prediction_leads_back_to_its_weights_their_pretraining_and_the_raw_data(study: Study) -> None:
    behind = study.graph.behind(study.predictions.digest)
    wanted = [study.predictions, study.models, study.simclr, study.shards, study.splits, study.index, study.source]
    assert set(behind) == {one.digest for one in wanted}
    assert behind[0] == study.predictions.digest
    assert behind[-1] == study.source.digest
    assert study.graph.raw_data(behind[-1]) == RAW


def test_what_a_step_only_found_its_inputs_through_is_no_part_of_the_chain(study: Study) -> None:
    assert study.other.digest not in study.graph.behind(study.models.digest)
    assert study.models.digest not in study.graph.ahead(study.other.digest)
    assert study.catalog.digest in study.graph.behind(study.models.digest, pointers=True)


def test_raw_data_lead_to_every_model_trained_on_them(study: Study) -> None:
    ahead = set(study.graph.ahead(study.source.digest))
    assert {study.simclr.digest, study.other.digest, study.models.digest, study.random.digest} < ahead
    assert study.random.digest not in study.graph.ahead(study.simclr.digest)


def test_the_data_behind_a_model_are_named_by_their_tasks(study: Study) -> None:
    found = {kind: (name, digest) for name, kind, digest in data_behind(study.store.records(), [study.models.digest])}
    assert set(found) == {"source", "index", "splits", "shards"}
    assert found["shards"] == ("write_shards", study.shards.digest)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.lists(st.booleans(), min_size=n * n, max_size=n * n)))
def test_both_directions_are_the_closure_of_what_was_read(bits: list[bool]) -> None:
    num = round(len(bits) ** 0.5)
    reads = np.tril(np.array(bits).reshape(num, num), -1)  # step i reads what earlier steps made
    names = [f"{i:064x}" for i in range(num)]
    records = [
        {
            "step_key": f"k{i}",
            "stage": "s",
            "item": str(i),
            "finished_unix_s": float(i),
            "output": {"kind": "index", "digest": names[i]},
            "inputs": {str(j): {"kind": "index", "digest": names[j]} for j in np.flatnonzero(reads[i])},
        }
        for i in range(num)
    ]
    closure = np.linalg.matrix_power(np.eye(num, dtype=int) + reads, num) > 0
    graph = Graph(records, {}, {})
    for i in range(num):
        assert set(graph.behind(names[i])) == {names[j] for j in np.flatnonzero(closure[i])}
        assert set(graph.ahead(names[i])) == {names[j] for j in np.flatnonzero(closure[:, i])}


def test_an_artifact_is_found_by_every_name_that_people_have_for_it(study: Study) -> None:
    graph, models = study.graph, study.models
    (record,) = [one for one in study.store.records() if one["output"]["digest"] == models.digest]
    late = Graph(graph.records, {}, {record["step_key"]: "0123456789abcdef" * 2})
    for text in (models.digest, models.digest[:9].upper(), models.uri, f"{models.uri}/", "finetune micle"):
        assert graph.find(text).digest == models.digest
    assert graph.find(record["step_key"]).digest == models.digest
    assert late.find("0123456789abcdef").digest == models.digest
    assert graph.find(RAW).digest == study.source.digest


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("micle 0.1 1", WEIGHTS["0.1", 1]),
        ("micle 10% 0", WEIGHTS["0.1", 0]),
        ("micle 100%", WEIGHTS["1.0", 0]),
        ("bbbbbbbb", WEIGHTS["0.1", 1]),
    ],
)
def test_a_number_of_the_report_is_found_by_arm_share_of_labels_and_repeat(
    study: Study, text: str, weights: str
) -> None:
    found = study.graph.find(text)
    assert found.digest == study.models.digest
    assert found.model is not None
    assert found.model["checkpoint_digest"] == weights


@pytest.mark.parametrize(
    "text", ["", "abc", "f" * 64, "finetune nobody", "micle 0.2 0", "micle 0.1 7", "finetune micle 0"]
)
def test_what_is_not_in_the_store_is_an_error_that_says_what_can_be_asked(study: Study, text: str) -> None:
    with pytest.raises(BadInputError, match="expected a digest"):
        study.graph.find(text)


def test_digits_that_several_artifacts_begin_with_are_an_error() -> None:
    record = {"stage": "s", "inputs": {}, "finished_unix_s": 0.0, "summary": {}}
    records = [
        {**record, "step_key": f"k{end}", "item": end, "output": {"kind": "index", "digest": f"aaaaaaa{end * 57}"}}
        for end in "12"
    ]
    with pytest.raises(BadInputError, match="may be 2 things"):
        Graph(records, {}, {}).find("aaaaaaa")


def test_of_steps_that_made_the_same_bytes_the_latest_counts() -> None:
    record = {"stage": "s", "inputs": {}, "output": {"kind": "index", "digest": "d"}}
    records = [{**record, "step_key": str(n), "item": str(n), "finished_unix_s": float(n)} for n in (2, 3, 1)]
    assert Graph(records, {}, {}).task("d") == "s 3"


def run(study: Study, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["lineage", *arguments, "--store", study.store.root]) == 0
    return capsys.readouterr().out


def test_the_command_prints_the_chain_as_a_tree(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study.store.record_run("", {"study": "mine", "code_commit": "abcd", "kfp_run_id": "run-7", "container_image": "i"})
    printed = run(study, capsys, "micle 0.1 1").splitlines()
    assert printed[0] == "model bbbbbbbbbbbb: 10 % of the labels, draw 0, repeat 1"
    assert printed[1] == f"models {study.models.digest[:12]}  finetune micle  code c0de"
    assert any(line.startswith("├─ initial: checkpoint") or "─ initial: checkpoint" in line for line in printed)
    assert sum("raw data 5ae05ae05ae0" in line for line in printed) == 1
    assert sum(line.endswith("(as above)") for line in printed) >= 2
    assert {"  code commit: abcd", "  kfp run id: run-7", "  container image: i"} < set(printed)


def test_the_command_prints_what_was_built_on_raw_data(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(study, capsys, RAW[:10], "--down").splitlines()
    assert printed[0].startswith("4 trained artifacts built on source")
    assert {line.split()[0] for line in printed[1:5]} == {"checkpoint", "models"}


def test_the_command_prints_the_same_chain_as_json(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    chain = json.loads(run(study, capsys, "predict micle", "--json"))
    assert chain["artifact"] == study.predictions.digest
    assert list(chain["artifacts"]) == study.graph.behind(study.predictions.digest)
    assert chain["raw_data"] == [RAW]
    made = chain["artifacts"][study.models.digest]
    assert (made["task"], made["uri"]) == ("finetune micle", study.models.uri)
    assert made["inputs"]["initial"] == study.simclr.digest
    down = json.loads(run(study, capsys, study.shards.digest, "--down", "--json"))
    assert len(down["trained"]) == 4


def test_the_command_says_in_one_line_what_it_cannot_find(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", "nothing", "--store", study.store.root]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("error: 'nothing' is not in this store")

"""A small run made by the real data stages, whole and with one thing at a time broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl import layout, schema
from medssl.__main__ import main
from medssl.config import load_study
from medssl.stages import data
from medssl.store import MANIFEST, Artifact, Store, file_digest
from medssl.verification.finding import Finding
from medssl.verification.folder import verify
from medssl.verification.predictions import check as check_predictions
from medssl.verification.tables import check_metrics

TINY = Path(__file__).parents[1] / "pipelines" / "studies" / "tiny.yaml"
ARMS, CLASSES = ("micle", "random"), ("Edema", "Pleural Effusion")


def record(store: Store, made: Artifact, inputs: dict[str, Artifact]) -> None:
    """Say in the store from what an artifact was made, as `medssl.stages.step` does."""
    described = {role: {"kind": a.kind, "digest": a.digest} for role, a in inputs.items()}
    output = {"kind": made.kind, "digest": made.digest}
    store.record(f"step-{made.digest}", {"inputs": described, "output": output, "finished_unix_s": 1.0})


def prediction_rows(
    index: pa.Table, split_of: dict[str, str], arm: str, checkpoint: str, index_digest: str
) -> pa.Table:
    rows = [
        dict.fromkeys(schema.PREDICTIONS.columns.names)
        | {"study_id": "tiny", "dataset": "tiny", "dataset_digest": index_digest, "arm_id": arm, "label_fraction": 1.0}
        | {"split": split_of[image["patient_id"]], "draw": 0, "repeat": 0, "class": name, "unit_kind": "image"}
        | {"unit_id": image["image_id"], "patient_id": image["patient_id"], "group_kind": "patient", "y_score": 0.5}
        | {"is_selected": True, "checkpoint_digest": checkpoint}
        for image in index.select(["image_id", "patient_id"]).to_pylist()
        for name in CLASSES
        if split_of[image["patient_id"]] in ("validation", "test")
    ]
    return pa.Table.from_pylist(rows, schema=schema.PREDICTIONS.columns)


def metric_row(**changes: object) -> dict[str, object]:
    return (
        dict.fromkeys(schema.METRICS.columns.names)
        | {"dataset": "tiny", "split": "test", "metric": "auc", "class": "Edema", "subgroup": "all", "arm_a": "micle"}
        | {"label_fraction": 1.0, "draw": 0, "repeat": "selected", "resampling_unit": "patient", "estimate": 0.6}
        | {"ci_low": 0.5, "ci_high": 0.7, "family": "", "n_units": 9, "n_patients": 5, "n_replicates": 100}
        | {"status": "ok", "reason": ""}
        | changes
    )


def metric_table(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema.METRICS.columns)


def build(folder: Path) -> None:
    """Fill `folder` with the results of a run: the data stages for real, models and predictions by hand."""
    root, store = folder.parent / "set", Store(str(folder / "store"))
    assert main(["demo", "--out", str(root), "--patients", "24", "--image-size-px", "32"]) == 0
    files = sorted((root / "train").glob("*/*/*.jpg"), key=lambda path: -path.stat().st_size)
    one, other = files[0], next(path for path in files if path.parents[1] != files[0].parents[1])
    shutil.copyfile(one, other)
    for number, path in enumerate(files[2:20]):  # unlabelled pictures, some of whose patients are evaluated
        own = root / "more" / path.parents[1].name / f"{number}.jpg"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(path.read_bytes() + bytes([number]))
    sets = [f"data.root={root}", "data.generate=null", "data.unlabelled=[{folder: more, group: folder}]"]
    study = load_study(TINY, [*sets, "shards.image_size_px=16", "shards.num_parts=4"])
    version = {"code_version": "test"}
    source = data.fingerprint(store, study.data, root=str(root), **version)
    digest = source.metadata["digest"]
    key_id = data.load_key(study.data).key_id
    indexed = data.ingest(store, study.data, root=str(root), data_digest=digest, key_id=key_id, **version)
    split = data.assign_splits(store, study.splits, index_uri=indexed.uri, **version)
    at = {"root": str(root), "data_digest": digest, "index_uri": indexed.uri}
    sharded = data.write_shards(store, study.shards, **at, **version)
    index, splits = store.open(indexed.uri), store.open(split.uri)
    table = schema.read(index.folder / layout.INDEX, schema.INDEX)
    split_table = schema.read(splits.folder / layout.SPLITS, schema.SPLIT_TABLE)
    split_of = dict(zip(split_table["patient_id"].to_pylist(), split_table["split"].to_pylist(), strict=True))
    made = {}
    for arm in ARMS:
        with store.build() as work:
            (work / "run").mkdir()
            (work / "run" / layout.MODEL).write_text(arm)
            checkpoint = file_digest(work / "run" / layout.MODEL)
            store.put("models", work, {})
        with store.build() as work:
            rows = prediction_rows(table, split_of, arm, checkpoint, index.digest)
            schema.write(rows, schema.PREDICTIONS, work / layout.PREDICTIONS)
            made[arm] = store.put("predictions", work, {})
        record(store, made[arm], {"index": index, "splits": splits})
    with store.build() as work:
        tables = [schema.read(one.folder / layout.PREDICTIONS, schema.PREDICTIONS) for one in made.values()]
        schema.write(pa.concat_tables(tables), schema.PREDICTIONS, work / layout.PREDICTIONS)
        rows = metric_table(metric_row(), metric_row(arm_b="random", estimate=-0.1, ci_low=-0.2, ci_high=0.0))
        schema.write(rows, schema.METRICS, work / layout.METRICS)
        compared = store.put("comparison", work, {})
    record(store, compared, made)
    publish(folder, [index, splits, store.open(sharded.uri), compared])


def publish(folder: Path, artifacts: list[Artifact]) -> None:
    """Links and `run.json`, as `pipelines.publish` writes them."""
    index = artifacts[0]
    (folder / layout.INDEX).symlink_to(Path("store") / "index" / index.digest / layout.INDEX)
    entries = {f"{a.kind}: stage": {"uri": a.uri, "sha256": a.digest} for a in artifacts}
    linked = {"path": layout.INDEX, "uri": index.uri, "sha256": file_digest(folder / layout.INDEX)}
    output = {"kind": index.kind, "digest": index.digest}
    tasks = [{"task": "ingest", "inputs": {}, "output": output}]
    (folder / "run.json").write_text(json.dumps({"artifacts": entries | {layout.INDEX: linked}, "tasks": tasks}))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    folder.mkdir()
    build(folder)
    return folder


@pytest.fixture
def run(intact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(intact, tmp_path / "run", symlinks=True)


def only(run: Path, kind: str) -> Path:
    (folder,) = (run / "store" / kind).iterdir()
    return folder


def rewrite(path: Path, change: Callable[[list[dict[str, object]]], None]) -> None:
    """Change the rows of a Parquet file, past every check of its writer."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def texts(folder: Path, *, quick: bool = True) -> list[str]:
    return [str(finding) for finding in verify(folder, quick=quick).findings]


def test_nothing_is_wrong_with_an_intact_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("ok: 10 artifacts, ")
    assert [line for line in said[:-1] if not line.startswith("» ")] == []
    assert "decode" in "".join(said)


@pytest.mark.parametrize("part", ["store", "index", "splits", "shards", "predictions", "private", "comparison"])
def test_a_store_and_each_of_its_artifacts_can_be_checked_alone(run: Path, part: str) -> None:
    folders = [run / "store"] if part == "store" else sorted((run / "store" / part).iterdir())
    for folder in folders:
        assert texts(folder, quick=False) == []


def test_shards_can_be_checked_without_a_store(run: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(only(run, "shards"), tmp_path / "alone")
    (shards / MANIFEST).unlink()
    verdict = verify(shards)
    assert verdict.is_sound
    assert [finding.is_note for finding in verdict.findings] == [True]
    part = sorted(shards.glob("part-*"))[0]
    part.write_bytes(part.read_bytes()[:-1])
    assert any("another size or digest" in text for text in texts(shards))


def test_a_folder_of_something_else_ends_with_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 78
    assert "expected the folder of a run's results" in capsys.readouterr().err


def test_findings_are_printed_a_line_each_and_the_exit_code_is_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (only(run, "splits") / "more.txt").write_text("x")
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(run), "--quick"])
    assert ended.value.code == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("» ")]
    assert len(lines) == 2
    assert lines[1].startswith("failed: 1 findings in ")


def test_an_unfinished_run_is_a_note(run: Path) -> None:
    (run / "run.json").unlink()
    verdict = verify(run, quick=True)
    assert verdict.is_sound
    assert [str(finding) for finding in verdict.findings] == ["note: run.json: there is none: no run has ended here"]


def test_a_record_that_cannot_be_read_leaves_the_splits_unchecked_and_says_so(run: Path) -> None:
    for path in (run / "store" / "records").iterdir():
        path.write_text("{")
    assert sum("the index is not at hand" in text for text in texts(run)) == 2


def flip_a_pixel(run: Path) -> None:
    part = sorted(only(run, "shards").glob("part-*"))[0]
    content = bytearray(part.read_bytes())
    at = content.index(b"IDAT") + 12
    content[at] ^= 255
    part.write_bytes(content)


def move_images_to_another_part(run: Path) -> None:
    """The images of the first part follow those of the last."""
    parts = sorted(only(run, "shards").glob("part-*"))
    tables = [pa.ipc.open_file(pa.py_buffer(part.read_bytes())).read_all() for part in parts]
    for part, table in ((parts[0], tables[0].slice(1)), (parts[-1], pa.concat_tables([tables[-1], tables[0][:1]]))):
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, table.schema) as sink:
            sink.write_table(table)


def store_an_image_twice(run: Path) -> None:
    part = sorted(only(run, "shards").glob("part-*"))[0]
    table = pa.ipc.open_file(pa.py_buffer(part.read_bytes())).read_all()
    with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, table.schema) as sink:
        sink.write_table(pa.concat_tables([table, table[:1]]))


def swap_two_splits(run: Path) -> None:
    def swap(rows: list[dict[str, object]]) -> None:
        one, other = (next(row for row in rows if row["split"] == split) for split in ("train", "test"))
        one["split"], other["split"] = other["split"], one["split"]

    rewrite(only(run, "splits") / layout.SPLITS, swap)


def tear_shared_pictures(run: Path) -> None:
    pairs = pq.read_table(only(run, "index") / layout.DUPLICATES).to_pylist()
    patient = next(pair["patient_a"] for pair in pairs if not pair["is_same_patient"])

    def move(rows: list[dict[str, object]]) -> None:
        row = next(row for row in rows if row["patient_id"] == patient)
        row["split"] = "validation" if row["split"] != "validation" else "test"

    rewrite(only(run, "splits") / layout.SPLITS, move)


def of_predictions(change: Callable[[list[dict[str, object]]], None]) -> Callable[[Path], None]:
    return lambda run: rewrite(only(run, "comparison") / layout.PREDICTIONS, change)


def of_splits(change: Callable[[list[dict[str, object]]], None]) -> Callable[[Path], None]:
    return lambda run: rewrite(only(run, "splits") / layout.SPLITS, change)


def unlink_a_model(run: Path) -> None:
    shutil.rmtree(sorted((run / "store" / "models").iterdir())[0])


def link_out_of_the_store(run: Path) -> None:
    summary = only(run, "splits") / layout.SUMMARY
    summary.rename(run / "elsewhere.json")
    summary.symlink_to(run / "elsewhere.json")


def edit_manifest(run: Path) -> None:
    manifest = only(run, "splits") / MANIFEST
    manifest.write_text(manifest.read_text() + " ")


def drop_columns(run: Path) -> None:
    path = only(run, "index") / layout.INDEX
    pq.write_table(pq.read_table(path).drop_columns(["sex"]), path)


def unfold_undecodable(run: Path) -> None:
    path = only(run, "shards") / layout.SHARDS
    summary = json.loads(path.read_text())
    summary["undecodable"] = summary["undecodable"][1:]
    path.write_text(json.dumps(summary))


def state_another_digest(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["artifacts"][layout.INDEX]["sha256"] = "0" * 64
    record["artifacts"]["shards: stage"]["sha256"] = "1" * 64
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (flip_a_pixel, ["was altered", "another size or digest", "are none of 1 channels of 16 px"]),
        (move_images_to_another_part, ["in another part than their identifier says"]),
        (store_an_image_twice, ["1 images are stored more than once", "shards.json states", "not side by side"]),
        (unfold_undecodable, ["1 images of the index are neither stored nor listed"]),
        (lambda run: sorted(only(run, "shards").glob("part-*"))[1].unlink(), ["is missing", "images in the parts"]),
        (swap_two_splits, ["splits.parquet has", "predicted under a split that they are not in"]),
        (of_splits(lambda rows: rows.pop(3)), ["1 patients of the index are in no split", "summary.json states"]),
        (of_splits(lambda rows: rows.append(rows[0] | {"split": "unused"})), ["1 rows repeat the key (patient_id)"]),
        (of_splits(lambda rows: rows.reverse()), ["rows are not sorted by their key (patient_id)"]),
        (of_splits(lambda rows: rows[0].update(label_ranks=[1.5])), ["label_ranks of 1 rows are not in 0 to 1"]),
        (of_splits(lambda rows: rows[0].update(label_ranks=[])), ["label_ranks of [0, 1] draws"]),
        (of_splits(lambda rows: rows[0].update(split="exam")), ["unknown splits ['exam']"]),
        (tear_shared_pictures, ["show the same picture in different splits"]),
        (of_predictions(lambda rows: rows.pop()), ["expected the same units for all"]),
        (of_predictions(lambda rows: rows[0].update(unit_id="0" * 32)), ["1 images are not in the index"]),
        (of_predictions(lambda rows: rows[0].update(split="train")), ["units of train or unlabelled were predicted"]),
        (of_predictions(lambda rows: rows[0].update(y_score=1.5)), ["1 scores are no probabilities"]),
        (unlink_a_model, ["1 models that predicted are not in the store"]),
        (lambda run: (only(run, "splits") / "more.txt").write_text("x"), ["1 files that manifest.json does not list"]),
        (link_out_of_the_store, ["1 links (summary.json); expected files of the store"]),
        (edit_manifest, ["expected that in the folder's name", "which is not in the store"]),
        (
            lambda run: (only(run, "splits") / MANIFEST).unlink(),
            ["no readable manifest.json", "which is not in the store"],
        ),
        (lambda run: (only(run, "splits") / MANIFEST).write_text("{}"), ["manifest.json cannot be read"]),
        (lambda run: (run / "store" / "splits" / "notes.txt").write_text("x"), ["splits notes.txt: no readable"]),
        (lambda run: (only(run, "shards") / layout.SHARDS).write_text('{"parts": []}'), ["shards.json cannot be read"]),
        (drop_columns, ["missing columns ['sex']"]),
        (lambda run: (only(run, "private") / layout.SOURCES).chmod(0o644), ["sources.parquet has mode 0644"]),
        (lambda run: only(run, "private").chmod(0o755), ["its folder has mode 0755; expected 0700"]),
        (state_another_digest, ['"index.parquet" has another digest than stated', "stated is 1111"]),
        (lambda run: (run / layout.INDEX).unlink(), ['"index.parquet" leads to no file']),
        (lambda run: (run / "run.json").write_text("{"), ["run.json: cannot be read"]),
    ],
)
def test_one_broken_thing_is_found(run: Path, spoil: Callable[[Path], object], expected: list[str]) -> None:
    patients = set(pq.read_table(run / layout.INDEX)["patient_id"].to_pylist())
    spoil(run)
    verdict = verify(run)
    assert not verdict.is_sound
    said = "\n".join(map(str, verdict.findings))
    for part in expected:
        assert part in said
    assert str(run) not in said
    assert not any(patient in said for patient in patients)


def test_patients_in_two_splits_are_a_note_where_images_were_split(intact: Path) -> None:
    from medssl.verification import splits as checks

    index = schema.read(intact / layout.INDEX, schema.INDEX)
    images = index.select(["patient_id", "image_id"]).to_pylist()
    names = {image["image_id"]: ("train", "test")[number % 2] for number, image in enumerate(images)}
    rows = [image | {"split": names[image["image_id"]], "label_ranks": [0.5]} for image in images]
    table = schema.check(pa.Table.from_pylist(rows), schema.SPLIT_TABLE, "splits")
    found = list(checks.check(table, index, where="splits", summary_path=intact / "none.json"))
    notes = [str(finding) for finding in found if finding.is_note]
    assert len(notes) == 1
    assert "as the study asks: whole are images only" in notes[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"estimate": None, "ci_low": None, "ci_high": None}, ""),
        ({"estimate": 1.2, "ci_low": None, "ci_high": None}, "no share"),
        ({"estimate": -0.2, "ci_low": -0.3, "ci_high": 0.7}, "no share"),
        ({"estimate": -0.2, "ci_low": -0.3, "ci_high": 0.7, "arm_b": "random"}, ""),
        ({"estimate": float("nan"), "ci_low": None, "ci_high": None}, "no share"),
        ({"ci_low": 0.7, "ci_high": 0.5}, "ends before it begins"),
        ({"ci_low": None}, "has one end"),
        ({"estimate": None}, "without an estimate"),
        ({"estimate": None, "ci_high": None, "status": "censored"}, ""),
        ({"metric": "mean_ece", "estimate": 1.2, "ci_low": None, "ci_high": None}, "no share"),
        ({"p": 1.5}, "p-value"),
        ({"p": 0.5, "p_adjusted": 0.1}, "adjusted one is smaller"),
        ({"p": 0.5, "p_adjusted": 0.6, "p_fdr": 0.4}, "adjusted one is smaller"),
        ({"delong_p": -0.1}, "p-value"),
        ({"std": -0.1}, "negative"),
        ({"metric": "seconds", "estimate": 12.0, "ci_low": 11.0, "ci_high": 13.0}, ""),
    ],
)
def test_numbers_that_cannot_be_are_found_in_the_metrics(changes: dict[str, object], expected: str) -> None:
    found = [f for f in check_metrics(metric_table(metric_row(**changes)), where="metrics") if not f.is_note]
    assert ([expected in str(finding) for finding in found] or [False]) == [bool(expected)]


def test_an_estimate_outside_its_percentile_interval_is_a_note() -> None:
    (found,) = check_metrics(metric_table(metric_row(estimate=0.8)), where="metrics")
    assert found.is_note


def unit_rows(cells: list[set[int]]) -> pa.Table:
    """Predictions of arm number i for the units in cells[i]."""
    rows = [
        dict.fromkeys(schema.PREDICTIONS.columns.names)
        | {"study_id": "s", "dataset": "d", "dataset_digest": "0", "split": "test", "arm_id": f"arm{arm}"}
        | {"label_fraction": 1.0, "draw": 0, "repeat": 0, "unit_id": f"{unit:032x}", "class": "c", "y_score": 0.5}
        | {"unit_kind": "image", "patient_id": "p", "group_kind": "patient", "is_selected": True}
        | {"checkpoint_digest": "m"}
        for arm, units in enumerate(cells)
        for unit in units
    ]
    return pa.Table.from_pylist(rows, schema=schema.PREDICTIONS.columns)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=4))
def test_a_finding_for_each_arm_that_has_other_units_than_the_first(cells: list[set[int]]) -> None:
    found: list[Finding] = list(check_predictions(unit_rows(cells), where="predictions", models=set()))
    assert len(found) == sum(units != cells[0] for units in cells)

import fnmatch
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from medssl import schema
from medssl.config import ShardConfig
from medssl.data import shards
from medssl.exit_codes import BadInputError

# What a process of its own needs to import the project and its libraries.
PYTHON_PATH = ":".join([str(Path(shards.__file__).parents[2]), *filter(None, sys.path)])
CONFIG = ShardConfig(image_size_px=16, num_parts=4, max_undecodable_share=0.5)


def hex_id(text):
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def index_table(patient_of_image):
    """An index over {image_id: patient_id}; nothing but the two identifiers matters here."""
    image_ids, patient_ids = list(patient_of_image), list(patient_of_image.values())
    nulls = {field.name: pa.nulls(len(image_ids), field.type) for field in schema.INDEX.columns if field.nullable}
    filled = {"patient_id": patient_ids, "case_id": patient_ids, "image_id": image_ids}
    return pa.table({**filled, "source_split": ["train"] * len(image_ids), **nulls})


class DataSet:
    """A generated set: patient number p has p % 4 + 1 images; image pixels follow from the image's number."""

    def __init__(self, folder, num_patients=40):
        self.root = folder / "raw"
        self.root.mkdir(parents=True)
        self.index_path, self.sources_path = folder / "index.parquet", folder / "sources.parquet"
        self.patient_of, self.file_of = {}, {}
        for p in range(num_patients):
            for v in range(p % 4 + 1):
                image_id = hex_id(f"image {p} {v}")
                self.patient_of[image_id], self.file_of[image_id] = hex_id(f"patient {p}"), f"p{p}_v{v}.png"
                self.pixels(image_id).save(self.root / self.file_of[image_id])
        self.write_tables()

    def pixels(self, image_id):
        rng = np.random.default_rng(int(image_id[:8], 16))
        return Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))

    def write_tables(self):
        schema.write(index_table(self.patient_of), schema.INDEX, self.index_path)
        sources = pa.table({"image_id": list(self.file_of), "file": list(self.file_of.values())})
        schema.write(sources, schema.SOURCES, self.sources_path)

    def write_shards(self, out_dir, config=CONFIG, **options):
        return shards.write(self.index_path, self.sources_path, self.root, out_dir, config, **options)


@pytest.fixture
def data_set(tmp_path):
    return DataSet(tmp_path / "set")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored_ids(out_dir):
    """The image_ids of each part, read by Arrow alone."""
    return {
        path.name: pa.ipc.open_file(path.read_bytes()).read_all()["image_id"].to_pylist()
        for path in sorted(out_dir.glob("part-*"))
    }


def test_every_image_is_in_exactly_one_part_and_unchanged(data_set, tmp_path):
    summary = data_set.write_shards(tmp_path / "out")
    ids = [image_id for part in stored_ids(tmp_path / "out").values() for image_id in part]
    assert sorted(ids) == sorted(data_set.patient_of)
    assert summary["num_images"] == len(ids) == 100
    assert summary["num_patients"] == 40
    for path in (tmp_path / "out").glob("part-*"):
        table = pa.ipc.open_file(path.read_bytes()).read_all()
        assert table.schema.equals(schema.SHARD.columns)
        for image_id, data in zip(*(column.to_pylist() for column in table.columns), strict=True):
            stored = Image.open(io.BytesIO(data))
            np.testing.assert_array_equal(np.asarray(stored), np.asarray(data_set.pixels(image_id)))


def test_a_patients_images_are_adjacent_and_in_one_part(data_set, tmp_path):
    data_set.write_shards(tmp_path / "out")
    for name, ids in stored_ids(tmp_path / "out").items():
        patients = [data_set.patient_of[image_id] for image_id in ids]
        assert list(zip(patients, ids, strict=True)) == sorted(zip(patients, ids, strict=True))
        # The two leading bits of 4 parts are the first hex digit divided by four.
        assert {int(patient[0], 16) // 4 for patient in patients} == {int(name[5:10])}


def test_shards_json_lists_the_parts_and_no_place_or_time(data_set, tmp_path):
    returned = data_set.write_shards(tmp_path / "out")
    text = (tmp_path / "out" / "shards.json").read_text()
    summary = json.loads(text)
    assert summary == returned
    assert str(tmp_path) not in text
    assert [part["name"] for part in summary["parts"]] == sorted(stored_ids(tmp_path / "out"))
    for part in summary["parts"]:
        data = (tmp_path / "out" / part["name"]).read_bytes()
        assert part["bytes"] == len(data)
        assert part["sha256"] == hashlib.sha256(data).hexdigest()
        assert set(part) == {"name", "num_images", "num_patients", "bytes", "sha256"}
    assert (summary["image_size_px"], summary["channels"], summary["encoding"]) == (16, 1, "png")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"shards.json", *stored_ids(tmp_path / "out")}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_bytes_come_from_any_number_of_workers(data_set, tmp_path, channels):
    config = CONFIG.model_copy(update={"channels": channels, "encoding": "jpeg", "resize": "pad"})
    (data_set.root / "p3_v1.png").write_bytes(b"")
    workers = ["--direct_num_workers", "2", "--direct_running_mode", "multi_threading"]
    data_set.write_shards(tmp_path / "one", config, num_threads=1)
    data_set.write_shards(tmp_path / "two", config, num_threads=5, pipeline_options=workers)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_record_batch_has_128_rows_even_where_images_drop_out(tmp_path):
    data_set = DataSet(tmp_path / "set", num_patients=120)  # 300 images
    (data_set.root / "p0_v0.png").unlink()
    (data_set.root / "p50_v0.png").unlink()
    data_set.write_shards(tmp_path / "out", CONFIG.model_copy(update={"num_parts": 1}))
    reader = pa.ipc.open_file((tmp_path / "out" / "part-00000.arrow").read_bytes())
    sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    assert sum(sizes) == 298
    assert sizes == [128, 128, 42]


def test_unusable_files_are_listed_with_reasons_and_counted(data_set, tmp_path):
    spoiled = {
        "p0_v0.png": (b"", "empty file"),
        "p1_v0.png": (b"404 not found", "not an image"),
        "p2_v1.png": ((data_set.root / "p2_v1.png").read_bytes()[:150], "truncated"),
        "p3_v0.png": (None, "missing file"),
        "p3_v1.png": (None, "missing file"),
    }
    for name, (data, _) in spoiled.items():
        (data_set.root / name).unlink() if data is None else (data_set.root / name).write_bytes(data)
    summary = data_set.write_shards(tmp_path / "out")
    ids = {file: image_id for image_id, file in data_set.file_of.items()}
    expected = [{"image_id": ids[name], "reason": reason} for name, (_, reason) in spoiled.items()]
    assert summary["undecodable"] == sorted(expected, key=lambda image: image["image_id"])
    assert summary["undecodable_by_reason"] == {
        "empty file": 1,
        "missing file": 2,
        "not an image": 1,
        "truncated": 1,
    }
    assert summary["num_images"] == 95
    assert summary["num_patients"] == 39  # patient 0 had one image


def test_a_part_without_usable_images_is_not_written(tmp_path):
    data_set = DataSet(tmp_path / "set", num_patients=1)
    data_set.patient_of[hex_id("gone")] = "f" * 32
    data_set.patient_of[next(iter(data_set.patient_of))] = "0" * 32
    data_set.file_of[hex_id("gone")] = "gone.png"
    data_set.write_tables()
    summary = data_set.write_shards(tmp_path / "out")
    assert list(stored_ids(tmp_path / "out")) == ["part-00000.arrow"]
    assert [part["name"] for part in summary["parts"]] == ["part-00000.arrow"]


def test_files_outside_the_data_folder_are_never_read(tmp_path):
    data_set = DataSet(tmp_path / "set", num_patients=4)
    data_set.pixels(hex_id("x")).save(tmp_path / "outside.png")
    first, second, *_ = data_set.file_of
    data_set.file_of[first], data_set.file_of[second] = "../../outside.png", str(tmp_path / "outside.png")
    data_set.write_tables()
    assert data_set.write_shards(tmp_path / "out")["undecodable_by_reason"] == {"outside the data folder": 2}


def test_links_are_followed_within_the_data_folder_only(data_set, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    data_set.pixels(hex_id("x")).save(outside / "x.png")
    (data_set.root / "folder").symlink_to(outside)
    first, second, third, *_ = data_set.file_of
    for image_id, target in ((first, outside / "x.png"), (third, data_set.root / "p20_v0.png")):
        (data_set.root / data_set.file_of[image_id]).unlink()
        (data_set.root / data_set.file_of[image_id]).symlink_to(target)
    data_set.file_of[second] = "folder/x.png"
    data_set.write_tables()
    summary = data_set.write_shards(tmp_path / "out")
    assert {image["image_id"] for image in summary["undecodable"]} == {first, second}
    assert summary["undecodable_by_reason"] == {"outside the data folder": 2}


def test_pipes_folders_and_endless_files_are_listed_as_unusable_and_never_waited_for(data_set, tmp_path):
    names = [data_set.file_of[image_id] for image_id in list(data_set.file_of)[:3]]
    for name in names:
        (data_set.root / name).unlink()
    os.mkfifo(data_set.root / names[0])
    (data_set.root / names[1]).mkdir()
    (data_set.root / names[2]).touch()
    os.truncate(data_set.root / names[2], 10 * 2**30)
    summary = data_set.write_shards(tmp_path / "out")
    assert summary["undecodable_by_reason"] == {"not a regular file": 2, "too many bytes": 1}


def test_too_many_unusable_images_are_an_error_that_says_what_to_do(data_set, tmp_path):
    for p in range(1, 8):
        (data_set.root / f"p{p}_v0.png").unlink()
    with pytest.raises(BadInputError) as caught:
        data_set.write_shards(tmp_path / "out", CONFIG.model_copy(update={"max_undecodable_share": 0.06}))
    message = str(caught.value)
    assert message.startswith("7 of 100 images cannot be used (7 missing file)")
    assert "max_undecodable_share = 0.06" in message
    assert "medssl locate IMAGE_ID" in message
    assert sum(image_id in message for image_id in data_set.file_of) == 5
    assert not any(patient_id in message for patient_id in data_set.patient_of.values())
    assert str(tmp_path) not in message
    assert not (tmp_path / "out" / "shards.json").exists()
    data_set.write_shards(tmp_path / "out", CONFIG.model_copy(update={"max_undecodable_share": 0.07}))


def test_tables_of_two_ingests_are_refused(data_set, tmp_path):
    del data_set.file_of[next(iter(data_set.file_of))]
    data_set.write_tables()
    with pytest.raises(BadInputError, match=r"sources.parquet: 1 of the 100 images in index.parquet are not in it"):
        data_set.write_shards(tmp_path / "out")


@pytest.mark.parametrize(
    ("owner", "name", "call", "num_parts", "left_pattern"),
    [
        ("imaging", "decode", 300, 4, "part-0000?.arrow"),  # the 300th of 500 images: some parts are complete
        ("shards", "_record_batch", 1, 1, ".part-00000.arrow.*.tmp"),  # the first images are in the file
    ],
)
def test_a_run_killed_in_the_middle_leaves_no_summary_and_the_next_gives_the_same_bytes(
    tmp_path, owner, name, call, num_parts, left_pattern
):
    data_set = DataSet(tmp_path / "set", num_patients=200)
    config = CONFIG.model_copy(update={"num_parts": num_parts})
    arguments = [data_set.index_path, data_set.sources_path, data_set.root, tmp_path / "out"]
    # The process dies by SIGKILL at a call of the named function.
    program = f"""
import os, signal, sys, itertools
from pathlib import Path
from medssl import imaging
from medssl.config import ShardConfig
from medssl.data import shards
calls, original = itertools.count(), {owner}.{name}
def dying(*args, **options):
    if next(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **options)
{owner}.{name} = dying
config = ShardConfig.model_validate_json(sys.argv[5])
shards.write(*map(Path, sys.argv[1:5]), config)
"""
    killed = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments), config.model_dump_json()],
        env={"PYTHONPATH": PYTHON_PATH},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert fnmatch.filter(left, left_pattern)
    assert "shards.json" not in left
    (tmp_path / "out" / ".part-00003.arrow.0123.tmp").write_bytes(b"half a part")
    (tmp_path / "out" / "part-00099.arrow").write_bytes(b"a part of other settings")
    data_set.write_shards(tmp_path / "out", config)
    data_set.write_shards(tmp_path / "fresh", config)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


@pytest.fixture(scope="module")
def job_endpoint(tmp_path_factory):
    """Beam's own job service, in a process of its own: what a cluster's runner is to the pipeline."""
    folder = tmp_path_factory.mktemp("service")
    module = "apache_beam.runners.portability.local_job_service_main"
    command = [sys.executable, "-m", module, "--port", "0", "--port_file", str(folder / "port")]
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(
            [*command, "--staging_dir", str(folder / "staging")],
            env={"PYTHONPATH": PYTHON_PATH},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "port").is_file() or not (folder / "port").read_text().strip():
            assert service.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the job service did not start"
            time.sleep(0.05)
        yield f"localhost:{(folder / 'port').read_text().strip()}"
    finally:
        service.terminate()
        service.wait(timeout=30)


SDK_WORKER = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(["--environment_type=LOOPBACK", "--sdk_worker_parallelism=3"], id="three threads here"),
        pytest.param(
            ["--environment_type=beam:env:harness_subprocess_python:v1", f"--environment_config={SDK_WORKER}"],
            id="another process",
        ),
    ],
)
def test_a_portable_runner_gives_the_same_bytes_as_this_process(data_set, tmp_path, job_endpoint, workers):
    (data_set.root / "p3_v1.png").write_bytes(b"")
    options = ["--runner=PortableRunner", f"--job_endpoint={job_endpoint}", *workers]
    data_set.write_shards(tmp_path / "portable", pipeline_options=options)
    data_set.write_shards(tmp_path / "here")
    assert files_of(tmp_path / "portable") == files_of(tmp_path / "here")


def test_workers_get_functions_by_name_and_plain_values(data_set, tmp_path, monkeypatch):
    beam = pytest.importorskip("apache_beam")
    handed_over = []
    for kind in ("Map", "FlatMap"):
        original = getattr(beam, kind)

        def recording(function, *args, original=original):
            handed_over.append((function, args))
            return original(function, *args)

        monkeypatch.setattr(beam, kind, recording)
    data_set.write_shards(tmp_path / "out")
    assert {function.__name__ for function, _ in handed_over} == {"rows_by_task", "write_task", "write_summary"}
    # The standard pickle refuses what has no name: closures, lambdas, locks.
    assert pickle.loads(pickle.dumps(handed_over)) == handed_over


def test_failing_storage_fails_the_run_and_drops_no_image_and_logs_no_path(data_set, tmp_path, caplog):
    broken = data_set.root / "p3_v0.png"
    broken.unlink()
    broken.symlink_to(broken)  # neither missing nor readable: the system's own error
    with pytest.raises(OSError, match="the storage failed while an image was read: Too many levels") as caught:
        data_set.write_shards(tmp_path / "out")
    assert broken.name not in f"{caught.value}{caplog.text}"
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith("part-")]


def test_a_runner_given_by_name_replaces_the_default():
    assert shards._with_runner([])[-1].endswith("FnApiRunner")
    for own in (["--runner", "PortableRunner"], ["--runner=PortableRunner"]):
        assert shards._with_runner(own) == own


@pytest.mark.parametrize("num_threads", [1, 5])
def test_progress_counts_every_image_and_says_no_path(data_set, tmp_path, capsys, num_threads):
    (data_set.root / "p3_v1.png").unlink()
    data_set.write_shards(tmp_path / "out", num_threads=num_threads)
    captured = capsys.readouterr()
    assert "write_shards: 100/100 images" in captured.out
    assert str(tmp_path) not in captured.out + captured.err

"""What all readers share: unlabelled images join the index of a set."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medssl import schema
from medssl.config import DataConfig, UnlabelledConfig
from medssl.data import readers
from medssl.exit_codes import BadInputError
from medssl.identifiers import PatientKey

KEY = PatientKey(bytes(range(32)))
CASES = """image,patient,case,condition,skin_type,sex,age,site
images/a.jpg,P1,C1,Acne,2,F,31,arm
images/b.jpg,P2,C2,Eczema,,M,44,leg
"""


def make_set(root: Path) -> None:
    (root / "cases.csv").write_text(CASES)
    rng = np.random.default_rng(0)
    for name in ("images/a.jpg", "images/b.jpg", "pool/P2/x.png", "pool/P2/y.png", "pool/P9/x.png", "more/x.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


def config(root: Path, *pools: UnlabelledConfig) -> DataConfig:
    return DataConfig(dataset="cases", name="derm", root=str(root), unlabelled=pools)


def test_unlabelled_images_join_the_index_with_the_patients_they_share(tmp_path: Path) -> None:
    make_set(tmp_path)
    alone = readers.read(tmp_path, config(tmp_path), KEY)
    pools = (UnlabelledConfig(folder="pool", group="folder"), UnlabelledConfig(folder="more", name="elsewhere"))
    joined = readers.read(tmp_path, config(tmp_path, *pools), KEY)
    rows = joined.index.to_pylist()
    assert [row for row in rows if row["source_split"] == "train"] == alone.index.to_pylist()
    unlabelled = [row for row in rows if row["source_split"] == "unlabelled"]
    assert len(unlabelled) == 4
    assert {row["label:Acne"] for row in unlabelled} == {schema.NOT_ASSESSED}
    of_b = next(row["patient_id"] for row in rows if row["label:Eczema"] == schema.POSITIVE)
    assert [row["patient_id"] for row in unlabelled].count(of_b) == 2
    assert len({row["patient_id"] for row in rows}) == 4  # P1, P2, P9, and the file elsewhere
    files = dict(zip(joined.sources["image_id"].to_pylist(), joined.sources["file"].to_pylist(), strict=True))
    assert sorted(files) == [row["image_id"] for row in rows]
    assert {files[row["image_id"]] for row in unlabelled} == {
        "pool/P2/x.png", "pool/P2/y.png", "pool/P9/x.png", "more/x.png"
    }  # fmt: skip
    assert all((tmp_path / file).is_file() for file in files.values())
    assert joined.summary["unlabelled_images"] == 4


def test_a_table_of_unlabelled_images_names_the_same_patients(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "pool" / "list.csv").write_text("file,person\nP2/x.png,P1\nP9/x.png,P2\n")
    pool = UnlabelledConfig(folder="pool", train_table="list.csv", columns={"image": "file", "patient": "person"})
    data = config(tmp_path, pool)
    assert data.tables == ["cases.csv", "pool/list.csv"]  # so that a change of either is seen
    index = readers.read(tmp_path, data, KEY).index
    assert index.num_rows == 4
    assert len(index["patient_id"].unique()) == 2


@pytest.mark.parametrize("folder", ["absent", "../outside", "/etc"])
def test_a_folder_that_is_not_below_the_set_is_told(tmp_path: Path, folder: str) -> None:
    make_set(tmp_path)
    with pytest.raises(BadInputError, match=r"data.unlabelled: a folder does not exist below data.root"):
        readers.read(tmp_path, config(tmp_path, UnlabelledConfig(folder=folder)), KEY)


def test_a_root_that_is_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"data\.root"):
        readers.read(tmp_path / "absent", config(tmp_path), KEY)

import json
from pathlib import Path

import pytest

from medssl.store import MANIFEST, Store, StoreError


def put(store: Store, text: str = "hello", kind: str = "index") -> str:
    with store.build() as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("b")
        return store.put(kind, folder, {"n": 1}).uri


def test_equal_bytes_have_one_address_in_every_store(tmp_path: Path) -> None:
    first, second = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    assert put(first).rsplit("/", 1)[1] == put(second).rsplit("/", 1)[1]
    assert put(first) == put(first)
    assert put(first, "other") != put(first)


def test_an_opened_artifact_shows_its_files_and_summary(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    artifact = store.open(put(store), kind="index")
    assert (artifact.folder / "sub" / "b.txt").read_text() == "b"
    assert artifact.summary == {"n": 1}
    assert set(json.loads((artifact.folder / MANIFEST).read_text())["files"]) == {"a.txt", "sub/b.txt"}


@pytest.mark.parametrize("damage", ["altered", "shortened", "removed", "no manifest", "other manifest"])
def test_damage_is_told_with_the_stage_that_makes_it_anew(tmp_path: Path, damage: str) -> None:
    store = Store(str(tmp_path))
    folder = Path(put(store))
    if damage == "altered":
        (folder / "a.txt").write_text("hallo")
    elif damage == "shortened":
        (folder / "a.txt").write_text("h")
    elif damage == "removed":
        (folder / "a.txt").unlink()
    elif damage == "no manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text("{}")
    with pytest.raises(StoreError, match=r"ingest|the stage that makes it"):
        store.open(str(folder), kind="index")


def test_putting_again_repairs_a_damaged_artifact(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = Path(put(store))
    (folder / "a.txt").write_text("hallo")
    assert put(store) == str(folder)
    assert (folder / "a.txt").read_text() == "hello"


def test_another_kind_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(StoreError, match="expected an artifact of kind shards, found index"):
        store.open(put(store), kind="shards")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ZeroDivisionError), store.build() as folder:
        (folder / "half").touch() or 1 / 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_result_is_recalled_by_its_key_only_while_it_is_whole(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.recall("k") is None
    artifact = store.open(put(store))
    store.remember("k", artifact)
    recalled = store.recall("k")
    assert recalled is not None
    assert recalled.uri == artifact.uri
    (artifact.folder / "a.txt").unlink()
    assert store.recall("k") is None


def test_the_private_table_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = Path(put(Store(str(tmp_path)), kind="private"))
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "a.txt").stat().st_mode & 0o177 == 0


def test_a_remote_store_keeps_the_same_addresses(tmp_path: Path) -> None:
    remote = Store("memory://bucket/store")
    uri = put(remote)
    assert uri.rsplit("/", 1)[1] == put(Store(str(tmp_path))).rsplit("/", 1)[1]
    assert (remote.open(uri, kind="index").folder / "a.txt").read_text() == "hello"
    remote.remember("k", remote.open(uri))
    recalled = remote.recall("k")
    assert recalled is not None
    assert recalled.uri == uri


def test_a_new_store_is_open_to_its_owner_alone_and_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    put(Store(str(tmp_path / "new")), kind="shards")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    (tmp_path / "shared").mkdir(mode=0o755)
    put(Store(str(tmp_path / "shared")))
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755

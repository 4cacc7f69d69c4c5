import os
import shutil
import subprocess

import pytest

from medssl.data import fingerprint as module
from medssl.data.fingerprint import fingerprint
from medssl.exit_codes import BadInputError


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    for name in ("train/patient00001/a.jpg", "train/patient00002/b.jpg", "valid/patient00003/c.jpg"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(name.encode())
    (root / "train.csv").write_text("Path\n1\n")
    (root / "valid.csv").write_text("Path\n2\n")
    return root


def take(root, files="stat", tables=("train.csv", "valid.csv")):
    return fingerprint(root, tables, files=files)


def set_mtime(path, seconds):
    os.utime(path, ns=(seconds * 10**9, seconds * 10**9))


def test_it_counts_files_and_bytes_and_is_the_same_twice(root):
    result = take(root)
    assert (result.num_files, result.num_bytes) == (5, 24 + 24 + 24 + 7 + 7)
    assert take(root) == result
    assert take(root, "content").digest != result.digest
    assert take(root, "content").table_digest == result.table_digest


def test_by_stat_a_new_size_or_time_or_name_or_file_changes_it_and_content_behind_them_does_not(root):
    image = root / "train/patient00001/a.jpg"
    set_mtime(image, 1000)
    digests = [take(root).digest]
    image.write_bytes(image.read_bytes()[::-1])
    set_mtime(image, 1000)
    assert take(root).digest == digests[0]
    set_mtime(image, 1001)
    digests.append(take(root).digest)
    image.write_bytes(b"longer than it was before")
    set_mtime(image, 1001)
    digests.append(take(root).digest)
    image = image.rename(image.with_name("z.jpg"))
    digests.append(take(root).digest)
    (root / "train/patient00002/new.jpg").touch()
    digests.append(take(root).digest)
    image.unlink()
    digests.append(take(root).digest)
    assert len(set(digests)) == len(digests)


def test_by_content_a_copy_elsewhere_is_the_same_and_one_changed_byte_is_not(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    set_mtime(copy / "train/patient00001/a.jpg", 1)
    assert take(copy, "content") == take(root, "content")
    assert take(copy).digest != take(root).digest
    (copy / "train/patient00001/a.jpg").write_bytes(b"train/patient00001/a.jpG")
    assert take(copy, "content").digest != take(root, "content").digest


def test_two_files_that_exchange_their_contents_change_it(root):
    before = take(root, "content").digest
    a, b = root / "train/patient00001/a.jpg", root / "train/patient00002/b.jpg"
    (text_a, text_b) = a.read_bytes(), b.read_bytes()
    a.write_bytes(text_b)
    b.write_bytes(text_a)
    assert take(root, "content").digest != before


def test_tables_count_by_content_whatever_their_time_and_order(root):
    before = take(root)
    set_mtime(root / "train.csv", 5)
    assert take(root, tables=("valid.csv", "./train.csv")) == before
    (root / "train.csv").write_text("Path\n3\n")
    after = take(root)
    assert after.digest != before.digest
    assert after.table_digest != before.table_digest


def test_the_order_in_which_the_file_system_lists_does_not_count(root, monkeypatch):
    for name in ("a", "b"):
        (root / name).symlink_to("train.csv")
    before = take(root)
    listed = module._walk
    monkeypatch.setattr(module, "_walk", lambda *args: reversed(list(listed(*args))))
    assert take(root) == before


def test_a_link_inside_the_folder_counts_and_is_not_followed(root):
    before = take(root)
    (root / "train/loop").symlink_to(root)
    (root / "train/again.jpg").symlink_to("patient00001/a.jpg")
    (root / "train/broken.jpg").symlink_to("nothing")
    linked = take(root)
    assert linked.num_files == before.num_files
    assert linked.digest != before.digest
    (root / "train/again.jpg").unlink()
    (root / "train/again.jpg").symlink_to("patient00002/b.jpg")
    assert take(root).digest != linked.digest


def test_a_table_that_is_a_link_inside_the_folder_is_read(root):
    (root / "train.csv").rename(root / "labels.csv")
    (root / "train.csv").symlink_to("labels.csv")
    before = take(root).table_digest
    (root / "labels.csv").write_text("Path\n9\n")
    assert take(root).table_digest != before


def test_a_link_that_leaves_the_folder_is_refused_without_its_name(root, tmp_path):
    (tmp_path / "set2").mkdir()
    (root / "train/patient00001/out.jpg").symlink_to(tmp_path / "set2")
    with pytest.raises(BadInputError, match=r"^1 symbolic links lead out of data\.root") as caught:
        take(root)
    assert "patient" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_folders_deeper_than_the_interpreters_stack_count(root):
    before = take(root).digest
    subprocess.run(["mkdir", "-p", root / ("a/" * 1200)], check=True)  # pathlib makes folders recursively
    assert take(root).digest == before
    (root / ("a/" * 1200) / "x").touch()
    try:
        assert take(root).digest != before
    finally:
        subprocess.run(["rm", "-r", root / "a"], check=True)  # what clears temporary folders is recursive


def test_a_table_over_the_bound_is_refused_before_it_is_read_and_pipes_are_not_waited_for(root):
    os.mkfifo(root / "pipe.csv")
    (root / "sparse.csv").touch()
    os.truncate(root / "sparse.csv", 10 * 2**30)
    assert take(root).num_files == 6  # the pipe is none
    with pytest.raises(BadInputError, match=r"^sparse.csv has more than 2,147,483,647 bytes; give the table of labels"):
        take(root, tables=["sparse.csv"])
    with pytest.raises(BadInputError, match=r"^pipe.csv is not in the data set's folder"):
        take(root, tables=["pipe.csv"])


def test_what_is_missing_is_told_without_a_path(root, tmp_path):
    for folder, tables, message in (
        (tmp_path / "absent", (), r"data\.root is no folder"),
        (root / "train.csv", (), r"data\.root is no folder"),
        (root, ("test.csv",), r"test\.csv is not in the data set's folder"),
        (root, ("../set/train.csv",), r"train\.csv is not in the data set's folder"),
        (root, ("train",), r"train is not in the data set's folder"),
    ):
        with pytest.raises(BadInputError, match=message) as caught:
            take(folder, tables=tables)
        assert str(tmp_path) not in str(caught.value)


def test_a_file_that_vanishes_in_the_middle_is_told_without_its_path(root, monkeypatch):
    listed = module._list

    def list_and_delete(folder):
        listing = listed(folder)
        (root / "train/patient00001/a.jpg").unlink()
        return listing

    monkeypatch.setattr(module, "_list", list_and_delete)
    with pytest.raises(BadInputError, match=r"cannot be read .No such file") as caught:
        take(root, "content")
    assert "patient" not in str(caught.value)

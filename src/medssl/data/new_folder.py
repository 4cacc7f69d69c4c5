"""A folder that appears complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(root_dir: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the name `root_dir` at the end and is removed after an exception.

    Args:
        root_dir: Folder to make; an empty one may be there.

    Raises:
        FileExistsError: If `root_dir` is there and not empty.
    """
    if root_dir.exists() and any(root_dir.iterdir()):
        raise FileExistsError("the folder of the generated set exists and is not empty; use it or remove it")
    partial_dir = root_dir.with_name(f".{root_dir.name}.{os.getpid()}.partial")
    try:
        partial_dir.mkdir(parents=True)
        yield partial_dir
        partial_dir.rename(root_dir)
    except BaseException:
        shutil.rmtree(partial_dir, ignore_errors=True)
        raise

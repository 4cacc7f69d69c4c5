"""Which generator makes the data set of which task."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from medssl.code_version import closure
from medssl.data import phantom
from medssl.data.skin_phantom import patients as skin_phantom

Task = Literal["cxr", "derm"]


def generate(
    root_dir: Path,
    *,
    task: Task,
    patients: int,
    seed: int,
    image_size_px: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write the generated set of a task; it appears complete or not at all.

    Args:
        root_dir: Folder to make.
        task: "cxr": radiographs in CheXpert's layout; "derm": photographs of skin as a table of cases.
        patients: Patients in the set; radiographs have a validation part of a fixed size besides.
        seed: Seed of everything that is drawn, >= 0.
        image_size_px: Side of the square images, >= 16.
        progress: Called after every patient with patients done and patients in all.

    Returns:
        Counts of what was made, by name.

    Raises:
        FileExistsError: If `root_dir` is there and not empty.
        ValueError: On an impossible size or seed.
    """
    if task == "derm":
        photographs = skin_phantom.SkinPhantomConfig(patients=patients, seed=seed, image_size_px=image_size_px)
        return skin_phantom.generate(root_dir, photographs, progress=progress)
    radiographs = phantom.PhantomConfig(patients=patients, seed=seed, image_size_px=image_size_px)
    return phantom.generate(root_dir, radiographs, progress=progress)


def source_text(task: Task) -> str:
    """The code on which the bytes of a task's set depend."""
    module = skin_phantom if task == "derm" else phantom
    files, _ = closure([ast.parse(f"import {module.__name__}")])
    return "".join(file.read_text(encoding="utf-8") for file in sorted(files))

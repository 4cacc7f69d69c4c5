"""What is refused before any work is done, on small sets of real files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medssl.config import Study
from medssl.exit_codes import BadInputError
from medssl.store import Store
from pipelines import preflight

HEADER = "image,patient,condition\n"


def make_set(root: Path, *, conditions: tuple[str, ...] = ("Acne", "Eczema"), num_unlabelled: int = 0) -> Path:
    root.mkdir()
    rows = [(f"{n}.png", f"P{n}", conditions[n % len(conditions)]) for n in range(40)]
    (root / "cases.csv").write_text(HEADER + "".join(f"{','.join(row)}\n" for row in rows))
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for file, _, _ in rows:
        picture.save(root / file)
    (root / "more").mkdir()
    for number in range(num_unlabelled):
        picture.save(root / "more" / f"{number}.png")
    return root


def study(**changes: Any) -> Study:
    base: dict[str, Any] = {
        "name": "s",
        "data": {"dataset": "cases", "name": "derm", "root": "/unused", "key": "public"},
        "task": {"kind": "conditions", "min_train_cases": 2},
        "splits": {"train": 0.5, "validation": 0.25, "test": 0.25},
        "shards": {"image_size_px": 16},
        "encoders": {"e": {"depth": 18, "width": 0.125}},
        "arms": [{"name": "a", "encoder": "e", "method": "Random"}],
        "finetune": {"num_steps": 1, "learning_rates": [0.1], "label_fractions": [1.0]},
        "report": {"title": "t"},
    }
    return Study.model_validate(base | changes)


def refusal(wanted: Study, root: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        preflight.check(wanted, root, Store(str(root.parent / "store")))
    return str(caught.value)


def test_a_study_that_can_run_passes(tmp_path: Path) -> None:
    assert preflight.check(study(), make_set(tmp_path / "set"), Store(str(tmp_path / "store")))


def test_earlier_splits_that_are_not_in_the_store_are_told(tmp_path: Path) -> None:
    sizes = {"train": 0.5, "validation": 0.25, "test": 0.25, "extend": "0" * 64}
    assert "its manifest is missing" in refusal(study(splits=sizes), make_set(tmp_path / "set"))


def test_an_external_set_without_a_common_label_is_told_by_name(tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", conditions=("Wart", "Cyst"))
    external = [{"dataset": "cases", "name": "elsewhere", "root": str(other), "key": "public"}]
    message = refusal(study(external=external), make_set(tmp_path / "set"))
    assert "external: elsewhere: it has a label for none of the study's 2 conditions" in message


def test_an_external_set_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    external = [{"dataset": "cases", "name": "elsewhere", "root": str(tmp_path / "absent"), "key": "public"}]
    assert refusal(study(external=external), make_set(tmp_path / "set")).startswith("external: elsewhere: data.root")


def test_unlabelled_images_count_for_the_batches_of_pretraining(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", num_unlabelled=30)
    run = {"name": "r", "method": "simclr", "encoder": "e", "num_steps": 1, "batch_size": 50}
    pooled = {
        "dataset": "cases",
        "name": "derm",
        "root": "/unused",
        "key": "public",
        "unlabelled": [{"folder": "more"}],
    }
    assert "the training split has 20 images" in refusal(study(pretraining=[run]), root)
    preflight.check(study(pretraining=[run], data=pooled), root, Store(str(tmp_path / "store")))
    alone = study(pretraining=[run | {"unlabelled": False}], data=pooled)
    assert "the training split has 20 images" in refusal(alone, root)

from pathlib import Path

import pytest

from medssl.data import generated


@pytest.mark.parametrize(("task", "table"), [("cxr", "train.csv"), ("derm", "cases.csv")])
def test_each_task_has_its_own_set(task: generated.Task, table: str, tmp_path: Path) -> None:
    done: list[int] = []
    counts = generated.generate(
        tmp_path / "set", task=task, patients=20, seed=1, image_size_px=32, progress=lambda n, total: done.append(n)
    )
    assert (tmp_path / "set" / table).is_file()
    assert counts["patients"] == len(done) >= 20


def test_the_source_of_a_set_is_all_code_that_draws_it_and_no_other() -> None:
    derm, cxr = generated.source_text("derm"), generated.source_text("cxr")
    for name in ("def psoriasis(", "def render(", "def noise(", "class SkinPhantomConfig"):
        assert name in derm
    assert "class PhantomConfig" in cxr
    assert "class PhantomConfig" not in derm
    assert "def psoriasis(" not in cxr
    assert "class GenerateConfig" not in derm

"""Which of the study's own images a pretraining run sees."""

from pathlib import Path

import pyarrow as pa
import pytest

from medssl import schema
from medssl.train.jobs import Inputs
from medssl.train.pretrain import pretrain
from tests.train.test_training import ALONE, Prepared, data, pretrain_job

__all__ = ["data"]  # the fixture


@pytest.mark.parametrize(("unlabelled", "num_images"), [(True, 16), (False, 13)])
def test_a_run_sees_images_without_labels_unless_told_otherwise(
    data: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str], unlabelled: bool, num_images: int
) -> None:
    index = schema.read(data.inputs.index_path, schema.INDEX)
    source = pa.array([schema.UNLABELLED] * 3 + ["train"] * (index.num_rows - 3))  # of training patients
    at = index.column_names.index("source_split")
    index = index.set_column(at, index.schema.field(at), source)
    schema.write(index, schema.INDEX, tmp_path / "index.parquet", metadata={"group_kind": "patient"})
    job = pretrain_job(data, f"pool-{unlabelled}", num_steps=1, unlabelled=unlabelled)
    inputs = Inputs(**(vars(job.inputs) | {"index_path": tmp_path / "index.parquet"}))
    pretrain(job.model_copy(update={"inputs": inputs}), ALONE)
    assert f"{num_images} units, {num_images} images" in capsys.readouterr().out

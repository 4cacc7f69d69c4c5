"""The comparison of a study: what its summary tells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medssl import layout, schema
from medssl.config import ArmConfig, CompareConfig, EncoderConfig
from medssl.stages import analysis
from medssl.store import Store
from tests.analysis.case_predictions import case_rows, table

PAIRS = [("micle", "random"), ("micle", "bit")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def compared(store: Store, names: list[str], **settings: object) -> Mapping[str, Any]:
    """The summary of a comparison of arms of which "bit" has no predictions."""
    with store.build() as folder:
        rows = case_rows(num_patients=12, repeats=(0,), splits=("test",), arms={"micle": 2.5, "random": 1.0})
        schema.write(table(rows), schema.PREDICTIONS, folder / layout.PREDICTIONS)
        predictions = store.put("predictions", folder, {"name": "derm"})
    config = {"pairs": PAIRS, "resampling_units": ["patient"], "num_replicates": 100} | settings
    made = analysis.compare(
        store,
        CompareConfig.model_validate(config),
        arms=[ArmConfig(name=name, encoder="r", method=name) for name in names],
        encoders={"r": EncoderConfig()},
        pretraining=[],
        predictions_uris=[predictions.uri],
        code_version="1",
    )
    return store.open(made.uri).summary


def test_a_family_of_arms_that_were_not_run_is_told_in_the_summary(store: Store) -> None:
    families = [{"name": "bit alone", "pairs": [("micle", "bit")]}, {"name": "other", "pairs": [("micle", "random")]}]
    names = ["micle", "random", "bit"]
    assert compared(store, names, families=families)["notes"] == [
        'family "bit alone" adjusts nothing: no difference that it holds has a p value'
    ]
    assert "notes" not in compared(store, names)


def test_a_family_of_arms_that_the_study_does_not_know_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match='"x" holds none of the'):
        compared(store, ["micle", "random"], families=[{"name": "x", "pairs": [("micle", "bit")]}])

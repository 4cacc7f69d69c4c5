"""Arms whose weights or data are absent: left out, with the reason, and never begun from random weights."""

from pathlib import Path

import pytest

from medssl.config import Study, load_study
from medssl.exit_codes import BadInputError
from medssl.store import Store, write_json
from pipelines import study as study_module
from pipelines.availability import REMEDIES, absent, missing, without

DEMO = Path(study_module.__file__).parent / "studies" / "demo.yaml"
NOWHERE = "0" * 64


def study(root: str = "/nowhere", checkpoint: str = "") -> Study:
    """The demo with a SimCLR run on natural images before its own, and an arm of imported weights."""
    encoder = "encoder: resnet18-quarter"
    return load_study(
        DEMO,
        [
            f"pretraining_data=[{{name: natural, dataset: images, root: {root}, key: public}}]",
            f"weights=[{{name: bought, {encoder}, checkpoint: '{checkpoint}'}}]",
            f"pretraining=[{{name: micle, method: micle, {encoder}, init: simclr, num_steps: 5}}, "
            f"{{name: simclr, method: simclr, {encoder}, init: first, num_steps: 5}}, "
            f"{{name: first, method: simclr, {encoder}, dataset: natural, num_steps: 5}}, "
            f"{{name: alone, method: simclr, {encoder}, num_steps: 5}}]",
            f"arms=[{{name: random, {encoder}, method: R}}, {{name: micle, {encoder}, init: micle, method: M}}, "
            f"{{name: alone, {encoder}, init: alone, method: S}}, "
            f"{{name: bought, {encoder}, init: bought, method: I}}]",
            "compare.pairs=[[micle, random], [alone, random], [bought, alone]]",
        ],
    )


def test_runs_lie_in_the_level_after_what_they_start_from() -> None:
    levels = [[run.name for run in level] for level in study().levels]
    assert levels == [["first", "alone"], ["simclr"], ["micle"]]


def test_what_is_not_there_is_named_with_the_reason(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    reasons = absent(study(), store)
    assert reasons == {
        "bought": "no checkpoint is given; `medssl import-weights` makes one",
        "natural": "the folder of the data set is not there",
    }
    assert "not in the store" in absent(study(checkpoint=NOWHERE), store)["bought"]


def test_what_is_there_is_not_absent(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with store.build() as folder:
        write_json(folder / "weights.json", {})
        made = store.put("checkpoint", folder, {})
    assert absent(study(str(tmp_path), made.digest), store) == {}


def test_what_is_missing_is_listed_by_section_and_each_has_a_remedy(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    assert missing(study(), store) == {"pretraining_data": ("natural",), "weights": ("bought",)}
    here = f"{{name: here, root: {tmp_path}, key: public}}"
    own = f"external=[{here}, {{name: away, root: /nowhere/else, key: public}}]"
    elsewhere = load_study(DEMO, ["data.generate=null", "data.root=/nowhere", own])
    assert missing(elsewhere, store) == {"data": ("demo",), "external": ("away",)}
    assert set(REMEDIES) == {"data", "external", "pretraining_data", "weights"}
    assert missing(load_study(DEMO), store) == {}


def test_arms_that_need_what_is_absent_are_left_out_with_all_that_leads_to_them() -> None:
    left = without(study(), {"natural": "the folder is not there", "bought": "none is given"})
    assert [arm.name for arm in left.arms] == ["random", "alone"]
    assert [run.name for run in left.pretraining] == ["alone"]
    assert left.pretraining_data == left.weights == ()
    assert left.compare.pairs == (("alone", "random"),)
    assert left.not_run == {
        "micle": "needs micle: needs simclr: needs first: needs natural: the folder is not there",
        "bought": "needs bought: none is given",
    }
    assert Study.model_validate(left.dump()) == left


def test_families_lose_pairs_of_what_is_absent_and_go_with_their_last() -> None:
    given = study().model_dump()
    names = (("gone", [["bought", "alone"]]), ("part", [["bought", "alone"], ["random", "alone"]]), ("all", []))
    families = [{"name": name, "pairs": pairs, "metrics": [name]} for name, pairs in names]
    given["compare"] |= {"families": families, "label_efficiency": [["micle", "random"], ["alone", "random"]]}
    left = without(Study.model_validate(given), {"bought": "none is given", "natural": "the folder is not there"})
    assert [(family.name, family.pairs) for family in left.compare.families] == [
        ("part", (("random", "alone"),)),
        ("all", ()),
    ]
    assert left.compare.label_efficiency == (("alone", "random"),)
    assert Study.model_validate(left.dump()) == left


def test_a_study_of_which_everything_is_there_is_left_alone() -> None:
    assert without(study(), {}) == study()


def test_no_arm_at_all_is_an_error() -> None:
    encoder = "encoder: resnet18-quarter"
    only = load_study(
        DEMO,
        [
            f"weights=[{{name: bought, {encoder}}}]",
            f"arms=[{{name: x, {encoder}, init: bought, method: I}}]",
            "compare.pairs=[]",
        ],
    )
    with pytest.raises(BadInputError, match="no arm can run: x needs bought: none"):
        without(only, {"bought": "none"})

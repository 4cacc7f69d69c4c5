from pathlib import Path

import pytest
import yaml

from medssl.config import (
    ConfigError,
    DataConfig,
    EncoderConfig,
    FinetuneConfig,
    ShardConfig,
    SplitConfig,
    digest,
    load_study,
    validate,
)

STUDIES = Path(__file__).parents[1] / "pipelines" / "studies"
DEMO = STUDIES / "demo.yaml"


def test_overrides_reach_into_sections_and_lists() -> None:
    study = load_study(DEMO, ["finetune.seed=7", "pretraining.0.seed=8", "data.root=/somewhere"])
    assert (study.finetune.seed, study.pretraining[0].seed, study.data.root) == (7, 8, "/somewhere")


def test_every_shipped_study_is_valid() -> None:
    for path in STUDIES.glob("*.yaml"):
        assert load_study(path, ["data.root=/somewhere"]).arms


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.learning_rate=1", 'unknown key "finetune.learning_rate"; possible here: .*learning_rates'),
        ("splits.train=0.9", "fractions must sum to 1"),
        ("splits.train=1000", "three fractions or three numbers"),
        ("finetune.label_fractions=[0.1, 2]", "label_fractions.1.*found 2"),
        ("finetune.learning_rates=[]", "learning_rates must be a list of distinct numbers"),
        ("arms.0.init=foo", "init foo is neither random nor among"),
        ("arms.0.encoder=foo", "encoder foo is not among"),
        ("arms.1.name=random", "found twice: .*random"),
        ("pretraining.0.init=micle", "a SimCLR run starts from random weights"),
        ("pretraining.1.init=micle", "cannot start from itself"),
        ("pretraining.0.warmup_steps=100000", "warmup_steps 100000 must be below"),
        ("compare.pairs=[[a, b]]", "'a', 'b'.* are not among the arms"),
        ("shards.num_parts=3", "power of two"),
        ("arms=[]", "at least one arm"),
        ("name=Bad Name", "String should match pattern"),
        ("foo", "expected section.key=value"),
        ("pretraining.9.seed=1", "does not name a section"),
    ],
)
def test_a_wrong_study_is_refused_with_the_key_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(DEMO, [override])


def test_a_study_without_data_says_how_to_give_it(tmp_path: Path) -> None:
    raw = yaml.safe_load(DEMO.read_text())
    del raw["data"]["generate"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"--set data\.root="):
        load_study(tmp_path / "s.yaml")


@pytest.mark.parametrize("text", ["- a\n", "{", "\xff", "a: !!python/object/apply:os.system [true]\n"])
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"s\.yaml"):
        load_study(path)


def test_an_absent_study_file_is_told() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml not found"):
        load_study(Path("nowhere.yaml"))


def test_floats_that_kfp_makes_of_integers_are_integers_again_and_others_are_not() -> None:
    assert validate(EncoderConfig, {"depth": 50.0, "width": 1}, "x").depth == 50
    assert validate(ShardConfig, {"image_size_px": 64.0}, "x").image_size_px == 64
    with pytest.raises(ConfigError):
        validate(ShardConfig, {"image_size_px": 64.5}, "x")


def test_a_digest_knows_values_not_their_order_or_number_type() -> None:
    assert digest({"a": 8, "b": [1, 2]}) == digest({"b": [1.0, 2.0], "a": 8.0})
    assert digest({"a": 8}) != digest({"a": 8.5})
    assert digest([1, 2]) != digest([2, 1])


def test_resources_and_wording_leave_the_study_digest_as_it_is() -> None:
    study = load_study(DEMO)
    assert study.digest == load_study(DEMO, ["resources.processes=2", "report.title=Other"]).digest
    assert study.digest != load_study(DEMO, ["finetune.seed=5"]).digest


def test_sizes_are_all_counts_or_all_fractions() -> None:
    assert SplitConfig(train=100, validation=10, test=20).exact
    assert not SplitConfig(train=0.5, validation=0.25, test=0.25).exact
    with pytest.raises(ValueError, match="must be whole"):
        SplitConfig(train=100.5, validation=10, test=20)


def test_sections_are_frozen() -> None:
    section = FinetuneConfig(num_steps=1, learning_rates=(0.1,), label_fractions=(1.0,))
    with pytest.raises(ValueError, match="frozen"):
        section.num_steps = 2  # type: ignore[misc]
    assert DataConfig(name="x", root="/r").key == "private"

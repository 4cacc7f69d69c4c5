import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from medssl.config import (
    ConfigError,
    DataConfig,
    EncoderConfig,
    FinetuneConfig,
    ShardConfig,
    SplitConfig,
    Study,
    SubgroupConfig,
    digest,
    load_study,
    validate,
)

STUDIES = Path(__file__).parents[1] / "pipelines" / "studies"
DEMO = STUDIES / "demo.yaml"


def test_overrides_reach_into_sections_and_lists() -> None:
    study = load_study(DEMO, ["finetune.seed=7", "pretraining.0.seed=8", "report.title=T"])
    assert (study.finetune.seed, study.pretraining[0].seed, study.report.title) == (7, 8, "T")


def test_an_override_names_a_thing_in_a_list_by_its_name() -> None:
    study = load_study(DEMO, ["pretraining.micle.num_steps=30", "arms.random.method=R"])
    assert [run.num_steps for run in study.pretraining] == [150, 30]
    assert study.arms[0].method == "R"


def test_every_shipped_study_is_valid() -> None:
    for path in STUDIES.glob("*.yaml"):
        assert load_study(path, ["data.root=/somewhere", "data.generate=null"]).arms


def test_a_folder_of_data_and_generated_data_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"exclude each other; .* --set data.generate=null --set data.key=private"):
        load_study(DEMO, ["data.root=/somewhere"])


def test_an_empty_study_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"s\.yaml is empty"):
        load_study(tmp_path / "s.yaml")


def test_a_misspelt_required_key_is_told_once_with_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(DEMO.read_text().replace("name: demo\ndata:", "nmae: demo\ndata:"))
    with pytest.raises(ConfigError) as refused:
        load_study(tmp_path / "s.yaml")
    assert str(refused.value).startswith('s.yaml: unknown key "nmae" (did you mean "name"?); possible here: ')
    assert "is missing" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "finetune.learning_rate=1",
            'unknown key "finetune.learning_rate" .did you mean "learning_rates"..; possible here: .*learning_rates',
        ),
        ("splits.train=0.9", "fractions must sum to 1"),
        ("splits.train=1000", "three fractions or three numbers"),
        ("finetune.label_fractions=[0.1, 2]", "label_fractions.1.*found 2"),
        ("finetune.learning_rates=[]", "learning_rates must be a list of numbers that differ"),
        ("finetune.learning_rates=[0.1, 0.10000001]", "differ in their first 6 digits"),
        ("finetune.label_fractions=[0.5, 0.5000001]", "label_fractions .* differ in their first 6 digits"),
        ("finetune.weight_decays=[0.0, -0.0]", "weight_decays .* differ in their first 6 digits"),
        ("finetune.learning_rates=[0.1, 0]", "learning_rates.1.*greater than 0"),
        ("finetune.weight_decays=[-0.1]", "weight_decays.0.*greater than or equal to 0"),
        ("encoders.resnet18-quarter.width=0.015", "width.*greater than or equal to 0.0156"),
        ("finetune.trainable=some", "trainable.*'all' or 'head'"),
        ("finetune.hue=0.6", "hue.*less than or equal to 0.5"),
        ("task.fusion=probability", "fusion probability is for conditions"),
        ("splits.stratify=finding", "stratify.*'none' or 'condition'"),
        ("resources.parallel_tasks=3", "parallel_tasks.*less than or equal to 2"),
        ("promote={enabled: true, arm: nobody}", "promote.arm: name the arm"),
        ("predict.splits=[]", "predict.splits must name validation, test or both once"),
        ("predict.splits=[test, test]", "predict.splits must name"),
        ("compare.pairs=[[micle, random], [micle, random]]", "two arms may be compared once"),
        ("compare.pairs=[[micle, random], [random, micle]]", "two arms may be compared once"),
        ("compare.pairs=[[micle, micle]]", "'micle', 'micle'. compares an arm with itself"),
        ("compare.resampling_units=[image, image]", "resampling_units must be"),
        ("compare.resampling_units=[]", "resampling_units must be"),
        ("subgroups.by=[sex, site, sex]", "subgroups.by must name each attribute once"),
        ("subgroups.pairs=[[sex, site]]", "subgroups.pairs must be .* of two of"),
        ("subgroups.pairs=[[sex, sex]]", "subgroups.pairs must be"),
        ("subgroups.pairs=[[sex, age_band], [age_band, sex]]", "each once in either order"),
        ("subgroups.pairs=some", '"subgroups.pairs'),
        ("subgroups.skin_type_groups={light: ['1', '2'], dark: ['2']}", "each skin type once"),
        ("subgroups.skin_type_groups={light: []}", "each skin type once, one or more a group"),
        ("subgroups.age_edges=[60, 40]", "increasing ages"),
        ("subgroups.age_edges=[40, 40.0000001]", "increasing ages"),
        ("subgroups.age_edges=[]", "increasing ages"),
        ("subgroups.age_edges=[-1, 40]", "age_edges.0.*greater than or equal to 0"),
        ("splits.seed=[1", r"--set splits.seed=\[1: the value cannot be read as YAML; close brackets"),
        ("splits.seed=2026-02-31", "the value cannot be read as YAML"),
        ("splits.seed=" + "[" * 1000, "the value cannot be read as YAML"),
        ("arms.².init=random", "does not name an item of this list"),
        ("pretraining.simcl.seed=1", "simcl does not name an item of this list; possible here: simclr, micle, 0, 1$"),
        ("pretraining.micle.init=foo", r"neither random nor among \['simclr'\]"),
        ("finetune.learning_rates=0.1", "Input should be a list, found 0.1"),
        ("arms.0.init=foo", "init foo is neither random nor among"),
        ("arms.0.encoder=foo", "encoder foo is not among"),
        ("arms.1.name=random", "found twice: .*random"),
        ("pretraining.0.init=micle", "simclr: a run starts from random .* or a SimCLR run; micle is a MICLe run"),
        ("pretraining.0.dataset=natural", r"dataset natural is not among pretraining_data \[\]"),
        ("pretraining_data=[{name: natural, dataset: images, root: /x}]", r"no run has \['natural'\] as its dataset"),
        ("pretraining_data=[{name: natural}]", "data.root is not set"),
        ("external=[{name: other, root: /tmp/x/}, {name: more, root: /tmp/x}]", "two of them have the same root"),
        ("not_run={simclr: why}", '"not_run" is found out when a study is run'),
        ("pretraining.0.augmentation_strength=1.5", "less than or equal to 1.25"),
        ("arms.random.label_fractions=[0.05, 0.05]", "label_fractions must differ"),
        ("weights=[{name: simclr, encoder: resnet18}]", "found twice: .*simclr"),
        ("weights=[{name: bought, encoder: foo}]", "weights: bought: encoder foo is not among"),
        ("weights=[{name: bought, encoder: foo, checkpoint: abc}]", "checkpoint.*should match pattern"),
        ("pretraining.0.grid=[0.1]", "simclr: grid: expected a list of values for each key"),
        ("pretraining.0.grid={temperature: 0.1}", "simclr: grid: expected a list of values for each key"),
        ("pretraining.0.grid={num_steps: [10, 20]}", r"\['num_steps'\] stand both in the run and in its grid"),
        ("pretraining.0.grid={tau: [0.1, 0.5]}", 'unknown key "pretraining.0.tau"'),
        ("pretraining.1.init=micle", "cannot start from itself"),
        ("pretraining.0.warmup_steps=100000", "warmup_steps 100000 must be below"),
        ("arms.random.label_fractions=[0.3]", r"random: label_fractions \[0.3\] are not in finetune.label_fractions"),
        ("arms.random.group=simclr", "random: group simclr is the name of an arm"),
        ("compare.pairs=[[a, b]]", "'a', 'b'.* are not among the arms"),
        ("compare.label_efficiency=[[micle, foo]]", r"label_efficiency: \['foo'\] are not among the arms"),
        ("compare.label_efficiency=[[micle, micle]]", "name .arm, baseline., two arms, each once"),
        ("compare.max_replicates=100", "max_replicates must be num_replicates .* or more, found 100"),
        ("compare.specificity=1", "specificity.*less than 1"),
        ("compare.families=[{name: a}, {name: a, splits: [test]}]", "families: names must be distinct"),
        ("compare.families=[{name: a}, {name: b, splits: [test]}]", 'could belong to "a" and to "b"; name pairs'),
        (
            "compare.families=[{name: a, pairs: [[random, foo]]}]",
            r"\"a\" names \[\['random', 'foo'\]\]; expected pairs",
        ),
        ("compare.families=[{name: a, label_fractions: [0.123]}]", r"names \[0.123\]; expected .* label fractions of"),
        ("compare.families=[{name: a, splits: [validation]}]", r"names \['validation'\]; .* splits test and external"),
        ("shards.num_parts=3", "power of two"),
        ("arms=[]", "at least one arm"),
        ("name=Bad Name", "String should match pattern"),
        ("foo", "expected section.key=value"),
        ("pretraining.9.seed=1", "does not name an item"),
    ],
)
def test_a_wrong_study_is_refused_with_the_key_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(DEMO, [override])


def test_families_that_share_no_difference_and_groups_of_arms_may_be_compared() -> None:
    study = load_study(
        DEMO,
        [
            "arms.micle.group=best",
            "compare.pairs=[[best, random]]",
            "compare.label_efficiency=[[best, random]]",
            "compare.families=[{name: a, metrics: [mean_auc], pairs: [[random, best]]}, {name: b, metrics: [auc]}]",
        ],
    )
    assert study.compare.pairs == study.compare.label_efficiency == (("best", "random"),)
    assert validate(type(study), study.dump(), "again") == study


def paths_of_numbers(node: Any, path: str = "") -> Iterator[str]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{key}"
        yield from paths_of_numbers(value, f"{path}{key}.")


NUMBERS = sorted(paths_of_numbers(load_study(DEMO).dump()))


def raw_study() -> Any:
    return yaml.safe_load(yaml.safe_dump(load_study(DEMO).dump()))  # every default spelt out, so that lists can be set


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan"])
def test_no_number_of_a_study_may_be_infinite_or_undefined(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw_study()))
    assert len(NUMBERS) > 60
    for path in NUMBERS:
        with pytest.raises(ConfigError, match=rf'"{path}": .*, found -?(inf|nan)$'):
            load_study(tmp_path / "s.yaml", [f"{path}={text}"])


def test_no_seed_may_be_negative_or_more_than_a_double_holds(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw_study()))
    seeds = [path for path in NUMBERS if path.endswith("seed")]
    assert len(seeds) == 7  # data, splits, two runs of pretraining, finetune, compare, subgroups
    for path in seeds:
        with pytest.raises(ConfigError, match=rf'"{path}": .* greater than or equal to 0, found -1'):
            load_study(tmp_path / "s.yaml", [f"{path}=-1"])
        with pytest.raises(ConfigError, match="less than or equal to"):
            load_study(tmp_path / "s.yaml", [f"{path}={2**53 + 1}"])
        assert load_study(tmp_path / "s.yaml", [f"{path}={2**53}"])


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


NINE = range(9)
LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"k{i}: &k{i} [{', '.join(['*' + (f'k{i - 1}' if i else 'a')] * 9)}]\n" for i in NINE
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"k{i}: &k{i} {{<<: [{', '.join(['*' + (f'k{i - 1}' if i else 'a')] * 9)}]}}\n" for i in NINE
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, 'key "name" is missing'),
        (LAUGHS + "name: *k8\nfinetune: {learning_rates: *k8}\ndata: {name: *k8, columns: *k8}\n", '"name": Input'),
        (MERGES, r"cannot be read as YAML: merge keys \(<<\) are not supported; write the keys out"),
        ("a: &a [*a]\nname: *a\n", '"name": Input should be'),
        ("a: " + "[" * 20_000, "cannot be read as YAML"),
        ("- " * 5_000, "cannot be read as YAML"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1_200)), "cannot be read as YAML"),
        ("a: !!python/name:os.system\n", "cannot be read as YAML: could not determine a constructor"),
        ("a: \0\n", "cannot be read as YAML"),
        ("? [1]\n: 2\n", "unhashable key"),
        (f"a: {'9' * 5_000}\n", "cannot be read as YAML"),
        ("a: " + " " * 2**20, "cannot be read: it is no regular file of at most 1 MiB"),
    ],
)
def test_a_study_file_made_to_fill_memory_or_the_stack_is_refused_in_no_time(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "s.yaml").write_text(text)
    start_s = time.perf_counter()
    with pytest.raises(ConfigError, match=message):
        load_study(tmp_path / "s.yaml")
    assert time.perf_counter() - start_s < 10  # 0.4 s on an idle core


def test_an_override_merges_nothing_either() -> None:
    with pytest.raises(ConfigError, match="the value cannot be read as YAML"):
        load_study(DEMO, ["data={<<: {name: x}}"])


def test_a_study_file_that_is_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.yaml")
    (tmp_path / "t.yaml").symlink_to("/dev/zero")
    for name in ("s.yaml", "t.yaml"):
        with pytest.raises(ConfigError, match=rf"study file {name} cannot be read: it is no regular file"):
            load_study(tmp_path / name)


def test_a_study_file_that_is_absent_or_a_folder_is_told_without_its_path(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "nowhere.yaml", r"nowhere\.yaml not found"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError, match=message) as caught:
            load_study(path)
        assert str(tmp_path.parent) not in str(caught.value)


def test_floats_that_kfp_makes_of_integers_are_integers_again_and_others_are_not() -> None:
    assert validate(EncoderConfig, {"depth": 50.0, "width": 1}, "x").depth == 50
    assert validate(EncoderConfig, {"input_channels": 3.0}, "x").input_channels == 3
    assert validate(ShardConfig, {"image_size_px": 64.0}, "x").image_size_px == 64
    with pytest.raises(ConfigError):
        validate(ShardConfig, {"image_size_px": 64.5}, "x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "bit", "depth": 18}, "found 18 and 1"),
        ({"family": "bit", "depth": 50, "width": 0.5}, "found 50 and 0.5"),
        ({"family": "bit", "depth": 50, "pool_padding": "symmetric"}, "of the family resnet"),
        ({"depth": 50, "has_first_projection": False}, "only depths 18 and 34"),
        ({"input_mean": [0.5]}, "one number for all or one a channel"),
        ({"input_mean": [0.5, 0.5, 0.5], "input_std": [1, 1, 1]}, "with input_channels 0"),
        ({"input_mean": [0.5], "input_std": [0]}, "greater than 0"),
    ],
)
def test_an_encoder_that_does_not_exist_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(EncoderConfig, settings, "encoder")


def test_a_bit_encoder_is_named_as_the_papers_table_of_best_models_names_it() -> None:
    assert EncoderConfig(family="bit", depth=101, width=3).display_name == "ResNet-101 (3x)"


def test_a_digest_knows_values_not_their_order_or_number_type() -> None:
    assert digest({"a": 8, "b": [1, 2]}) == digest({"b": [1.0, 2.0], "a": 8.0})
    assert digest({"a": 8}) != digest({"a": 8.5})
    assert digest([1, 2]) != digest([2, 1])


def test_resources_wording_and_the_place_of_the_data_leave_the_study_digest_as_it_is() -> None:
    study = load_study(DEMO)
    assert study.digest == load_study(DEMO, ["resources.processes=2", "report.title=Other"]).digest
    here, there = (load_study(DEMO, ["data.generate=null", f"data.root=/{place}"]) for place in ("here", "there"))
    assert here.digest == there.digest
    assert study.digest != load_study(DEMO, ["data.name=other"]).digest
    assert study.digest != load_study(DEMO, ["finetune.seed=5"]).digest


@pytest.mark.parametrize(
    ("sizes", "exact"),
    [((100, 10, 20), True), ((100, 1, 1), True), ((1, 1.0, 2.0), True), ((0.5, 0.25, 0.25), False)],
)
def test_whole_sizes_of_which_one_is_above_1_are_counts_and_those_that_sum_to_1_are_fractions(
    sizes: tuple[float, ...], exact: bool
) -> None:
    assert SplitConfig(train=sizes[0], validation=sizes[1], test=sizes[2]).exact is exact


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((100.5, 10, 20), "must be whole"),
        ((100.5, 1, 1), "must be whole"),
        ((100, 0.5, 20), "a mixture"),
        ((1, 1, 1), "fractions must sum to 1"),
        ((1, 0, 0), "must each be above 0"),
        ((1e400, 10, 20), "finite number"),
    ],
)
def test_other_sizes_are_refused(sizes: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(train=sizes[0], validation=sizes[1], test=sizes[2])


def test_sections_are_frozen() -> None:
    section = FinetuneConfig(num_steps=1, learning_rates=(0.1,), label_fractions=(1.0,))
    with pytest.raises(ValueError, match="frozen"):
        section.num_steps = 2  # type: ignore[misc]
    assert DataConfig(name="x", root="/r").key == "private"


def test_records_name_no_folder_file_or_column_and_results_do_not_depend_on_folders() -> None:
    named = ["data.root=/home/mueller/set", "data.generate=null", "data.train_table=schmidt.csv"]
    external = "external=[{name: other, root: /home/meier, key: public, train_table: huber.csv}]"
    study = load_study(DEMO, [*named, external])
    records = json.dumps(study.for_records())
    assert not any(name in records for name in ("mueller", "schmidt", "meier", "huber"))
    moved = load_study(DEMO, ["data.root=/elsewhere", *named[1:], external.replace("/home/meier", "/other")])
    assert study.digest == moved.digest
    assert "root" not in study.without_roots()["external"][0]


@pytest.mark.parametrize("override", ["task=conditions", "compare=[a]", "data.dataset=[a]", "splits=paper", "data=1"])
def test_a_section_of_another_form_is_told(override: str) -> None:
    with pytest.raises(ConfigError):
        load_study(DEMO, [override])


def test_a_key_that_is_given_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: a\ndata: {name: x}\nname: b\n")
    with pytest.raises(ConfigError, match="given twice: name"):
        load_study(path)


def test_a_study_of_conditions_has_defaults_of_its_own_which_its_file_may_overrule() -> None:
    derm = load_study(STUDIES / "demo_derm.yaml")
    assert derm.splits.stratify == "condition"
    assert derm.compare.resampling_units == ("patient", "case")
    raw = derm.dump()
    for key in ("saturation", "hue", "blur_probability"):
        del raw["finetune"][key]
    del raw["splits"]["stratify"]
    assert Study.model_validate(raw).finetune.blur_probability == 0.5
    assert Study.model_validate(raw).splits.stratify == "condition"
    assert Study.model_validate(raw | {"splits": {}}).splits.mode == "paper"
    raw["splits"]["stratify"], raw["finetune"]["hue"] = "none", 0
    assert (Study.model_validate(raw).splits.stratify, Study.model_validate(raw).finetune.hue) == ("none", 0)
    findings = load_study(STUDIES / "demo.yaml")
    assert (findings.splits.stratify, findings.finetune.saturation, findings.finetune.blur_probability) == (
        "none",
        0,
        0,
    )
    with pytest.raises(ValidationError, match="finetune\n  Field required"):
        Study.model_validate({key: section for key, section in raw.items() if key != "finetune"})


def test_subgroups_cross_all_attributes_but_two_views_of_the_skin() -> None:
    by = ("sex", "skin_type", "skin_type_group", "site")
    crossed = SubgroupConfig(by=by).attribute_pairs
    assert crossed == (
        *(("sex", "skin_type"), ("sex", "skin_type_group"), ("sex", "site")),
        *(("skin_type", "site"), ("skin_type_group", "site")),
    )
    assert SubgroupConfig(by=by, pairs=()).attribute_pairs == ()
    assert SubgroupConfig(by=by, pairs=(("site", "sex"),)).attribute_pairs == (("site", "sex"),)


def test_a_study_may_leave_the_test_split_alone_but_not_promote_then() -> None:
    alone = "predict.splits=[validation]"
    assert load_study(DEMO, [alone]).predict.splits == ("validation",)
    with pytest.raises(ConfigError, match="a champion is judged on the test split"):
        load_study(DEMO, [alone, "promote={enabled: true, arm: micle}"])

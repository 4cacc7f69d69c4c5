"""The compiled form of every study: edges, levels, images, caching, sizes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from medssl.config import ConfigError, Study, load_study
from pipelines import study as study_module
from pipelines.__main__ import main
from pipelines.lint import lint
from pipelines.plan import STAGES, make_plan
from pipelines.study import compile_pipeline

STUDIES = sorted((Path(study_module.__file__).parent / "studies").glob("*.yaml"))
DEMO = next(path for path in STUDIES if path.stem == "demo")
MAX_PARAMETER_BYTES = 100_000  # of 131 072, above which Linux takes no argument

RANDOM_ARM = {"name": "random", "encoder": "resnet18-quarter", "method": "Random Initialization"}
SIMCLR_ARM = {"name": "simclr", "encoder": "resnet18-quarter", "init": "simclr", "method": "SimCLR"}

DATA_EDGES = {
    "fingerprint.Output -> ingest.data_digest",
    "fingerprint.Output -> write-shards.data_digest",
    "ingest.index -> assign-splits.index",
    "ingest.index -> write-shards.index",
}
ANALYSIS_EDGES = {
    "search-hyperparameters.scores -> select.scores",
    "select.selection -> finetune.selection",
    "finetune.models -> collect(models).items",
    "collect(models).catalog -> predict.catalog",
    "predict.predictions -> compare.predictions",
    "compare.comparison -> analyze-subgroups.comparison",
    "select.selection -> write-report.selection",
    "collect(models).catalog -> write-report.models",
    "compare.comparison -> write-report.comparison",
    "analyze-subgroups.subgroups -> write-report.subgroups",
}
SIMCLR_EDGES = {"pretrain(simclr).checkpoint -> collect(simclr).items"}
MICLE_EDGES = {
    "pretrain(micle).checkpoint -> collect(micle).items",
    "collect(simclr).catalog -> pretrain(micle).catalog",
    "collect(simclr).catalog -> collect(micle).previous",
}
SOURCES = {"index": "ingest", "splits": "assign-splits", "shards": "write-shards"}


def reads_data(*tasks: str) -> set[str]:
    return {f"{source}.{role} -> {task}.{role}" for task in tasks for role, source in SOURCES.items()}


def reads_checkpoints(last: str) -> set[str]:
    """Every consumer of the last catalog of checkpoints."""
    consumers = ("search-hyperparameters.catalog", "finetune.catalog", "write-report.checkpoints")
    return {f"{last}.catalog -> {consumer}" for consumer in consumers}


AFTER_PRETRAINING = ("search-hyperparameters", "finetune", "predict", "write-report")


def compile_study(study: Study, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(make_plan(study), path)
    ir: dict[str, Any] = yaml.safe_load(path.read_text())
    return ir


def demo(**changes: Any) -> Study:
    return Study.model_validate(load_study(DEMO).dump() | {"compare": {}} | changes)


def edges(ir: Mapping[str, Any], dag: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(producer task.output, consumer task.input) between executors, with the inputs of sub-DAGs resolved."""
    for task, spec in dag["tasks"].items():
        component = ir["components"][spec["componentRef"]["name"]]
        sources: dict[str, str] = {}
        for value_of in spec.get("inputs", {}).values():
            for name, value in value_of.items():
                if output := value.get("taskOutputArtifact") or value.get("taskOutputParameter"):
                    key = output.get("outputArtifactKey") or output["outputParameterKey"]
                    sources[name] = producer(ir, dag, output["producerTask"], key)
                elif inherited := value.get("componentInputArtifact") or value.get("componentInputParameter"):
                    sources.update({name: given[inherited]} if inherited in given else {})
        if "dag" in component:
            yield from edges(ir, component["dag"], sources)
        else:
            yield from ((source, f"{task}.{name}") for name, source in sources.items())


def producer(ir: Mapping[str, Any], dag: Mapping[str, Any], task: str, key: str) -> str:
    """Executor and output behind `key` of `task`, which may be a loop."""
    component = ir["components"][dag["tasks"][task]["componentRef"]["name"]]
    if "dag" not in component:
        return f"{task}.{key}"
    (selector,) = component["dag"]["outputs"]["artifacts"][key]["artifactSelectors"]
    return producer(ir, component["dag"], selector["producerSubtask"], selector["outputArtifactKey"])


def named_edges(ir: Mapping[str, Any], names: Mapping[str, str]) -> set[str]:
    """All edges as text, with KFP's numbered tasks under the given names."""

    def rename(end: str) -> str:
        task, _, port = end.partition(".")
        return f"{names.get(task, task)}.{port}"

    found = [f"{rename(source)} -> {rename(sink)}" for source, sink in edges(ir, ir["root"]["dag"], {})]
    assert len(found) == len(set(found))
    return set(found)


def tasks_of(ir: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task that runs a container, by name, wherever it stands."""
    dags = [ir["root"]["dag"], *(c["dag"] for c in ir["components"].values() if "dag" in c)]
    tasks = {name: spec for dag in dags for name, spec in dag["tasks"].items()}
    return {name: t for name, t in tasks.items() if "dag" not in ir["components"][t["componentRef"]["name"]]}


def containers(ir: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [executor["container"] for executor in ir["deploymentSpec"]["executors"].values()]


def constants(ir: Mapping[str, Any], task: str) -> dict[str, Any]:
    parameters = tasks_of(ir)[task]["inputs"]["parameters"]
    return {name: v["runtimeValue"]["constant"] for name, v in parameters.items() if "runtimeValue" in v}


@pytest.fixture(scope="module")
def demo_ir(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compile_study(load_study(DEMO), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module", params=STUDIES, ids=[path.stem for path in STUDIES])
def every_study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    study = load_study(request.param, overrides=["data.root=/tmp/x", "data.generate=null"])
    return compile_study(study, tmp_path_factory.mktemp(study.name))


def test_every_study_passes_the_lint(every_study: dict[str, Any]) -> None:
    assert lint(every_study) == []


def test_no_task_of_any_study_installs_packages(every_study: dict[str, Any]) -> None:
    for container in containers(every_study):
        assert "pip install" not in " ".join([*container["command"], *container["args"]])


def test_every_image_has_the_exact_tag_of_this_version(every_study: dict[str, Any]) -> None:
    from medssl import __version__

    images = {container["image"] for container in containers(every_study)}
    assert images == {f"medssl-python-{role}:{__version__}" for role in ("data", "train", "analysis")}


def test_every_parameter_of_every_study_is_small(every_study: dict[str, Any]) -> None:
    defaults = every_study["root"]["inputDefinitions"]["parameters"].values()
    assert all(len(json.dumps(p.get("defaultValue"))) < MAX_PARAMETER_BYTES for p in defaults)
    for task in tasks_of(every_study):
        assert len(json.dumps(constants(every_study, task))) < MAX_PARAMETER_BYTES


def test_every_task_is_cached_but_for_those_that_fingerprint(every_study: dict[str, Any]) -> None:
    tasks = tasks_of(every_study)
    uncached = {name for name, t in tasks.items() if not t["cachingOptions"].get("enableCache")}
    assert uncached == {"fingerprint", "prepare-dataset"} & tasks.keys()


def test_every_task_gets_the_code_version_of_its_own_stage(tmp_path: Path) -> None:
    plan, path = make_plan(load_study(DEMO)), tmp_path / "pipeline.yaml"
    compile_pipeline(plan, path)
    ir = yaml.safe_load(path.read_text())
    for task in tasks_of(ir):
        stage = task.rstrip("-0123456789").replace("-", "_")
        assert constants(ir, task)["code_version"] == plan.code_versions[stage]


def test_no_study_file_names_a_place_of_its_own(every_study: dict[str, Any]) -> None:
    # Where the data lies is an argument of the run: a constant in a task would miss the cache on another machine.
    assert "/tmp/x" not in json.dumps(every_study)


def test_the_demo_has_exactly_these_edges(demo_ir: dict[str, Any]) -> None:
    names = {
        "pretrain": "pretrain(simclr)",
        "collect": "collect(simclr)",
        "pretrain-2": "pretrain(micle)",
        "collect-2": "collect(micle)",
        "collect-3": "collect(models)",
    }
    expected = DATA_EDGES | SIMCLR_EDGES | MICLE_EDGES | ANALYSIS_EDGES | reads_checkpoints("collect(micle)")
    expected |= reads_data("pretrain(simclr)", "pretrain(micle)", *AFTER_PRETRAINING)
    assert named_edges(demo_ir, names) == expected


def test_a_study_without_micle_has_one_level_of_pretraining(tmp_path: Path) -> None:
    runs = [run.dump() for run in load_study(DEMO).pretraining if run.method == "simclr"]
    ir = compile_study(demo(pretraining=runs, arms=[RANDOM_ARM, SIMCLR_ARM]), tmp_path)
    names = {"pretrain": "pretrain(simclr)", "collect": "collect(simclr)", "collect-2": "collect(models)"}
    expected = DATA_EDGES | SIMCLR_EDGES | ANALYSIS_EDGES | reads_checkpoints("collect(simclr)")
    assert named_edges(ir, names) == expected | reads_data("pretrain(simclr)", *AFTER_PRETRAINING)


def test_a_study_with_micle_from_random_weights_only_has_one_level_of_pretraining(tmp_path: Path) -> None:
    (micle,) = (run.dump() | {"init": "random"} for run in load_study(DEMO).pretraining if run.method == "micle")
    arm = SIMCLR_ARM | {"name": "micle", "init": "micle"}
    ir = compile_study(demo(pretraining=[micle], arms=[arm]), tmp_path)
    names = {"pretrain": "pretrain(micle)", "collect": "collect(micle)", "collect-2": "collect(models)"}
    expected = DATA_EDGES | ANALYSIS_EDGES | reads_checkpoints("collect(micle)")
    expected |= {"pretrain(micle).checkpoint -> collect(micle).items"}
    assert named_edges(ir, names) == expected | reads_data("pretrain(micle)", *AFTER_PRETRAINING)


def test_a_study_of_random_arms_only_has_no_pretraining_and_no_catalog_of_checkpoints(tmp_path: Path) -> None:
    ir = compile_study(demo(pretraining=[], arms=[RANDOM_ARM]), tmp_path)
    assert lint(ir) == []
    expected = DATA_EDGES | ANALYSIS_EDGES | reads_data(*AFTER_PRETRAINING)
    assert named_edges(ir, {"collect": "collect(models)"}) == expected
    assert constants(ir, "collect")["kind"] == "models"


def test_loops_run_over_the_runs_and_arms_of_the_study(demo_ir: dict[str, Any]) -> None:
    study = load_study(DEMO)
    parameters = demo_ir["root"]["inputDefinitions"]["parameters"]
    runs = [item["run"]["name"] for key in ("level_1_runs", "level_2_runs") for item in parameters[key]["defaultValue"]]
    assert runs == [run.name for run in study.pretraining]
    assert [item["arm"]["name"] for item in parameters["arms"]["defaultValue"]] == [arm.name for arm in study.arms]


@pytest.mark.parametrize("parallel_tasks", [1, 2])
def test_only_fine_tuning_and_prediction_run_side_by_side(tmp_path: Path, parallel_tasks: int) -> None:
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(make_plan(load_study(DEMO)), path, parallel_tasks=parallel_tasks)
    tasks = yaml.safe_load(path.read_text())["root"]["dag"]["tasks"]
    limits = [tasks[f"for-loop-{n}"]["iteratorPolicy"]["parallelismLimit"] for n in range(1, 6)]
    assert limits == [1, 1, parallel_tasks, parallel_tasks, parallel_tasks]


def test_compiling_twice_gives_the_same_file(tmp_path: Path) -> None:
    plan = make_plan(load_study(DEMO))
    paths = [tmp_path / name for name in ("one.yaml", "two.yaml")]
    for path in paths:
        compile_pipeline(plan, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def changed_tasks(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {name for name in tasks_of(before) if constants(before, name) != constants(after, name)}


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        (["splits.seed=1"], {"assign-splits", "write-report"}),
        (["shards.num_parts=8"], {"write-shards", "write-report"}),
        (["compare.num_replicates=200"], {"compare", "write-report"}),
        (["subgroups.min_patients=30"], {"analyze-subgroups", "write-report"}),
        (["predict.batch_size=8"], {"predict", "write-report"}),
        (["finetune.num_steps=100"], {"search-hyperparameters", "finetune", "write-report"}),
        (["report.title=Other"], {"write-report"}),
        (["resources.parallel_tasks=1"], set()),
        (["data.root=/tmp/x", "data.generate=null"], set()),
        (["data.generate.seed=1"], set()),
    ],
    ids=lambda value: value[0] if isinstance(value, Sequence) else "",
)
def test_a_setting_changes_its_own_stage_and_the_report(
    tmp_path: Path, demo_ir: dict[str, Any], overrides: list[str], changed: set[str]
) -> None:
    assert changed_tasks(demo_ir, compile_study(load_study(DEMO, overrides), tmp_path)) == changed


def test_another_arm_leaves_the_items_of_the_others_as_they_were(tmp_path: Path) -> None:
    study = load_study(DEMO)
    more = [*(arm.dump() for arm in study.arms), RANDOM_ARM | {"name": "another"}]
    items, more_items = make_plan(study).arms, make_plan(demo(arms=more)).arms
    assert more_items[: len(items)] == items
    assert len(more_items) == len(items) + 1


def test_pretraining_is_told_the_task_for_its_probe_alone() -> None:
    (probed,) = make_plan(load_study(DEMO)).levels[0]
    assert probed["task"] == load_study(DEMO).task.dump()
    overrides = ["pretraining.simclr.probe=false", "task.uncertain=u_ones"]
    (unprobed,) = make_plan(load_study(DEMO, overrides)).levels[0]
    assert "task" not in unprobed


def test_every_stage_of_the_plan_is_a_task_of_the_demo(demo_ir: dict[str, Any]) -> None:
    stages = {task.rstrip("-0123456789").replace("-", "_") for task in tasks_of(demo_ir)}
    assert stages == set(STAGES) - {"prepare_dataset", "promote"}  # the demo has no external set and promotes nothing


def test_the_plan_lists_every_task_with_its_item(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", str(DEMO)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[4].split(maxsplit=1) == ["5", "pretrain simclr"]
    assert printed[7].split(maxsplit=1) == ["8", "collect checkpoints level 2"]
    assert printed[-1].startswith("22 tasks, 8 of them train; ")
    assert main(["compile", str(DEMO), "--out", str(tmp_path / "pipeline.txt")]) == 78
    assert "expected the name of a YAML file" in capsys.readouterr().err


def test_the_plan_counts_the_tasks_that_run() -> None:
    # Before loops 4; a level each: runs and a collect; three loops over the arms; select, collect, compare,
    # analyze_subgroups, write_report.
    plan = make_plan(load_study(DEMO))
    assert plan.num_tasks == 4 + (1 + 1) + (1 + 1) + 3 * 3 + 5
    assert plan.num_training_processes == 1 + 1 + 2 * 3


def test_a_study_that_promotes_has_one_task_more_that_is_never_cached(tmp_path: Path) -> None:
    study = load_study(DEMO, ["promote={enabled: true, arm: micle}"])
    plan = make_plan(study)
    assert plan.tasks[-1] == "promote micle"
    assert plan.sections["promote"]["encoder"] == study.encoders["resnet18-quarter"].dump()
    compile_pipeline(plan, tmp_path / "pipeline.yaml")
    ir = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    task = ir["root"]["dag"]["tasks"]["promote"]
    assert "enableCache" not in task["cachingOptions"]
    assert "promotion" in ir["root"]["outputDefinitions"]["artifacts"]
    with pytest.raises(ConfigError, match=r'promote\.arm: name the arm whose model is the candidate, found "nobody"'):
        load_study(DEMO, ["promote={enabled: true, arm: nobody}"])

"""Which edit changes the version of which stage, on a copy of the sources."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from medssl import code_version
from pipelines.plan import STAGES

# promote is never cached, and its version is that of all that it may call.
ALL = set(STAGES) - {"promote"}
TRAINING = {"pretrain", "search_hyperparameters", "finetune", "predict"}
ANALYSIS = {"compare", "analyze_subgroups", "write_report"}
# An external set goes through these in one stage, which so depends on whatever one of them does.
OF_DATASET = {"fingerprint", "ingest", "write_shards"}


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "medssl"
    shutil.copytree(code_version.SOURCE_DIR, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_version, "SOURCE_DIR", copy)
    return copy


def versions() -> dict[str, str]:
    return {stage: code_version.stage_version(module, stage) for stage, module in STAGES.items() if stage in ALL}


def changed(before: dict[str, str]) -> set[str]:
    after = versions()
    return {stage for stage in ALL if before[stage] != after[stage]}


def append(path: Path, text: str = "\n_EDITED = 1\n") -> None:
    path.write_text(path.read_text() + text)


def insert_in(path: Path, function: str, statement: str) -> None:
    """Put a statement at the end of a function's docstring, so at the start of its work."""
    head, found, tail = path.read_text().partition(f"\ndef {function}(")
    assert found, function
    opening, quotes, rest = tail.partition('"""\n')
    assert quotes, function
    path.write_text(f"{head}{found}{opening}{quotes}    {statement}\n{rest}")


def with_dataset(stages: set[str]) -> set[str]:
    return stages | ({"prepare_dataset"} if stages & OF_DATASET else set())


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("analysis/report.py", {"write_report"}),
        ("analysis/figures.py", {"write_report"}),
        ("analysis/subgroups.py", {"analyze_subgroups"}),
        ("analysis/bootstrap.py", ANALYSIS - {"write_report"}),
        ("analysis/runs.py", ANALYSIS),
        ("data/fingerprint.py", {"fingerprint"}),
        ("data/chexpert.py", {"ingest"}),
        ("data/splits.py", {"assign_splits"}),
        ("data/ranks.py", {"assign_splits"}),
        ("data/shards.py", {"write_shards"}),
        ("data/phantom.py", set()),
        ("data/nih.py", {"ingest"}),
        ("data/duplicates.py", {"ingest"}),
        ("imaging.py", {"ingest", "write_shards"} | TRAINING),
        ("data/skin_phantom/patients.py", set()),
        ("data/generated.py", set()),
        ("train/pretrain.py", {"pretrain"}),
        ("train/finetune.py", {"search_hyperparameters", "finetune"}),
        ("train/scoring.py", TRAINING - {"pretrain"}),
        ("train/footprint.py", set()),
        ("stages/evaluations.py", {"predict"}),
        ("train/probe.py", set()),
        ("train/predict.py", {"predict"}),
        ("train/launch.py", TRAINING),
        ("model/networks.py", TRAINING),
        ("metrics.py", (TRAINING | ANALYSIS) - {"pretrain"}),
        ("stages/step.py", ALL),
        ("store.py", ALL),
        ("config.py", ALL),
        ("tracking.py", set()),
        ("progress.py", set()),
        ("code_version.py", set()),
        ("__main__.py", set()),
    ],
)
def test_editing_a_module_changes_the_stages_that_use_it_and_no_other(
    sources: Path, file: str, stages: set[str]
) -> None:
    before = versions()
    append(sources / file)
    assert changed(before) == with_dataset(stages)


@pytest.mark.parametrize("stage", sorted(ALL))
def test_editing_a_stage_function_changes_that_stage_only(sources: Path, stage: str) -> None:
    before = versions()
    insert_in(sources / f"{STAGES[stage].removeprefix('medssl.').replace('.', '/')}.py", stage, "edited = 1")
    assert changed(before) == with_dataset({stage})


@pytest.mark.parametrize(
    ("function", "stages"),
    [
        ("choose", {"select"}),
        ("repeats", {"finetune"}),
        ("grid", {"search_hyperparameters"}),
        ("_initial", TRAINING - {"predict"}),
    ],
)
def test_editing_a_helper_changes_the_stages_that_call_it(sources: Path, function: str, stages: set[str]) -> None:
    before = versions()
    insert_in(sources / "stages" / "train.py", function, "edited = 1")
    assert changed(before) == stages


def test_a_constant_of_a_stage_module_counts_where_it_is_named(sources: Path) -> None:
    path = sources / "stages" / "train.py"
    before = versions()
    text = path.read_text()
    assert "\nSEARCH_REPEAT = -1\n" in text
    path.write_text(text.replace("\nSEARCH_REPEAT = -1\n", "\nSEARCH_REPEAT = -2\n"))
    assert changed(before) == {"search_hyperparameters"}


@pytest.mark.parametrize(
    "definition",
    ["STEP, _ = 1, 2", "STEP = 1\nSTEP += 1", "if True:\n    STEP = 1", "for STEP in (1,):\n    pass", "STEP: int = 1"],
)
def test_a_constant_counts_however_it_is_bound(sources: Path, definition: str) -> None:
    path = sources / "stages" / "train.py"
    insert_in(path, "select", "print(STEP)")
    append(path, f"\n{definition}\n")
    before = versions()
    path.write_text(path.read_text().replace(definition, definition.replace("1", "7", 1)))
    assert changed(before) == {"select"}


def test_an_import_that_only_one_stage_names_is_not_the_others(sources: Path) -> None:
    path = sources / "stages" / "data.py"
    before = versions()
    path.write_text(path.read_text().replace("import layout, schema\n", "import labels, layout, schema\n", 1))
    assert changed(before) == set()
    insert_in(path, "ingest", "print(labels)")
    assert changed(before) == with_dataset({"ingest"})
    before = versions()
    append(sources / "labels.py")
    assert "ingest" in changed(before)


def test_a_comment_in_a_stage_module_changes_nothing(sources: Path) -> None:
    before = versions()
    append(sources / "stages" / "data.py", "\n# a remark\n")
    assert changed(before) == set()


def test_a_new_module_counts_once_it_is_imported(sources: Path) -> None:
    before = versions()
    (sources / "analysis" / "novel.py").write_text('"""New."""\n')
    assert changed(before) == set()
    append(sources / "analysis" / "subgroups.py", "\nimport medssl.analysis.novel\n")
    assert changed(before) == {"analyze_subgroups"}
    before = versions()
    append(sources / "analysis" / "novel.py")
    assert changed(before) == {"analyze_subgroups"}


@pytest.mark.parametrize(
    ("distribution", "stages"),
    [
        ("torch", TRAINING),
        ("safetensors", TRAINING),
        ("apache-beam", {"write_shards"}),
        ("pillow", {"ingest", "write_shards"} | TRAINING),
        ("numba", TRAINING | {"compare", "analyze_subgroups"}),
        ("matplotlib", {"write_report"}),
        ("pydantic", ALL),
        ("mlflow", set()),
        ("kfp", set()),
    ],
)
def test_another_version_of_a_library_changes_the_stages_that_use_it(
    sources: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, stages: set[str]
) -> None:
    before = versions()
    installed = code_version._version
    assert importlib.metadata.version(distribution) != "0.0.0"
    monkeypatch.setattr(code_version, "_version", lambda name: "0.0.0" if name == distribution else installed(name))
    assert changed(before) == with_dataset(stages)


def test_a_version_does_not_depend_on_where_the_sources_lie(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = versions()
    moved = shutil.copytree(sources, sources.parent / "elsewhere" / "medssl")
    monkeypatch.setattr(code_version, "SOURCE_DIR", moved)
    assert changed(before) == set()


def test_a_version_is_sixteen_hex_digits_and_the_stages_differ(sources: Path) -> None:
    found = versions()
    assert all(len(version) == 16 and int(version, 16) >= 0 for version in found.values())
    assert len(set(found.values())) == len(found)


def test_a_stage_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no module medssl\.stages\.none"):
        code_version.stage_version("medssl.stages.none", "ingest")
    with pytest.raises(ValueError, match=r"data\.py defines no vanish"):
        code_version.stage_version("medssl.stages.data", "vanish")


@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        ("medssl", True),
        ("medssl.data", True),
        ("medssl.data.splits", True),
        ("medssl.nothing", False),
        ("medssl.run_key/..", False),
        ("medssl.../tests", False),
        ("torch", False),
        ("medsslother", False),
    ],
)
def test_a_module_name_has_a_file_only_within_the_package(name: str, is_found: bool) -> None:
    assert (code_version.module_file(name) is not None) == is_found

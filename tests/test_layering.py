"""Who may import whom, and which module owns which heavy library, read from the sources."""

import ast
import functools
from collections.abc import Mapping
from pathlib import Path

import pytest

from medssl.code_version import SOURCE_DIR, imports_of

PROJECT_DIR = SOURCE_DIR.parents[1]

# What each layer may import of the project, besides itself.
BASE = "base"  # the modules directly under medssl/
MAY_IMPORT: Mapping[str, set[str]] = {
    BASE: set(),
    "model": {BASE},
    "data": {BASE},
    "analysis": {BASE},
    "train": {"model", BASE},
    "stages": {"data", "train", "analysis", BASE},
    "command": {"stages", "data", "train", "analysis", "model", BASE},
    "components": {"stages", BASE},
    "pipelines": {"components", "stages", "data", "train", "analysis", BASE},
}

# The modules, or packages of them, that may import a library.
OWNERS: Mapping[str, tuple[str, ...]] = {
    "torch": ("medssl.model", "medssl.train"),
    "torchvision": ("medssl.model", "medssl.train"),
    "safetensors": ("medssl.model", "medssl.train"),
    "timm": ("medssl.model",),
    "numba": ("medssl.train.pixels", "medssl.analysis.kernels"),
    "llvmlite": ("medssl.train.pixels", "medssl.analysis.kernels"),
    "cv2": ("medssl.train",),
    "apache_beam": ("medssl.data.shards",),
    "mlflow": ("medssl.delivery", "medssl.mlflow_notes", "medssl.mlflow_runs", "medssl.registry"),
    "sklearn": (),  # only tests, which compare the metrics with it
    "kubernetes": ("medssl.train.launch",),
    "kfp": ("components", "pipelines"),
    "matplotlib": ("medssl.analysis.figures",),
    "fsspec": ("medssl.store",),
}


def layer_of(module: str) -> str | None:
    """Layer of a module of the project; None for others."""
    top, _, rest = module.partition(".")
    if top in ("components", "pipelines"):
        return top
    if top != "medssl":
        return None
    if rest.partition(".")[0] in ("__main__", "commands"):
        return "command"
    part = rest.partition(".")[0]
    return part if part in MAY_IMPORT else BASE


def violations(module: str, source: str) -> list[str]:
    """Imports in `source`, the text of `module`, that are not allowed there."""
    tree = ast.parse(source)
    layer = layer_of(module)
    assert layer is not None, module
    found = [
        f"{module}: relative import" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    for name in sorted(set(imports_of(tree))):
        target = layer_of(name)
        if target is not None and target != layer and target not in MAY_IMPORT[layer]:
            found.append(f"{module} ({layer}) imports {name} ({target})")
        owners = OWNERS.get(name.partition(".")[0])
        if owners is not None and not any(module == owner or module.startswith(f"{owner}.") for owner in owners):
            found.append(f"{module} imports {name}, which belongs to {' and '.join(owners)}")
    return found


def project_modules() -> dict[str, Path]:
    roots = [(SOURCE_DIR.parent, SOURCE_DIR), *((PROJECT_DIR, PROJECT_DIR / n) for n in ("components", "pipelines"))]
    modules = {}
    for base, folder in roots:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            modules[".".join(part for part in parts if part != "__init__")] = path
    return modules


MODULES = project_modules()


@functools.cache
def imported_by() -> dict[str, set[str]]:
    """What each module of the project imports."""
    return {module: set(imports_of(ast.parse(path.read_text("utf-8")))) for module, path in MODULES.items()}


def test_all_layers_are_seen() -> None:
    assert {layer_of(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("library", sorted(set(OWNERS) - {"kubernetes", "sklearn", "torchvision"}))
def test_an_owner_of_a_library_uses_it(library: str) -> None:
    assert any(name.partition(".")[0] == library for names in imported_by().values() for name in names)


def test_modules_under_the_package_import_each_other_without_cycles() -> None:
    """Within a layer the order is free, but there must be one."""
    imported = {
        module: {name for name in names & set(MODULES) - {module} if MODULES[name].name != "__init__.py"}
        for module, names in imported_by().items()
        if module.startswith("medssl.")
    }
    while leaves := {module for module, names in imported.items() if not names & set(imported)}:
        imported = {module: names for module, names in imported.items() if module not in leaves}
    assert imported == {}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("medssl.store", "from medssl.data import chexpert"),
        ("medssl.model.losses", "import medssl.train.optim"),
        ("medssl.model.losses", "from medssl.train import optim"),
        ("medssl.data.splits", "from medssl.analysis.compare import compare"),
        ("medssl.data.splits", "from medssl.model import networks"),
        ("medssl.train.pretrain", "from medssl.data import chexpert"),
        ("medssl.analysis.report", "from medssl.train import checkpoint"),
        ("medssl.train.pretrain", "from medssl.stages import step"),
        ("medssl.stages.data", "from medssl import __main__"),
        ("medssl.stages.data", "import components.ingest"),
        ("medssl.stages.train", "from medssl.model import networks"),
        ("medssl.__main__", "from pipelines import local"),
        ("components.ingest", "from pipelines.plan import STAGES"),
        ("components.ingest", "from medssl.data import chexpert"),
        ("medssl.train.pretrain", "from . import optim"),
        ("medssl.stages.train", "import torch"),
        ("medssl.stages.train", "def late():\n    import torch.nn as nn"),
        ("medssl.stages.train", "if True:\n    from torch import nn"),
        ("medssl.analysis.report", "from matplotlib import pyplot"),
        ("medssl.data.chexpert", "import apache_beam as beam"),
        ("medssl.data.shards_extra", "import apache_beam"),
        ("medssl.analysis.compare", "from sklearn.metrics import roc_auc_score"),
        ("medssl.stages.step", "import mlflow"),
        ("medssl.train.pretrain", "import kubernetes"),
        ("medssl.shardset", "import fsspec"),
        ("medssl.stages.data", "from kfp import dsl"),
        ("medssl.analysis.report", 'run("medssl.train.pretrain")'),
    ],
)
def test_a_wrong_import_is_caught(module: str, line: str) -> None:
    assert violations(module, f'"""Text."""\nimport json\n{line}\n') != []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("pipelines.study", "from components.ingest import ingest"),
        ("pipelines.local", "from medssl.analysis import report"),
        ("components.ingest", "from medssl.stages import data"),
        ("components.ingest", "from kfp import dsl"),
        ("medssl.stages.train", 'launch("medssl.train.pretrain")'),
        ("medssl.train.pretrain", "from medssl.model.networks import ResNet"),
        ("medssl.train.pretrain", "import torch"),
        ("medssl.data.shards", "import apache_beam.options"),
        ("medssl.__main__", "from medssl.data import phantom"),
        ("medssl.store", "from medssl.exit_codes import BadInputError"),
        ("medssl.stages.data", "import torchmetrics_of_another_name"),
    ],
)
def test_a_right_import_passes(module: str, line: str) -> None:
    assert violations(module, f"{line}\n") == []

"""The version of a stage's code: what its result can depend on, and nothing else.

A stage function imports inside its body what only it needs. Its version is a SHA-256 over the source of the function,
of the module-level code it names, of every project module that these import, transitively, and over the
versions of the third-party packages met on the way. Editing `report.py` therefore changes `write_report` alone.
"""

import ast
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = "medssl"
SOURCE_DIR = Path(__file__).parent
# Modules that watch a stage at work or name its code: no result depends on them. (The last is also the name of a tag.)
WATCHERS = tuple(f"{PACKAGE}.{name}" for name in ("tracking", "lineage", "progress", "train.probe", "code_version"))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that `tree` imports anywhere, "a.b.c" for `from a.b import c` too.

    A string that is the name of a project module counts as well: so stages name what their worker processes run.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and module_file(node.value):
            yield node.value


def module_file(module: str) -> Path | None:
    """The file of a module of this package, or None where there is none of that name."""
    if module != PACKAGE and not module.startswith(f"{PACKAGE}."):
        return None
    if not all(part.isidentifier() for part in module.split(".")):
        return None
    base = SOURCE_DIR.joinpath(*module.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.cache
def _parse(source: str) -> ast.Module:
    return ast.parse(source)


@functools.cache
def _imports_in(source: str) -> tuple[str, ...]:
    return tuple(imports_of(_parse(source)))


def closure(trees: Iterable[ast.AST]) -> tuple[set[Path], set[str]]:
    """Project files and third-party top-level packages that `trees` import, transitively."""
    files: set[Path] = set()
    third_party: set[str] = set()
    waiting = [module for tree in trees for module in imports_of(tree)]
    while waiting:
        module = waiting.pop()
        if module.startswith(WATCHERS):
            continue
        path = module_file(module)
        if path is not None and path not in files:
            files.add(path)
            waiting += _imports_in(path.read_text(encoding="utf-8"))
        elif not module.startswith(PACKAGE):
            third_party.add(module.split(".")[0])
    return files, third_party


def function_trees(path: Path, function: str) -> list[ast.stmt]:
    """The statements of a module on which `function` depends: itself and, transitively, what it names.

    Raises:
        ValueError: The module defines no such function.
    """
    defined: dict[str, list[ast.stmt]] = {}
    for statement in _parse(path.read_text(encoding="utf-8")).body:
        for name in _names_bound(statement):
            defined.setdefault(name, []).append(_only(statement, name))
    if function not in defined:
        raise ValueError(f"{path.name} defines no {function}")
    needed: dict[str, list[ast.stmt]] = {}
    waiting = [function]
    while waiting:
        name = waiting.pop()
        if name in defined and name not in needed:
            needed[name] = defined[name]
            waiting += [n.id for tree in defined[name] for n in ast.walk(tree) if isinstance(n, ast.Name)]
    return [tree for name in sorted(needed) for tree in needed[name]]


def _names_bound(statement: ast.stmt) -> set[str]:
    """Names that a statement of a module defines there, at any depth of assignments and branches."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    nodes = list(ast.walk(statement))
    aliases = {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    return aliases | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _only(statement: ast.stmt, name: str) -> ast.stmt:
    """Of an import of several names, the part that defines `name`: the others are other functions' business."""
    if not isinstance(statement, ast.Import | ast.ImportFrom):
        return statement
    aliases = [alias for alias in statement.names if (alias.asname or alias.name).split(".")[0] == name]
    if isinstance(statement, ast.Import):
        return ast.Import(names=aliases)
    return ast.ImportFrom(module=statement.module, names=aliases, level=statement.level)


def stage_version(stage_module: str, function: str) -> str:
    """The code version of one stage function, 16 hex digits.

    Args:
        stage_module: For example "medssl.stages.analysis".
        function: For example "write_report".
    """
    path = module_file(stage_module)
    if path is None:
        raise ValueError(f"no module {stage_module}")
    trees = function_trees(path, function)
    files, third_party = closure(trees)
    hasher = hashlib.sha256()
    for tree in trees:
        hasher.update(ast.unparse(tree).encode())
    # A module's data, such as published tables, lies in the folder of its name.
    for file in sorted(files | {data for path in files for data in path.with_suffix("").glob("*.csv")}):
        hasher.update(str(file.relative_to(SOURCE_DIR)).encode() + b"\0" + file.read_bytes())
    for distribution, version in sorted(_versions(third_party)):
        hasher.update(f"{distribution}=={version}\n".encode())
    return hasher.hexdigest()[:16]


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return {name: list(found) for name, found in importlib.metadata.packages_distributions().items()}


@functools.cache
def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def _versions(packages: Iterable[str]) -> set[tuple[str, str]]:
    """Installed distributions and versions of top-level packages; the standard library has none."""
    return {
        (distribution, _version(distribution))
        for package in packages
        for distribution in _distributions().get(package, ())
    }

"""Refuses, in a compiled pipeline, what KFP compiles but runs wrongly.

Each rule stands for a construct that `kfp.local` 2.17 computes wrongly without a word, that leaves a reference open on
a cluster, or that makes a run depend on more than the study and its images.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medssl.config import MAX_LOOP_ITEMS

MAX_PARAMETER_BYTES = 100_000  # kfp.local hands a task all its parameters in one argument; Linux refuses 131 kB
MAX_SOURCE_LINES = 60
NEVER_CACHED = ("fingerprint", "prepare-dataset", "promote")  # what they look at changes without any input changing

_PIP_INSTALL = re.compile(r"\bpip3?\b.*\binstall\b")
_PLACEHOLDER_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\[['\"]([^'\"]+)['\"]\]\}\}")

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class _Task:
    """A task where it stands in the DAG.

    Attributes:
        name: Behind the names of the loops and conditions around it: "for-loop-1/pretrain".
        spec: Its entry in the DAG.
        container: What its executor runs; empty for a sub-DAG.
        outer: Input definitions of the DAG in which it stands.
        origins: For each parameter of that DAG, the value that it is given at its start.
        defaults: Default values of the pipeline's own parameters.
        is_in_loop: Whether a loop is around it, at any distance.
    """

    name: str
    spec: Spec
    container: Spec
    outer: Spec
    origins: Mapping[str, Spec]
    defaults: Spec
    is_in_loop: bool

    @property
    def parameters(self) -> Mapping[str, Spec]:
        """Its parameter inputs."""
        return _at(self.spec, "inputs", "parameters")

    @property
    def is_loop(self) -> bool:
        """Whether it is a ParallelFor."""
        return "parameterIterator" in self.spec or "artifactIterator" in self.spec

    @property
    def loop_list(self) -> Spec:
        """Where the list of a loop over a parameter comes from, seen from the pipeline; empty for other lists."""
        name = _at(self.spec, "parameterIterator", "items").get("inputParameter", "")
        return _origin(self.parameters.get(name, {}), self.origins)


def check(ir: Spec) -> None:
    """Accept a compiled pipeline.

    Raises:
        ValueError: Lists all findings of `lint`.
    """
    if findings := lint(ir):
        raise ValueError(f"the compiled pipeline has {len(findings)} problem(s):\n- " + "\n- ".join(findings))


def lint(ir: Spec) -> list[str]:
    """Problems of a compiled pipeline.

    Args:
        ir: The intermediate representation, as `yaml.safe_load` reads what KFP's compiler wrote.

    Returns:
        One sentence a problem, which names the task and the remedy; empty where nothing was found.
    """
    rules = (
        _task_parameter_in_loop,
        _nested_loop,
        _loop_over_output,
        _named_loop,
        _long_loop,
        _open_reference,
        _installs,
        _inexact_image,
        _caching,
        _large_constants,
        _thick_component,
    )
    tasks = list(_tasks(ir, ir["root"], "", {}, is_in_loop=False))
    findings = [finding for task in tasks for rule in rules for finding in rule(task)]
    return findings + list(_one_of_artifacts(ir)) + list(_large_defaults(ir))


def _tasks(ir: Spec, dag: Spec, prefix: str, origins: Mapping[str, Spec], *, is_in_loop: bool) -> Iterator[_Task]:
    """All tasks of `dag` and of the sub-DAGs below it."""
    executors = _at(ir, "deploymentSpec", "executors")
    defaults = {n: p.get("defaultValue") for n, p in _at(ir["root"], "inputDefinitions", "parameters").items()}
    for name, spec in sorted(dag["dag"]["tasks"].items()):
        component = ir["components"][spec["componentRef"]["name"]]
        container = _at(executors, component.get("executorLabel", ""), "container")
        outer = dag.get("inputDefinitions", {})
        task = _Task(prefix + name, spec, container, outer, origins, defaults, is_in_loop)
        yield task
        if "dag" in component:
            inner = {key: _origin(value, origins) for key, value in task.parameters.items()}
            yield from _tasks(ir, component, f"{task.name}/", inner, is_in_loop=is_in_loop or task.is_loop)


def _origin(value: Spec, origins: Mapping[str, Spec]) -> Spec:
    """A task's input, with a parameter of the DAG around it replaced by what that DAG was given."""
    return origins.get(value.get("componentInputParameter", ""), value)


def _task_parameter_in_loop(task: _Task) -> Iterator[str]:
    listed = _at(task.spec, "parameterIterator", "items").get("inputParameter")
    for name, value in task.parameters.items():
        if task.is_loop and name != listed and "taskOutputParameter" in value:
            producer = value["taskOutputParameter"]["producerTask"]
            yield (
                f"{task.name}: its body takes a parameter from task {producer}, which kfp.local replaces by the "
                f"loop's item; hand it over as an artifact or as a pipeline parameter"
            )


def _nested_loop(task: _Task) -> Iterator[str]:
    if task.is_loop and task.is_in_loop:
        yield f"{task.name}: stands in another loop, whose item kfp.local mixes up; make one flat loop over all pairs"


def _loop_over_output(task: _Task) -> Iterator[str]:
    if "artifactIterator" in task.spec or "taskOutputParameter" in task.loop_list:
        yield f"{task.name}: loops over what a task returned; loop over a pipeline parameter known at compile time"


def _named_loop(task: _Task) -> Iterator[str]:
    shown = _at(task.spec, "taskInfo").get("name")
    if task.is_loop and shown != task.name.rsplit("/", 1)[-1]:
        yield f'{task.name}: the loop is named "{shown}", so its outputs are not found; leave out ParallelFor(name=)'


def _long_loop(task: _Task) -> Iterator[str]:
    raw = _at(task.spec, "parameterIterator", "items").get("raw")
    parameter = task.loop_list.get("componentInputParameter", "")
    items = json.loads(raw) if raw else task.defaults.get(parameter)
    if isinstance(items, list) and len(items) > MAX_LOOP_ITEMS:
        yield (
            f"{task.name}: {len(items)} items, at most {MAX_LOOP_ITEMS} are possible; "
            f"let one item stand for several pieces of work"
        )


def _open_reference(task: _Task) -> Iterator[str]:
    for kind, key in (("parameters", "componentInputParameter"), ("artifacts", "componentInputArtifact")):
        for name, value in _at(task.spec, "inputs", kind).items():
            if key in value and value[key] not in _at(task.outer, kind):
                yield (
                    f"{task.name}: input {name} refers to {value[key]}, which the DAG around it does not have; set "
                    f"resources to constants when the pipeline is compiled, and pass other values as arguments"
                )
    for name in _PLACEHOLDER_INPUT.findall(json.dumps(task.container.get("resources", {}))):
        if name not in task.parameters:
            yield f"{task.name}: its resources refer to {name}, which it is not given; set them to constants"


def _installs(task: _Task) -> Iterator[str]:
    words = [*task.container.get("command", ()), *task.container.get("args", ())]
    if _PIP_INSTALL.search(" ".join(words)):  # joined, since ["pip", "install"] is one command as well
        yield (
            f"{task.name}: installs packages at run time; put them into the image and give the component "
            f"packages_to_install=[] and install_kfp_package=False"
        )


def _inexact_image(task: _Task) -> Iterator[str]:
    image = task.container.get("image")
    if image is None or "@sha256:" in image:
        return
    tag = image.rsplit("/", 1)[-1].partition(":")[2]
    if "{{" in image or tag in ("", "latest"):
        yield f'{task.name}: image "{image}" may be another one tomorrow; give an exact tag or a digest'


def _caching(task: _Task) -> Iterator[str]:
    options = _at(task.spec, "cachingOptions")
    if "cacheKey" in options:
        yield (
            f"{task.name}: a cache key of its own hides changed inputs and images; leave out cache_key, "
            f"the parameter code_version says what the code is"
        )
    stage = re.sub(r"-\d+$", "", task.name.rsplit("/", 1)[-1])
    is_exit_task = any(name.startswith("exit-handler-") for name in task.spec.get("dependentTasks", ()))
    is_exit_task &= _at(task.spec, "triggerPolicy").get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
    if options.get("enableCache") and (stage in NEVER_CACHED or is_exit_task):
        yield f"{task.name}: may be cached but has to run every time; call set_caching_options(enable_caching=False)"


def _large_constants(task: _Task) -> Iterator[str]:
    constants = [_at(value, "runtimeValue").get("constant") for value in task.parameters.values()]
    if (size := sum(_num_bytes(constant) for constant in constants)) > MAX_PARAMETER_BYTES:
        yield (
            f"{task.name}: its constants take {size} bytes, at most {MAX_PARAMETER_BYTES} can be handed over; "
            f"pass them as an artifact"
        )


def _thick_component(task: _Task) -> Iterator[str]:
    if "--function_to_execute" not in task.container.get("args", ()):
        return
    lines = str(task.container["command"][-1]).strip().count("\n") + 1
    if lines > MAX_SOURCE_LINES:
        yield (
            f"{task.name}: the component's source has {lines} lines, at most {MAX_SOURCE_LINES} are thin; "
            f"move the work into its stage"
        )


def _one_of_artifacts(ir: Spec) -> Iterator[str]:
    for component, spec in sorted(ir["components"].items()):
        for name, output in _at(spec, "dag", "outputs", "artifacts").items():
            if len(output["artifactSelectors"]) > 1:
                yield (
                    f"{component.removeprefix('comp-')}: output {name} is OneOf several artifacts, which kfp.local "
                    f"refuses; decide when the pipeline is compiled, or inside a task"
                )


def _large_defaults(ir: Spec) -> Iterator[str]:
    owners: Iterable[tuple[str, Spec]] = [*sorted(ir["components"].items()), ("the pipeline", ir["root"])]
    for owner, spec in owners:
        for name, parameter in _at(spec, "inputDefinitions", "parameters").items():
            if (size := _num_bytes(parameter.get("defaultValue"))) > MAX_PARAMETER_BYTES:
                yield (
                    f"{owner.removeprefix('comp-')}: the default of {name} takes {size} bytes, at most "
                    f"{MAX_PARAMETER_BYTES} can be handed over; pass it as an artifact"
                )


def _num_bytes(value: object) -> int:
    return 0 if value is None else len(json.dumps(value))


def _at(spec: Spec, *keys: str) -> Mapping[str, Any]:
    """The mapping below `keys`, empty where there is none: the IR leaves out what is empty."""
    for key in keys:
        spec = spec.get(key) or {}
    return spec

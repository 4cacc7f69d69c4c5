"""Each rule: a pipeline that breaks it is found, by task, and the right form passes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from kfp import compiler, dsl

from medssl.config import MAX_LOOP_ITEMS
from pipelines.lint import MAX_PARAMETER_BYTES, MAX_SOURCE_LINES, check, lint

RIGHT: dict[str, Any] = {
    "base_image": "registry.example:5000/tools/medssl-python:1.0",
    "packages_to_install": [],
    "install_kfp_package": False,
}


@dsl.component(**RIGHT)
def say() -> str:
    return "said"


@dsl.component(**RIGHT)
def list_items() -> list:  # type: ignore[type-arg]
    return ["a"]


@dsl.component(**RIGHT)
def list_named() -> NamedTuple("Listed", [("items", list)]):
    return (["a"],)


@dsl.component(**RIGHT)
def use(first: str, second: str = "") -> str:
    return first + second


@dsl.component(**RIGHT)
def fingerprint(root: str) -> str:
    return root


@dsl.component(**RIGHT)
def promote(root: str) -> str:
    return root


@dsl.component(**RIGHT)
def make(name: str, table: dsl.Output[dsl.Dataset]) -> None:
    pass


@dsl.component(**RIGHT)
def read(name: str, table: dsl.Input[dsl.Dataset]) -> str:
    return name


@dsl.component(**RIGHT)
def read_all(tables: dsl.Input[list[dsl.Dataset]]) -> str:
    return ""


@dsl.component(**RIGHT)
def take(items: list) -> str:  # type: ignore[type-arg]
    return ""


Compile = Callable[[Callable[..., Any]], dict[str, Any]]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    def compile_it(body: Callable[..., Any]) -> dict[str, Any]:
        path = tmp_path / "pipeline.yaml"
        compiler.Compiler().compile(dsl.pipeline(name="tiny")(body), str(path))
        ir: dict[str, Any] = yaml.safe_load(path.read_text())
        return ir

    return compile_it


def only_finding(ir: dict[str, Any]) -> str:
    findings = lint(ir)
    assert len(findings) == 1, findings
    assert "\n" not in findings[0]
    return findings[0]


def test_the_right_form_of_everything_passes(compiled: Compile) -> None:
    def right(names: list, option: str, root: str = "r") -> None:  # type: ignore[type-arg]
        source = fingerprint(root=root).set_caching_options(enable_caching=False)
        made = make(name=source.output)
        made.set_cpu_limit("2").set_memory_limit("1G").set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
        with dsl.ParallelFor(names, parallelism=2) as name:
            inner = make(name=name.key)
            seen = read(name=name.key, table=made.outputs["table"])
            use(first=seen.output, second=option)
            with dsl.If(name.key == "a"):
                say()
        read_all(tables=dsl.Collected(inner.outputs["table"]))
        take(items=dsl.Collected(seen.output))

    assert lint(compiled(right)) == []


def test_a_task_parameter_in_a_loop_is_found(compiled: Compile) -> None:
    def wrong(names: list) -> None:  # type: ignore[type-arg]
        said = say()
        with dsl.ParallelFor(names) as name:
            use(first=name, second=said.output)

    finding = only_finding(compiled(wrong))
    assert finding.startswith("for-loop-1: ")
    assert "from task say" in finding


def test_a_task_parameter_in_a_condition_within_a_loop_is_found(compiled: Compile) -> None:
    def wrong(names: list) -> None:  # type: ignore[type-arg]
        said = say()
        with dsl.ParallelFor(names) as name, dsl.If(said.output == "yes"):
            use(first=name)

    assert "from task say" in only_finding(compiled(wrong))


def test_a_task_parameter_that_a_sub_pipeline_hands_to_its_loop_passes(compiled: Compile) -> None:
    # Right in kfp.local: only what the loop itself takes from a task is replaced.
    @dsl.pipeline(name="inner")
    def inner(names: list, text: str) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names) as name:
            use(first=name, second=text)

    def right(names: list) -> None:  # type: ignore[type-arg]
        inner(names=names, text=say().output)

    assert lint(compiled(right)) == []


def test_a_nested_loop_is_found(compiled: Compile) -> None:
    def wrong(names: list) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names) as name, dsl.ParallelFor(["x", "y"]) as other:
            use(first=name, second=other)

    finding = only_finding(compiled(wrong))
    assert finding.startswith("for-loop-1/for-loop-")
    assert "one flat loop" in finding


def test_a_nested_loop_behind_a_condition_is_found(compiled: Compile) -> None:
    def wrong(names: list) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names) as name, dsl.If(name == "a"), dsl.ParallelFor(["x", "y"]) as other:
            use(first=other)

    assert "condition-2/for-loop-" in only_finding(compiled(wrong))


def test_two_flat_loops_pass(compiled: Compile) -> None:
    def right(names: list) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names) as name:
            use(first=name)
        with dsl.ParallelFor(["x", "y"]) as other:
            use(first=other)

    assert lint(compiled(right)) == []


def test_a_loop_over_a_task_output_is_found(compiled: Compile) -> None:
    def wrong() -> None:
        with dsl.ParallelFor(list_items().output) as name:
            use(first=name)

    assert only_finding(compiled(wrong)).startswith("for-loop-1: loops over what a task returned")


def test_a_loop_over_a_named_output_is_found(compiled: Compile) -> None:
    def wrong() -> None:
        with dsl.ParallelFor(list_named().outputs["items"]) as name:
            use(first=name)

    assert only_finding(compiled(wrong)).startswith("for-loop-1: loops over what a task returned")


def test_a_loop_over_a_task_output_handed_through_a_condition_is_found(compiled: Compile) -> None:
    def wrong(option: str) -> None:
        listed = list_items()
        with dsl.If(option == "yes"), dsl.ParallelFor(listed.output) as name:
            use(first=name)

    assert only_finding(compiled(wrong)).startswith("condition-1/for-loop-2: loops over what a task returned")


def test_a_loop_over_collected_artifacts_is_found(compiled: Compile) -> None:
    def right(names: list) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names) as name:
            use(first=name)

    ir = compiled(right)
    loop = ir["root"]["dag"]["tasks"]["for-loop-1"]
    del loop["parameterIterator"]
    loop["artifactIterator"] = {"itemInput": "table", "items": {"inputArtifact": "tables"}}
    assert "loops over what a task returned" in only_finding(ir)


def test_one_of_artifacts_is_found_and_one_of_parameters_passes(compiled: Compile) -> None:
    def wrong(option: str) -> None:
        with dsl.If(option == "yes"):
            one = make(name="one")
        with dsl.Else():
            other = make(name="other")
        read(name="", table=dsl.OneOf(one.outputs["table"], other.outputs["table"]))

    def right(option: str) -> None:
        with dsl.If(option == "yes"):
            one = use(first="one")
        with dsl.Else():
            other = use(first="other")
        use(first=dsl.OneOf(one.output, other.output))

    assert only_finding(compiled(wrong)).startswith("condition-branches-1: ")
    assert lint(compiled(right)) == []


def test_a_named_loop_is_found_and_a_named_task_passes(compiled: Compile) -> None:
    def wrong(names: list) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names, name="my-loop") as name:
            use(first=name)

    def right(names: list) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names) as name:
            use(first=name).set_display_name("my task")

    assert 'named "my-loop"' in only_finding(compiled(wrong))
    assert lint(compiled(right)) == []


def test_resources_from_a_pipeline_parameter_are_found_in_a_loop_only(compiled: Compile) -> None:
    def wrong(names: list, cpus: str) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names) as name:
            use(first=name).set_cpu_limit(cpus)

    def right(cpus: str) -> None:
        use(first="").set_cpu_limit(cpus)

    finding = only_finding(compiled(wrong))
    assert finding.startswith("for-loop-1/use: ")
    assert "pipelinechannel--cpus" in finding
    assert lint(compiled(right)) == []


def test_resources_that_refer_to_no_input_of_the_task_are_found(compiled: Compile) -> None:
    def right(cpus: str) -> None:
        use(first="").set_cpu_limit(cpus)

    ir = compiled(right)
    del ir["root"]["dag"]["tasks"]["use"]["inputs"]["parameters"]["pipelinechannel--cpus"]
    assert "its resources refer to pipelinechannel--cpus" in only_finding(ir)


def test_an_artifact_that_the_surrounding_dag_does_not_have_is_found(compiled: Compile) -> None:
    def right(names: list) -> None:  # type: ignore[type-arg]
        made = make(name="")
        with dsl.ParallelFor(names) as name:
            read(name=name, table=made.outputs["table"])

    ir = compiled(right)
    assert lint(ir) == []
    del ir["components"]["comp-for-loop-1"]["inputDefinitions"]["artifacts"]
    assert "refers to pipelinechannel--make-table" in only_finding(ir)


@pytest.mark.parametrize(
    "options",
    [{"packages_to_install": ["numpy"]}, {"install_kfp_package": True}],
    ids=["a package", "kfp itself, the default"],
)
def test_installing_at_run_time_is_found(compiled: Compile, options: dict[str, Any]) -> None:
    @dsl.component(**{**RIGHT, **options})
    def installing() -> str:
        return ""

    def wrong() -> None:
        installing()

    finding = only_finding(compiled(wrong))
    assert finding.startswith("installing: installs packages at run time")


@pytest.mark.parametrize("command", [["pip", "install", "numpy"], ["sh", "-c", "set -e\npython3 -m pip install numpy"]])
def test_installing_in_a_container_component_is_found(compiled: Compile, command: list[str]) -> None:
    @dsl.container_component
    def installing() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="alpine:3.20", command=command)

    def wrong() -> None:
        installing()

    assert "at run time" in only_finding(compiled(wrong))


@pytest.mark.parametrize(
    "image", ["tools/medssl-python", "tools/medssl-python:latest", "registry.example:5000/medssl-python"]
)
def test_an_image_without_an_exact_tag_is_found(compiled: Compile, image: str) -> None:
    def wrong() -> None:
        use(first="").set_container_image(image)

    assert f'image "{image}"' in only_finding(compiled(wrong))


def test_an_image_that_a_parameter_names_is_found(compiled: Compile) -> None:
    def image(name: str) -> None:
        use(first="").set_container_image(name)

    def tag(name: str) -> None:
        use(first="").set_container_image(f"medssl:{name}")

    for wrong in (image, tag):
        assert only_finding(compiled(wrong)).startswith("use: image ")


@pytest.mark.parametrize("image", ["medssl:0.1.0", f"medssl@sha256:{'0' * 64}", "registry.example:5000/medssl:2"])
def test_an_exact_image_passes(compiled: Compile, image: str) -> None:
    def right() -> None:
        use(first="").set_container_image(image)

    assert lint(compiled(right)) == []


def test_a_cache_key_is_found(compiled: Compile) -> None:
    def wrong() -> None:
        use(first="").set_caching_options(enable_caching=True, cache_key="mine")

    assert "leave out cache_key" in only_finding(compiled(wrong))


@pytest.mark.parametrize("stage", [fingerprint, promote])
def test_a_cached_task_that_looks_at_the_outside_is_found(compiled: Compile, stage: Any) -> None:
    def wrong(root: str) -> None:
        stage(root=root).set_caching_options(enable_caching=False)
        stage(root=root)

    finding = only_finding(compiled(wrong))
    assert finding.startswith(f"{stage.name}-2: may be cached")


def test_a_cached_exit_task_is_found(compiled: Compile) -> None:
    def with_exit_task(*, cached: bool) -> Callable[..., None]:
        def body() -> None:
            leave = use(first="").set_caching_options(enable_caching=cached)
            with dsl.ExitHandler(leave):
                say()

        return body

    assert only_finding(compiled(with_exit_task(cached=True))).startswith("use: may be cached")
    assert lint(compiled(with_exit_task(cached=False))) == []


def test_a_large_default_of_the_pipeline_is_found(compiled: Compile) -> None:
    text = "x" * MAX_PARAMETER_BYTES

    def wrong(large: str = text) -> None:
        use(first=large)

    def right(small: str = text[:-2]) -> None:  # two bytes are the quotation marks of JSON
        use(first=small)

    assert only_finding(compiled(wrong)).startswith("the pipeline: the default of large")
    assert lint(compiled(right)) == []


def test_constants_of_a_task_that_are_large_together_are_found(compiled: Compile) -> None:
    half = "x" * (MAX_PARAMETER_BYTES // 2)

    def wrong() -> None:
        use(first=half, second=half)

    def right() -> None:
        use(first=half)
        use(first=half)

    assert only_finding(compiled(wrong)).startswith("use: its constants take")
    assert lint(compiled(right)) == []


def test_a_loop_over_too_many_items_is_found(compiled: Compile) -> None:
    def over(items: list[str]) -> tuple[Callable[..., None], Callable[..., None]]:
        def static() -> None:
            with dsl.ParallelFor(items) as name:
                use(first=name)

        def by_default(names: list = items) -> None:  # type: ignore[type-arg]
            with dsl.ParallelFor(names) as name:
                use(first=name)

        return static, by_default

    items = [str(number) for number in range(MAX_LOOP_ITEMS + 1)]
    for body in over(items):
        assert f"{MAX_LOOP_ITEMS + 1} items" in only_finding(compiled(body))
    for body in over(items[:-1]):
        assert lint(compiled(body)) == []


def test_a_thick_component_is_found(compiled: Compile) -> None:
    def right() -> None:
        use(first="")

    ir = compiled(right)
    command = ir["deploymentSpec"]["executors"]["exec-use"]["container"]["command"]
    source = command[-1].strip()
    filled = source + "\n    pass" * (MAX_SOURCE_LINES - len(source.splitlines()))
    command[-1] = filled
    assert lint(ir) == []
    command[-1] = f"{filled}\n    pass"
    assert f"source has {MAX_SOURCE_LINES + 1} lines" in only_finding(ir)


def test_check_lists_all_findings_and_leaves_the_pipeline_as_it_was(compiled: Compile) -> None:
    def wrong(names: list) -> None:  # type: ignore[type-arg]
        with dsl.ParallelFor(names, name="my-loop") as name:
            use(first=name).set_container_image("medssl:latest")

    ir = compiled(wrong)
    before = json.dumps(ir)
    with pytest.raises(ValueError, match="2 problem") as raised:
        check(ir)
    assert all(finding in str(raised.value) for finding in lint(ir))
    assert json.dumps(ir) == before


def test_check_accepts_a_right_pipeline(compiled: Compile) -> None:
    def right() -> None:
        use(first="")

    check(compiled(right))

from pathlib import Path

from medssl.stages import step as steps
from medssl.stages.evaluations import EVALUATED, Evaluation, Uses
from medssl.store import Store

TEST = Evaluation("derm", "d1", "test", "first", ("m1", "m2"))
OTHER_SPLIT = Evaluation("derm", "d1", "external", "first", ("m1", "m2"))


def evaluate(store: Store, of: Evaluation, *, item: str) -> tuple[Uses, str]:
    """A step that predicts one set; returns its count and the digest of its result."""
    with steps.start(
        "predict", store=store, code_version="1", config={"set": of.noted()}, inputs={}, item=item
    ) as step:
        uses = Uses.count(store.records(), of, step.key)
        if step.made is None:
            (step.folder / "a.txt").write_text(of.dataset)
            step.finish("predictions", {}, notes={EVALUATED: [of.noted()]})
    return uses, step.result.metadata["digest"]


def test_each_step_that_predicts_a_set_counts_once_and_changes_no_result(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first, digest = evaluate(store, TEST, item="a")
    assert first == Uses(num_tasks=1, num_models=2, num_studies=1)
    assert evaluate(store, TEST, item="a") == (first, digest)  # the same step again is no further use
    second, again = evaluate(store, Evaluation("derm", "d1", "test", "second", ("m2", "m3")), item="b")
    assert second == Uses(num_tasks=2, num_models=3, num_studies=2)
    assert again == digest


def test_other_splits_and_other_data_of_the_same_name_count_apart(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    evaluate(store, TEST, item="a")
    assert evaluate(store, OTHER_SPLIT, item="b")[0].num_tasks == 1
    assert evaluate(store, Evaluation("derm", "d2", "test", "first", ("m1",)), item="c")[0].num_tasks == 1


def test_records_without_such_a_note_are_passed_by(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with steps.start("ingest", store=store, code_version="1", config={}, inputs={}) as step:
        step.finish("index", {})
    assert Uses.count(store.records(), TEST, "k") == Uses(1, 2, 1)

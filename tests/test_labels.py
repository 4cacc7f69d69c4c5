import itertools

import numpy as np
import pyarrow as pa
import pytest

from medssl import schema
from medssl.config import CHEXPERT_FINDINGS, PAPER_CONDITIONS, TaskConfig
from medssl.exit_codes import BadInputError
from medssl.labels import OTHER, classes, describe, labelled

STATES = [schema.POSITIVE, schema.NEGATIVE, schema.UNCERTAIN, schema.BLANK, schema.NOT_ASSESSED]


def index_of(findings=CHEXPERT_FINDINGS, states=STATES):
    ids = [f"image{i}" for i in range(len(states))]
    columns = {"patient_id": ids, "case_id": ids, "image_id": ids}
    return pa.table({**columns, **{f"label:{name}": pa.array(states, pa.int8()) for name in findings}})


def splits_of(index, train=None):
    """A table of splits in which the named patients, or all, are in train."""
    patients = sorted(set(index["patient_id"].to_pylist()))
    names = ["train" if train is None or patient in train else "test" for patient in patients]
    return pa.table({"patient_id": patients, "split": names, "label_ranks": [[0.5]] * len(patients)})


def targets(index, task):
    found = labelled(index, task, classes(index, splits_of(index), task))
    assert found.kind == "image"
    assert found.ids.tolist() == index["image_id"].to_pylist()
    assert found.unit_N.tolist() == found.row_M.tolist() == list(range(index.num_rows))
    return found.targets_MK, found.mask_MK


def expected(finding, state, uncertain, blank):
    """Value and mask spelled out for one label, None for a masked one."""
    if state == schema.NOT_ASSESSED:
        return None
    if state == schema.BLANK:
        return {"negative": 0, "ignore": None}[blank]
    if state == schema.UNCERTAIN:
        table = {"Atelectasis": 1, "Cardiomegaly": 0, "Consolidation": 0, "Edema": 1, "Pleural Effusion": 0}
        return {"u_ones": 1, "u_zeros": 0, "u_ignore": None, "u_mixed": table.get(finding, 0)}[uncertain]
    return state


@pytest.mark.parametrize("uncertain", ["u_mixed", "u_ones", "u_zeros", "u_ignore"])
@pytest.mark.parametrize("blank", ["negative", "ignore"])
def test_every_state_of_every_finding_follows_the_policies(uncertain, blank):
    findings = (*CHEXPERT_FINDINGS, "Pneumonia")
    values, known = targets(index_of(findings), TaskConfig(findings=findings, uncertain=uncertain, blank=blank))
    assert (values.dtype, known.dtype) == (np.float32, np.bool_)
    assert values.shape == known.shape == (5, 6)
    for (row, state), (column, finding) in itertools.product(enumerate(STATES), enumerate(findings)):
        want = expected(finding, state, uncertain, blank)
        assert known[row, column] == (want is not None)
        assert values[row, column] == (want or 0)


def test_columns_follow_the_order_of_the_task_and_rows_that_of_the_index():
    index = index_of(("Edema", "Fracture"), [1, 0]).set_column(3, "label:Edema", pa.array([0, 1], pa.int8()))
    values, _ = targets(index, TaskConfig(findings=("Fracture", "Edema")))
    assert values.tolist() == [[1, 0], [0, 1]]


def test_a_finding_that_the_index_lacks_is_told_with_those_present():
    with pytest.raises(BadInputError, match="no label for Hernia, and 2 others"):
        targets(index_of(("Edema", "Fracture")), TaskConfig(findings=("Edema", "Hernia")))


def test_the_description_says_what_each_policy_does():
    assert describe(TaskConfig()) == (
        "Uncertain labels count as positive for Atelectasis, Edema and count as negative for Cardiomegaly, "
        "Consolidation, Pleural Effusion; blank labels count as negative."
    )
    assert describe(TaskConfig(findings=("Edema",))).startswith("Uncertain labels count as positive for Edema; blank")
    left_out = "labels are left out of training and evaluation"
    assert describe(TaskConfig(uncertain="u_ignore", blank="ignore")) == f"Uncertain {left_out}; blank {left_out}."
    sentences = {
        describe(TaskConfig(uncertain=u, blank=b))
        for u in ("u_mixed", "u_ones", "u_zeros", "u_ignore")
        for b in ("negative", "ignore")
    }
    assert len(sentences) == 8


def cases_of(*cases, conditions=("Acne", "Eczema", "Rare", "Tinea")):
    """An index of cases, each (patient, images, conditions of the case or None where it was not assessed)."""
    rows = []
    for number, (patient, num_images, own) in enumerate(cases):
        for image in range(num_images):
            row = {"patient_id": patient, "case_id": f"case{number:03d}", "image_id": f"{number:03d}-{image}"}
            for name in conditions:
                row[f"label:{name}"] = schema.NOT_ASSESSED if own is None else int(name in own)
            rows.append(row)
    fields = [pa.field(name, pa.string()) for name in ("patient_id", "case_id", "image_id")]
    fields += [pa.field(f"label:{name}", pa.int8()) for name in conditions]
    return pa.Table.from_pylist(rows, pa.schema(fields))


MANY = [*[("a", 2, {"Eczema"})] * 5, *[("b", 1, {"Acne"})] * 3, ("c", 3, {"Acne", "Tinea"}), ("d", 1, {"Rare"})]


def conditions(**settings):
    return TaskConfig(kind="conditions", **{"min_train_cases": 1, **settings})


def test_frequent_conditions_come_first_and_the_rest_is_other():
    index = cases_of(*MANY)
    everybody = splits_of(index)
    assert classes(index, everybody, conditions()) == ("Eczema", "Acne", "Rare", "Tinea")
    assert classes(index, everybody, conditions(num_conditions=1)) == ("Eczema", OTHER)
    assert classes(index, everybody, conditions(min_train_cases=4)) == ("Eczema", "Acne", OTHER)
    assert classes(index, everybody, conditions(conditions=("Tinea", "Acne"))) == ("Acne", "Tinea", OTHER)
    with pytest.raises(BadInputError, match=r"task.conditions: the data set has no case of Psoriasis"):
        classes(index, everybody, conditions(conditions=("Psoriasis", "Acne")))


def test_the_papers_26_are_told_apart_where_a_set_names_them_all():
    names = (*PAPER_CONDITIONS, "Frequent")
    cases = [(f"p{i}", 1, {name}) for i, name in enumerate(PAPER_CONDITIONS)]
    cases += [(f"q{i}", 1, {"Frequent"}) for i in range(30)]
    index = cases_of(*cases, conditions=names)
    assert set(classes(index, splits_of(index), conditions())) == {*PAPER_CONDITIONS, OTHER}
    fewer = cases_of(*cases[1:], conditions=names[1:])
    assert "Frequent" in classes(fewer, splits_of(fewer), conditions())


def test_only_training_cases_count_for_which_conditions_are_kept():
    index = cases_of(*MANY)
    assert classes(index, splits_of(index, train={"b", "c"}), conditions(min_train_cases=1)) == ("Acne", "Tinea")
    with pytest.raises(BadInputError, match=r"min_train_cases is 9, .*\(the most of any: 5"):
        classes(index, splits_of(index), conditions(min_train_cases=9))


def test_the_truth_of_a_case_is_a_set_over_all_its_images_and_unknown_where_nobody_said():
    index = cases_of(("a", 2, {"Acne"}), ("b", 1, {"Eczema", "Rare"}), ("c", 3, None), ("d", 1, {"Rare"}))
    found = labelled(index, conditions(), ("Acne", "Eczema", OTHER))
    assert found.kind == "case"
    assert found.ids.tolist() == ["case000", "case001", "case002", "case003"]
    assert found.unit_N.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert found.row_M.tolist() == [0, 2, 3, 6]
    assert found.targets_MK.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert found.mask_MK.tolist() == [[True] * 3, [True] * 3, [False] * 3, [True] * 3]
    without_other = labelled(index, conditions(), ("Acne", "Eczema"))
    assert without_other.mask_MK[:, 0].tolist() == [True, True, False, False]


def test_shuffled_rows_give_the_same_cases():
    index = cases_of(*MANY)
    order = np.random.default_rng(0).permutation(index.num_rows)
    one, other = (labelled(table, conditions(), ("Acne", OTHER)) for table in (index, index.take(order)))
    assert one.ids.tolist() == other.ids.tolist()
    assert one.targets_MK.tolist() == other.targets_MK.tolist()
    assert one.unit_N[order].tolist() == other.unit_N.tolist()

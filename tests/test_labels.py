import itertools

import numpy as np
import pyarrow as pa
import pytest

from medssl import schema
from medssl.config import CHEXPERT_FINDINGS, TaskConfig
from medssl.exit_codes import BadInputError
from medssl.labels import describe, targets

STATES = [schema.POSITIVE, schema.NEGATIVE, schema.UNCERTAIN, schema.BLANK, schema.NOT_ASSESSED]


def index_of(findings=CHEXPERT_FINDINGS, states=STATES):
    return pa.table({f"label:{finding}": pa.array(states, pa.int8()) for finding in findings})


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
    index = index_of(("Edema", "Fracture"), [1, 0]).set_column(0, "label:Edema", pa.array([0, 1], pa.int8()))
    values, _ = targets(index, TaskConfig(findings=("Fracture", "Edema")))
    assert values.tolist() == [[1, 0], [0, 1]]


def test_a_finding_that_the_index_lacks_is_told_with_those_present():
    with pytest.raises(BadInputError, match="no label for Hernia; it has Edema, Fracture"):
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

"""Generated predictions of cases: sets of conditions, skin types, some cases without a label."""

from itertools import product

import numpy as np
import pyarrow as pa

from medssl import schema

CONDITIONS = ("Acne", "Eczema", "Melanoma", "Other", "Psoriasis")
SKILL = {"micle": 2.5, "simclr": 1.8, "random": 0.8}


def case_rows(
    *,
    num_patients=50,
    repeats=(0, 1),
    fractions=(1.0,),
    splits=("validation", "test"),
    group_kind="patient",
    arms=SKILL,
):
    """Two cases a patient, one in eight with two conditions and one in ten without a label; softmax scores."""
    rows = []
    for split, fraction, (arm_id, skill), repeat in product(splits, fractions, arms.items(), repeats):
        truth_rng = np.random.default_rng([7, len(split)])
        rng = np.random.default_rng([repeat, int(10 * skill), int(100 * fraction)])
        for patient, case in product(range(num_patients), range(2)):
            size = 2 if truth_rng.random() < 0.125 else 1
            truth = truth_rng.choice(len(CONDITIONS), size=size, replace=False, p=[0.3, 0.3, 0.05, 0.15, 0.2])
            known = truth_rng.random() > 0.1
            logits = rng.normal(size=len(CONDITIONS))
            logits[truth] += skill * (0.5 + fraction / 2)
            scores = np.exp(logits) / np.exp(logits).sum()
            for c, name in enumerate(CONDITIONS):
                rows.append(
                    {
                        "study_id": "s",
                        "dataset": "derm",
                        "dataset_digest": "d",
                        "split": split,
                        "arm_id": arm_id,
                        "label_fraction": fraction,
                        "draw": 0,
                        "repeat": repeat,
                        "unit_id": f"{split}-c{patient}-{case}",
                        "class": name,
                        "unit_kind": "case",
                        "patient_id": f"{split}-patient{patient}",
                        "group_kind": group_kind,
                        "y_true": int(c in truth) if known else None,
                        "y_score": float(scores[c]),
                        "is_selected": repeat == 0,
                        "checkpoint_digest": "c",
                        "sex": "female" if patient % 3 else "male",
                        "age_years": 30.0 + patient % 40,
                        "skin_type": ("1", "2", "3", "4", "5", "6", None)[patient % 7],
                        "view_position": None,
                        "site": None,
                    }
                )
    return rows


def table(rows):
    return pa.Table.from_pylist(rows, schema=schema.PREDICTIONS.columns)

"""The paired bootstrap of top-1 and top-3 accuracy and sensitivities, a replicate: ours against scikit-learn.

    .venv/bin/python -m benchmarks.bootstrap_topk

4,146 cases of 26 conditions and "Other", two models, as many cases a condition as a skewed clinic has; one core. A
figure is processor time a replicate: ours of `paired_bootstrap` for 1,000 replicates, and once more with the hits found
from the scores before; the peer's of resampling by index, both accuracies, and the recall of each condition at both k.
The peer finds the three likeliest conditions once, outside what is timed. Kernels are compiled before. One JSON line
comes last.
"""

import argparse
import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))  # read when the libraries are first imported

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import partial  # noqa: E402

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from sklearn.metrics import recall_score, top_k_accuracy_score  # noqa: E402

from benchmarks.measure import alternate, ratio, report  # noqa: E402
from medssl.analysis.bootstrap import Replicates, paired_bootstrap  # noqa: E402
from medssl.analysis.resampling import resample_weights  # noqa: E402
from medssl.metrics import TOP_K, top_k_hits, top_k_recalls  # noqa: E402

NUM_CASES, NUM_CLASSES = 4_146, 27
CASES_A_PATIENT = 1.3
OURS, FROM_SCORES, BY_PATIENT, PEER = "ours, from hits", "ours, from scores", "ours, by patient", "scikit-learn loop"


@dataclass(frozen=True)
class Predictions:
    """Of two models on cases of one condition each.

    Attributes:
        conditions: Shape (cases,), the true one of each.
        y_true: The same as 0 and 1, shape (cases, classes).
        y_scores: Shape (2, cases, classes).
        patients: Shape (cases,).
    """

    conditions: NDArray[np.int64]
    y_true: NDArray[np.float64]
    y_scores: NDArray[np.float64]
    patients: NDArray[np.int64]


def predictions(num_cases: int) -> Predictions:
    """Scores of models that are right in about two of three cases."""
    rng = np.random.default_rng(0)
    shares = 0.88 ** np.arange(NUM_CLASSES)
    conditions = rng.choice(NUM_CLASSES, size=num_cases, p=shares / shares.sum())
    y_true = np.eye(NUM_CLASSES)[conditions]
    y_scores = rng.normal(size=(2, *y_true.shape)) + 2.5 * y_true
    return Predictions(conditions, y_true, y_scores, rng.integers(round(num_cases / CASES_A_PATIENT), size=num_cases))


def hits(made: Predictions) -> NDArray[np.float64]:
    """Both accuracies and the sensitivities of all classes, of each model."""
    return np.stack(
        [
            np.column_stack([f(made.y_true, y_score, k=k) for f in (top_k_hits, top_k_recalls) for k in TOP_K])
            for y_score in made.y_scores
        ]
    )


def ours(
    made: Predictions, found: NDArray[np.float64] | None, num_replicates: int, *, by_patient: bool = False
) -> Replicates:
    """All replicates of both models; hits are found from the scores unless they are given."""
    return paired_bootstrap(
        made.y_true,
        made.y_scores,
        made.patients if by_patient else np.arange(len(made.patients)),
        num_replicates=num_replicates,
        seed=0,
        ranked=(),
        hits=hits(made) if found is None else found,
    )


def likeliest(made: Predictions) -> NDArray[np.int64]:
    """Three classes of each model and case, the likeliest first."""
    return np.argsort(-made.y_scores, axis=2)[:, :, : max(TOP_K)]


def shares(made: Predictions, three: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The peer's of one replicate, in our order."""
    truth, classes = made.conditions[rows], np.arange(NUM_CLASSES)
    found = []
    for y_score, top in zip(made.y_scores, three, strict=True):
        own = [top_k_accuracy_score(truth, y_score[rows], k=k, labels=classes) for k in TOP_K]
        first, is_among = top[rows, 0], (top[rows] == truth[:, None]).any(axis=1)
        own += list(recall_score(truth, first, labels=classes, average=None, zero_division=np.nan))
        # A case whose condition is among the three counts as predicted right, any other as wrong.
        counted = np.where(is_among, truth, np.where(first == truth, (truth + 1) % NUM_CLASSES, first))
        own += list(recall_score(truth, counted, labels=classes, average=None, zero_division=np.nan))
        found.append(own)
    return np.array(found)


def peer(made: Predictions, three: NDArray[np.int64], num_replicates: int) -> None:
    """Resample by index, then every share."""
    rng = np.random.default_rng(0)
    for _ in range(num_replicates):
        shares(made, three, rng.integers(len(made.patients), size=len(made.patients)))


def microseconds(call: Callable[[int], object], num_replicates: int) -> float:
    """Processor time a replicate."""
    begin = time.process_time()
    call(num_replicates)
    return (time.process_time() - begin) / num_replicates * 1e6


def largest_difference(made: Predictions, num_replicates: int) -> float:
    """Between ours and scikit-learn on the rows repeated by weight."""
    found, three = ours(made, None, num_replicates, by_patient=True).values, likeliest(made)
    (weights,) = resample_weights(made.patients, num_replicates=num_replicates, seed=0)
    rows = (np.repeat(np.arange(len(made.patients)), w) for w in weights)
    differences = [np.abs(shares(made, three, r) - values) for r, values in zip(rows, found, strict=True)]
    return float(np.nanmax(differences))


def main() -> None:
    """Compare values and times; print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a quarter of the cases, 3 repeats")
    options = parser.parse_args()
    num_cases, num_replicates, repeats = (
        (NUM_CASES // 4, 200, 3) if options.quick else (NUM_CASES, 1000, options.repeats)
    )
    made = predictions(num_cases)
    difference, found, three = largest_difference(made, 20), hits(made), likeliest(made)
    subjects = {
        OURS: partial(microseconds, partial(ours, made, found), num_replicates),
        FROM_SCORES: partial(microseconds, partial(ours, made, None), num_replicates),
        BY_PATIENT: partial(microseconds, partial(ours, made, found, by_patient=True), num_replicates),
        PEER: partial(microseconds, partial(peer, made, three), 20),
    }
    alternate(subjects, repeats=1)
    figures = alternate(subjects, repeats=repeats)
    detail = {
        "num_cases": num_cases,
        "num_replicates": num_replicates,
        "accuracy": [round(float(x), 2) for x in found[0, :, :2].mean(axis=0)],
        "ratio_from_scores": round(ratio(figures[FROM_SCORES], figures[PEER])),
        "by_patient_over_by_case": round(1 / ratio(figures[BY_PATIENT], figures[OURS]), 2),
        "largest_difference": difference,
    }
    report(figures, name="bootstrap_topk", unit="us/replicate", ours=OURS, peer=PEER, detail=detail)


if __name__ == "__main__":
    main()

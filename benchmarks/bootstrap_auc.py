"""The paired bootstrap of 5 AUCs of 2 models on one core, a replicate: ours against a loop over scikit-learn.

    .venv/bin/python -m benchmarks.bootstrap_auc

33,745 images (the paper's test set of CheXpert) of patients with three and a half images each; scores in single
precision, as networks give them. A figure is processor time a replicate: ours of all that `paired_bootstrap` does for
1,000 replicates, ranking included, divided by their number; the peer's of resampling by index and of ten AUCs. Kernels
are compiled before. Memory is the peak of a process of its own above what it held before. One JSON line comes last.
"""

import argparse
import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))  # read when the libraries are first imported

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import partial  # noqa: E402
from multiprocessing import get_context  # noqa: E402

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from benchmarks.measure import alternate, extra_mb, ratio, report  # noqa: E402
from medssl.analysis.bootstrap import Replicates, paired_bootstrap  # noqa: E402
from medssl.analysis.resampling import resample_weights  # noqa: E402

NUM_IMAGES = 33_745
IMAGES_A_PATIENT = 3.46
# Shares of positive images among CheXpert's: atelectasis, cardiomegaly, consolidation, oedema, effusion.
PREVALENCES = (0.15, 0.12, 0.07, 0.23, 0.39)
OURS, OURS_BY_PATIENT, PEER = "ours, by image", "ours, by patient", "scikit-learn loop"


@dataclass(frozen=True)
class Predictions:
    """Of two models.

    Attributes:
        y_true: Shape (images, findings).
        y_scores: Shape (2, images, findings).
        patients: Shape (images,).
    """

    y_true: NDArray[np.float64]
    y_scores: NDArray[np.float64]
    patients: NDArray[np.int64]


def predictions(num_images: int) -> Predictions:
    """Sigmoids of normal scores that rise with the truth."""
    rng = np.random.default_rng(0)
    y_true = (rng.random((num_images, len(PREVALENCES))) < PREVALENCES).astype(np.float64)
    scores = rng.normal(size=(2, *y_true.shape)) + y_true - 1
    patients = rng.integers(round(num_images / IMAGES_A_PATIENT), size=num_images)
    return Predictions(y_true, (1 / (1 + np.exp(-scores))).astype(np.float32).astype(np.float64), patients)


def ours(made: Predictions, num_replicates: int, *, by_patient: bool) -> Replicates:
    """All replicates of both models."""
    clusters = made.patients if by_patient else np.arange(len(made.patients))
    return paired_bootstrap(made.y_true, made.y_scores, clusters, num_replicates=num_replicates, seed=0)


def aucs(made: Predictions, rows: NDArray[np.int64]) -> list[float]:
    """The peer's of one replicate."""
    return [
        roc_auc_score(made.y_true[rows, c], y_score[rows, c])
        for y_score in made.y_scores
        for c in range(len(PREVALENCES))
    ]


def peer(made: Predictions, num_replicates: int) -> None:
    """Resample by index, then every AUC."""
    rng = np.random.default_rng(0)
    for _ in range(num_replicates):
        aucs(made, rng.integers(len(made.patients), size=len(made.patients)))


def microseconds(call: Callable[[int], object], num_replicates: int) -> float:
    """Processor time a replicate."""
    begin = time.process_time()
    call(num_replicates)
    return (time.process_time() - begin) / num_replicates * 1e6


def largest_difference(made: Predictions, num_replicates: int) -> float:
    """Between ours and scikit-learn on the rows repeated by weight."""
    found = ours(made, num_replicates, by_patient=True).values.reshape(num_replicates, -1)
    (weights,) = resample_weights(made.patients, num_replicates=num_replicates, seed=0)
    rows = (np.repeat(np.arange(len(made.patients)), w) for w in weights)
    return max(float(np.abs(aucs(made, r) - values).max()) for r, values in zip(rows, found, strict=True))


def memory_mb(num_images: int, num_replicates: int) -> float:
    """Extra peak memory of ours."""
    ours(predictions(100), 10, by_patient=False)  # loads the kernels
    made = predictions(num_images)
    return extra_mb(partial(ours, made, num_replicates, by_patient=False))


def main() -> None:
    """Compare values, memory and times; print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, 3 repeats")
    options = parser.parse_args()
    num_images, num_replicates, repeats = (
        (NUM_IMAGES // 10, 200, 3) if options.quick else (NUM_IMAGES, 1000, options.repeats)
    )
    made = predictions(num_images)
    begin = time.perf_counter()
    ours(made, 1, by_patient=True)
    first_call = time.perf_counter() - begin
    difference = largest_difference(made, 5)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        memory = pool.submit(memory_mb, num_images, num_replicates).result()
    print(f"first call {first_call:.1f} s, largest difference {difference:.1e}, extra memory {memory:.0f} MB")
    subjects = {
        OURS: partial(microseconds, partial(ours, made, by_patient=False), num_replicates),
        OURS_BY_PATIENT: partial(microseconds, partial(ours, made, by_patient=True), num_replicates),
        PEER: partial(microseconds, partial(peer, made), 5),
    }
    figures = alternate(subjects, repeats=repeats)
    detail = {
        "num_images": num_images,
        "num_replicates": num_replicates,
        "ratio_by_patient": round(ratio(figures[OURS_BY_PATIENT], figures[PEER])),
        "by_patient_over_by_image": round(1 / ratio(figures[OURS_BY_PATIENT], figures[OURS]), 2),
        "largest_difference": difference,
        "extra_mb": round(memory),
        "first_call_s": round(first_call, 1),
    }
    report(figures, name="bootstrap_auc", unit="us/replicate", ours=OURS, peer=PEER, detail=detail)


if __name__ == "__main__":
    main()

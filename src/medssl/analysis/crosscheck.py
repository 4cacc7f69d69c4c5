"""DeLong's intervals and tests beside those of the bootstrap, in the rows of AUCs and of their mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl.analysis.bootstrap import MIN_CLUSTERS
from medssl.analysis.delong import AucCovariance, auc_covariance, mean_auc_covariance, normal_interval, place
from medssl.analysis.measures import Measure, clusters_counted
from medssl.analysis.parts import Part
from medssl.analysis.runs import Row, Run


@dataclass(frozen=True)
class DeLong:
    """The covariance of the runs' AUCs, for each measure that is an AUC or a mean of AUCs.

    Attributes:
        found: By place among the measures.
    """

    found: dict[int, AucCovariance]

    @classmethod
    def of(cls, runs: Sequence[Run], clusters: NDArray[np.int64], *, listed: Sequence[Measure]) -> "DeLong":
        """Of runs on the same units, whose clusters are `clusters`, shape (n,)."""
        y_true = runs[0].y_true
        y_scores = np.stack([run.y_score for run in runs])
        placed = {Part("auc", None, c): place(y_true[:, c], y_scores[:, :, c]) for c in range(y_true.shape[1])}
        found = {}
        for at, item in enumerate(listed):
            # Classes that the sample does not define are left out of means, as everywhere.
            parts = [placements for part in item.parts if (placements := placed.get(part)) is not None]
            if not parts or not placed.keys() >= set(item.parts):
                continue
            covariance = auc_covariance(parts[0], clusters) if item.class_name else mean_auc_covariance(parts, clusters)
            if covariance is not None:
                found[at] = covariance
        return cls(found)

    def fill(self, rows: Sequence[Row], a: int, b: int | None = None, *, alpha: float) -> list[Row]:
        """The rows of run `a`, or of `a` minus `b`, in the order of the measures, with what DeLong's method gives.

        With fewer clusters than an interval by resampling takes there is none either.
        """
        filled = list(rows)
        for at, covariance in self.found.items():
            if rows[at]["estimate"] is not None and clusters_counted(rows[at]) >= MIN_CLUSTERS:
                interval = normal_interval(covariance, a, b, alpha=alpha)
                filled[at] = rows[at] | {
                    "delong_low": interval.low,
                    "delong_high": interval.high,
                    "delong_p": interval.p,
                }
        return filled

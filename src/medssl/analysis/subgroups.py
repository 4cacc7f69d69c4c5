"""Metrics of the selected models within subgroups of patients or images, and the gap between groups.

Small groups are named but not assessed: an AUC over a handful of patients says little and may single them
out.

All groups of all attributes see the same resamples: those of the patients of the whole set, of whom a group gets
whichever belong to it. A patient with images in two groups so counts as often in both, and what two groups, or two
models, have in common cancels in their difference. Resamples of each group's own patients would fix its size, which
a new sample would not, and pair patients of two groups who have nothing to do with one another.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.analysis import gap_rows, shift
from medssl.analysis.bootstrap import Replicates
from medssl.analysis.compare import Progress
from medssl.analysis.contenders import fields
from medssl.analysis.gap_rows import Group, assessed
from medssl.analysis.measures import Bootstrap, measure, measures, primary_row, resampled_as, sort_rows, with_interval
from medssl.analysis.partitions import Grouping, check_attributes, partitions
from medssl.analysis.runs import Row, Run, read_runs, selected_runs
from medssl.config import SPECIFICITY
from medssl.metrics import PRIMARY

Floats = NDArray[np.float64]


def _evaluate(runs: Sequence[Run], label: str, chosen: NDArray[np.bool_], least: int, settings: Bootstrap) -> Group:
    """The runs on the units of one group; without values where it has fewer patients than `least`."""
    names = {"subgroup": label, "repeat": "selected"}
    parts = [run.subset(chosen) for run in runs]
    rows = [[row | names for row in measure(part, specificity=settings.specificity)] for part in parts]
    n_patients = np.unique(parts[0].patients[~np.isnan(parts[0].y_true).all(axis=1)]).size
    if n_patients < least:
        reason = f"{n_patients} {runs[0].group_kind}s, at least {least} are needed"
        empty = {"estimate": None, "status": "too_small", "reason": reason}
        return Group(label, [[row | empty for row in of_run] for of_run in rows], frozenset(), np.empty(0), np.empty(0))
    replicates = settings.replicates([run.masked(chosen) for run in runs], "patient")
    resampled = resampled_as(runs[0], "patient")
    finished = [
        [
            with_interval(row, interval, resampled)
            for row, interval in zip(of_run, settings.intervals(replicates, runs[0], m), strict=True)
        ]
        for m, of_run in enumerate(rows)
    ]
    covered = assessed(rows[0], runs[0])
    if not covered:
        return Group(label, finished, covered, np.empty(0), np.empty(0))
    estimates = np.array([primary_row(of_run, runs[0])["estimate"] for of_run in rows])
    return Group(label, finished, covered, estimates, _primary_values(replicates, runs[0]))


def _primary_values(replicates: Replicates, run: Run) -> Floats:
    """The primary metric on the resamples, shape (R, M); NaN in one that lacks any of its classes."""
    primary = PRIMARY[run.unit_kind]
    (places,) = (item.quantities for item in measures(run) if (item.metric, item.k) == (primary.name, primary.k))
    defined = [q for q in places if not np.isnan(replicates.estimates[:, q]).any()]
    means: Floats = replicates.values[:, :, defined].mean(axis=2)
    return means


def analyze(
    predictions: pa.Table,
    *,
    by: Sequence[str],
    age_edges: Sequence[float],
    skin_type_groups: Mapping[str, Sequence[str]],
    min_patients: int,
    num_replicates: int,
    alpha: float,
    seed: int,
    attribute_pairs: Sequence[tuple[str, str]] = (),
    arm_pairs: Sequence[tuple[str, str]] = (),
    arm_groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
    specificity: float = SPECIFICITY,
    progress: Progress | None = None,
) -> list[Row]:
    """Evaluate the selected run of each arm, label fraction and draw within subgroups (supplement B.1.6).

    Rows are those of `compare.compare` with `subgroup` as "sex=female" or "sex=female & age_band=40-60"; resamples draw
    patients. With a bare "sex" or "sex & age_band" as `subgroup` come, for the primary metric (of images "mean_auc", of
    cases "top_k_accuracy"):

    - "mean_auc_gap": largest minus smallest group, corrected for its upward bias and not below 0, with its interval
      (`gaps`), and the p of equal groups (`permutation`);
    - "mean_auc_gap_raw": the same as it stands;
    - "mean_auc_gap_difference" with `arm_b`: corrected gap of a minus that of b, neither cut at 0, on the same
      resamples. A pair that lacks an arm here has no such row; `compare.compare` says so.

    Rows of external sets are followed by those of `shift.drops`.

    Args:
        predictions: The predictions table, rows in any order.
        by: Attributes, of `ATTRIBUTES`.
        age_edges: Edges of the age bands in years, increasing; used by "age_band" only.
        skin_type_groups: Group to its skin types, for "skin_type_group"; a type in none is in the group "unmapped".
        min_patients: Groups with fewer of known truth get the status "too_small" and no value.
        num_replicates: Resamples, and permutations; 1,000 in the paper.
        alpha: 0.05 for 95 % intervals.
        seed: Of the resamples.
        attribute_pairs: Two of `by` each.
        arm_pairs: Arms or groups of arms (a, b) whose gaps and drops are compared.
        arm_groups: Name to arms that are variants of one method; validation chooses which stands for it.
        specificity: At which sensitivities are reported, in 0-1.
        progress: Called with steps done, steps in all, and what is done.

    Raises:
        ValueError: For an unknown or repeated attribute, a pair of others, bad age edges, and as `compare.compare`.
    """
    check_attributes(predictions, by, attribute_pairs)
    settings = Bootstrap(num_replicates, alpha, seed, specificity)
    grouping = Grouping(age_edges, skin_type_groups)
    runs_of_all = read_runs(predictions)
    selected_runs(runs_of_all)  # refuses an arm without a selected run, which would be passed over below
    measured = {run: measure(run, specificity=specificity) for run in runs_of_all if run.is_selected}
    found = fields(measured, arm_groups)
    num_steps = len(found) * (len(by) + len(attribute_pairs))
    rows: list[Row] = []
    done = 0
    for field in found:
        runs = field.runs
        place = {name: field.place(name) for name in field.contenders}
        whole = assessed(measured[runs[0]], runs[0])
        for partition in partitions(predictions, runs[0], grouping, by=by, attribute_pairs=attribute_pairs):
            labels = [] if partition.told_by else np.unique(partition.labels).tolist()
            groups = [_evaluate(runs, name, partition.labels == name, min_patients, settings) for name in labels]
            rows += [row for group in groups for of_run in group.rows for row in of_run]
            compared = gap_rows.comparable(partition, groups, runs[0], whole)
            rows += gap_rows.gap_rows(partition, compared, runs, place=place, arm_pairs=arm_pairs, settings=settings)
            done += 1
            if progress:
                progress(done, num_steps, f"grouped by {partition.name}")
    named = [{name: one.run for name, one in field.contenders.items()} for field in found]
    return sort_rows(rows + shift.drops(named, arm_pairs=arm_pairs, settings=settings))

"""The number in [0, 1) that each patient has in each draw: a label fraction is everybody below it (spec 3.3).

Numbers come from keyed hashes of identifiers, never from a generator's state or the order of rows.

Shape suffixes: U units (patients, or studies or images that stay whole), C conditions, D draws.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import schema
from medssl.data.units import Units

Reals = NDArray[np.float64]

_BELOW_1 = np.nextafter(1.0, 0.0)


def hashes(patient_ids: Sequence[str] | NDArray[Any], purpose: str) -> NDArray[np.uint64]:
    """64 bits for each identifier, which differ between purposes."""
    keyed = hashlib.blake2b(key=hashlib.sha256(purpose.encode()).digest(), digest_size=8)
    digests = bytearray()
    for patient_id in patient_ids:
        state = keyed.copy()
        state.update(patient_id.encode())
        digests += state.digest()
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64)


def label_ranks(patient_ids: Sequence[str] | NDArray[Any], *, seed: int, draw: int) -> Reals:
    """A number in [0, 1) for each patient: the 10 % label set is that of the patients below 0.1.

    It is the first 53 bits of a keyed hash of seed, draw and patient_id. So fractions are nested, and a patient's
    number does not depend on who else is there.
    """
    return _uniforms(patient_ids, f"rank/{seed}/{draw}/")


def stratified_ranks(index: pa.Table, units: Units, *, seed: int, draws: int, previous: pa.Table | None) -> Reals:
    """Numbers in [0, 1) by which every label fraction holds its share of the training patients of each condition.

    A training patient's stratum is the rarest of his conditions in training, or none. The n patients of a stratum, in
    the order of `label_ranks`, lie one in each n-th of [0, 1), at a place within it that another hash decides. So a
    fraction f holds n f of them, one more or less, and one at least where n is 1 / f or more. Of patients who are
    added to earlier splits, each gets an n-th that is still free; patients who are not in training get `label_ranks`.

    Args:
        index: Schema INDEX.
        units: Of `index`, all of them with their final split.
        seed: Of the splits.
        draws: D.
        previous: Earlier SPLIT_TABLE, whose patients keep their numbers.

    Returns:
        Shape (U, D).
    """
    strata = _rarest_condition(index, units)
    kept_UD = _kept_ranks(units, previous, draws)
    is_train = units.names == "train"
    ranks = np.empty((units.ids.size, draws))
    for draw in range(draws):
        own = label_ranks(units.ids, seed=seed, draw=draw)
        within = _uniforms(units.ids, f"place/{seed}/{draw}/")
        for stratum in np.unique(strata[is_train]):
            (members,) = np.nonzero(is_train & (strata == stratum))
            kept = kept_UD[members, draw]
            new = members[np.isnan(kept)]
            ordered = new[np.argsort(own[new], kind="stable")]
            own[ordered] = _places(kept[~np.isnan(kept)], within[ordered])
        ranks[:, draw] = own
    return ranks


def positives(index: pa.Table, units: Units) -> tuple[list[str], NDArray[np.bool_]]:
    """Names of the conditions of an index, and which units have each: shape (U, C)."""
    names = schema.label_columns(index)
    found_UC = np.zeros((units.ids.size, len(names)), dtype=bool)
    for c, name in enumerate(names):
        is_positive = index[f"{schema.LABEL_PREFIX}{name}"].to_numpy() == schema.POSITIVE
        found_UC[units.of_image[is_positive], c] = True
    return names, found_UC


def _places(kept: Reals, within: Reals) -> Reals:
    """A number for each new patient of a stratum, one in each of the free n-ths, n with those who are kept.

    Where kept ones share an n-th, more are free than needed; those that are taken lie evenly among them.
    """
    num = kept.size + within.size
    free = np.setdiff1d(np.arange(num), (kept * num).astype(np.int64))
    taken = free[((np.arange(within.size) + 0.5) * free.size / max(1, within.size)).astype(np.int64)]
    return np.minimum((taken + within) / max(1, num), _BELOW_1)


def _rarest_condition(index: pa.Table, units: Units) -> NDArray[np.int64]:
    """Number of the condition of each unit that the fewest training units have, the first of equals; C: none."""
    _, found_UC = positives(index, units)
    num_train_C = found_UC[units.names == "train"].sum(axis=0)
    count_UC = np.where(found_UC, num_train_C, np.iinfo(np.int64).max)
    none_U = np.full(units.ids.size, np.iinfo(np.int64).max - 1)
    rarest: NDArray[np.int64] = np.column_stack([count_UC, none_U]).argmin(axis=1)
    return rarest


def _kept_ranks(units: Units, previous: pa.Table | None, draws: int) -> Reals:
    """Ranks of the units that an earlier table holds, NaN for the others; shape (U, D)."""
    kept_UD = np.full((units.ids.size, draws), np.nan)
    if previous is None:
        return kept_UD
    at = pc.index_in(pa.array(units.ids, pa.string()), value_set=previous[units.column].combine_chunks())
    is_known = np.asarray(at.is_valid())
    rows = at.drop_null().to_numpy()
    for draw in range(draws):
        kept_UD[is_known, draw] = schema.ranks_of_draw(previous, draw)[rows]
    return kept_UD


def _uniforms(patient_ids: Sequence[str] | NDArray[Any], purpose: str) -> Reals:
    bits = hashes(patient_ids, purpose) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53

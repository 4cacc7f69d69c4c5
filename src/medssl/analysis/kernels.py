"""Native kernels of the bootstrap: a row of counts a cluster, LANES replicates in a row, all integers exact.

What is slow is done for all lanes of a row at once: the inner loops run over one line of a processor's cache.
Where the optimiser does not find that form by itself it is written in LLVM's own terms, on vectors as long as a row,
which LLVM splits into whatever registers the machine has. Sums of doubles are never reordered: results are the same
bits on every machine.

Shape suffixes: C clusters, L lanes, K units by score, G groups of equal scores (or cells of equal units), P products.
A `code` is twice a unit's cluster, plus one for a positive unit; equal scores come negatives first. `end_G` holds the
end of each group.

All kernels are in this file because numba's cache on disk sees a change of a kernel's own file only.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Counts = NDArray[np.uint8]
Shorts = NDArray[np.uint16]
Codes = NDArray[np.int32]
Ints = NDArray[np.int64]
Keys = NDArray[np.uint64]
Doubles = NDArray[np.float64]
Whole = Any  # an integer of the type that it is given in

LANES = 64  # bytes in a line of the cache
WORDS = LANES // 4  # words of 64 random bits, of which each lane takes 16
# Weyl step and multipliers of SplitMix64 (Steele, Lea & Flood 2014; constants by Stafford, mix 13).
STEP, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHIFT_1, SHIFT_2, SHIFT_3, HALF_WORD = (np.uint64(x) for x in (30, 27, 31, 32))
LOW_HALF = np.uint64(0xFFFFFFFF)
ONE = np.uint64(1)
NUM_COMMON = 6  # counts 0 to 5 are drawn by 16 bits
TOP_BIT, ALL_BITS = np.uint64(1 << 63), np.uint64((1 << 64) - 1)
DIGIT_BITS, NUM_DIGITS, DIGIT_MASK = 11, 6, np.uint64((1 << 11) - 1)

# Sums of pairs within a block of units stay below 2**16: at most half of the weight is positive, half negative.
MAX_BLOCK_WEIGHT = 511

BYTE, SHORT, SINGLE, WORD = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(kernel: _Kernel) -> _Kernel:
    """Compile at the first call; kept on disk where numba finds a folder that it may write to."""
    compiled = njit(nogil=True, error_model="numpy")(kernel)
    with contextlib.suppress(RuntimeError):  # no such folder
        compiled.enable_caching()
    return cast(_Kernel, compiled)


def inlined(kernel: _Kernel) -> _Kernel:
    """A part of kernels; a call of a few lines costs as much as these."""
    return cast(_Kernel, njit(forceinline=True, error_model="numpy")(kernel))


def _instruction(generator: _Kernel) -> Callable[..., Any]:
    """What `generator` writes, callable from kernels without its first argument."""
    return cast(Callable[..., Any], intrinsic(generator))


def _lanes(item: ir.IntType) -> ir.VectorType:
    return ir.VectorType(item, LANES)


def _all(vector: ir.VectorType, number: int) -> ir.Constant:
    """A vector of one number."""
    return ir.Constant(vector, [number] * vector.count)


def _splat(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    """A vector of one value."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, SINGLE(0))
    return builder.shuffle_vector(one, one, _all(ir.VectorType(SINGLE, vector.count), 0))


def _place(builder: Any, data: Any, num_bytes: Any, kind: ir.Type) -> Any:
    """Pointer to a `kind` that begins `num_bytes` behind `data`."""
    return builder.inttoptr(builder.add(builder.ptrtoint(data, WORD), num_bytes), kind.as_pointer())


def _signed(word: np.uint64) -> int:
    """The word as LLVM's text has it."""
    return int(word.view(np.int64))


def _data(context: Any, builder: Any, kinds: Any, arrays: Any) -> list[Any]:
    """Pointers to the first items of arrays."""
    return [context.make_array(kind)(context, builder, array).data for kind, array in zip(kinds, arrays, strict=True)]


@_instruction
def _draw_rows(typing_context: Any, key_W: Any, end_E: Any, count_CL: Any, rare_C: Any, total_L: Any) -> Any:
    """Write how many ends each lane's 16 bits reach, and sums of these; bits of `rare_C` tell which lanes reach all."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        keys, ends, counts, rares, totals = _data(context, builder, signature.args, arguments)
        num = builder.extract_value(context.make_array(rare_C)(context, builder, arguments[3]).shape, 0)
        words, single = ir.VectorType(WORD, WORDS), _lanes(SINGLE)
        key = builder.load(_place(builder, keys, WORD(0), words), align=8)
        total = cgutils.alloca_once_value(builder, _all(single, 0))
        bounds = [
            _splat(builder, builder.load(_place(builder, ends, WORD(2 * e), SHORT), align=2), _lanes(SHORT))
            for e in range(NUM_COMMON)
        ]
        with cgutils.for_range(builder, num) as loop:
            step = builder.mul(loop.index, WORD(_signed(STEP)))
            bits = builder.add(key, _splat(builder, step, words))
            for shift, factor in ((SHIFT_1, MIX_1), (SHIFT_2, MIX_2)):
                bits = builder.xor(bits, builder.lshr(bits, _all(words, int(shift))))
                bits = builder.mul(bits, _all(words, _signed(factor)))
            bits = builder.xor(bits, builder.lshr(bits, _all(words, int(SHIFT_3))))
            pieces = builder.bitcast(bits, _lanes(SHORT))
            count, beyond = _all(_lanes(BYTE), 0), None
            for bound in bounds:
                beyond = builder.icmp_unsigned(">=", pieces, bound)
                count = builder.add(count, builder.zext(beyond, _lanes(BYTE)))
            builder.store(count, _place(builder, counts, builder.mul(loop.index, WORD(LANES)), _lanes(BYTE)), align=1)
            rare = _place(builder, rares, builder.mul(loop.index, WORD(8)), WORD)
            builder.store(builder.bitcast(beyond, WORD), rare, align=8)
            builder.store(builder.add(builder.load(total), builder.zext(count, single)), total)
        builder.store(builder.load(total), _place(builder, totals, WORD(0), single), align=4)
        return context.get_dummy_value()

    return types.void(key_W, end_E, count_CL, rare_C, total_L), generate


@_instruction
def _count_pairs(
    typing_context: Any,
    count_CL: Any,
    code_K: Any,
    num: Any,
    block: Any,
    negative_L: Any,
    positive_L: Any,
    pair_L: Any,
) -> Any:
    """Weights of negatives and positives, and of their pairs in which the negative comes first, in blocks of units.

    Within a block 16 bits do, so that a row takes two registers; a block's end carries its sums over to 32 and 64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counts_, codes_, num_, block_, *sums_ = arguments
        kinds = (count_CL, code_K, negative_L, positive_L, pair_L)
        counts, codes, *sums = _data(context, builder, kinds, (counts_, codes_, *sums_))
        short, single, word = (_lanes(item) for item in (SHORT, SINGLE, WORD))
        negative, positive, pairs = (
            cgutils.alloca_once_value(builder, _all(kind, 0)) for kind in (single, single, word)
        )
        own = [cgutils.alloca_once_value(builder, _all(short, 0)) for _ in range(3)]

        def increase(variable: Any, value: Any) -> None:
            builder.store(builder.add(builder.load(variable), value), variable)

        with cgutils.for_range_slice(builder, WORD(0), num_, block_, WORD) as (begin, _):
            for variable in own:
                builder.store(_all(short, 0), variable)
            rest = builder.sub(num_, begin)
            length = builder.select(builder.icmp_signed("<", rest, block_), rest, block_)
            with cgutils.for_range(builder, length) as loop:
                place = builder.mul(builder.add(begin, loop.index), WORD(4))
                code = builder.zext(builder.load(_place(builder, codes, place, SINGLE), align=4), WORD)
                row = _place(builder, counts, builder.mul(builder.lshr(code, WORD(1)), WORD(LANES)), _lanes(BYTE))
                weight = builder.zext(builder.load(row, align=1), short)
                chosen = builder.trunc(builder.neg(builder.and_(code, WORD(1))), SHORT)
                of_positive = builder.and_(weight, _splat(builder, chosen, short))
                increase(own[2], builder.mul(of_positive, builder.load(own[0])))
                increase(own[1], of_positive)
                increase(own[0], builder.sub(weight, of_positive))
            own_negative, own_positive, own_pairs = (builder.load(variable) for variable in own)
            before = builder.zext(builder.load(negative), word)
            increase(pairs, builder.mul(before, builder.zext(own_positive, word)))
            increase(pairs, builder.zext(own_pairs, word))
            increase(negative, builder.zext(own_negative, single))
            increase(positive, builder.zext(own_positive, single))
        for variable, target, kind in zip((negative, positive, pairs), sums, (single, single, word), strict=True):
            builder.store(builder.load(variable), _place(builder, target, WORD(0), kind), align=4)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(count_CL, code_K, whole, whole, negative_L, positive_L, pair_L), generate


# Resamples


@inlined
def _mixed(x: Whole) -> Whole:
    """SplitMix64's output function: a bijection of words of 64 bits."""
    x = (x ^ (x >> SHIFT_1)) * MIX_1
    x = (x ^ (x >> SHIFT_2)) * MIX_2
    return x ^ (x >> SHIFT_3)


@inlined
def _below(bound: Whole, key: Whole, step: Whole) -> tuple[Whole, Whole, Whole]:
    """Exactly uniform below `bound` < 2**32 (Lemire 2019, algorithm 5), 32 more random bits, and the step reached."""
    while True:
        step += ONE
        bits = _mixed(key + step * STEP)
        product = (bits >> HALF_WORD) * bound
        low = product & LOW_HALF
        if low >= bound or low >= (LOW_HALF + ONE - bound) % bound:
            return product >> HALF_WORD, bits & LOW_HALF, step


@compiled
def draw(root_3: Keys, first: int, common_E: Shorts, rare_E: Keys, count_CL: Counts) -> int:
    """Draw C clusters with replacement in each lane, replicates `first` and following; return a bound of the counts.

    Independent Poisson counts, given their sum, are what as many draws give. So where the sum is below C the rest is
    drawn one by one, and where it is above, drawn items are taken away, all equally likely: what is left is C draws.

    Args:
        root_3: Of the streams of common counts, of rare ones, and of single draws.
        first: A multiple of LANES.
        common_E: Ends of the counts from 0 on among the words of 16 bits; what is beyond is rare.
        rare_E: Ends of the counts from 0 on among the words of 64 bits, given that a count is rare.
        count_CL: Written.
    """
    num = len(count_CL)
    key_W, key_L = np.empty(WORDS, np.uint64), np.empty(LANES, np.uint64)
    for w in range(WORDS):
        key_W[w] = _mixed(root_3[0] + np.uint64(first // 4 + w) * STEP)
    for lane in range(LANES):
        key_L[lane] = _mixed(root_3[1] + np.uint64(first + lane) * STEP)
    rare_C, total_L, bound_L = np.empty(num, np.uint64), np.empty(LANES, np.int32), np.full(LANES, NUM_COMMON)
    _draw_rows(key_W, common_E, count_CL, rare_C, total_L)
    for cluster in range(num):
        if rare_C[cluster]:
            for lane in range(LANES):
                if (rare_C[cluster] >> np.uint64(lane)) & ONE:
                    bits, count = _mixed(key_L[lane] + np.uint64(cluster) * STEP), 0
                    while count < len(rare_E) and bits >= rare_E[count]:
                        count += 1
                    total_L[lane] += count - count_CL[cluster, lane]
                    count_CL[cluster, lane] = count
                    bound_L[lane] = max(bound_L[lane], count)
    heaviest = 1
    for lane in range(LANES):
        key = _mixed(root_3[2] + np.uint64(first + lane) * STEP)
        heaviest = max(heaviest, _level(count_CL, lane, num - total_L[lane], bound_L[lane], key))
    return heaviest


@compiled
def _level(count_CL: Counts, lane: int, missing: int, heaviest: int, key: Whole) -> int:
    """Draw so many more clusters, or take away so many drawn ones; return a bound of the counts."""
    num, step = np.uint64(len(count_CL)), np.uint64(0)
    for _ in range(missing):
        cluster, _bits, step = _below(num, key, step)
        count_CL[cluster, lane] += 1
        heaviest = max(heaviest, int(count_CL[cluster, lane]))
    places = ONE
    while places < heaviest:
        places += places
    while missing < 0:
        # A cluster and a place among its items, in vain where it has none there.
        cluster, bits, step = _below(num, key, step)
        if (bits & (places - ONE)) < count_CL[cluster, lane]:
            count_CL[cluster, lane] -= 1
            missing += 1
    return heaviest


# Quantities of ranked units


@compiled
def auc(count_CL: Counts, heaviest: int, code_K: Codes, tied_T: Codes, tie_end_G: Ints, value_L: Doubles) -> None:
    """Area under the ROC curve, a tie counting one half; NaN without a positive or without a negative.

    Args:
        count_CL: Weights of clusters.
        heaviest: None is above.
        code_K: Units by rising score.
        tied_T: Those whose score units of both classes have.
        tie_end_G: Where each such score ends in `tied_T`.
        value_L: Written.
    """
    negative_L, positive_L, pair_L = np.empty(LANES, np.uint32), np.empty(LANES, np.uint32), np.empty(LANES, np.int64)
    _count_pairs(count_CL, code_K, len(code_K), MAX_BLOCK_WEIGHT // heaviest, negative_L, positive_L, pair_L)
    tie_L, of_negative_L, of_positive_L = (
        np.zeros(LANES, np.int64),
        np.empty(LANES, np.int64),
        np.empty(LANES, np.int64),
    )
    begin = 0
    for end in tie_end_G:
        of_negative_L[:] = 0
        of_positive_L[:] = 0
        for k in range(begin, end):
            if tied_T[k] & 1:
                _add(count_CL, tied_T[k] >> 1, of_positive_L)
            else:
                _add(count_CL, tied_T[k] >> 1, of_negative_L)
        for lane in range(LANES):
            tie_L[lane] += of_negative_L[lane] * of_positive_L[lane]
        begin = end
    for lane in range(LANES):
        # Integers up to here: the quotient is the only rounding.
        num_pairs = 2 * np.int64(negative_L[lane]) * np.int64(positive_L[lane])
        value_L[lane] = (2 * pair_L[lane] - tie_L[lane]) / num_pairs if num_pairs else np.nan


@inlined
def _add(count_CL: Counts, cluster: int, sum_L: Any) -> None:
    """Add a row of counts."""
    for lane in range(LANES):
        sum_L[lane] += count_CL[cluster, lane]


@compiled
def average_precision(count_CL: Counts, code_K: Codes, end_G: Ints, value_L: Doubles) -> None:
    """Sum over falling scores of the rise in recall times the precision there; NaN without a positive."""
    true_L, false_L, own_L = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    value_L[:] = 0
    for g in range(len(end_G) - 1, -1, -1):
        begin, end = end_G[g - 1] if g else 0, end_G[g]
        for k in range(begin, end):
            if code_K[k] & 1:
                _add(count_CL, code_K[k] >> 1, own_L)
            else:
                _add(count_CL, code_K[k] >> 1, false_L)
        if code_K[end - 1] & 1:  # a group's positives come last
            for lane in range(LANES):
                true_L[lane] += own_L[lane]
                # Without a unit so far the summand is zero, whatever the divisor.
                predicted = max(true_L[lane] + false_L[lane], 1)
                value_L[lane] += np.float64(own_L[lane]) * np.float64(true_L[lane]) / np.float64(predicted)
                own_L[lane] = 0
    for lane in range(LANES):
        value_L[lane] = value_L[lane] / true_L[lane] if true_L[lane] else np.nan


@compiled
def sensitivity(count_CL: Counts, code_K: Codes, end_G: Ints, specificity: float, value_L: Doubles) -> None:
    """Largest sensitivity of a threshold whose specificity is `specificity` or more; NaN where either is undefined."""
    true_L, false_L = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    for code in code_K:
        if code & 1:
            _add(count_CL, code >> 1, true_L)
        else:
            _add(count_CL, code >> 1, false_L)
    positive_L, negative_L, allowed_L = true_L.copy(), false_L.copy(), np.zeros(LANES, np.int32)
    for lane in range(LANES):
        if negative_L[lane]:
            allowed_L[lane] = _false_positives(specificity, negative_L[lane])
    reached_L = np.zeros(LANES, np.int32)
    true_L[:] = 0
    false_L[:] = 0
    for g in range(len(end_G) - 1, -1, -1):
        begin, end = end_G[g - 1] if g else 0, end_G[g]
        for k in range(begin, end):
            if code_K[k] & 1:
                _add(count_CL, code_K[k] >> 1, true_L)
            else:
                _add(count_CL, code_K[k] >> 1, false_L)
        if code_K[end - 1] & 1:  # a group's positives come last
            for lane in range(LANES):
                # A product, because a choice would not be made for all lanes at once.
                reached_L[lane] = max(reached_L[lane], true_L[lane] * (false_L[lane] <= allowed_L[lane]))
    for lane in range(LANES):
        is_defined = positive_L[lane] > 0 and negative_L[lane] > 0
        value_L[lane] = reached_L[lane] / positive_L[lane] if is_defined else np.nan


@compiled
def _false_positives(specificity: float, num_negatives: int) -> int:
    """The most false positives f with 1 - f / n >= specificity, as double precision has it."""
    allowed = int((1 - specificity) * num_negatives)
    while 1 - (allowed + 1) / num_negatives >= specificity:
        allowed += 1
    while allowed > 0 and 1 - allowed / num_negatives < specificity:
        allowed -= 1
    return allowed


# Quantities of units in any order


@compiled
def calibration_error(
    count_CL: Counts, cluster_K: Codes, bin_K: Codes, excess_K: Doubles, num_bins: int, value_L: Doubles
) -> None:
    """Sum over bins of |sum of weights times (truth - score)|, over the sum of weights; NaN without a unit."""
    sum_BL, weight_L = np.zeros((num_bins, LANES)), np.zeros(LANES, np.int64)
    for k in range(len(cluster_K)):
        cluster, b, excess = cluster_K[k], bin_K[k], excess_K[k]
        for lane in range(LANES):
            sum_BL[b, lane] += excess * count_CL[cluster, lane]
        _add(count_CL, cluster, weight_L)
    value_L[:] = 0
    for b in range(num_bins):
        for lane in range(LANES):
            value_L[lane] += abs(sum_BL[b, lane])
    for lane in range(LANES):
        value_L[lane] = value_L[lane] / weight_L[lane] if weight_L[lane] else np.nan


@compiled
def are_yes_or_no(hits_MNS: Doubles, found_S: NDArray[np.bool_]) -> None:
    """Write which shares have no numbers but 0 and 1."""
    found_S[:] = True
    for hits_NS in hits_MNS:
        for hits_S in hits_NS:
            for s in range(len(found_S)):
                hit = hits_S[s]
                found_S[s] &= (hit == 0) | (hit == 1) | (hit != hit)


@compiled
def fingerprints(bits_MNS: Keys, value_N: Keys) -> None:
    """A word for each unit, equal for equal units and different for different ones but by a chance of 2**-64."""
    value_N[:] = ONE
    for bits_NS in bits_MNS:
        for i in range(len(value_N)):
            value = value_N[i]
            for bits in bits_NS[i]:
                value = (value ^ bits ^ (bits >> HALF_WORD)) * MIX_1
                value ^= value >> HALF_WORD
            value_N[i] = value


@compiled
def are_equal(bits_MNS: Keys, other_N: Ints) -> bool:
    """Whether each unit is equal to the one that it names."""
    for bits_NS in bits_MNS:
        for i in range(len(other_N)):
            difference = np.uint64(0)
            for s in range(bits_NS.shape[1]):
                difference |= bits_NS[i, s] ^ bits_NS[other_N[i], s]
            if difference:
                return False
    return True


@compiled
def cell_weights(count_CL: Counts, cluster_K: Codes, end_G: Ints, weight_GL: Codes) -> None:
    """Sums of weights of the units of each cell; units are given cell by cell."""
    begin = 0
    for g in range(len(end_G)):
        weight_L = weight_GL[g]
        weight_L[:] = 0
        for k in range(begin, end_G[g]):
            _add(count_CL, cluster_K[k], weight_L)
        begin = end_G[g]


@compiled
def products(weight_GL: Codes, cell_K: Ints, factor_K: Doubles, end_P: Ints, sum_PL: Doubles) -> None:
    """Sums of the factors of cells times their weights, each over its own cells."""
    begin = 0
    for p in range(len(end_P)):
        sum_L = sum_PL[p]
        sum_L[:] = 0
        for k in range(begin, end_P[p]):
            weight_L, factor = weight_GL[cell_K[k]], factor_K[k]
            for lane in range(LANES):
                sum_L[lane] += factor * weight_L[lane]
        begin = end_P[p]


# Ranking


@compiled
def order_by(score_K: Doubles) -> Codes:
    """Places of the scores in rising order, equal ones as they come: sorted by digits of 11 bits, the last first.

    The bits of doubles, read as integers, rise with positive numbers and fall with negative ones.
    """
    num = len(score_K)
    word_K, order_K = (score_K + 0.0).view(np.uint64), np.arange(num).astype(np.int32)  # no zero keeps its sign
    next_word_K, next_order_K = np.empty_like(word_K), np.empty_like(order_K)
    at_DV = np.zeros((NUM_DIGITS, 1 << DIGIT_BITS), np.int64)
    for k in range(num):
        word_K[k] ^= TOP_BIT if word_K[k] < TOP_BIT else ALL_BITS
        for digit in range(NUM_DIGITS):
            at_DV[digit, _digit(word_K[k], digit)] += 1
    for digit in range(NUM_DIGITS):
        at_V = at_DV[digit]
        if num and at_V[_digit(word_K[0], digit)] == num:
            continue  # all alike
        at_V[:] = np.cumsum(at_V) - at_V
        for k in range(num):
            value = _digit(word_K[k], digit)
            next_word_K[at_V[value]], next_order_K[at_V[value]] = word_K[k], order_K[k]
            at_V[value] += 1
        word_K, next_word_K = next_word_K, word_K
        order_K, next_order_K = next_order_K, order_K
    return order_K


@inlined
def _digit(word: Whole, digit: int) -> int:
    return int((word >> np.uint64(DIGIT_BITS * digit)) & DIGIT_MASK)


@compiled
def rank(order_K: Codes, y_true_N: Doubles, y_score_N: Doubles, cluster_N: Codes, code_K: Codes, end_G: Ints) -> int:
    """Write the codes of units by rising score, and the ends of groups of equal ones; return the number of groups."""
    num_groups, begin, num = 0, 0, len(order_K)
    while begin < num:
        end = begin + 1
        while end < num and y_score_N[order_K[end]] == y_score_N[order_K[begin]]:
            end += 1
        at = begin
        for is_positive in range(2):
            for k in range(begin, end):
                if y_true_N[order_K[k]] == is_positive:
                    code_K[at] = 2 * cluster_N[order_K[k]] + is_positive
                    at += 1
        end_G[num_groups] = end
        num_groups += 1
        begin = end
    return num_groups

"""Native kernels of augmentation: one uint8 image in, one finished uint8 view out, without the interpreter's lock.

Shape suffixes: H and W pixels of the image, C channels (1 or 3), S pixels of the view, K taps. Intensities are float32
in [0, 255] between the first operation and the last, which rounds once.

A view is computed by columns, shape (S, C, S) for x, channel and y: every inner loop then runs over neighbours in
memory, one channel at a time, whatever the number of channels, and the way from and back to interleaved rows is a
plain transposition.

All kernels are in this file because numba's cache on disk sees a change of a kernel's own file only.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Real = Any  # a number of either precision: a kernel is compiled for what it gets

# ITU-R BT.601 luma as in tf.image.rgb_to_grayscale.
LUMA = (np.float32(0.2989), np.float32(0.5870), np.float32(0.1140))
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# A blur's kernel spans a tenth of the side (SimCLR's code).
BLUR_SIDE_SHARE = 10
# Weights of a blur below this share of the middle one are left out: together they change no intensity by a twentieth.
BLUR_NEGLIGIBLE = 1e-4
# The parameter of cubic convolution: torch's for views, Pillow's and torch's for antialiased resizing.
CUBIC, ANTIALIASED_CUBIC = -0.75, -0.5
# Stands for a zero range of a pixel's channels in a divisor.
TINY = np.float32(1e-4)
A = np.float32(CUBIC)
ZERO, HALF, ONE, TWO, THREE, FOUR, SIX, WHITE = (np.float32(value) for value in (0, 0.5, 1, 2, 3, 4, 6, 255))
# Source pixels beyond the edge that a sample within the fading margin can read.
MARGIN = 3
FAR = np.float32(1e6)  # beyond every intermediate value
SLACK = 0.01  # pixels; more than the error of a position in single precision
BLOCK = 16  # side of the squares that a transposition moves at once

WORD = ir.IntType(64)
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(kernel: _Kernel) -> _Kernel:
    """Compile at the first call; kept on disk where numba finds a folder that it may write to."""
    compiled = njit(nogil=True, fastmath=True, error_model="numpy")(kernel)
    with contextlib.suppress(RuntimeError):  # no such folder
        compiled.enable_caching()
    return cast(_Kernel, compiled)


def _instruction(generator: _Kernel) -> Callable[..., Any]:
    """What `generator` writes, callable from kernels without its first argument."""
    return cast(Callable[..., Any], intrinsic(generator))


# What follows is written in LLVM's own terms because its optimiser does not find these shuffles by itself.


def _address(context: Any, builder: Any, vector: ir.Type, data: Any, items: Any) -> Any:
    """Pointer to a vector that begins `items` items behind `data`."""
    size = ir.Constant(WORD, context.get_abi_sizeof(vector.element))
    place = builder.add(builder.ptrtoint(data, WORD), builder.mul(items, size))
    return builder.inttoptr(place, vector.as_pointer())


def _constants(numbers: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), list(numbers))


def _splat(context: Any, builder: Any, data: Any, item: Any, count: int) -> Any:
    """A vector of `count` times the float that is item `item` of `data`."""
    one = builder.load(_address(context, builder, ir.VectorType(ir.FloatType(), 1), data, item), align=4)
    return builder.shuffle_vector(one, one, _constants([0] * count))


@_instruction
def _transpose_block(typing_context: Any, source: Any, at: Any, width: Any, target: Any, to: Any, height: Any) -> Any:
    """Transpose BLOCK x BLOCK items from item `at` on, rows of `width`, to item `to` on, rows of `height`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_, at_, width_, target_, to_, height_ = arguments
        vector = ir.VectorType(context.get_data_type(source.dtype), BLOCK)
        read = context.make_array(source)(context, builder, source_).data
        written = context.make_array(target)(context, builder, target_).data

        def line(data: Any, first: Any, stride: Any, k: int) -> Any:
            return _address(context, builder, vector, data, builder.add(first, builder.mul(stride, WORD(k))))

        lines = [builder.load(line(read, at_, width_, k), align=1) for k in range(BLOCK)]
        half = BLOCK // 2
        masks = [_constants([k for i in range(first, first + half) for k in (i, i + BLOCK)]) for first in (0, half)]
        # Interleaving the halves of a list of 2^n vectors turns the bits of an item's (line, place) by one; after n
        # times line and place have changed roles.
        for _ in range(BLOCK.bit_length() - 1):
            lines = [builder.shuffle_vector(lines[i], lines[i + half], mask) for i in range(half) for mask in masks]
        for k in range(BLOCK):
            builder.store(lines[k], line(written, to_, height_, k), align=1)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate


@_instruction
def _borrowed(typing_context: Any, array: Any) -> Any:
    """The array without its owner, who must outlive it: slices count no references, which costs as much as a line."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(array)(context, builder, arguments[0])
        made.meminfo = ir.Constant(made.meminfo.type, None)
        made.parent = ir.Constant(made.parent.type, None)
        return made._getvalue()

    return array(array), generate


@_instruction
def _spread_block(
    typing_context: Any, source: Any, at: Any, stride: Any, weight_R: Any, radius: Any, target: Any, to: Any
) -> Any:
    """Weighted sums of 2 BLOCK items and their neighbours at multiples of `stride` on both sides, in registers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_, at_, stride_, weight_R_, radius_, target_, to_ = arguments
        vector = ir.VectorType(ir.FloatType(), BLOCK)
        read, weights, written = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in ((source, source_), (weight_R, weight_R_), (target, target_))
        )

        def items(first: Any, half: int) -> Any:
            place = builder.add(first, WORD(half * BLOCK))
            return builder.load(_address(context, builder, vector, read, place), align=4)

        sums = [
            cgutils.alloca_once_value(  # type: ignore[no-untyped-call]
                builder, builder.fmul(items(at_, k), _splat(context, builder, weights, WORD(0), BLOCK))
            )
            for k in (0, 1)
        ]
        with cgutils.for_range(builder, radius_) as loop:
            distance = builder.add(loop.index, WORD(1))
            weight = _splat(context, builder, weights, distance, BLOCK)
            step = builder.mul(distance, stride_)
            for k in (0, 1):
                pair = builder.fadd(items(builder.sub(at_, step), k), items(builder.add(at_, step), k))
                part = builder.fmul(pair, weight, flags=["fast"])
                builder.store(builder.fadd(builder.load(sums[k]), part, flags=["fast"]), sums[k])
        for k in (0, 1):
            place = builder.add(to_, WORD(k * BLOCK))
            builder.store(builder.load(sums[k]), _address(context, builder, vector, written, place), align=4)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(source, whole, whole, weight_R, whole, target, whole), generate


def _window(num_channels: int) -> Any:
    """Make the weighted sum of 4 x 4 pixels of `num_channels`: all channels of a row of pixels share a register."""
    num_items = 4 if num_channels == 1 else 16  # of which the last four are not used

    @_instruction
    def window(typing_context: Any, source: Any, start: Any, width: Any, weight_8S: Any, column: Any) -> Any:
        """Sum from item `start` on of lines `width` apart; weights along x, then y, in a column of `weight_8S`."""
        result = types.UniTuple(types.float32, num_channels)  # type: ignore[no-untyped-call]

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source_, start_, width_, weight_8S_, column_ = arguments
            row = ir.VectorType(ir.FloatType(), num_items)
            pixels = context.make_array(source)(context, builder, source_).data
            weights = context.make_array(weight_8S)(context, builder, weight_8S_)
            size = builder.extract_value(weights.shape, 1)

            def splat(k: int, count: int) -> Any:
                return _splat(context, builder, weights.data, builder.add(builder.mul(size, WORD(k)), column_), count)

            total, at = None, start_
            for k in range(4):
                line = builder.load(_address(context, builder, row, pixels, at), align=4)
                part = builder.fmul(line, splat(4 + k, num_items), flags=["fast"])
                total = part if total is None else builder.fadd(total, part, flags=["fast"])
                at = builder.add(at, width_)
            mixed = None
            for k in range(4):
                pixel = builder.shuffle_vector(total, total, _constants([k * num_channels + c for c in range(4)]))
                part = builder.fmul(pixel, splat(k, 4), flags=["fast"])
                mixed = part if mixed is None else builder.fadd(mixed, part, flags=["fast"])
            values = [builder.extract_element(mixed, ir.IntType(32)(c)) for c in range(num_channels)]
            return context.make_tuple(builder, result, values)

        return result(source, types.intp, types.intp, weight_8S, types.intp), generate

    return window


_window_1, _window_3 = _window(1), _window(3)


@compiled
def _transpose(source: Any, target: Any) -> None:
    """Write the transposed matrix; both C-contiguous."""
    height, width = source.shape
    full_height, full_width = height - height % BLOCK, width - width % BLOCK
    for row in range(0, full_height, BLOCK):
        for column in range(0, full_width, BLOCK):
            _transpose_block(source, row * width + column, width, target, column * height + row, height)
        for k in range(row, row + BLOCK):
            for column in range(full_width, width):
                target[column, k] = source[k, column]
    for row in range(full_height, height):
        for column in range(width):
            target[column, row] = source[row, column]


# Geometry


@compiled
def _cubic(distance: Real, a: Real) -> Real:
    """Keys' cubic convolution kernel (1981, eq. 15, with a free)."""
    x = abs(distance)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


@compiled
def _taps(first: Real, step: Real, start_S: Ints, weight_SK: Floats, is_bicubic: bool) -> None:
    """Four weights of each sample at first + i * step, in pixels from the centre of pixel 0; start may be outside."""
    for i in range(len(start_S)):
        position = first + i * step
        base = int(np.floor(position))
        start_S[i] = base - 1
        for k in range(4):
            distance = position - (base - 1 + k)
            weight = _cubic(distance, CUBIC) if is_bicubic else max(1 - abs(distance), 0.0)
            weight_SK[i, k] = np.float32(weight)


@compiled
def _antialiased_taps(num: int, start_S: Ints, weight_SK: Floats) -> None:
    """Weights that take `num` pixels to S: a cubic filter as wide as the step, cut off at the edges, normalised."""
    step = num / len(start_S)
    width = max(step, 1.0)
    for i in range(len(start_S)):
        position = (i + 0.5) * step - 0.5
        start_S[i] = max(int(np.ceil(position - 2 * width)), 0)
        total = 0.0
        for k in range(weight_SK.shape[1]):
            at = start_S[i] + k
            weight = _cubic((at - position) / width, ANTIALIASED_CUBIC) if at < num else 0.0
            weight_SK[i, k] = np.float32(weight)
            total += weight
        for k in range(weight_SK.shape[1]):
            weight_SK[i, k] /= np.float32(total)


@compiled
def _load(image_HWC: Pixels, block: int, y: int, low: int, high: int, line: Floats) -> None:
    """Pixels low to high - 1 of line y as floats, edge pixels continued outside.

    With `block` > 1 a pixel is the mean of block x block of the image, of those that exist at its far edges.
    """
    height, width, num_channels = image_HWC.shape
    num_x, num_y = -(-width // block), -(-height // block)
    y = min(max(y, 0), num_y - 1)
    left, right = min(max(low, 0), num_x - 1), max(min(high, num_x), 1)
    place = (left - low) * num_channels
    if block == 1:
        flat = image_HWC[y].reshape(width * num_channels)[left * num_channels : right * num_channels]
        inner = line[place : place + len(flat)]
        for i in range(len(flat)):
            inner[i] = np.float32(flat[i])
    else:
        rows = image_HWC[y * block : min((y + 1) * block, height)]
        for x in range(left, right):
            cells = rows[:, x * block : min((x + 1) * block, width)]
            share = ONE / np.float32(cells.shape[0] * cells.shape[1])
            for c in range(num_channels):
                total = 0
                for i in range(cells.shape[0]):
                    for j in range(cells.shape[1]):
                        total += cells[i, j, c]
                line[place + c] = np.float32(total) * share
            place += num_channels
    for x in range(low, left):
        for c in range(num_channels):
            line[(x - low) * num_channels + c] = line[(left - low) * num_channels + c]
    for x in range(right, high):
        for c in range(num_channels):
            line[(x - low) * num_channels + c] = line[(right - 1 - low) * num_channels + c]


@compiled
def _mix(
    lines: Floats,
    a: int,
    b: int,
    c: int,
    d: int,
    weight_4: Floats,
    is_first: bool,
    low: Real,
    high: Real,
    out: Floats,
) -> None:
    """Weighted sum of four lines, added to `out` if it is not the first, clipped."""
    u, v, w, x = weight_4[0], weight_4[1], weight_4[2], weight_4[3]
    line_a, line_b, line_c, line_d = lines[a], lines[b], lines[c], lines[d]
    if is_first:
        for i in range(len(out)):
            total = u * line_a[i] + v * line_b[i] + w * line_c[i] + x * line_d[i]
            out[i] = min(max(total, low), high)
    else:
        for i in range(len(out)):
            total = out[i] + u * line_a[i] + v * line_b[i] + w * line_c[i] + x * line_d[i]
            out[i] = min(max(total, low), high)


@compiled
def _separable(
    image_HWC: Pixels,
    block: int,
    x_S: Ints,
    x_SK: Floats,
    y_S: Ints,
    y_SK: Floats,
    columns_SCS: Floats,
    scratch: Floats,
) -> None:
    """Weighted sums of image lines, transposition, weighted sums of image columns; clipped."""
    size, num_channels, num_taps = columns_SCS.shape[0], columns_SCS.shape[1], x_SK.shape[1]
    low = min(x_S[0], x_S[size - 1])
    width = (max(x_S[0], x_S[size - 1]) + num_taps - low) * num_channels
    num = width * size
    turned, rows = scratch[:num].reshape(width, size), scratch[num : 2 * num].reshape(size, width)
    _mix_rows(image_HWC, block, low, y_S, y_SK, rows, scratch[2 * num :])
    _transpose(rows, turned)
    for x in range(size):
        for channel in range(num_channels):
            out = columns_SCS[x, channel]
            for k in range(0, num_taps, 4):
                a = (x_S[x] - low + k) * num_channels + channel
                b, c, d = a + num_channels, a + 2 * num_channels, a + 3 * num_channels
                bounds = (ZERO, WHITE) if k + 4 == num_taps else (-FAR, FAR)
                _mix(turned, a, b, c, d, x_SK[x, k : k + 4], k == 0, bounds[0], bounds[1], out)


@compiled
def _mix_rows(image_HWC: Pixels, block: int, low: int, y_S: Ints, y_SK: Floats, rows: Floats, scratch: Floats) -> None:
    """Weighted sums of the lines of an image, from column `low` on."""
    width, num_taps = rows.shape[1], y_SK.shape[1]
    high = low + width // image_HWC.shape[2]
    num_lines = 4
    while num_lines < num_taps:
        num_lines *= 2
    lines = scratch[: num_lines * width].reshape(num_lines, width)  # line y is at y modulo their number
    last = num_lines - 1
    following = y_S[0]
    for y in range(len(y_S)):
        following = max(following, y_S[y])
        while following < y_S[y] + num_taps:
            _load(image_HWC, block, following, low, high, lines[following & last])
            following += 1
        for k in range(0, num_taps, 4):
            at = y_S[y] + k
            a, b, c, d = at & last, (at + 1) & last, (at + 2) & last, (at + 3) & last
            _mix(lines, a, b, c, d, y_SK[y, k : k + 4], k == 0, -FAR, FAR, rows[y])


@compiled
def _turned(
    image_HWC: Pixels, block: int, map_23: Doubles, is_bicubic: bool, columns_SCS: Floats, scratch: Floats
) -> None:
    """Sample at x = m00 i + m01 j + m02 and y likewise for column i and row j; zero outside, faded over a pixel."""
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    num_x, num_y = -(-image_HWC.shape[1] // block), -(-image_HWC.shape[0] // block)
    last = size - 1
    low_x, high_x = _span(map_23[0, 0] * last, map_23[0, 1] * last, map_23[0, 2], num_x)
    low_y, high_y = _span(map_23[1, 0] * last, map_23[1, 1] * last, map_23[1, 2], num_y)
    width = (high_x - low_x) * num_channels
    for row in range(low_y, high_y):
        begin = (row - low_y) * width
        _load(image_HWC, block, row, low_x, high_x, scratch[begin : begin + width])
    num = (high_y - low_y) * width + BLOCK
    weight_8S = scratch[num : num + 8 * size].reshape(8, size)  # four along x, four along y
    start_S, fade_S = np.empty(size, np.int32), np.empty(size, np.float32)
    # Positions in single precision, from a whole pixel near the column's first: exact to 1e-4 pixels.
    step_x, step_y = np.float32(map_23[0, 1]), np.float32(map_23[1, 1])
    for i in range(size):
        x_0, y_0 = map_23[0, 0] * i + map_23[0, 2], map_23[1, 0] * i + map_23[1, 2]
        whole_x, whole_y = int(np.floor(x_0)), int(np.floor(y_0))
        part_x, part_y = np.float32(x_0 - whole_x), np.float32(y_0 - whole_y)
        end_x, end_y = np.float32(num_x - whole_x), np.float32(num_y - whole_y)
        first = np.int32((whole_y - 1 - low_y) * width + (whole_x - 1 - low_x) * num_channels)
        for j in range(size):
            x, y = part_x + step_x * np.float32(j), part_y + step_y * np.float32(j)
            fade_x = min(max(min(x + np.float32(whole_x + 1.5), end_x + HALF - x), ZERO), ONE)
            fade_y = min(max(min(y + np.float32(whole_y + 1.5), end_y + HALF - y), ZERO), ONE)
            fade_S[j] = fade_x * fade_y
            base_x, base_y = np.floor(x), np.floor(y)
            weight_8S[0, j], weight_8S[4, j] = x - base_x, y - base_y
            start_S[j] = first + np.int32(base_y) * np.int32(width) + np.int32(base_x) * np.int32(num_channels)
        _weights_between(weight_8S[:4], is_bicubic)
        _weights_between(weight_8S[4:], is_bicubic)
        column_CS = columns_SCS[i]
        if num_channels == 1:
            for j in range(size):
                if fade_S[j] > 0:
                    column_CS[0, j] = _window_1(scratch, start_S[j], width, weight_8S, j)[0]
        else:
            for j in range(size):
                if fade_S[j] > 0:
                    color = _window_3(scratch, start_S[j], width, weight_8S, j)
                    column_CS[0, j], column_CS[1, j], column_CS[2, j] = color[0], color[1], color[2]
        for channel in range(num_channels):
            line = column_CS[channel]
            for j in range(size):
                line[j] = min(max(line[j] * fade_S[j], ZERO), WHITE) if fade_S[j] > 0 else ZERO


@compiled
def _span(along_i: Real, along_j: Real, origin: Real, num: int) -> tuple[int, int]:
    """First source pixel that a sample reads, and the one behind the last."""
    low = origin + min(along_i, 0.0) + min(along_j, 0.0) - SLACK
    high = origin + max(along_i, 0.0) + max(along_j, 0.0) + SLACK
    first = min(max(int(np.floor(low)) - 1, -MARGIN), num + MARGIN - 4)
    return first, max(min(int(np.floor(high)) + 3, num + MARGIN), first + 4)


@compiled
def _weights_between(weight_4S: Floats, is_bicubic: bool) -> None:
    """Weights of four pixels for samples between the second and the third, from their distances to the second."""
    v, w, x, y = weight_4S[0], weight_4S[1], weight_4S[2], weight_4S[3]
    if is_bicubic:  # the kernel's two pieces, without its branches
        for j in range(len(v)):
            t, u = v[j], ONE - v[j]
            v[j], y[j] = A * t * u * u, A * u * t * t
            w[j] = ((A + TWO) * t - (A + THREE)) * t * t + ONE
            x[j] = ((A + TWO) * u - (A + THREE)) * u * u + ONE
    else:
        for j in range(len(v)):
            w[j], x[j] = ONE - v[j], v[j]
            v[j] = y[j] = ZERO


@compiled
def _resize(image_HWC: Pixels, columns_SCS: Floats, scratch: Floats) -> None:
    """Stretch to S x S, bicubic and antialiased; exact where no pixel moves."""
    size, height, width = columns_SCS.shape[0], image_HWC.shape[0], image_HWC.shape[1]
    num_taps = 4 * (max(height, width, size) // size + 2)
    x_S, y_S, num = np.empty(size, np.int64), np.empty(size, np.int64), size * num_taps
    x_SK, y_SK = scratch[:num].reshape(size, num_taps), scratch[num : 2 * num].reshape(size, num_taps)
    _antialiased_taps(width, x_S, x_SK)
    _antialiased_taps(height, y_S, y_SK)
    # A plain 1 would be a type of its own, and all kernels below be compiled once more.
    _separable(image_HWC, int(np.int64(1)), x_S, x_SK, y_S, y_SK, columns_SCS, scratch[2 * num :])


@compiled
def _resample(
    image_HWC: Pixels,
    crop_4: Doubles,
    rotation_rad: Real,
    is_flipped: bool,
    is_bicubic: bool,
    columns_SCS: Floats,
    scratch: Floats,
) -> None:
    """Rotate about the centre, crop, flip and resize in one sampling."""
    size, height, width = columns_SCS.shape[0], image_HWC.shape[0], image_HWC.shape[1]
    center_x, center_y, box_width, box_height = crop_4
    block = 2 ** max(int(np.rint(np.log2(np.sqrt(box_width * box_height) / size))), 0)
    # From a view's pixel to one of the source, whose pixel 0 has its centre at 0.
    step_x = (-box_width if is_flipped else box_width) / size / block
    step_y = box_height / size / block
    half = (size - 1) / 2
    cosine, sine = np.cos(rotation_rad), np.sin(rotation_rad)
    middle_x = (width / 2 + cosine * center_x - sine * center_y) / block - 0.5
    middle_y = (height / 2 + sine * center_x + cosine * center_y) / block - 0.5
    if rotation_rad == 0:
        x_S, y_S, num = np.empty(size, np.int64), np.empty(size, np.int64), 4 * size
        x_S4, y_S4 = scratch[:num].reshape(size, 4), scratch[num : 2 * num].reshape(size, 4)
        _taps(middle_x - half * step_x, step_x, x_S, x_S4, is_bicubic)
        _taps(middle_y - half * step_y, step_y, y_S, y_S4, is_bicubic)
        _separable(image_HWC, block, x_S, x_S4, y_S, y_S4, columns_SCS, scratch[2 * num :])
    else:
        map_23 = np.empty((2, 3))
        map_23[0, 0], map_23[0, 1] = cosine * step_x, -sine * step_y
        map_23[1, 0], map_23[1, 1] = sine * step_x, cosine * step_y
        map_23[0, 2] = middle_x - half * (map_23[0, 0] + map_23[0, 1])
        map_23[1, 2] = middle_y - half * (map_23[1, 0] + map_23[1, 1])
        _turned(image_HWC, block, map_23, is_bicubic, columns_SCS, scratch)


# Colour


@compiled
def _hue(red: Floats, green: Floats, blue: Floats, turns: Real) -> None:
    """Turn HSV hue by a share of the circle; value and saturation stay (tf.image.adjust_hue)."""
    shift = np.float32(6 * turns)
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        low = min(min(r, g), b)
        value = max(max(r, g), b)
        chroma = value - low
        scale = ONE / max(chroma, TINY)
        from_green = (b - r) * scale + TWO if value == g else (r - g) * scale + FOUR
        sixths = ((g - b) * scale if value == r else from_green) + shift
        sixths -= SIX * np.floor(sixths / SIX)
        # Red is full within a sixth of hue 0 and of 6, green of 2, blue of 4.
        red[i] = low + chroma * min(max(abs(sixths - THREE) - ONE, ZERO), ONE)
        green[i] = low + chroma * min(max(TWO - abs(sixths - TWO), ZERO), ONE)
        blue[i] = low + chroma * min(max(TWO - abs(sixths - FOUR), ZERO), ONE)


@compiled
def _saturate(red: Floats, green: Floats, blue: Floats, factor: Real) -> None:
    """HSV saturation times a factor, at most 1; value and hue stay (tf.image.adjust_saturation)."""
    asked = np.float32(factor)
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        value = max(max(r, g), b)
        chroma = value - min(min(r, g), b)
        share = min(asked, value / max(chroma, TINY))
        red[i] = value - (value - r) * share
        green[i] = value - (value - g) * share
        blue[i] = value - (value - b) * share


@compiled
def _stretch(line: Floats, factor: Real, shift: Real) -> None:
    """Intensity times a factor plus a shift, clipped."""
    scale, offset = np.float32(factor), np.float32(shift)
    for i in range(len(line)):
        line[i] = min(max(line[i] * scale + offset, ZERO), WHITE)


@compiled
def _to_gray(red: Floats, green: Floats, blue: Floats, gray: Floats) -> None:
    """Luma."""
    for i in range(len(red)):
        gray[i] = LUMA[0] * red[i] + LUMA[1] * green[i] + LUMA[2] * blue[i]


@compiled
def _means(columns_SCS: Floats) -> Doubles:
    """Mean of each channel."""
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    mean_C = np.zeros(num_channels)
    for x in range(size):
        for channel in range(num_channels):
            line, total = columns_SCS[x, channel], ZERO
            for i in range(len(line)):
                total += line[i]
            mean_C[channel] += total
    for channel in range(num_channels):
        mean_C[channel] /= size * size
    return mean_C


@compiled
def _change(columns_SCS: Floats, order_4: Ints, jitter_4: Doubles) -> None:
    """SimCLR's colour jitter in the order given, a clip after each; contrast about each channel's own mean."""
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    begin = 0
    while begin < 4:
        end = begin + 1
        while end < 4 and order_4[end] != CONTRAST:  # contrast needs all columns as they are before it
            end += 1
        mean_C = _means(columns_SCS) if order_4[begin] == CONTRAST else np.zeros(num_channels)
        for x in range(size):
            column = columns_SCS[x]
            for change in order_4[begin:end]:
                value = jitter_4[change]
                if change in (BRIGHTNESS, CONTRAST):
                    for channel in range(num_channels):
                        shift = (1 - value) * mean_C[channel] if change == CONTRAST else 0.0
                        _stretch(column[channel], value, shift)
                elif num_channels == 3 and change == SATURATION:
                    _saturate(column[0], column[1], column[2], value)
                elif num_channels == 3 and change == HUE:
                    _hue(column[0], column[1], column[2], value)
        begin = end


@compiled
def _shift_and_stretch(columns_SCS: Floats, jitter_4: Doubles) -> None:
    """The supplement's jitter (A.2): brightness added, contrast about the mean, then one clip."""
    mean_C = _means(columns_SCS)
    summand, factor = WHITE * jitter_4[BRIGHTNESS], jitter_4[CONTRAST]
    for x in range(columns_SCS.shape[0]):
        for channel in range(columns_SCS.shape[1]):
            _stretch(columns_SCS[x, channel], factor, summand + (1 - factor) * mean_C[channel])


# Blur


@compiled
def _fill(line: Floats, value: Real) -> None:
    for i in range(len(line)):
        line[i] = value


@compiled
def _blur_weights(size: int, sigma: Real, weight_R: Floats) -> int:
    """Write the weights of distances 0 to the radius that is returned; with their mirror images they sum to 1."""
    radius = size // BLUR_SIDE_SHARE // 2
    while radius > 0 and np.exp(-(radius**2) / (2 * sigma**2)) < BLUR_NEGLIGIBLE:
        radius -= 1
    total = 1.0
    for k in range(1, radius + 1):
        total += 2 * np.exp(-(k**2) / (2 * sigma**2))
    for k in range(radius + 1):
        weight_R[k] = np.float32(np.exp(-(k**2) / (2 * sigma**2)) / total)
    return radius


@compiled
def _spread(
    source: Floats, at: int, stride: int, weight_R: Floats, radius: int, target: Floats, to: int, num: int
) -> None:
    """Weighted sums of `num` items from `at` on and their neighbours, `stride` apart."""
    full = num - num % (2 * BLOCK)
    for i in range(0, full, 2 * BLOCK):
        _spread_block(source, at + i, stride, weight_R, radius, target, to + i)
    for i in range(full, num):
        total = weight_R[0] * source[at + i]
        for k in range(1, radius + 1):
            total += weight_R[k] * (source[at + i - k * stride] + source[at + i + k * stride])
        target[to + i] = total


@compiled
def _blur(columns_SCS: Floats, sigma: Real, scratch: Floats) -> None:
    """Gaussian blur in place, separable, zeros outside the image as in SimCLR's code.

    The kernel has 2 * (side // 10 // 2) + 1 taps: 23 at 224 pixels, one, and so no blur, below 20.
    """
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    width = num_channels * size
    weight_R, rest = scratch[:size], scratch[size:]
    radius = _blur_weights(size, sigma, weight_R)
    line, rest = rest[: size + 2 * radius], rest[size + 2 * radius :]
    _fill(line[:radius], ZERO)
    _fill(line[size + radius :], ZERO)
    margin, num = radius * width, size * width
    wide, flat = rest[: num + 2 * margin], columns_SCS.reshape(num)
    _fill(wide[:margin], ZERO)
    _fill(wide[margin + num :], ZERO)
    for begin in range(0, num, size):
        own, middle = flat[begin : begin + size], line[radius : radius + size]
        for i in range(size):
            middle[i] = own[i]
        _spread(line, radius, 1, weight_R, radius, wide, margin + begin, size)
    for begin in range(0, num, width):
        _spread(wide, margin + begin, width, weight_R, radius, flat, begin, width)


# Views


@compiled
def _finish(columns_SPS: Floats, out_SSC: Pixels, scratch: Floats) -> None:
    """Clip, round to whole intensities, and from columns to rows; one plane is repeated for all channels."""
    size, num_planes, num_channels = columns_SPS.shape[0], columns_SPS.shape[1], out_SSC.shape[2]
    num_lines = size * num_channels
    lines = scratch.view(np.uint8)[: num_lines * size].reshape(num_lines, size)
    for x in range(size):
        for channel in range(num_channels):
            line, source = lines[x * num_channels + channel], columns_SPS[x, channel % num_planes]
            for i in range(size):
                line[i] = np.uint8(np.int32(min(max(source[i], ZERO), WHITE) + HALF))
    _transpose(lines, out_SSC.reshape(size, num_lines))


@compiled
def view(
    image_HWC: Pixels,
    is_plain: bool,
    crop_4: Doubles,
    rotation_rad: Real,
    is_flipped: bool,
    is_bicubic: bool,
    is_jittered: bool,
    is_additive: bool,
    order_4: Ints,
    jitter_4: Doubles,
    is_gray: bool,
    blur_sigma: Real,
    out_SSC: Pixels,
    scratch: Floats,
) -> None:
    """Rotation, crop, flip and resize in one resampling, then colour, grey and blur.

    Args:
        image_HWC: Contiguous.
        is_plain: Only resized; the next four do not apply.
        crop_4: As of `augment.Draws`.
        rotation_rad: Counter-clockwise as displayed.
        is_flipped: Left-right.
        is_bicubic: Or bilinear.
        is_jittered: Whether the next three apply.
        is_additive: The supplement's jitter instead of SimCLR's.
        order_4: Of brightness, contrast, saturation and hue.
        jitter_4: Their values.
        is_gray: Luma in all channels.
        blur_sigma: Pixels of the view; 0: no blur.
        out_SSC: Contiguous; overwritten.
        scratch: Of `working_memory`.
    """
    size, num_channels = out_SSC.shape[0], out_SSC.shape[2]
    num = size * num_channels * size
    image_HWC, scratch = _borrowed(image_HWC), _borrowed(scratch)
    columns_SCS, rest = scratch[:num].reshape(size, num_channels, size), scratch[num:]
    if is_plain:
        _resize(image_HWC, columns_SCS, rest)
    else:
        _resample(image_HWC, crop_4, rotation_rad, is_flipped, is_bicubic, columns_SCS, rest)
    if is_jittered and is_additive:
        _shift_and_stretch(columns_SCS, jitter_4)
    elif is_jittered:
        _change(columns_SCS, order_4, jitter_4)
    if is_gray and num_channels == 3:  # the rest is done once for the three
        gray_S1S, rest = rest[: size * size].reshape(size, 1, size), rest[size * size :]
        for x in range(size):
            _to_gray(columns_SCS[x, 0], columns_SCS[x, 1], columns_SCS[x, 2], gray_S1S[x, 0])
        columns_SCS = gray_S1S
    if blur_sigma > 0:
        _blur(columns_SCS, blur_sigma, rest)
    _finish(columns_SCS, out_SSC, rest)


_own = threading.local()


def working_memory(image_HWC: Pixels, out_SSC: Pixels) -> Floats:
    """This thread's own, enough for such a view; to get it from the system each time would cost more than the view.

    Only what a view touches is ever backed by real memory.
    """
    (height, width, channels), size_px = image_HWC.shape, len(out_SSC)
    num_taps = 4 * (max(height, width) // size_px + 3)
    num = 3 * size_px * size_px * channels + size_px
    num += (2 * size_px + num_taps) * (width + 2 * num_taps) * channels
    num += (height + 4 * MARGIN) * (width + 4 * MARGIN) * channels + BLOCK
    if getattr(_own, "scratch", np.empty(0)).size < num:
        _own.scratch = np.empty(num, np.float32)
    return cast(Floats, _own.scratch)

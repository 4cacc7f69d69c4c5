"""Native kernels of augmentation: one uint8 image in, one finished uint8 view out, without the interpreter's lock.

Shape suffixes: H and W pixels of the image, C channels (1 or 3), S pixels of the view, K taps. Intensities are float32
in [0, 255] between the first operation and the last, which rounds once.

A view is computed by columns, shape (S, C, S) for x, channel and y: every inner loop then runs over neighbours in
memory, one channel at a time, whatever the number of channels, and the way from and back to interleaved rows is a
plain transposition.

All kernels are in this file because numba's cache on disk sees a change of a kernel's own file only.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

# ITU-R BT.601 luma as in tf.image.rgb_to_grayscale.
LUMA = (np.float32(0.2989), np.float32(0.5870), np.float32(0.1140))
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# A blur's kernel spans a tenth of the side (SimCLR's code).
BLUR_SIDE_SHARE = 10
# Weights of a blur below this share of the middle one are left out: together below a hundredth of an intensity.
BLUR_NEGLIGIBLE = 1e-5
# Cubic convolution's parameter: torch's for the views, Pillow's and torch's for antialiased resizing.
CUBIC, ANTIALIASED_CUBIC = -0.75, -0.5
# Stands for a zero range of a pixel's channels in a divisor.
TINY = np.float32(1e-4)
ZERO, HALF, ONE, SIX, WHITE = (np.float32(value) for value in (0, 0.5, 1, 6, 255))
# Source pixels beyond the edge that a sample within the fading margin can read.
MARGIN = 3
BLOCK = 16  # side of the squares that a transposition moves at once

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def _compiled(kernel: _Kernel) -> _Kernel:
    """Compile at the first call; kept on disk where numba finds a folder it may write to."""
    options = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return cast(_Kernel, njit(cache=True, **options)(kernel))
    except RuntimeError:  # no such folder
        return cast(_Kernel, njit(**options)(kernel))


@intrinsic  # type: ignore[misc]
def _transpose_block(typing_context: Any, source: Any, row: Any, column: Any, target: Any) -> Any:
    """Copy source[row:, column:] of BLOCK x BLOCK to target[column:, row:], transposed in vector registers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        item = context.get_data_type(source.dtype)
        vector, word = ir.VectorType(item, BLOCK), ir.IntType(64)

        def line(array: Any, of: Any, first: Any, k: int, offset: Any) -> Any:
            """Address of BLOCK items of line first + k, from `offset` on."""
            made = cgutils.create_struct_proxy(of)(context, builder, array)
            stride = cgutils.unpack_tuple(builder, made.strides, 2)[0]
            place = builder.mul(builder.add(first, ir.Constant(word, k)), stride)
            place = builder.add(place, builder.mul(offset, ir.Constant(word, context.get_abi_sizeof(item))))
            return builder.inttoptr(builder.add(builder.ptrtoint(made.data, word), place), vector.as_pointer())

        source_, row_, column_, target_ = arguments
        lines = [builder.load(line(source_, source, row_, k, column_), align=1) for k in range(BLOCK)]
        half = BLOCK // 2
        masks = [
            ir.Constant(
                ir.VectorType(ir.IntType(32), BLOCK), [k for i in range(first, first + half) for k in (i, i + BLOCK)]
            )
            for first in (0, half)
        ]
        # Interleaving the two halves of a list of 2^n vectors turns the bits of an item's place by one; n times, and
        # line and place have changed roles.
        for _ in range(BLOCK.bit_length() - 1):
            lines = [builder.shuffle_vector(lines[i], lines[i + half], mask) for i in range(half) for mask in masks]
        for k in range(BLOCK):
            builder.store(lines[k], line(target_, target, column_, k, row_), align=1)
        return context.get_dummy_value()

    return types.void(source, types.uintp, types.uintp, target), generate


@_compiled
def _transpose(source: Any, target: Any) -> None:
    """Write the transposed matrix."""
    height, width = source.shape
    full_height, full_width = height - height % BLOCK, width - width % BLOCK
    for row in range(0, full_height, BLOCK):
        for column in range(0, full_width, BLOCK):
            _transpose_block(source, np.uintp(row), np.uintp(column), target)
        for k in range(row, row + BLOCK):
            for column in range(full_width, width):
                target[column, k] = source[k, column]
    for row in range(full_height, height):
        for column in range(width):
            target[column, row] = source[row, column]


# Geometry


@_compiled
def _cubic(distance: float, a: float) -> float:
    """Keys' cubic convolution kernel (1981, eq. 15, with a free)."""
    x = abs(distance)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


@_compiled
def _taps(first: float, step: float, start_S: Ints, weight_SK: Floats, is_bicubic: bool) -> None:
    """Four weights of each sample at first + i * step, in pixels from the centre of pixel 0; start may be outside."""
    for i in range(len(start_S)):
        position = first + i * step
        base = int(np.floor(position))
        start_S[i] = base - 1
        for k in range(4):
            distance = position - (base - 1 + k)
            weight = _cubic(distance, CUBIC) if is_bicubic else max(1 - abs(distance), 0.0)
            weight_SK[i, k] = np.float32(weight)


@_compiled
def _antialiased_taps(first: float, step: float, width: float, num: int, start_S: Ints, weight_SK: Floats) -> None:
    """Weights of a cubic filter `width` times as wide, cut off at the edges and normalised, around first + i * step."""
    for i in range(len(start_S)):
        position = first + i * step
        low = max(int(np.ceil(position - 2 * width)), 0)
        start_S[i] = low
        total = 0.0
        for k in range(weight_SK.shape[1]):
            weight = _cubic((low + k - position) / width, ANTIALIASED_CUBIC) if low + k < num else 0.0
            weight_SK[i, k] = np.float32(weight)
            total += weight
        for k in range(weight_SK.shape[1]):
            weight_SK[i, k] /= np.float32(total)


@_compiled
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


@_compiled
def _mix(a: Floats, b: Floats, c: Floats, d: Floats, weight_4: Floats, is_first: bool, out: Floats) -> None:
    """Weighted sum of four lines, added to `out` if it is not the first."""
    u, v, w, x = weight_4[0], weight_4[1], weight_4[2], weight_4[3]
    if is_first:
        for i in range(len(out)):
            out[i] = u * a[i] + v * b[i] + w * c[i] + x * d[i]
    else:
        for i in range(len(out)):
            out[i] += u * a[i] + v * b[i] + w * c[i] + x * d[i]


@_compiled
def _separable(
    image_HWC: Pixels, block: int, x_S: Ints, x_SK: Floats, y_S: Ints, y_SK: Floats, columns_SCS: Floats
) -> None:
    """Weighted sums of image lines, transposition, weighted sums of image columns; clipped."""
    size, num_channels, num_taps = len(x_S), image_HWC.shape[2], y_SK.shape[1]
    low, high = x_S.min(), x_S.max() + x_SK.shape[1]
    width = (high - low) * num_channels
    rows = np.empty((size, width), np.float32)
    lines = np.empty((num_taps, width), np.float32)
    following = y_S[0]
    for y in range(size):
        following = max(following, y_S[y])
        while following < y_S[y] + num_taps:
            _load(image_HWC, block, following, low, high, lines[following % num_taps])
            following += 1
        for k in range(0, num_taps, 4):
            at = y_S[y] + k
            a, b, c, d = at % num_taps, (at + 1) % num_taps, (at + 2) % num_taps, (at + 3) % num_taps
            _mix(lines[a], lines[b], lines[c], lines[d], y_SK[y, k : k + 4], k == 0, rows[y])
    turned = np.empty((width, size), np.float32)
    _transpose(rows, turned)
    for x in range(size):
        for channel in range(num_channels):
            out = columns_SCS[x, channel]
            for k in range(0, x_SK.shape[1], 4):
                a = (x_S[x] - low + k) * num_channels + channel
                b, c, d = a + num_channels, a + 2 * num_channels, a + 3 * num_channels
                _mix(turned[a], turned[b], turned[c], turned[d], x_SK[x, k : k + 4], k == 0, out)
            for y in range(size):
                out[y] = min(max(out[y], ZERO), WHITE)


@_compiled
def _turned(image_HWC: Pixels, block: int, map_23: Doubles, is_bicubic: bool, columns_SCS: Floats) -> None:
    """Sample at x = m00 i + m01 j + m02 and y likewise for column i and row j; zero outside, faded over a pixel."""
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    num_x, num_y = -(-image_HWC.shape[1] // block), -(-image_HWC.shape[0] // block)
    last = size - 1
    low_x, high_x = _span(map_23[0, 0] * last, map_23[0, 1] * last, map_23[0, 2], num_x)
    low_y, high_y = _span(map_23[1, 0] * last, map_23[1, 1] * last, map_23[1, 2], num_y)
    width = (high_x - low_x) * num_channels
    source = np.empty((high_y - low_y) * width + 4, np.float32)
    for y in range(low_y, high_y):
        at = (y - low_y) * width
        _load(image_HWC, block, y, low_x, high_x, source[at : at + width])
    start_S, fade_S = np.empty(size, np.int64), np.empty(size, np.float32)
    x_S4, y_S4 = np.empty((size, 4), np.float32), np.empty((size, 4), np.float32)
    for i in range(size):
        for j in range(size):
            x = map_23[0, 0] * i + map_23[0, 1] * j + map_23[0, 2]
            y = map_23[1, 0] * i + map_23[1, 1] * j + map_23[1, 2]
            fade_x = min(max(min(x + 1.5, num_x + 0.5 - x), 0.0), 1.0)
            fade_y = min(max(min(y + 1.5, num_y + 0.5 - y), 0.0), 1.0)
            fade_S[j] = np.float32(fade_x * fade_y)
            base_x, base_y = np.floor(x), np.floor(y)
            _four_weights(np.float32(x - base_x), is_bicubic, x_S4[j])
            _four_weights(np.float32(y - base_y), is_bicubic, y_S4[j])
            start_S[j] = (int(base_y) - 1 - low_y) * width + (int(base_x) - 1 - low_x) * num_channels
        for j in range(size):
            if fade_S[j] == 0:
                for channel in range(num_channels):
                    columns_SCS[i, channel, j] = ZERO
            elif num_channels == 1:
                value = _gathered_gray(source, start_S[j], width, x_S4[j], y_S4[j])
                columns_SCS[i, 0, j] = min(max(value * fade_S[j], ZERO), WHITE)
            else:
                red, green, blue = _gathered_color(source, start_S[j], width, x_S4[j], y_S4[j])
                columns_SCS[i, 0, j] = min(max(red * fade_S[j], ZERO), WHITE)
                columns_SCS[i, 1, j] = min(max(green * fade_S[j], ZERO), WHITE)
                columns_SCS[i, 2, j] = min(max(blue * fade_S[j], ZERO), WHITE)


@_compiled
def _span(along_i: float, along_j: float, origin: float, num: int) -> tuple[int, int]:
    """First source pixel that a sample reads, and the one behind the last."""
    low = origin + min(along_i, 0.0) + min(along_j, 0.0)
    high = origin + max(along_i, 0.0) + max(along_j, 0.0)
    first = min(max(int(np.floor(low)) - 1, -MARGIN), num + MARGIN - 4)
    return first, max(min(int(np.floor(high)) + 3, num + MARGIN), first + 4)


@_compiled
def _four_weights(t: float, is_bicubic: bool, weight_4: Floats) -> None:
    """Of a sample at share t of the way from the second of four pixels to the third."""
    if is_bicubic:
        a, u = np.float32(CUBIC), ONE - t
        weight_4[0] = a * t * u * u
        weight_4[1] = ((a + np.float32(2)) * t - (a + np.float32(3))) * t * t + ONE
        weight_4[2] = ((a + np.float32(2)) * u - (a + np.float32(3))) * u * u + ONE
        weight_4[3] = a * u * t * t
    else:
        weight_4[0], weight_4[1], weight_4[2], weight_4[3] = ZERO, ONE - t, t, ZERO


@_compiled
def _gathered_gray(source: Floats, start: int, width: int, x_4: Floats, y_4: Floats) -> float:
    """4 x 4 pixels weighted; written out so that the four columns share a vector register."""
    at, step, one = np.uint64(start), np.uint64(width), np.uint64(1)
    a = b = c = d = ZERO
    for k in range(4):
        w = y_4[k]
        a += w * source[at]
        b += w * source[at + one]
        c += w * source[at + one + one]
        d += w * source[at + one + one + one]
        at += step
    return a * x_4[0] + b * x_4[1] + c * x_4[2] + d * x_4[3]


@_compiled
def _gathered_color(source: Floats, start: int, width: int, x_4: Floats, y_4: Floats) -> tuple[float, float, float]:
    """4 x 4 pixels weighted; a fourth, unused channel lets the three share a vector register."""
    at, step, one = np.uint64(start), np.uint64(width), np.uint64(1)
    a = b = c = d = ZERO
    for k in range(4):
        place = at
        for j in range(4):
            w = y_4[k] * x_4[j]
            a += w * source[place]
            b += w * source[place + one]
            c += w * source[place + one + one]
            d += w * source[place + one + one + one]
            place += one + one + one
        at += step
    return a, b, c


@_compiled
def _resize_taps(num: int, size: int) -> tuple[Ints, Floats]:
    """Starts and weights that take `num` pixels to `size`."""
    step = num / size
    filter_step = max(step, 1.0)
    num_taps = 4 * -(-(int(np.ceil(4 * filter_step)) + 1) // 4)
    start_S, weight_SK = np.empty(size, np.int64), np.empty((size, num_taps), np.float32)
    _antialiased_taps(step / 2 - 0.5, step, filter_step, num, start_S, weight_SK)
    return start_S, weight_SK


@_compiled
def _resample(
    image_HWC: Pixels, crop_4: Doubles, rotation_rad: float, is_flipped: bool, is_bicubic: bool, columns_SCS: Floats
) -> None:
    """Rotate about the centre, crop, flip and resize in one sampling."""
    size, height, width = columns_SCS.shape[0], image_HWC.shape[0], image_HWC.shape[1]
    center_x, center_y, box_width, box_height = crop_4
    level = max(int(np.rint(np.log2(np.sqrt(box_width * box_height) / size))), 0)
    block = 2**level
    # From a view's pixel to one of the source, whose pixel 0 has its centre at 0.
    step_x = (-box_width if is_flipped else box_width) / size / block
    step_y = box_height / size / block
    half = (size - 1) / 2
    cosine, sine = np.cos(rotation_rad), np.sin(rotation_rad)
    middle_x = (width / 2 + cosine * center_x - sine * center_y) / block - 0.5
    middle_y = (height / 2 + sine * center_x + cosine * center_y) / block - 0.5
    if rotation_rad == 0:
        x_S, y_S = np.empty(size, np.int64), np.empty(size, np.int64)
        x_S4, y_S4 = np.empty((size, 4), np.float32), np.empty((size, 4), np.float32)
        _taps(middle_x - half * step_x, step_x, x_S, x_S4, is_bicubic)
        _taps(middle_y - half * step_y, step_y, y_S, y_S4, is_bicubic)
        _separable(image_HWC, block, x_S, x_S4, y_S, y_S4, columns_SCS)
    else:
        map_23 = np.array([[cosine * step_x, -sine * step_y, 0.0], [sine * step_x, cosine * step_y, 0.0]])
        map_23[0, 2] = middle_x - half * (map_23[0, 0] + map_23[0, 1])
        map_23[1, 2] = middle_y - half * (map_23[1, 0] + map_23[1, 1])
        _turned(image_HWC, block, map_23, is_bicubic, columns_SCS)


@_compiled
def _resize(image_HWC: Pixels, columns_SCS: Floats) -> None:
    """Stretch to S x S, bicubic and antialiased."""
    size = columns_SCS.shape[0]
    x_S, x_SK = _resize_taps(image_HWC.shape[1], size)
    y_S, y_SK = _resize_taps(image_HWC.shape[0], size)
    _separable(image_HWC, 1, x_S, x_SK, y_S, y_SK, columns_SCS)


# Colour


@_compiled
def _hue(red: Floats, green: Floats, blue: Floats, turns: float) -> None:
    """Turn HSV hue by a share of the circle; value and saturation stay (tf.image.adjust_hue)."""
    shift = np.float32(6 * turns)
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        low = min(min(r, g), b)
        value = max(max(r, g), b)
        chroma = value - low
        scale = ONE / max(chroma, TINY)
        from_green = (b - r) * scale + np.float32(2) if value == g else (r - g) * scale + np.float32(4)
        sixths = ((g - b) * scale if value == r else from_green) + shift
        sixths -= SIX * np.floor(sixths / SIX)
        # Red is full within a sixth of hue 0 and of 6, green of 2, blue of 4.
        red[i] = low + chroma * min(max(abs(sixths - np.float32(3)) - ONE, ZERO), ONE)
        green[i] = low + chroma * min(max(np.float32(2) - abs(sixths - np.float32(2)), ZERO), ONE)
        blue[i] = low + chroma * min(max(np.float32(2) - abs(sixths - np.float32(4)), ZERO), ONE)


@_compiled
def _saturate(red: Floats, green: Floats, blue: Floats, factor: float) -> None:
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


@_compiled
def _stretch(line: Floats, factor: float, shift: float) -> None:
    """Intensity times a factor plus a shift, clipped."""
    scale, offset = np.float32(factor), np.float32(shift)
    for i in range(len(line)):
        line[i] = min(max(line[i] * scale + offset, ZERO), WHITE)


@_compiled
def _to_gray(red: Floats, green: Floats, blue: Floats) -> None:
    """Luma in all three channels."""
    for i in range(len(red)):
        luma = min(LUMA[0] * red[i] + LUMA[1] * green[i] + LUMA[2] * blue[i], WHITE)
        red[i] = green[i] = blue[i] = luma


@_compiled
def _means(columns_SCS: Floats) -> Doubles:
    """Mean of each channel."""
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    mean_C = np.zeros(num_channels)
    for x in range(size):
        for channel in range(num_channels):
            total = ZERO
            for value in columns_SCS[x, channel]:
                total += value
            mean_C[channel] += total
    return mean_C / (size * size)


@_compiled
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


@_compiled
def _shift_and_stretch(columns_SCS: Floats, jitter_4: Doubles) -> None:
    """The supplement's jitter (A.2): brightness added, contrast about the mean, then one clip."""
    mean_C = _means(columns_SCS)
    summand, factor = WHITE * jitter_4[BRIGHTNESS], jitter_4[CONTRAST]
    for x in range(columns_SCS.shape[0]):
        for channel in range(columns_SCS.shape[1]):
            _stretch(columns_SCS[x, channel], factor, summand + (1 - factor) * mean_C[channel])


# Blur


@_compiled
def _blur(columns_SCS: Floats, sigma: float) -> None:
    """Gaussian blur in place, separable, zeros outside the image as in SimCLR's code.

    The kernel has 2 * (side // 10 // 2) + 1 taps: 23 at 224 pixels, one, and so no blur, below 20.
    """
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    radius = size // BLUR_SIDE_SHARE // 2
    weights = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    weights /= 2 * weights.sum() - weights[0]
    while radius > 0 and weights[radius] < BLUR_NEGLIGIBLE * weights[0]:
        radius -= 1
    if radius == 0:
        return
    padded = np.zeros(size + 2 * radius, np.float32)
    middle = padded[radius : radius + size]
    for x in range(size):
        for channel in range(num_channels):
            line = columns_SCS[x, channel]
            middle[:] = line
            line *= np.float32(weights[0])
            for k in range(1, radius + 1):
                _add_pair(line, padded[radius - k :], padded[radius + k :], np.float32(weights[k]))
    width = num_channels * size
    before = np.zeros((radius + 1, width), np.float32)  # the columns on the left as they were, a ring
    nothing = np.zeros(width, np.float32)
    flat = columns_SCS.reshape(size, width)
    for x in range(size):
        own = before[x % (radius + 1)]
        own[:] = flat[x]
        flat[x] *= np.float32(weights[0])
        for k in range(1, radius + 1):
            left = before[(x - k) % (radius + 1)] if x >= k else nothing
            right = flat[x + k] if x + k < size else nothing
            _add_pair(flat[x], left, right, np.float32(weights[k]))


@_compiled
def _add_pair(line: Floats, left: Floats, right: Floats, weight: float) -> None:
    for i in range(len(line)):
        line[i] += weight * (left[i] + right[i])


# Views


@_compiled
def _finish(columns_SCS: Floats, out_SSC: Pixels) -> None:
    """Round to whole intensities, and from columns to rows."""
    size, num_channels = columns_SCS.shape[0], columns_SCS.shape[1]
    lines = np.empty((size * num_channels, size), np.uint8)
    flat = columns_SCS.reshape(size * num_channels, size)
    for k in range(size * num_channels):
        line, source = lines[k], flat[k]
        for i in range(size):
            line[i] = np.uint8(np.int32(source[i] + HALF))
    _transpose(lines, out_SSC.reshape(size, size * num_channels))


@_compiled
def view(
    image_HWC: Pixels,
    is_plain: bool,
    crop_4: Doubles,
    rotation_rad: float,
    is_flipped: bool,
    is_bicubic: bool,
    is_jittered: bool,
    is_additive: bool,
    order_4: Ints,
    jitter_4: Doubles,
    is_gray: bool,
    blur_sigma: float,
    out_SSC: Pixels,
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
    """
    size, num_channels = out_SSC.shape[0], out_SSC.shape[2]
    columns_SCS = np.empty((size, num_channels, size), np.float32)
    if is_plain:
        _resize(image_HWC, columns_SCS)
    else:
        _resample(image_HWC, crop_4, rotation_rad, is_flipped, is_bicubic, columns_SCS)
    if is_jittered and is_additive:
        _shift_and_stretch(columns_SCS, jitter_4)
    elif is_jittered:
        _change(columns_SCS, order_4, jitter_4)
    if is_gray and num_channels == 3:
        for x in range(size):
            _to_gray(columns_SCS[x, 0], columns_SCS[x, 1], columns_SCS[x, 2])
    if blur_sigma > 0:
        _blur(columns_SCS, blur_sigma)
    _finish(columns_SCS, out_SSC)


@_compiled
def resized(image_HWC: Pixels, out_SSC: Pixels) -> None:
    """Stretch to S x S, bicubic and antialiased; both contiguous."""
    size, num_channels = out_SSC.shape[0], out_SSC.shape[2]
    columns_SCS = np.empty((size, num_channels, size), np.float32)
    _resize(image_HWC, columns_SCS)
    _finish(columns_SCS, out_SSC)

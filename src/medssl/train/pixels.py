"""Tensor operations of augmentation: one resampling, colour, grey and blur, each with values per image.

Shape suffixes: N images, C channels (1 or 3), H and W pixels, S pixels of the result, K taps. Images are
float32 in [0, 1]. Values come as numpy arrays, so that choosing images needs no read-back from the device;
augment.py draws them.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

# ITU-R BT.601 luma as in tf.image.rgb_to_grayscale.
LUMA = (0.2989, 0.5870, 0.1140)
# A blur's kernel spans a tenth of the side (SimCLR's code).
BLUR_SIDE_SHARE = 10
# Stands for a zero range of a pixel's channels in a divisor; below one step of a 16-bit image.
TINY = 1e-6

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def unit_float(images_NCHW: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are taken to be in range."""
    if images_NCHW.dtype == torch.uint8:
        return images_NCHW.to(torch.float32).div_(255)
    return images_NCHW.to(torch.float32)


def resize(images_NCHW: Tensor, *, size_px: int) -> Tensor:
    """Images stretched to size x size, bicubic and antialiased; a new tensor, exact where no pixel moves."""
    if images_NCHW.shape[-2:] == (size_px, size_px):
        return images_NCHW.clamp(0, 1)
    return functional.interpolate(
        images_NCHW, (size_px, size_px), mode="bicubic", antialias=True, align_corners=False
    ).clamp_(0, 1)


def resample(
    images_NCHW: Tensor,
    *,
    crop_N4: Floats,
    is_flipped_N: Bools,
    rotation_rad_N: Floats,
    size_px: int,
    mode: Literal["bilinear", "bicubic"],
) -> Tensor:
    """Rotate about the centre with zero fill, crop, flip and resize to size x size, in one sampling.

    A crop that shrinks by s >= 1.41 (root of the area ratio) is read from its image averaged over blocks of
    2^k pixels, k = round(log2 s), so a shrink of at most 1.41 is left unfiltered.

    Args:
        images_NCHW: float32 in [0, 1].
        crop_N4: Centre x and y from the image's centre, right and down, width, height; pixels of the image.
        is_flipped_N: Left-right.
        rotation_rad_N: Counter-clockwise as displayed.
        size_px: Side of the result.
        mode: Interpolation.

    Returns:
        float32 in [0, 1], shape (N, C, size, size). Outside the rotated image values fade to 0 over one
        pixel; without rotation nothing outside is seen.
    """
    shrink_N = np.sqrt(crop_N4[:, 2] * crop_N4[:, 3]) / size_px
    level_N = np.maximum(np.rint(np.log2(shrink_N)), 0).astype(np.int64)
    result = images_NCHW.new_empty((*images_NCHW.shape[:2], size_px, size_px))
    for level in np.unique(level_N):
        chosen = level_N == level
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(images_NCHW.device)
        source = images_NCHW if chosen.all() else images_NCHW[rows]
        block = 2 ** int(level)
        if block > 1:
            # The divisor counts real pixels only, so the last, partial blocks are averages too.
            source = functional.avg_pool2d(source, block, ceil_mode=True)
        extent = (source.shape[-2] * block, source.shape[-1] * block)
        theta = _theta(
            crop_N4[chosen], is_flipped_N[chosen], rotation_rad_N[chosen], images_NCHW.shape[-2:], extent
        ).to(images_NCHW)
        sampled = _sample(source, theta, size_px, mode, is_rotated=bool(rotation_rad_N[chosen].any()))
        if chosen.all():
            return sampled
        result[rows] = sampled
    return result


def _theta(
    crop_N4: Floats, is_flipped_N: Bools, rotation_rad_N: Floats, shape: torch.Size, extent: tuple[int, int]
) -> Tensor:
    """Affine maps from [-1, 1] of the result to [-1, 1] of the source, float64, shape (N, 2, 3).

    `extent` is the (height, width) in image pixels that the source spans: more than `shape` where its blocks
    reach over the edge.
    """
    x, y, box_width, box_height = crop_N4.T
    cosine, sine = np.cos(rotation_rad_N), np.sin(rotation_rad_N)
    half_width = np.where(is_flipped_N, -box_width, box_width) / 2
    half_height = box_height / 2
    # Pixels, y down: the result at (x, y) from the centre shows the source turned back, clockwise.
    row_x = [cosine * half_width, -sine * half_height, shape[1] / 2 + cosine * x - sine * y]
    row_y = [sine * half_width, cosine * half_height, shape[0] / 2 + sine * x + cosine * y]
    theta = 2 * np.stack([np.stack(row_x, 1) / extent[1], np.stack(row_y, 1) / extent[0]], 1)
    theta[:, :, 2] -= 1
    return torch.from_numpy(theta)


def _sample(source_NCHW: Tensor, theta_N23: Tensor, size_px: int, mode: str, *, is_rotated: bool) -> Tensor:
    """Sample with edge pixels continued, then fade to zero outside.

    Zero padding would darken the edges of unrotated images, whose outermost samples lie half a pixel off.
    """
    # As affine_grid, which on a CPU spends longer in its matrix product than the sampling takes.
    centers_S = (torch.arange(size_px, device=source_NCHW.device, dtype=theta_N23.dtype) + 0.5) * (2 / size_px) - 1
    x_N2S = theta_N23[:, :, 0, None] * centers_S
    y_N2S = theta_N23[:, :, 1, None] * centers_S + theta_N23[:, :, 2, None]
    planes_N2SS = x_N2S[:, :, None, :] + y_N2S[:, :, :, None]
    sampled = functional.grid_sample(
        source_NCHW, planes_N2SS.permute(0, 2, 3, 1), mode=mode, padding_mode="border", align_corners=False
    )
    if is_rotated:
        half_211 = theta_N23.new_tensor([[[source_NCHW.shape[-1] / 2]], [[source_NCHW.shape[-2] / 2]]])
        inside_N2SS = planes_N2SS.abs_().neg_().add_(1).mul_(half_211).add_(1).clamp_(0, 1)
        sampled *= inside_N2SS[:, :1] * inside_N2SS[:, 1:]
    return sampled.clamp_(0, 1) if mode == "bicubic" else sampled


def _change_rows(images_NCHW: Tensor, is_chosen_N: Bools, change: Callable[..., Tensor], *values: Tensor) -> None:
    """Replace the chosen images in place by change(them, their values), clipped to [0, 1]."""
    if is_chosen_N.any():
        rows = torch.from_numpy(np.flatnonzero(is_chosen_N)).to(images_NCHW.device)
        images_NCHW[rows] = change(images_NCHW[rows], *(value[rows] for value in values)).clamp(0, 1)


def brightness(images_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    """Intensity times a factor, as in SimCLR v2; not clipped."""
    return images_NCHW * factor_N111


def contrast(images_NCHW: Tensor, factor_N111: Tensor) -> Tensor:
    """Distance from each channel's own mean times a factor (tf.image.adjust_contrast); not clipped."""
    mean_NC11 = images_NCHW.mean(dim=(2, 3), keepdim=True)
    return (images_NCHW - mean_NC11) * factor_N111 + mean_NC11


def saturation(images_N3HW: Tensor, factor_N111: Tensor) -> Tensor:
    """HSV saturation times a factor, at most 1; value and hue stay (tf.image.adjust_saturation)."""
    value_N1HW = images_N3HW.amax(dim=1, keepdim=True)
    chroma_N1HW = value_N1HW - images_N3HW.amin(dim=1, keepdim=True)
    factor_N1HW = torch.minimum(factor_N111, value_N1HW / chroma_N1HW.clamp(min=TINY))
    return value_N1HW - (value_N1HW - images_N3HW) * factor_N1HW


def hue(images_N3HW: Tensor, turns_N111: Tensor) -> Tensor:
    """HSV hue turned by a share of the circle; value and saturation stay (tf.image.adjust_hue)."""
    red, green, blue = (images_N3HW[:, c : c + 1] for c in range(3))
    value = images_N3HW.amax(dim=1, keepdim=True)
    chroma = value - images_N3HW.amin(dim=1, keepdim=True)
    divisor = chroma.clamp(min=TINY)
    from_green = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sixths = torch.where(value == red, (green - blue) / divisor, from_green) + 6 * turns_N111
    # Red is full within one sixth of hue 0, green of 2, blue of 4; k runs round the circle from the far side.
    k_N3HW = torch.remainder(sixths + images_N3HW.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1), 6)
    return value - chroma * torch.minimum(k_N3HW, 4 - k_N3HW).clamp_(0, 1)


def jitter(images_NCHW: Tensor, *, is_jittered_N: Bools, order_N4: NDArray[np.int64], values_N4: Floats) -> None:
    """SimCLR's colour jitter in place: each image's own order of changes, a clip after each.

    Args:
        images_NCHW: float32 in [0, 1]; with one channel saturation and hue are left out.
        is_jittered_N: Images to change.
        order_N4: Permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        values_N4: The three factors and the hue summand in turns.
    """
    changes = (brightness, contrast, saturation, hue)[: 2 if images_NCHW.shape[1] == 1 else 4]
    values_N4111 = torch.from_numpy(values_N4).to(images_NCHW)[:, :, None, None, None]
    for position in range(order_N4.shape[1]):
        for number, change in enumerate(changes):
            is_chosen_N = is_jittered_N & (order_N4[:, position] == number)
            _change_rows(images_NCHW, is_chosen_N, change, values_N4111[:, number])


def shift_and_contrast(images_NCHW: Tensor, *, is_jittered_N: Bools, values_N4: Floats) -> None:
    """The supplement's jitter (A.2) in place: brightness added, contrast about the mean, then one clip."""
    shift_N111, factor_N111 = torch.from_numpy(values_N4[:, :2].T).to(images_NCHW)[..., None, None, None]

    def shifted(x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        return contrast(x + shift, factor)

    _change_rows(images_NCHW, is_jittered_N, shifted, shift_N111, factor_N111)


def grayscale(images_N3HW: Tensor, *, is_gray_N: Bools) -> None:
    """Replace the chosen images in place by their luma in all three channels."""
    weights = images_N3HW.new_tensor(LUMA).view(1, 3, 1, 1)

    def gray(x: Tensor) -> Tensor:
        return (x * weights).sum(dim=1, keepdim=True).expand_as(x)

    _change_rows(images_N3HW, is_gray_N, gray)


def blur(images_NCHW: Tensor, *, is_blurred_N: Bools, sigma_N: Floats) -> None:
    """Gaussian blur in place, separable, zeros outside the image as in SimCLR's code.

    The kernel has 2 * (side // 10 // 2) + 1 taps: 23 at 224 pixels, one, and so no blur, below 20.
    """
    num_channels, height, width = images_NCHW.shape[1:]
    radius = height // BLUR_SIDE_SHARE // 2
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma_N[:, None] ** 2))
    taps_NK = torch.from_numpy(taps / taps.sum(axis=1, keepdims=True)).to(images_NCHW)

    def blurred(x: Tensor, own_taps: Tensor) -> Tensor:
        # One group per plane: each image has its own kernel, its channels share it.
        kernel = own_taps.repeat_interleave(num_channels, dim=0)[:, None]
        planes = x.reshape(1, -1, height, width)
        planes = functional.conv2d(planes, kernel[..., None], padding=(radius, 0), groups=len(kernel))
        planes = functional.conv2d(planes, kernel[:, :, None], padding=(0, radius), groups=len(kernel))
        return planes.reshape(x.shape)

    _change_rows(images_NCHW, is_blurred_N, blurred, taps_NK)

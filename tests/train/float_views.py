"""Views of one image in float64 with torch's and torchvision's own operations: what the kernels are measured against.

An image is a tensor (1, C, H, W) in [0, 1].
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from medssl.train.augment import Augmentation, Draws


def as_unit(image_HWC) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1)[None].double() / 255


def as_levels(image: Tensor) -> np.ndarray:
    """(H, W, C) in [0, 255], not rounded."""
    return image[0].permute(1, 2, 0).numpy() * 255


def sampled(image: Tensor, *, crop, rotation_rad=0.0, is_flipped=False, size_px: int, mode: str) -> Tensor:
    """Rotation, crop, flip and resize by grid_sample; a crop that shrinks reads block averages."""
    height, width = image.shape[-2:]
    x, y, box_width, box_height = crop
    level = max(round(math.log2(math.sqrt(box_width * box_height) / size_px)), 0)
    source = functional.avg_pool2d(image, 2**level, ceil_mode=True) if level else image
    centers = (torch.arange(size_px).double() + 0.5) / size_px - 0.5
    right = x + centers[None, :] * (-box_width if is_flipped else box_width)
    down = y + centers[:, None] * box_height
    cosine, sine = math.cos(rotation_rad), math.sin(rotation_rad)
    # From the result's pixel to the upright image's, in pixels from the left and upper edge.
    at_x = (width / 2 + cosine * right - sine * down) / 2**level
    at_y = (height / 2 + sine * right + cosine * down) / 2**level
    extent_y, extent_x = source.shape[-2:]
    grid = torch.stack([2 * at_x / extent_x - 1, 2 * at_y / extent_y - 1], dim=-1)[None]
    found = functional.grid_sample(source, grid, mode=mode, padding_mode="border", align_corners=False)
    fade_x = (torch.minimum(at_x, extent_x - at_x) + 1).clamp(0, 1)
    fade_y = (torch.minimum(at_y, extent_y - at_y) + 1).clamp(0, 1)
    return (found * fade_x * fade_y).clamp(0, 1)


def resized(image: Tensor, size_px: int) -> Tensor:
    return functional.interpolate(image, (size_px, size_px), mode="bicubic", antialias=True).clamp(0, 1)


def contrasted(image: Tensor, factor: float) -> Tensor:
    mean = image.mean(dim=(2, 3), keepdim=True)
    return (image - mean) * factor + mean


def saturated(image: Tensor, factor: float) -> Tensor:
    value = image.amax(dim=1, keepdim=True)
    chroma = value - image.amin(dim=1, keepdim=True)
    return value - (value - image) * torch.minimum(torch.tensor(factor), value / chroma.clamp(min=1e-6))


def hued(image: Tensor, turns: float) -> Tensor:
    """torchvision's, which takes at most half a turn."""
    return vision.adjust_hue(image, (turns + 0.5) % 1 - 0.5)


def jittered(image: Tensor, order, values) -> Tensor:
    for change in order:
        if change == 0:
            image = image * values[0]
        elif change == 1:
            image = contrasted(image, values[1])
        elif image.shape[1] == 3:
            image = saturated(image, values[2]) if change == 2 else hued(image, values[3])
        image = image.clamp(0, 1)
    return image


def blurred(image: Tensor, sigma: float) -> Tensor:
    """torchvision's blur of the image within a frame of zeros."""
    radius = image.shape[-1] // 10 // 2
    if radius == 0:
        return image
    framed = functional.pad(image, [2 * radius] * 4)
    result = vision.gaussian_blur(framed, [2 * radius + 1] * 2, [sigma] * 2)
    return result[..., 2 * radius : -2 * radius, 2 * radius : -2 * radius]


def view(image_HWC, augmentation: Augmentation, draws: Draws, row: int, size_px: int) -> np.ndarray:
    """(S, S, C) in [0, 255], not rounded."""
    image = as_unit(image_HWC)
    if augmentation.crop_scale is None and not augmentation.flip_p and not augmentation.rotation_deg:
        image = resized(image, size_px)
    else:
        image = sampled(
            image,
            crop=draws.crop[row],
            rotation_rad=draws.rotation_rad[row],
            is_flipped=draws.is_flipped[row],
            size_px=size_px,
            mode=augmentation.interpolation,
        )
    if draws.is_jittered[row] and augmentation.additive_brightness:
        image = contrasted(image + draws.jitter[row, 0], draws.jitter[row, 1]).clamp(0, 1)
    elif draws.is_jittered[row]:
        image = jittered(image, draws.jitter_order[row].tolist(), draws.jitter[row].tolist())
    if draws.is_gray[row] and image.shape[1] == 3:
        luma = 0.2989 * image[:, :1] + 0.5870 * image[:, 1:2] + 0.1140 * image[:, 2:]
        image = luma.expand_as(image)
    return as_levels(blurred(image, float(draws.blur_sigma[row])) if draws.is_blurred[row] else image)

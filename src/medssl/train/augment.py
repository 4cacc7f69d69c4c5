"""Augmentation of images, random per image and view: what is drawn, and views of it as uint8.

Shape suffixes: N images, H and W pixels, S pixels of a view, C channels.

Random numbers come from a hash of (seed, epoch, image index, view), not from a generator with a state: what
an image gets depends neither on its batch, nor on its place in it, nor on the number of workers or ranks.
Geometry is one resampling, so rotation, crop, flip and resize blur the image once. pixels.py has the kernels.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl.train import pixels
from medssl.train.pixels import Pixels

CROP_ATTEMPTS = 10
# Each row: brightness (0), contrast (1), saturation (2), hue (3) in order of application.
JITTER_ORDERS = np.array(list(itertools.permutations(range(4))))

# Columns of an image's random numbers; the crop's attempts follow, four numbers each.
FLIP, ROTATE, JITTER, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, BLUR, SIGMA, CROP = range(12)
NUM_UNIFORMS = CROP + 4 * CROP_ATTEMPTS


@dataclass(frozen=True)
class Augmentation:
    """What is drawn, and how widely; the defaults change nothing.

    Attributes:
        crop_scale: Least and greatest area of the crop as a share of the image, in (0, 1]; None: no crop.
        crop_aspect: Least and greatest width / height of the crop in pixels.
        flip_p: Probability of a left-right flip.
        rotation_deg: Every image is turned about its centre by U(-r, r) degrees before the crop.
        jitter_p: Probability that brightness, contrast, saturation and hue change, all together.
        brightness: Factor U(max(0, 1 - b), 1 + b), or summand U(-b, b) with `additive_brightness`.
        contrast: Factor U(1 - c, 1 + c) of the distance from the channel's mean, c <= 1.
        saturation: Factor U(1 - s, 1 + s) of HSV saturation, s <= 1.
        hue: Summand U(-h, h) of HSV hue, in turns.
        additive_brightness: True: the supplement's form (A.2), brightness added, then contrast, then one
            clip. False: SimCLR's, the four in random order with a clip after each.
        grayscale_p: Probability of grey.
        blur_p: Probability of a Gaussian blur.
        blur_sigma: Least and greatest standard deviation of the blur in pixels of the result, > 0.
        interpolation: Of the resampling; torch's bicubic has a = -0.75, TensorFlow's -0.5.
    """

    crop_scale: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.0
    rotation_deg: float = 0.0
    jitter_p: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    additive_brightness: bool = False
    grayscale_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        probabilities = (self.flip_p, self.jitter_p, self.grayscale_p, self.blur_p)
        if not all(0 <= p <= 1 for p in probabilities):
            raise ValueError(f"flip, jitter, grayscale and blur have p = {probabilities}; expected 0 to 1 each")
        if not (0 <= self.contrast <= 1 and 0 <= self.saturation <= 1 and self.brightness >= 0 and self.hue >= 0):
            raise ValueError("jitter has a negative range, or contrast or saturation above 1; use 0 to 1")
        low, high = self.crop_scale or (1, 1)
        if not 0 < low <= high <= 1 or not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
            raise ValueError(f"crop_scale is {self.crop_scale}, crop_aspect {self.crop_aspect}; expected (low, high)")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma is {self.blur_sigma}; expected 0 < low <= high")


def none() -> Augmentation:
    """No augmentation: `apply` is then `evaluation` with a plain resize."""
    return Augmentation()


def simclr(strength: float = 1.0) -> Augmentation:
    """SimCLR's set: ImageNet, dermatology, MICLe "full" and bags of one image (Chen et al. 2020, app. A)."""
    return Augmentation(
        crop_scale=(0.08, 1.0),  # SimCLR's code; so are all ranges here
        crop_aspect=(3 / 4, 4 / 3),
        flip_p=0.5,
        jitter_p=0.8,
        brightness=0.8 * strength,  # multiplicative, as in SimCLR v2
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grayscale_p=0.2,
        blur_p=0.5,
        blur_sigma=(0.1, 2.0),
    )


def chexpert_pretrain(strength: float = 0.5) -> Augmentation:
    """The paper's set for pretraining on radiographs: rotation, crop, flip, weaker jitter, no blur."""
    return Augmentation(
        crop_scale=(0.08, 1.0),  # SimCLR's code; the paper names the crop without a range
        crop_aspect=(3 / 4, 4 / 3),  # SimCLR's code
        flip_p=0.5,  # SimCLR's code; the paper names the flip
        rotation_deg=45.0,  # the paper's "up to 45 degrees", read as symmetric
        jitter_p=0.8,  # SimCLR's code
        brightness=0.8 * strength,  # SimCLR's ranges at the paper's strength 0.5
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        blur_p=0.0,  # the paper: blur hides local texture
    )


def micle_partial() -> Augmentation:
    """MICLe's partial set: random crop with resize only (supplement, B.1.2)."""
    return Augmentation(crop_scale=(0.08, 1.0), crop_aspect=(3 / 4, 4 / 3))  # ranges: SimCLR's code


def chexpert_supervised() -> Augmentation:
    """The supplement's set for fine-tuning on radiographs (A.2)."""
    return Augmentation(
        crop_scale=(0.08, 1.0),  # A.2 names a random crop without a range: SimCLR's
        crop_aspect=(3 / 4, 4 / 3),
        flip_p=0.5,  # A.2
        rotation_deg=20.0,  # A.2
        jitter_p=1.0,  # A.2
        brightness=0.2,  # A.2, added
        contrast=0.2,  # A.2 prints U(-0.2, 0.2) as the factor itself, which would erase the image
        additive_brightness=True,
    )


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection in which each input bit reaches all."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def uniforms(seed: int, epoch: int, index_N: NDArray[np.int64], view: int, num: int) -> NDArray[np.float64]:
    """Independent uniform numbers per image: a pure function of (seed, epoch, image index, view).

    Args:
        seed: Any integer; taken modulo 2^64, as are the other keys.
        epoch: Pass over the data.
        index_N: Index of each image in its data set, shape (N,).
        view: Number of the view, 0 or 1 for a pair.
        num: Numbers per image; the first k do not depend on how many follow.

    Returns:
        Shape (N, num), in [0, 1), multiples of 2^-53.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.zeros(len(index_N), np.uint64)
    for key in (seed, epoch, view):
        state = _mixed((state + golden) ^ np.uint64(key % 2**64))
    state = _mixed((state + golden) ^ index_N.astype(np.int64).view(np.uint64))
    counters = np.arange(1, num + 1, dtype=np.uint64) * golden
    return (_mixed(state[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Draws:
    """One realisation of an `Augmentation` for N images; arrays of shape (N,) unless said.

    Attributes:
        crop: Shape (N, 4): centre x, centre y (from the image's centre, right and down), width, height;
            pixels.
        is_flipped: Left-right.
        rotation_rad: Counter-clockwise as displayed.
        is_jittered: Whether the four factors below apply.
        jitter_order: Shape (N, 4): row of `JITTER_ORDERS`.
        jitter: Shape (N, 4): brightness, contrast and saturation factors and the hue summand in turns; with
            `additive_brightness` the first is a summand.
        is_gray: Grey.
        is_blurred: Blurred by `blur_sigma`.
        blur_sigma: Standard deviation in pixels of the result.
    """

    crop: NDArray[np.float64]
    is_flipped: NDArray[np.bool_]
    rotation_rad: NDArray[np.float64]
    is_jittered: NDArray[np.bool_]
    jitter_order: NDArray[np.int64]
    jitter: NDArray[np.float64]
    is_gray: NDArray[np.bool_]
    is_blurred: NDArray[np.bool_]
    blur_sigma: NDArray[np.float64]


def _crops(augmentation: Augmentation, u: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Crop boxes of `Draws` from uniforms of shape (N, CROP_ATTEMPTS, 4).

    Area and aspect are uniform; the first attempt that fits is taken, else the whole image. TensorFlow's
    sample_distorted_bounding_box draws the height uniformly instead of the area, and whole pixels.
    """
    whole = np.tile([0.0, 0.0, width, height], (len(u), 1))
    if augmentation.crop_scale is None:
        return whole
    (low, high), (narrow, wide) = augmentation.crop_scale, augmentation.crop_aspect
    area = (low + (high - low) * u[:, :, 0]) * height * width
    aspect = narrow + (wide - narrow) * u[:, :, 1]
    box_width, box_height = np.sqrt(area * aspect), np.sqrt(area / aspect)
    x = (u[:, :, 2] - 0.5) * (width - box_width)
    y = (u[:, :, 3] - 0.5) * (height - box_height)
    fits = (box_width <= width) & (box_height <= height)
    first = fits.argmax(axis=1)
    chosen = np.stack([x, y, box_width, box_height], axis=2)[np.arange(len(u)), first]
    return np.where(fits.any(axis=1, keepdims=True), chosen, whole)


def draw(augmentation: Augmentation, uniforms_NK: NDArray[np.float64], *, height: int, width: int) -> Draws:
    """Turn uniform numbers, shape (N, NUM_UNIFORMS), into one realisation of an augmentation."""
    u = uniforms_NK
    brightness, contrast, saturation = augmentation.brightness, augmentation.contrast, augmentation.saturation
    low = np.array([max(1 - brightness, 0), 1 - contrast, 1 - saturation, -augmentation.hue])
    high = np.array([1 + brightness, 1 + contrast, 1 + saturation, augmentation.hue])
    if augmentation.additive_brightness:
        low[0], high[0] = -brightness, brightness
    sigma_low, sigma_high = augmentation.blur_sigma
    return Draws(
        crop=_crops(augmentation, u[:, CROP:].reshape(len(u), CROP_ATTEMPTS, 4), height, width),
        is_flipped=u[:, FLIP] < augmentation.flip_p,
        rotation_rad=np.radians(augmentation.rotation_deg) * (2 * u[:, ROTATE] - 1),
        is_jittered=u[:, JITTER] < augmentation.jitter_p,
        jitter_order=JITTER_ORDERS[(u[:, ORDER] * len(JITTER_ORDERS)).astype(np.int64)],
        jitter=low + (high - low) * u[:, BRIGHTNESS : HUE + 1],
        is_gray=u[:, GRAYSCALE] < augmentation.grayscale_p,
        is_blurred=u[:, BLUR] < augmentation.blur_p,
        blur_sigma=sigma_low + (sigma_high - sigma_low) * u[:, SIGMA],
    )


def draws(
    augmentation: Augmentation, *, seed: int, epoch: int, index_N: NDArray[np.int64], view: int, height: int, width: int
) -> Draws:
    """What N images of one size get: a pure function of (seed, epoch, image index, view), whatever the batch.

    Args:
        augmentation: What to draw, and how widely.
        seed: Of the run.
        epoch: Pass over the data.
        index_N: Index of each image in its data set, shape (N,).
        view: Number of the view, 0 or 1 for a pair.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
    """
    return draw(augmentation, uniforms(seed, epoch, index_N, view, NUM_UNIFORMS), height=height, width=width)


def render(image_HWC: Pixels, augmentation: Augmentation, draws: Draws, row: int, out_SSC: Pixels) -> None:
    """One view of one image: rotation, crop, flip and resize, then colour, grey, blur; rounded once, at the end.

    Saturation, hue and grey are left out for one channel, where they change nothing. A crop that shrinks by
    s >= 1.41 (root of the area ratio) is read from the image averaged over blocks of 2^k pixels, k = round(log2 s),
    so a shrink of at most 1.41 is left unfiltered. Outside the rotated image values fade to 0 over one pixel;
    without rotation nothing outside is seen. Without rotation, crop and flip it is a plain `evaluate` that is changed.

    Threads may call it at once: the interpreter is needed for microseconds only.

    Args:
        image_HWC: C-contiguous, 1 or 3 channels; not changed.
        augmentation: What `draws` come from.
        draws: Of images of this height and width.
        row: Which of the draws.
        out_SSC: C-contiguous, square, as many channels; overwritten.

    Raises:
        ValueError: On arrays of another kind.

    References:
        Chen et al. 2020, appendix A; order of the rotation: before the crop.
    """
    _check(image_HWC, out_SSC)
    is_plain = augmentation.crop_scale is None and not augmentation.flip_p and not augmentation.rotation_deg
    pixels.view(
        image_HWC,
        is_plain,
        draws.crop[row],
        draws.rotation_rad[row],
        draws.is_flipped[row],
        augmentation.interpolation == "bicubic",
        draws.is_jittered[row],
        augmentation.additive_brightness,
        draws.jitter_order[row],
        draws.jitter[row],
        draws.is_gray[row],
        draws.blur_sigma[row] if draws.is_blurred[row] else 0.0,
        out_SSC,
        pixels.working_memory(image_HWC, out_SSC),
    )


_NOTHING = draw(none(), np.zeros((1, NUM_UNIFORMS)), height=1, width=1)


def evaluate(image_HWC: Pixels, *, out_SSC: Pixels) -> None:
    """An image as the model sees it when nothing is drawn: resized to S x S, bicubic and antialiased.

    All of it is kept and stretched: SimCLR's central crop can cut the costophrenic angles off a radiograph.

    Args:
        image_HWC: C-contiguous, 1 or 3 channels; not changed.
        out_SSC: C-contiguous, square, as many channels; overwritten.

    Raises:
        ValueError: On arrays of another kind.
    """
    render(image_HWC, none(), _NOTHING, 0, out_SSC)


def _check(image_HWC: Pixels, out_SSC: Pixels) -> None:
    """Raise unless the kernels, which check nothing, can read the one array and fill the other."""
    channels = image_HWC.shape[2] if image_HWC.ndim == 3 else 0
    is_square = out_SSC.ndim == 3 and out_SSC.shape == (out_SSC.shape[0], out_SSC.shape[0], channels)
    is_sound = all(a.dtype == np.uint8 and a.flags.c_contiguous and a.size for a in (image_HWC, out_SSC))
    if channels not in (1, 3) or not is_square or not is_sound:
        found = f"an image {image_HWC.dtype}{image_HWC.shape} for a view {out_SSC.dtype}{out_SSC.shape}"
        raise ValueError(f"found {found}; expected contiguous uint8 (H, W, C) and (S, S, C) with 1 or 3 channels")


def apply(
    images_NHWC: Pixels,
    *,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    index_N: NDArray[np.int64],
    view: int,
    size_px: int,
) -> Pixels:
    """One view of each image of a batch, as `draws` and `render` make them.

    Args:
        images_NHWC: uint8, C-contiguous; C is 1 or 3; not changed.
        augmentation: What to draw.
        seed: Of the run.
        epoch: Pass over the data.
        index_N: Index of each image in its data set, shape (N,).
        view: Number of the view, 0 or 1 for a pair.
        size_px: Side of the result.

    Returns:
        uint8, shape (N, size, size, C). A view depends on its image and (seed, epoch, index, view) only.

    Raises:
        ValueError: On images that are not uint8 (N, H, W, C) with 1 or 3 channels, or as many indices.
    """
    if images_NHWC.ndim != 4 or len(index_N) != len(images_NHWC):
        raise ValueError(f"found images {images_NHWC.shape} and {len(index_N)} indices; expected (N, H, W, C) and N")
    num, height, width, channels = images_NHWC.shape
    drawn = draws(augmentation, seed=seed, epoch=epoch, index_N=index_N, view=view, height=height, width=width)
    views_NSSC = np.empty((num, size_px, size_px, channels), np.uint8)
    for row in range(num):
        render(images_NHWC[row], augmentation, drawn, row, views_NSSC[row])
    return views_NSSC


def evaluation(images_NHWC: Pixels, *, size_px: int) -> Pixels:
    """Each image of a batch, uint8 (N, H, W, C), as `evaluate` makes it: uint8 (N, size, size, C)."""
    views_NSSC = np.empty((len(images_NHWC), size_px, size_px, images_NHWC.shape[-1]), np.uint8)
    for image_HWC, out_SSC in zip(images_NHWC, views_NSSC, strict=True):
        evaluate(image_HWC, out_SSC=out_SSC)
    return views_NSSC


def to_unit(batch_NSSC: Tensor, device: torch.device) -> Tensor:
    """A uint8 batch as the network takes it; the host hands over bytes, the device makes them floats.

    Args:
        batch_NSSC: uint8; from pinned memory the copy does not wait.
        device: Where the result is.

    Returns:
        float32 in [0, 1], shape (N, C, S, S), channels last in memory.
    """
    moved_NSSC = batch_NSSC.to(device, non_blocking=True)
    return moved_NSSC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last).div_(255)

"""Decoding a 320-pixel JPEG and making two SimCLR views of 224 pixels, a core: ours against lightly or torchvision.

    .venv/bin/python -m benchmarks.augment rgb
    .venv/bin/python -m benchmarks.augment radiographs

Ours hands over uint8 and a device makes it floats; peers end with ToTensor. Both are given, the conversion on the host
too. The ranges are SimCLR's everywhere; peers resize by a bilinear, ours by a bicubic filter. Times are the process's
own, so that a busy machine does not count. One JSON line comes last.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from benchmarks.measure import alternate, ratio, report
from medssl.train import augment
from medssl.train.decode import decode_stored

STORED_PX, VIEW_PX = 320, 224
QUALITY = 85
NUM_IMAGES = 64
OURS, FLOATS, RAW = "ours", "ours, floats on the host", "ours, from pixels"
LIGHTLY, TORCHVISION = "lightly", "torchvision"

Pixels = NDArray[np.uint8]
TwoViews = Callable[[int], Any]  # of image number i


def photo(number: int, channels: int) -> Pixels:
    """Noise of all scales, each octave of half the contrast: compresses as photographs do."""
    rng = np.random.default_rng(number)
    total = np.full((STORED_PX, STORED_PX, channels), 128.0)
    for side in (5, 10, 20, 40, 80, 160, 320):
        octave = rng.normal(0, 45 * (5 / side) ** 0.6, (side, side, channels))
        total += cv2.resize(octave, (STORED_PX, STORED_PX), interpolation=cv2.INTER_CUBIC).reshape(total.shape)
    image: Pixels = np.clip(total, 0, 255).astype(np.uint8)
    return image


def encoded(image: Pixels) -> bytes:
    """A JPEG as photographs have it, their chroma at half resolution."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


class Ours:
    """Two views of an image, from its JPEG or from its pixels."""

    def __init__(self, files: list[bytes], augmentation: augment.Augmentation, channels: Literal[1, 3]) -> None:
        self.files, self.augmentation, self.channels = files, augmentation, channels
        self.images = [decode_stored(data, channels) for data in files]
        self.out = np.empty((2, VIEW_PX, VIEW_PX, channels), np.uint8)
        self.epoch = 0
        self.draws: list[augment.Draws] = []

    def _render(self, i: int, image: Pixels) -> Pixels:
        if i == 0:  # a whole batch is drawn at once, as the loader does
            self.epoch += 1
            self.draws = [
                augment.draws(
                    self.augmentation,
                    seed=0,
                    epoch=self.epoch,
                    index_N=np.arange(len(self.files)),
                    view=view,
                    height=STORED_PX,
                    width=STORED_PX,
                )
                for view in (0, 1)
            ]
        for view, drawn in enumerate(self.draws):
            augment.render(image, self.augmentation, drawn, i, self.out[view])
        return self.out

    def from_jpeg(self, i: int) -> Pixels:
        """Decode and render."""
        return self._render(i, decode_stored(self.files[i], self.channels))

    def from_pixels(self, i: int) -> Pixels:
        """Render."""
        return self._render(i, self.images[i])

    def as_floats(self, i: int) -> torch.Tensor:
        """Decode, render and convert."""
        return augment.to_unit(torch.from_numpy(self.from_jpeg(i)), torch.device("cpu"))


def opened(data: bytes) -> Image.Image:
    """Pillow's image, decoded by the first transform."""
    return Image.open(io.BytesIO(data))


def torchvision_views(rotation_deg: float) -> Callable[[Image.Image], tuple[Any, Any]]:
    """Radiograph views by torchvision on Pillow's images: SimCLR's crop and flip, jitter of strength 0.5."""
    turned = [transforms.RandomRotation(rotation_deg)] if rotation_deg else []
    view = transforms.Compose(
        [
            *turned,
            transforms.RandomResizedCrop(VIEW_PX, scale=(0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(brightness=0.4, contrast=0.4)], p=0.8),
            transforms.ToTensor(),
        ]
    )
    return lambda image: (view(image), view(image))


def microseconds_an_image(two_views: TwoViews) -> float:
    """Processor time of a pass over all images, an image."""
    begin = time.process_time()
    for i in range(NUM_IMAGES):
        two_views(i)
    return (time.process_time() - begin) / NUM_IMAGES * 1e6


def measured(subjects: dict[str, TwoViews], repeats: int) -> dict[str, list[float]]:
    """Figures of every subject, compiled and warm."""
    for two_views in subjects.values():
        microseconds_an_image(two_views)
    timed = {name: partial(microseconds_an_image, two_views) for name, two_views in subjects.items()}
    return alternate(timed, repeats=repeats)


def rgb(files: list[bytes], repeats: int) -> None:
    """SimCLR's whole set on photographs."""
    ours = Ours(files, augment.simclr(1.0), channels=3)
    peer = SimCLRTransform(input_size=VIEW_PX, normalize=None)
    subjects: dict[str, TwoViews] = {
        OURS: ours.from_jpeg,
        FLOATS: ours.as_floats,
        RAW: ours.from_pixels,
        LIGHTLY: lambda i: peer(opened(files[i])),
        "decoding alone": lambda i: decode_stored(files[i], 3),
    }
    figures = measured(subjects, repeats)
    detail = {"ratio_floats_on_host": round(ratio(figures[FLOATS], figures[LIGHTLY]), 2)}
    report(figures, name="augment_rgb", unit="us/image", ours=OURS, peer=LIGHTLY, detail=detail)


def radiographs(files: list[bytes], repeats: int) -> None:
    """One channel, without hue and blur; once more from pixels, and with a rotation by up to 45 degrees."""
    turned = augment.chexpert_pretrain(0.5)
    ours, ours_turned = (Ours(files, a, channels=1) for a in (replace(turned, rotation_deg=0.0), turned))
    peer, peer_turned = torchvision_views(0.0), torchvision_views(45.0)
    images = [Image.fromarray(image[..., 0]) for image in ours.images]
    subjects: dict[str, TwoViews] = {
        OURS: ours.from_jpeg,
        RAW: ours.from_pixels,
        TORCHVISION: lambda i: peer(opened(files[i])),
        "torchvision, from pixels": lambda i: peer(images[i]),
        "ours, rotated": ours_turned.from_jpeg,
        "torchvision, rotated": lambda i: peer_turned(opened(files[i])),
        "decoding alone": lambda i: decode_stored(files[i], 1),
    }
    figures = measured(subjects, repeats)
    detail = {
        "ratio_from_pixels": round(ratio(figures[RAW], figures["torchvision, from pixels"]), 2),
        "ratio_pixels_kept": round(ratio(figures[RAW], figures[TORCHVISION]), 2),
        "ratio_rotated": round(ratio(figures["ours, rotated"], figures["torchvision, rotated"]), 2),
    }
    report(figures, name="augment_radiographs", unit="us/image", ours=OURS, peer=TORCHVISION, detail=detail)


def main() -> None:
    """Make the files, take turns, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=["rgb", "radiographs"])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="3 repeats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    channels, run = (3, rgb) if options.images == "rgb" else (1, radiographs)
    files = [encoded(photo(i, channels)) for i in range(NUM_IMAGES)]
    print(f"{NUM_IMAGES} files of {statistics.fmean(map(len, files)):.0f} bytes")
    run(files, 3 if options.quick else options.repeats)


if __name__ == "__main__":
    main()

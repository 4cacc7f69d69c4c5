import io

import numpy as np
import pytest
from PIL import Image

from medssl import imaging
from medssl.train.decode import decode_stored


def radiograph(channels: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:90, 0:70]
    planes = [128 + 90 * np.sin(rows / 17 + c) * np.cos(columns / 11 - c) for c in range(channels)]
    return np.clip(np.stack(planes, 2) + rng.normal(0, 8, (90, 70, channels)), 0, 255).astype(np.uint8)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stored_png_has_the_pixels_that_were_stored(channels: int) -> None:
    image = radiograph(channels)
    data = imaging.encode(image if channels == 3 else image[..., 0], encoding="png", quality=95)
    decoded = decode_stored(memoryview(data), channels)
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("quality", [50, 85, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stored_jpeg_differs_from_pillow_by_two_levels_at_most(channels: int, quality: int) -> None:
    image = radiograph(channels)
    data = imaging.encode(image if channels == 3 else image[..., 0], encoding="jpeg", quality=quality)
    decoded = decode_stored(data, channels)
    assert decoded.shape == (90, 70, channels)
    assert np.abs(decoded.astype(int) - pillow(data).reshape(90, 70, channels)).max() <= 2


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_a_stored_grey_image_may_be_read_as_three_equal_channels(encoding: str) -> None:
    data = imaging.encode(radiograph(1)[..., 0], encoding=encoding, quality=90)
    np.testing.assert_array_equal(decode_stored(data, 3), np.repeat(decode_stored(data, 1), 3, axis=2))


def test_an_orientation_in_the_file_is_not_applied_again() -> None:
    image, buffer = Image.fromarray(radiograph(1)[..., 0]), io.BytesIO()
    image.getexif()[0x0112] = 6
    image.save(buffer, "JPEG", exif=image.getexif())
    assert decode_stored(buffer.getvalue(), 1).shape == (90, 70, 1)


@pytest.mark.parametrize("data", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(imaging.ImageError):
        decode_stored(data, 1)

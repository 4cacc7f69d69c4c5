"""Decoding of what our own shards hold: the bytes that `imaging.encode` wrote, not files from anywhere."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from medssl.imaging import ImageError

# The loader's threads share the cores; a pool below them would only be in their way.
cv2.setNumThreads(1)

# Stored images are upright already, so whatever a file says of its orientation is none of ours.
_FLAGS = {
    1: cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
    3: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
}


def decode_stored(data: bytes | memoryview, channels: Literal[1, 3]) -> NDArray[np.uint8]:
    """Decode a stored image, for most of the time without the interpreter's lock.

    Args:
        data: A whole PNG or JPEG as the shards hold it, with as many channels as asked for; grey is repeated.
        channels: Of the result.

    Returns:
        uint8, C-contiguous, shape (H, W, channels): of a PNG Pillow's pixels, of a JPEG at most 2 levels from them.

    Raises:
        ImageError: The bytes are not such an image.
    """
    encoded = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(encoded, _FLAGS[channels])
    except cv2.error:
        image = None
    if image is None:
        raise ImageError("damaged")
    return np.asarray(image, np.uint8).reshape(*image.shape[:2], channels)

"""Bounded decoding of images nobody has checked, and the few operations that a stored image needs.

Pure functions of bytes and uint8 arrays; a file's name is never looked at. Equal input gives equal output for one
version of Pillow, which is part of the data role's code version.
"""

import errno
import io
import os
import re
import stat
import struct
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

Pixels = NDArray[np.uint8]

# These classes instead of Image.open: no other format's parser ever sees the bytes, and the size bound is the
# caller's rather than Pillow's, which holds for a whole process and only warns below twice its value.
_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
)
# All that Pillow raises on damaged bytes.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AssertionError, struct.error,
)  # fmt: skip
# A scan of 23 bytes costs a pass over all pixels, and a file of permitted size could hold ten million of them. Encoders
# write about ten.
_MAX_JPEG_SCANS = 100
_SCAN_START = re.compile(rb"\xff\xda")
# Behind 0xFF, 0 stands in compressed data, and 1 and 0xD0 to 0xD7 are markers alone (ITU-T T.81, table B.1).
_JPEG_SEGMENT = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])")
_END_OF_IMAGE = b"\xd9"
_START_OF_SCAN = b"\xda"
_MAX_PNG_CHUNKS = 100_000  # about a second of Pillow's time; encoders write one for each 8 to 64 KiB
_PNG_CHUNK_OVERHEAD = 12  # bytes of its length, kind and checksum
_ORIENTATION_TAG = 0x0112  # EXIF 2.32, table 4; each value with the operation that turns the stored rows upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_16_BIT = 65535
# How much the exact filter still shrinks after the fast box reduction: Pillow's manual calls the result for 3
# indistinguishable in almost all cases.
_REDUCING_GAP = 3.0
# On radiographs of 320 px, against zlib's usual 6: 5 % more bytes in a third of the time.
_PNG_LEVEL = 4


class ImageError(Exception):
    """An image that cannot be used.

    Attributes:
        reason: Its category, the same words for every image of a kind, so that they can be counted: "missing
            file", "outside the data folder", "not a regular file", "no permission", "too many bytes", "empty file",
            "not an image", "truncated", "damaged", "too many pixels", "too many parts", "unsupported mode".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_below(root: Path, file: str, max_bytes: int) -> bytes:
    """Read the file that lies at `file` below the folder `root`, and nothing that a path or a link leads to elsewhere.

    Links within the folder are followed, and `root` may be one itself.

    Raises:
        ImageError: As of `read_bounded`, or the file lies outside.
        OSError: The storage failed.
    """
    try:
        path = Path(os.path.realpath(root / file))
    except ValueError:  # a NUL, which no name of a file holds
        raise ImageError("missing file") from None
    if Path(file).is_absolute() or ".." in Path(file).parts or not path.is_relative_to(os.path.realpath(root)):
        raise ImageError("outside the data folder")
    return read_bounded(path, max_bytes)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`.

    Raises:
        ImageError: The file is missing, not regular, larger, or not readable for this user.
        OSError: The storage failed, which is no property of the image: the run should fail and be repeated.
    """
    try:
        # Asked before opening: to open a named pipe would wait for a writer.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size > max_bytes:
            raise ImageError("too many bytes")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing file") from None
    except PermissionError:
        raise ImageError("no permission") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError("missing file") from None
        # Without the path, which the usual message holds and a log must not.
        raise OSError(f"the storage failed while an image was read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise ImageError("too many bytes")
    return data


def decode(data: bytes | memoryview, *, max_pixels: int) -> Pixels:
    """Decode a JPEG or PNG to 8 bits, upright as its EXIF orientation says.

    16-bit grey values v become round(255 v / 65535), whatever range they use: no image is stretched by its
    own content. Transparency is laid over black; palette and CMYK images become RGB.

    Args:
        data: A whole file. What it is follows from its first bytes alone.
        max_pixels: Largest width times height; what the header claims is checked before anything is decoded.

    Returns:
        uint8 array of shape (H, W) for grey images and (H, W, 3) for RGB.

    Raises:
        ImageError: Nothing usable is in there.
    """
    if not data:
        raise ImageError("empty file")
    reader = next((reader for magic, reader in _READERS if data[: len(magic)] == magic), None)
    if reader is None:
        raise ImageError("not an image")
    if _has_too_many_parts(data, reader):
        raise ImageError("too many parts")
    try:
        with reader(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise ImageError("too many pixels")
            image.load()
            return np.asarray(_upright(_to_8_bit(image), _orientation(image)))
    except _DAMAGE as error:
        # Pillow tells the two apart only in its words, and by these classes where the header itself ends.
        short = isinstance(error, EOFError | struct.error) or "truncated" in str(error).lower()
        raise ImageError("truncated" if short else "damaged") from None


def _has_too_many_parts(data: bytes | memoryview, reader: type[ImageFile]) -> bool:
    """Whether there are so many scans or chunks that they cost more time than the pixels."""
    if reader is PngImageFile:
        return len(data) > _MAX_PNG_CHUNKS * _PNG_CHUNK_OVERHEAD and _num_png_chunks(data) > _MAX_PNG_CHUNKS
    # The first count takes 1 % of the time of decoding, the exact one up to half of it.
    return len(_SCAN_START.findall(data)) > _MAX_JPEG_SCANS and _num_jpeg_scans(data) > _MAX_JPEG_SCANS


def _num_jpeg_scans(data: bytes | memoryview) -> int:
    """Scans up to the end of the image: metadata and what follows the image may hold the same two bytes."""
    num_scans, at = 0, 2
    while (segment := _JPEG_SEGMENT.search(data, at)) and segment[1] != _END_OF_IMAGE:
        num_scans += segment[1] == _START_OF_SCAN
        at = segment.end() + int.from_bytes(data[segment.end() : segment.end() + 2])
    return num_scans


def _num_png_chunks(data: bytes | memoryview) -> int:
    num_chunks, at = 0, 8
    while at < len(data) and num_chunks <= _MAX_PNG_CHUNKS:
        num_chunks += 1
        at += int.from_bytes(data[at : at + 4]) + _PNG_CHUNK_OVERHEAD
    return num_chunks


def _to_8_bit(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    match image.mode:
        case "I;16" | "I":  # 16-bit PNG; "I" in older versions of Pillow
            values = np.asarray(image).astype(np.uint32)
            return Image.fromarray(((values * 255 + _MAX_16_BIT // 2) // _MAX_16_BIT).astype(np.uint8))
        case "1" | "L" | "LA" | "RGB" | "RGBA" | "P" | "CMYK":
            is_grey = image.mode in ("1", "L", "LA")
        case _:
            raise ImageError("unsupported mode")
    if not image.has_transparency_data:
        return image.convert("L" if is_grey else "RGB")
    *colours, alpha = image.convert("LA" if is_grey else "RGBA").split()
    canvas = Image.new("L" if is_grey else "RGB", image.size)  # black
    canvas.paste(Image.merge(canvas.mode, colours), mask=alpha)
    return canvas


def _orientation(image: ImageFile) -> int:
    """The EXIF orientation, 1 (upright) where there is none: a broken EXIF block leaves the pixels usable."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    operation = _UPRIGHT.get(orientation)
    return image if operation is None else image.transpose(operation)


def to_channels(image: Pixels, channels: Literal[1, 3]) -> Pixels:
    """Make `image` grey, shape (H, W), or RGB, shape (H, W, 3).

    Colours become luma (ITU-R BT.601), which leaves grey values as they are; grey is repeated.
    """
    if channels == 1:
        return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))
    return image if image.ndim == 3 else np.repeat(image[..., np.newaxis], 3, axis=2)


def resize(image: Pixels, *, size_px: int, how: Literal["squash", "pad"]) -> Pixels:
    """Resize to `size_px` squared with an antialiased bicubic filter.

    Args:
        image: uint8, shape (H, W) or (H, W, 3).
        size_px: Side of the result.
        how: "squash" changes the aspect ratio; "pad" keeps it and centres the image on black.

    Returns:
        uint8, shape (size_px, size_px) or (size_px, size_px, 3).
    """
    height, width = image.shape[:2]
    new_width = new_height = size_px
    if how == "pad":
        new_width = max(1, round(width * size_px / max(height, width)))
        new_height = max(1, round(height * size_px / max(height, width)))
    resized = Image.fromarray(image)
    if (width, height) != (new_width, new_height):
        size = (new_width, new_height)
        resized = resized.resize(size, Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)
    if (new_width, new_height) == (size_px, size_px):
        return np.asarray(resized)
    canvas = Image.new(resized.mode, (size_px, size_px))
    canvas.paste(resized, ((size_px - new_width) // 2, (size_px - new_height) // 2))
    return np.asarray(canvas)


def encode(image: Pixels, *, encoding: Literal["png", "jpeg"], quality: int) -> bytes:
    """Encode `image`; equal images give equal bytes.

    Args:
        image: uint8, shape (H, W) or (H, W, 3).
        encoding: "png" loses nothing; "jpeg" keeps the chroma at full resolution.
        quality: JPEG's scale, 1-95 or 100; without effect on PNG.
    """
    buffer = io.BytesIO()
    if encoding == "png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()

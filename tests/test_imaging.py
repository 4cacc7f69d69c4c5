import contextlib
import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medssl import imaging
from medssl.imaging import ImageError, decode, encode, read_below, read_bounded, resize, to_channels

PLENTY = 10_000_000


def file_bytes(image, format_="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def noise(height=20, width=30, channels=None, seed=0):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_by_hand(width, height, bit_depth, colour_type, rows):
    """A PNG from the specification, so that the oracle shares no code with Pillow's writer."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def reason_of(data, max_pixels=PLENTY):
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=max_pixels)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def test_grey_and_rgb_pngs_come_back_pixel_for_pixel():
    for channels in (None, 3):
        image = noise(channels=channels)
        np.testing.assert_array_equal(decode(encode(image, encoding="png", quality=95), max_pixels=PLENTY), image)


def test_a_decompression_bomb_is_refused_by_its_header_alone(monkeypatch):
    bomb = png_by_hand(60_000, 60_000, 8, 0, [b"\0"])  # claims 3.6 billion pixels in 80 bytes

    def never(*_):
        raise AssertionError("pixels of a bomb were decoded")

    monkeypatch.setattr(imaging.PngImageFile, "load", never)
    assert reason_of(bomb) == "too many pixels"


@pytest.mark.filterwarnings("error")
def test_the_bound_on_pixels_is_the_callers_and_holds_exactly():
    data = encode(noise(20, 30), encoding="png", quality=95)
    assert decode(data, max_pixels=600).shape == (20, 30)
    assert reason_of(data, max_pixels=599) == "too many pixels"
    # Pillow's own bound would warn from 89 million pixels on.
    large = file_bytes(Image.new("1", (10_000, 9_000)))
    assert decode(large, max_pixels=90_000_000).shape == (9_000, 10_000)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused_and_never_filled_with_grey(format_, kept):
    data = file_bytes(Image.fromarray(noise(64, 64)), format_)
    assert reason_of(data[: int(len(data) * kept)]) in ("truncated", "damaged")
    if kept == 0.5:
        assert reason_of(data[: int(len(data) * kept)]) == "truncated"


def test_overwritten_bytes_are_an_image_error_or_an_image_and_nothing_else():
    rng = np.random.default_rng(3)
    for format_ in ("JPEG", "PNG"):
        clean = file_bytes(Image.fromarray(noise(24, 24, 3)), format_)
        for _ in range(300):
            data = bytearray(clean)
            for place in rng.integers(3, len(data), 4):
                data[place] = rng.integers(256)
            with contextlib.suppress(ImageError):
                assert decode(bytes(data), max_pixels=100_000).dtype == np.uint8


def test_empty_files_and_text_named_as_an_image_are_told_apart(tmp_path):
    (tmp_path / "scan.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.jpg").touch()
    assert reason_of(read_bounded(tmp_path / "scan.jpg", 1000)) == "not an image"
    assert reason_of(read_bounded(tmp_path / "empty.jpg", 1000)) == "empty file"


@pytest.mark.parametrize("format_", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused_even_where_pillow_could_read_them(format_):
    assert reason_of(file_bytes(Image.fromarray(noise()), format_)) == "not an image"


def test_sixteen_bits_are_scaled_by_the_range_of_the_type():
    values = [0, 1, 128, 129, 257, 32767, 32768, 65406, 65407, 65535]
    data = png_by_hand(len(values), 1, 16, 0, [struct.pack(f">{len(values)}H", *values)])
    expected = [int(value / 65535 * 255 + 0.5) for value in values]
    assert decode(data, max_pixels=PLENTY).tolist() == [expected]


def test_transparent_pixels_are_laid_over_black():
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
    found = decode(file_bytes(Image.fromarray(rgba)), max_pixels=PLENTY)
    np.testing.assert_array_equal(found, [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]])
    la = np.array([[[200, 255], [200, 0], [200, 51]]], np.uint8)
    assert decode(file_bytes(Image.fromarray(la)), max_pixels=PLENTY).tolist() == [[200, 0, 40]]


def test_a_palette_becomes_rgb_and_its_transparent_entry_black():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    plain = decode(file_bytes(image), max_pixels=PLENTY)
    np.testing.assert_array_equal(plain, [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])
    clear = decode(file_bytes(image, transparency=1), max_pixels=PLENTY)
    np.testing.assert_array_equal(clear, [[[10, 20, 30], [0, 0, 0], [70, 80, 90]]])


def test_one_bit_images_become_black_and_white():
    data = png_by_hand(8, 1, 1, 0, [bytes([0b10110001])])
    assert decode(data, max_pixels=PLENTY).tolist() == [[255, 0, 255, 255, 0, 0, 0, 255]]


def test_cmyk_jpegs_become_rgb():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    found = decode(file_bytes(cyan, "JPEG", quality=100), max_pixels=PLENTY)
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - [0, 255, 255]).max() <= 3


# Of an image whose rows read 1 2 3 / 4 5 6, as a viewer shows it for each value of the EXIF tag.
EXIF_VIEWS = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize(("orientation", "view"), EXIF_VIEWS.items())
def test_exif_orientation_is_applied(orientation, view):
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.kron(np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 40, np.ones((16, 16), np.uint8))
    for format_ in ("PNG", "JPEG"):
        found = decode(file_bytes(Image.fromarray(blocks), format_, exif=exif), max_pixels=PLENTY)
        assert np.round(found[8::16, 8::16] / 40).astype(int).tolist() == view


def test_a_broken_exif_block_leaves_the_pixels_usable():
    data = file_bytes(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0garbage garbage")
    assert decode(data, max_pixels=PLENTY).shape == (20, 30)


def test_only_regular_files_within_the_bound_are_read(tmp_path):
    (tmp_path / "ten").write_bytes(b"0123456789")
    os.mkfifo(tmp_path / "pipe")
    assert read_bounded(tmp_path / "ten", 10) == b"0123456789"
    for name, bound, reason in (
        ("ten", 9, "too many bytes"),
        ("none", 10, "missing file"),
        ("ten/below", 10, "missing file"),
        ("pipe", 10, "not a regular file"),
        (".", 10, "not a regular file"),
    ):
        with pytest.raises(ImageError) as caught:
            read_bounded(tmp_path / name, bound)
        assert caught.value.reason == reason
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_every_prefix_of_a_file_is_an_image_error_or_the_whole_image(format_):
    data = file_bytes(Image.fromarray(noise(8, 8, 3)), format_)
    whole = decode(data, max_pixels=64)
    for length in range(len(data)):
        try:
            found = decode(data[:length], max_pixels=64)
        except ImageError:
            continue
        np.testing.assert_array_equal(found, whole)  # a PNG without its last chunk
        assert length > 0.9 * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        bytes(128) + b"DICM" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"%PDF-1.7",
        b"\xff\xd8",
        b"\x89PNG",
        bytes(1000),
    ],
)
def test_bytes_of_another_kind_are_no_image_whatever_their_name(tmp_path, data):
    (tmp_path / "scan.png").write_bytes(data)
    assert reason_of(read_bounded(tmp_path / "scan.png", 10_000)) == "not an image"


def test_a_png_named_jpg_is_read_as_what_it_is(tmp_path):
    (tmp_path / "scan.jpg").write_bytes(file_bytes(Image.fromarray(noise())))
    np.testing.assert_array_equal(decode(read_below(tmp_path, "scan.jpg", 10_000), max_pixels=PLENTY), noise())


def test_what_inflates_to_more_than_the_pixels_is_cut_off_or_refused():
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    small = png_by_hand(4, 4, 8, 0, [bytes(4)] * 4)
    end, pixels = png_chunk(b"IEND", b""), small.index(b"IDAT") - 4
    assert decode(small[:pixels] + png_chunk(b"IDAT", bomb) + end, max_pixels=16).tolist() == [[0] * 4] * 4
    for kind, keyword in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        assert reason_of(small[:pixels] + png_chunk(kind, keyword + bomb) + small[pixels:]) == "damaged"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 * 1024


def jpeg_with_size(height, width):
    data = file_bytes(Image.fromarray(noise()), "JPEG")
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def test_a_jpeg_that_claims_the_largest_size_is_refused_by_its_header():
    assert reason_of(jpeg_with_size(65_535, 65_535), max_pixels=100_000_000) == "too many pixels"
    assert reason_of(jpeg_with_size(20, 31), max_pixels=600) == "too many pixels"
    assert reason_of(jpeg_with_size(0, 0)) == "damaged"


def test_a_jpeg_of_endless_scans_is_refused_in_no_time_and_other_bytes_do_not_count_as_scans():
    usual = file_bytes(Image.fromarray(noise()), "JPEG", progressive=True)
    scan = usual[usual.rindex(b"\xff\xda") : -2]
    assert reason_of(usual[:-2] + scan * 100_000 + usual[-2:]) == "too many parts"
    # Behind a marker without a length, which libjpeg passes over.
    assert reason_of(usual[:-2] + b"\xff\x01" + scan * 101 + usual[-2:]) == "too many parts"
    starts = b"\xff\xda" * 1000
    comment = b"\xff\xfe" + struct.pack(">H", len(starts) + 2) + starts
    for harmless in (usual + starts, usual[:2] + comment + usual[2:]):
        np.testing.assert_array_equal(decode(harmless, max_pixels=600), decode(usual, max_pixels=600))


def test_a_png_of_endless_chunks_is_refused_in_no_time():
    data = png_by_hand(4, 4, 8, 0, [bytes(4)] * 4)
    assert reason_of(data[:33] + png_chunk(b"teSt", b"") * 200_000 + data[33:]) == "too many parts"
    assert decode(data[:33] + png_chunk(b"teSt", bytes(2_000_000)) + data[33:], max_pixels=16).shape == (4, 4)


def test_rare_png_types_become_8_bits():
    plus_alpha = png_by_hand(1, 1, 16, 4, [struct.pack(">2H", 65_535, 65_535)])
    assert np.unique(decode(plus_alpha, max_pixels=1)).tolist() == [255]
    colours = png_by_hand(2, 1, 16, 2, [struct.pack(">6H", 65_535, 0, 257, 0, 0, 65_535)])
    assert decode(colours, max_pixels=2).tolist() == [[[255, 0, 1], [0, 0, 255]]]
    two_bits = png_by_hand(4, 1, 2, 0, [bytes([0b00011011])])
    assert decode(two_bits, max_pixels=4).tolist() == [[0, 85, 170, 255]]
    assert reason_of(png_by_hand(4, 1, 8, 3, [bytes(4)])) == "damaged"  # a palette image without a palette
    assert reason_of(png_by_hand(4, 1, 8, 7, [bytes(4)])) == "damaged"  # a colour type that does not exist
    assert reason_of(png_by_hand(0, 4, 8, 0, [])) == "damaged"


@pytest.mark.parametrize("options", [{}, {"default_image": True}])
def test_of_several_frames_the_first_is_the_image(options):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    animation = file_bytes(frames[0], save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode(animation, max_pixels=600), noise(seed=0))
    pictures = file_bytes(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    single = file_bytes(frames[0], "JPEG", quality=95)
    np.testing.assert_array_equal(decode(pictures, max_pixels=600), decode(single, max_pixels=600))


def exif_entry(type_, count, value):
    """An EXIF block that holds the orientation in one entry of 12 bytes and nothing else."""
    return b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 0x0112, type_, count) + value + bytes(8)


@pytest.mark.filterwarnings("ignore:.*EXIF|Metadata|Truncated")
@pytest.mark.parametrize(
    ("block", "is_turned"),
    [
        (b"", False),
        (b"II", False),
        (b"II*\0\xff\xff\xff\xff", False),  # a directory beyond the block
        (exif_entry(3, 1, b"\6\0\0\0"), True),
        (exif_entry(3, 2, b"\6\0\6\0"), True),  # two values
        (exif_entry(3, 1, b"\x09\0\0\0"), False),  # no such orientation
        (exif_entry(3, 0, bytes(4)), False),
        (exif_entry(3, 2**31, b"\6\0\0\0"), False),
        (exif_entry(2, 2, b"a\0\0\0"), False),  # text
        (exif_entry(5, 1, b"\x1a\0\0\0"), False),  # 0 / 0
        (exif_entry(11, 1, struct.pack("<f", float("inf"))), False),
        (exif_entry(11, 1, struct.pack("<f", float("nan"))), False),
        (exif_entry(99, 1, b"\6\0\0\0"), False),
    ],
)
def test_a_broken_orientation_leaves_the_image_as_it_is_stored(block, is_turned):
    jpeg = file_bytes(Image.fromarray(noise()), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    png = png_by_hand(30, 20, 8, 0, [bytes(30)] * 20)
    for data in (jpeg[:2] + segment + jpeg[2:], png[:33] + png_chunk(b"eXIf", block) + png[33:]):
        assert decode(data, max_pixels=600).shape == ((30, 20) if is_turned else (20, 30))


def test_a_file_of_ten_gigabytes_is_refused_without_reading_it(tmp_path, monkeypatch):
    (tmp_path / "sparse.png").touch()
    os.truncate(tmp_path / "sparse.png", 10 * 2**30)

    def never(*_, **__):
        raise AssertionError("a file over the bound was opened")

    monkeypatch.setattr(Path, "open", never)
    assert reason_of_reading(tmp_path, "sparse.png", 256 * 2**20) == "too many bytes"


def reason_of_reading(root, name, max_bytes=1000):
    with pytest.raises(ImageError) as caught:
        read_below(root, name, max_bytes)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def test_nothing_outside_the_folder_is_read_by_path_or_link(tmp_path):
    root, outside = tmp_path / "set", tmp_path / "set2"
    for folder in (root / "a", outside):
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(folder.name.encode())
    (root / "file.png").symlink_to(outside / "x.png")
    (root / "folder").symlink_to(outside)
    (root / "relative").symlink_to("../set2")
    (root / "chain").symlink_to("folder")
    (root / "device.png").symlink_to("/dev/zero")
    outward = (
        "file.png",
        "folder/x.png",
        "relative/x.png",
        "chain/x.png",
        "device.png",
        "../set2/x.png",
        "a/../../set2/x",
    )
    for name in (*outward, str(outside / "x.png"), str(root / "a/x.png"), "a/../a/x.png"):
        assert reason_of_reading(root, name) == "outside the data folder"
    (root / "within.png").symlink_to("a/x.png")
    (root / "b").symlink_to("a")
    (tmp_path / "alias").symlink_to("set")
    for base in (root, tmp_path / "alias"):
        assert [read_below(base, name, 9) for name in ("a/x.png", "within.png", "b/x.png", "./a//x.png")] == [b"a"] * 4


def test_names_that_no_file_can_have_are_missing_files(tmp_path):
    for name in ("x" * 300 + ".png", "y/" * 3000 + "x.png", "a\0b.png"):
        assert reason_of_reading(tmp_path, name) == "missing file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_that_may_not_be_read_is_told_apart(tmp_path):
    (tmp_path / "x.png").write_bytes(b"1")
    (tmp_path / "x.png").chmod(0)
    os.seteuid(65_534)  # nobody
    try:
        assert reason_of_reading(tmp_path, "x.png") == "no permission"
    finally:
        os.seteuid(0)


def test_channels_go_both_ways_and_grey_survives_the_way_over_rgb():
    grey = noise()
    rgb = to_channels(grey, 3)
    assert rgb.shape == (20, 30, 3)
    np.testing.assert_array_equal(to_channels(rgb, 1), grey)
    colour = noise(channels=3)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_channels(colour, 1) - luma).max() <= 0.51


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    for size_px in (16, 50, 100):
        inner = resize(stripes, size_px=size_px, how="squash")[:, 2:-2].astype(int)
        assert np.abs(inner - 127).max() <= 12


def test_a_smooth_ramp_stays_a_ramp():
    ramp = np.tile(np.linspace(0, 255, 300).astype(np.uint8), (200, 1))
    centres = (np.arange(40) + 0.5) * 300 / 40 - 0.5
    expected = centres * 255 / 299
    found = resize(ramp, size_px=40, how="squash")
    assert np.abs(found[20, 2:-2] - expected[2:-2]).max() <= 1.5


@pytest.mark.parametrize(("shape", "inner"), [((50, 100), (16, 32)), ((100, 50), (32, 16)), ((1, 400), (1, 32))])
def test_padding_keeps_the_aspect_ratio_and_centres_on_black(shape, inner):
    for channels in ((), (3,)):
        found = resize(np.full((*shape, *channels), 200, np.uint8), size_px=32, how="pad")
        assert found.shape == (32, 32, *channels)
        rows, columns = (np.flatnonzero((found > 0).reshape(32, 32, -1).any(axis=(axis, 2))) for axis in (1, 0))
        assert (len(rows), len(columns)) == inner
        assert abs(rows[0] - (31 - rows[-1])) <= 1
        assert abs(columns[0] - (31 - columns[-1])) <= 1
        assert set(np.unique(found)) == {0, 200}


def test_an_image_of_the_right_size_is_not_touched():
    image = noise(32, 32, 3)
    for how in ("squash", "pad"):
        np.testing.assert_array_equal(resize(image, size_px=32, how=how), image)


def test_jpeg_quality_is_used_and_encoding_is_repeatable():
    image = resize(noise(8, 8, 3), size_px=64, how="squash")
    for encoding in ("png", "jpeg"):
        assert encode(image, encoding=encoding, quality=95) == encode(image.copy(), encoding=encoding, quality=95)
    fine, coarse = (encode(image, encoding="jpeg", quality=quality) for quality in (95, 50))
    assert len(fine) > len(coarse)
    assert np.abs(decode(fine, max_pixels=PLENTY).astype(int) - image).mean() < 3

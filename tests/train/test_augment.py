import colorsys
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from medssl.train import augment, pixels
from medssl.train.augment import Augmentation, apply, draw, evaluation, uniforms
from tests.train import float_views
from tests.train.float_views import as_levels, as_unit

EVERYTHING = replace(augment.simclr(1.0), rotation_deg=45.0)
PRESETS = {
    "none": augment.none(),
    "simclr": augment.simclr(1.0),
    "chexpert_pretrain": augment.chexpert_pretrain(0.5),
    "micle_partial": augment.micle_partial(),
    "chexpert_supervised": augment.chexpert_supervised(),
    "everything": EVERYTHING,
    "bilinear": replace(EVERYTHING, interpolation="bilinear"),
    "colour": replace(augment.simclr(1.0), crop_scale=None, flip_p=0.0),
}
ROUNDING = 0.51  # of a level: half of one, and the arithmetic's own


def smooth_images(num, channels=1, height=64, width=64, seed=0):
    """uint8 (N, H, W, C) with some fine structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, channels, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    images += 0.03 * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def noise(num, channels=1, height=40, width=40):
    return np.random.default_rng(0).integers(0, 256, (num, height, width, channels), dtype=np.uint8)


def view_of(images, augmentation, *, index=None, seed=0, epoch=0, view=0, size_px=64):
    index = np.arange(len(images)) if index is None else np.asarray(index)
    return apply(images, augmentation=augmentation, seed=seed, epoch=epoch, index_N=index, view=view, size_px=size_px)


def draws_of(augmentation, num=20_000, height=64, width=64):
    return draw(augmentation, uniforms(1, 0, np.arange(num), 0, augment.NUM_UNIFORMS), height=height, width=width)


def plain_draws(**changed):
    """Draws for one image that change nothing but what is given."""
    neutral = draw(augment.none(), np.zeros((1, augment.NUM_UNIFORMS)), height=1, width=1)
    return replace(neutral, **{name: np.array([value]) for name, value in changed.items()})


def jittered(images, order, values):
    """uint8 images after the four changes."""
    drawn = plain_draws(is_jittered=True, jitter_order=order, jitter=np.array(values, float))
    out = np.empty_like(images)
    for image, view in zip(images, out, strict=True):
        augment.render(image, augment.none(), drawn, 0, view)
    return out


def resampled(images, *, crop, degrees=0.0, flip=False, size_px, mode="bilinear"):
    drawn = plain_draws(crop=np.array(crop, float), rotation_rad=np.radians(degrees), is_flipped=flip)
    augmentation = Augmentation(flip_p=0.5, interpolation=mode)
    out = np.empty((len(images), size_px, size_px, images.shape[-1]), np.uint8)
    for image, view in zip(images, out, strict=True):
        augment.render(image, augmentation, drawn, 0, view)
    return out


def assert_rounded(views, expected, atol=ROUNDING):
    """Each level is the expected one, rounded."""
    np.testing.assert_allclose(views.astype(float), expected, rtol=0, atol=atol)


# Random numbers


def splitmix(words):
    """Reference in Python integers."""
    modulus = 2**64
    words = ((words ^ (words >> 30)) * 0xBF58476D1CE4E5B9) % modulus
    words = ((words ^ (words >> 27)) * 0x94D049BB133111EB) % modulus
    return words ^ (words >> 31)


def test_uniforms_equal_the_hash_in_python_integers():
    golden, modulus = 0x9E3779B97F4A7C15, 2**64
    index = np.array([0, 7, -3, 2**62])
    drawn = uniforms(-5, 3, index, 1, 4)
    for row, image in enumerate(index.tolist()):
        state = 0
        for key in (-5, 3, 1, image):
            state = splitmix((state + golden) % modulus ^ key % modulus)
        words = [splitmix((state + j * golden) % modulus) for j in range(1, 5)]
        assert drawn[row].tolist() == [(word >> 11) / 2**53 for word in words]


@pytest.mark.parametrize("column", [0, 1, 17])
def test_uniforms_pass_a_chi_square_over_consecutive_images(column):
    counts = np.bincount((uniforms(0, 0, np.arange(100_000), 0, 18)[:, column] * 100).astype(int), minlength=100)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert len(counts) == 100
    assert 99 - 5 * math.sqrt(2 * 99) < chi_square < 99 + 5 * math.sqrt(2 * 99)


def test_uniforms_pass_a_chi_square_over_the_pairs_of_neighbouring_numbers():
    drawn = (uniforms(4, 2, np.arange(20_000), 1, 8) * 10).astype(int)
    pairs = 10 * drawn[:, :-1] + drawn[:, 1:]
    expected = pairs.size / 100
    chi_square = ((np.bincount(pairs.ravel(), minlength=100) - expected) ** 2 / expected).sum()
    assert 99 - 5 * math.sqrt(2 * 99) < chi_square < 99 + 5 * math.sqrt(2 * 99)


def test_uniforms_are_uncorrelated_over_columns_images_views_epochs_and_seeds():
    index = np.arange(50_000)
    base = uniforms(0, 0, index, 0, 6)
    others = [
        uniforms(0, 0, index, 1, 6),
        uniforms(0, 1, index, 0, 6),
        uniforms(1, 0, index, 0, 6),
        uniforms(0, 0, index + 1, 0, 6),
        base[:, [1, 2, 3, 4, 5, 0]],
    ]
    for other in others:
        for column in range(6):
            correlation = np.corrcoef(base[:, column], other[:, column])[0, 1]
            assert abs(correlation) < 5 / math.sqrt(len(index))
            assert not np.array_equal(base[:, column], other[:, column])


def test_first_numbers_do_not_depend_on_how_many_follow_or_on_the_order_of_images():
    many = uniforms(0, 0, np.arange(10), 0, 50)
    np.testing.assert_array_equal(uniforms(0, 0, np.arange(10), 0, 3), many[:, :3])
    np.testing.assert_array_equal(uniforms(0, 0, np.array([9, 2]), 0, 50), many[[9, 2]])


# What is drawn


@pytest.mark.parametrize(("image_height", "image_width"), [(60, 80), (80, 60)])
def test_crops_lie_in_the_image_with_the_drawn_areas_and_aspects(image_height, image_width):
    drawn = draws_of(augment.simclr(1.0), height=image_height, width=image_width)
    x, y, width, height = drawn.crop.T
    eps = 1e-9
    assert (np.abs(x) + width / 2 <= image_width / 2 + eps).all()
    assert (np.abs(y) + height / 2 <= image_height / 2 + eps).all()
    share = width * height / 4800
    aspect = width / height
    assert 0.08 <= share.min() < 0.085
    assert 0.95 < share.max() <= 1 + eps
    assert aspect.min() == pytest.approx(3 / 4, abs=2e-3)
    assert aspect.max() == pytest.approx(4 / 3, abs=2e-3)
    # Small crops always fit, so there nothing is rejected and the draw is flat.
    small = share[share < 0.5]
    histogram = np.histogram(small, bins=6, range=(0.08, 0.5))[0]
    assert histogram.max() / histogram.min() < 1.15
    assert abs(x.mean()) < 0.3
    assert abs(y.mean()) < 0.3


def test_a_crop_that_never_fits_is_the_whole_image():
    impossible = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(0.5, 0.6))
    np.testing.assert_array_equal(draws_of(impossible, num=5).crop, [[0, 0, 64, 64]] * 5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_simclr_ranges_and_probabilities_scale_with_the_strength(strength):
    drawn = draws_of(augment.simclr(strength))
    reach, neutral = np.array([0.8, 0.8, 0.8, 0.2]) * strength, np.array([1, 1, 1, 0])
    np.testing.assert_allclose(drawn.jitter.min(axis=0), neutral - reach, atol=1e-3)
    np.testing.assert_allclose(drawn.jitter.max(axis=0), neutral + reach, atol=1e-3)
    np.testing.assert_allclose(drawn.jitter.mean(axis=0), neutral, atol=0.02)
    assert drawn.blur_sigma.min() == pytest.approx(0.1, abs=1e-3)
    assert drawn.blur_sigma.max() == pytest.approx(2.0, abs=1e-3)
    shares = [a.mean() for a in (drawn.is_flipped, drawn.is_jittered, drawn.is_gray, drawn.is_blurred)]
    assert shares == pytest.approx([0.5, 0.8, 0.2, 0.5], abs=0.015)
    assert not drawn.rotation_rad.any()
    assert np.bincount(drawn.jitter_order[:, 0]).tolist() == pytest.approx([5000] * 4, rel=0.06)


def test_radiograph_presets_follow_the_paper():
    pretrain = draws_of(augment.chexpert_pretrain(0.5))
    assert np.degrees(np.abs(pretrain.rotation_rad)).max() == pytest.approx(45, abs=0.05)
    assert pretrain.rotation_rad.mean() == pytest.approx(0, abs=0.02)
    assert pretrain.jitter[:, 1].min() == pytest.approx(0.6, abs=1e-3)
    assert not pretrain.is_blurred.any()
    supervised = draws_of(augment.chexpert_supervised())
    assert np.degrees(np.abs(supervised.rotation_rad)).max() == pytest.approx(20, abs=0.05)
    assert supervised.jitter[:, :2].min(axis=0) == pytest.approx([-0.2, 0.8], abs=1e-3)
    assert supervised.jitter[:, :2].max(axis=0) == pytest.approx([0.2, 1.2], abs=1e-3)
    assert supervised.is_jittered.all()


def test_partial_micle_crops_and_does_nothing_else():
    drawn = draws_of(augment.micle_partial())
    assert drawn.crop[:, 2].std() > 5
    assert not (drawn.is_flipped | drawn.is_jittered | drawn.is_gray | drawn.is_blurred).any()
    assert not drawn.rotation_rad.any()


# Determinism


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_does_not_depend_on_the_batch_or_the_place_in_it(channels):
    images = smooth_images(24, channels)
    whole = view_of(images, EVERYTHING, index=np.arange(100, 124))
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(view_of(images[order], EVERYTHING, index=order + 100), whole[order])
    alone = np.concatenate([view_of(images[i : i + 1], EVERYTHING, index=[100 + i]) for i in range(24)])
    np.testing.assert_array_equal(alone, whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_four_threads_make_the_bytes_of_one(channels):
    images = smooth_images(48, channels, height=90, width=70)
    key = {"seed": 3, "epoch": 1, "index_N": np.arange(48), "view": 1}
    expected = apply(images, augmentation=EVERYTHING, size_px=48, **key)
    drawn = augment.draws(EVERYTHING, height=90, width=70, **key)
    views = np.empty_like(expected)

    def render(row):
        augment.render(images[row], EVERYTHING, drawn, row, views[row])
        # Another size in between: working memory is kept by each thread.
        return evaluation(images[row : row + 1], size_px=20 + row)

    with ThreadPoolExecutor(4) as threads:
        others = list(threads.map(render, range(48)))
    np.testing.assert_array_equal(views, expected)
    for row, other in enumerate(others):
        np.testing.assert_array_equal(other, evaluation(images[row : row + 1], size_px=20 + row))


def test_views_repeat_and_differ_by_seed_epoch_view_and_index():
    images = smooth_images(4)
    first = view_of(images, EVERYTHING).astype(int)
    np.testing.assert_array_equal(view_of(images, EVERYTHING), first)
    for other in [{"seed": 1}, {"epoch": 1}, {"view": 1}, {"index": np.arange(4) + 4}]:
        assert np.abs(view_of(images, EVERYTHING, **other) - first).max(axis=(1, 2, 3)).min() > 3


def test_kernels_work_where_compiled_code_cannot_be_kept():
    made = {}
    exec("def double(x): return 2 * x", made)  # of no file, so there is no folder beside it
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(made["double"])
    assert pixels.compiled(made["double"])(4) == 8


# Whole views


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size_px"), [(80, 100, 48), (33, 21, 37), (150, 130, 32)])
def test_views_equal_the_float_operations_rounded_once(name, channels, height, width, size_px):
    augmentation, num = PRESETS[name], 6
    images = smooth_images(num, channels, height, width)
    before = images.copy()
    drawn = augment.draws(augmentation, seed=5, epoch=0, index_N=np.arange(num), view=0, height=height, width=width)
    views = view_of(images, augmentation, seed=5, size_px=size_px)
    assert views.shape == (num, size_px, size_px, channels)
    assert views.dtype == np.uint8
    assert views.std() > 3
    np.testing.assert_array_equal(images, before)
    expected = np.stack([float_views.view(images[i], augmentation, drawn, i, size_px) for i in range(num)])
    error = np.abs(views - expected)
    assert error.mean() < 0.3
    # Where a channel is about to become the greatest, hue may turn on the last digit.
    assert np.quantile(error, 0.9999) < 0.6
    assert error.max() < 2


# Geometry


def test_no_augmentation_returns_the_image_itself():
    images = noise(5, 3, 32, 32)
    np.testing.assert_array_equal(view_of(images, augment.none(), size_px=32), images)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [1, 2, 3, 16, 40, 65])
def test_a_crop_of_everything_returns_the_image(interpolation, side):
    images = noise(5, 1, side, side)
    whole = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), interpolation=interpolation)
    np.testing.assert_array_equal(view_of(images, whole, size_px=side), images)


def test_a_flip_mirrors_left_and_right():
    images = noise(5, 3)
    np.testing.assert_array_equal(view_of(images, Augmentation(flip_p=1.0), size_px=40), images[:, :, ::-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_quarter_turn_is_counter_clockwise(channels):
    images = noise(2, channels, 32, 32)
    turned = resampled(images, crop=(0, 0, 32, 32), degrees=90, size_px=32)
    np.testing.assert_array_equal(turned, np.rot90(images, 1, (1, 2)))


@pytest.mark.parametrize("degrees", [-45, -10, 20, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_equals_torchvision(degrees, channels):
    images = smooth_images(3, channels)
    turned = resampled(images, crop=(0, 0, 64, 64), degrees=degrees, size_px=64)
    solid = vision.rotate(torch.ones(1, 1, 64, 64), degrees, interpolation=InterpolationMode.BILINEAR)
    inside = (torch.nn.functional.max_pool2d(1 - solid, 5, 1, 2)[0, 0] == 0).numpy()
    outside = (torch.nn.functional.max_pool2d(solid, 5, 1, 2)[0, 0] == 0).numpy()
    assert inside.sum() > 2000
    for image, view in zip(images, turned, strict=True):
        expected = vision.rotate(as_unit(image).float(), degrees, interpolation=InterpolationMode.BILINEAR, fill=0)
        assert_rounded(view[inside], as_levels(expected)[inside])
        assert not view[outside].any()


def test_a_crop_reads_its_box_and_a_flip_mirrors_it():
    images = noise(2, 1, 40, 60)
    # Columns 10 to 29 and rows 5 to 24: the box's centre lies at (-10, -5) from the image's.
    box = resampled(images, crop=(-10, -5, 20, 20), size_px=20)
    np.testing.assert_array_equal(box, images[:, 5:25, 10:30])
    mirrored = resampled(images, crop=(-10, -5, 20, 20), flip=True, size_px=20)
    np.testing.assert_array_equal(mirrored, images[:, 5:25, 29:9:-1])


def test_rotation_comes_before_crop_and_flip():
    images = smooth_images(2)
    views = resampled(images, crop=(4, 0, 24, 24), degrees=30, flip=True, size_px=24)
    for image, view in zip(images, views, strict=True):
        turned = vision.rotate(as_unit(image).float(), 30, interpolation=InterpolationMode.BILINEAR)
        assert_rounded(view, as_levels(turned[..., 20:44, 24:48].flip(-1)))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shrinking_does_not_alias_and_stays_in_place(factor):
    checkerboard = (255 * ((np.arange(96)[:, None] + np.arange(96)) % 2)).astype(np.uint8)[None, :, :, None]
    small = resampled(checkerboard, crop=(0, 0, 96, 96), size_px=96 // factor, mode="bicubic")
    assert np.abs(small - 127.5).max() < 26
    images = smooth_images(2, height=97, width=97)
    small = resampled(images, crop=(0, 0, 97, 97), size_px=97 // factor)
    for image, view in zip(images, small, strict=True):
        expected = vision.resize(as_unit(image), [97 // factor] * 2, antialias=True)
        assert_rounded(view, as_levels(expected), atol=12)


def test_a_turned_crop_that_shrinks_reads_averages_too():
    checkerboard = (255 * ((np.arange(96)[:, None] + np.arange(96)) % 2)).astype(np.uint8)[None, :, :, None]
    small = resampled(checkerboard, crop=(0, 0, 40, 40), degrees=30, size_px=20, mode="bicubic")
    assert np.abs(small - 127.5).max() < 2


# Colour


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast_equal_torchvision_and_numpy(channels):
    images = noise(4, channels)
    for factor in (0.0, 0.3, 1.0, 1.8):
        bright = jittered(images, [0, 1, 2, 3], [factor, 1, 1, 0])
        stretched = jittered(images, [3, 1, 2, 0], [1, factor, 1, 0])
        for image, brighter, contrasted in zip(images, bright, stretched, strict=True):
            assert_rounded(brighter, np.clip(image * factor, 0, 255))
            mean = image.mean(axis=(0, 1))
            assert_rounded(contrasted, np.clip((image - mean) * factor + mean, 0, 255))
    if channels == 3:
        gray = np.repeat(images[..., :1], 3, axis=3)  # on which torchvision's grey mean is each channel's
        expected = [as_levels(vision.adjust_contrast(as_unit(image), 1.7)) for image in gray]
        # Its mean is of luma weights that sum to 0.9999.
        assert_rounded(jittered(gray, [1, 0, 2, 3], [1, 1.7, 1, 0]), expected, atol=ROUNDING + 0.02)


def test_changes_come_in_each_images_own_order_with_a_clip_after_each():
    images = smooth_images(40)
    augmentation = Augmentation(jitter_p=0.8, brightness=0.8, contrast=0.8)
    drawn = draw(augmentation, uniforms(0, 0, np.arange(40), 0, augment.NUM_UNIFORMS), height=64, width=64)
    views = view_of(images, augmentation)
    brightness_first = 0
    for i, image in enumerate(images.astype(float)):
        factor, stretch = drawn.jitter[i, :2]
        order = drawn.jitter_order[i].tolist()
        if not drawn.is_jittered[i]:
            expected = image
        elif order.index(0) < order.index(1):
            brightness_first += 1
            bright = np.clip(image * factor, 0, 255)
            expected = np.clip((bright - bright.mean()) * stretch + bright.mean(), 0, 255)
        else:
            expected = np.clip(np.clip((image - image.mean()) * stretch + image.mean(), 0, 255) * factor, 0, 255)
        assert_rounded(views[i], expected)
    assert 8 < brightness_first < 26


def test_supervised_jitter_adds_brightness_then_stretches_then_clips_once():
    images = smooth_images(20, 3)
    augmentation = replace(augment.chexpert_supervised(), crop_scale=None, rotation_deg=0.0, flip_p=0.0)
    drawn = draw(augmentation, uniforms(0, 0, np.arange(20), 0, augment.NUM_UNIFORMS), height=64, width=64)
    views = view_of(images, augmentation)
    for i, image in enumerate(images.astype(float)):
        shift, stretch = drawn.jitter[i, :2]
        bright = image + 255 * shift
        mean = bright.mean(axis=(0, 1))
        assert_rounded(views[i], np.clip((bright - mean) * stretch + mean, 0, 255))


COLOURS = [
    *[(51, 128, 230), (230, 26, 77), (77, 204, 77), (179, 179, 26), (128, 51, 128)],
    *[(102, 102, 102), (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 255), (1, 0, 0), (254, 255, 255)],
]


@pytest.mark.parametrize("turns", [-0.2, -0.05, 0.0, 0.1, 0.2, 1.4])
@pytest.mark.parametrize("factor", [0.2, 1.0, 1.8])
def test_hue_and_saturation_equal_colorsys(turns, factor):
    image = np.array([COLOURS] * len(COLOURS), np.uint8)[None]
    hued = jittered(image, [0, 1, 2, 3], [1, 1, 1, turns])[0]
    saturated = jittered(image, [0, 1, 2, 3], [1, 1, factor, 0])[0]
    for column, colour in enumerate(COLOURS):
        h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in colour))
        expected_hue = 255 * np.array(colorsys.hsv_to_rgb((h + turns) % 1, s, v))
        expected_saturation = 255 * np.array(colorsys.hsv_to_rgb(h, min(s * factor, 1), v))
        for row in range(len(COLOURS)):
            assert_rounded(hued[row, column], expected_hue)
            assert_rounded(saturated[row, column], expected_saturation)


@pytest.mark.parametrize("turns", [-0.2, 0.13])
def test_hue_equals_torchvision_on_noise(turns):
    images = noise(4, 3)
    expected = [as_levels(vision.adjust_hue(as_unit(image), turns)) for image in images]
    assert_rounded(jittered(images, [0, 1, 2, 3], [1, 1, 1, turns]), expected)


def test_gray_images_have_equal_channels_of_the_luma():
    images = noise(3, 3, 16, 16)
    views = view_of(images, Augmentation(grayscale_p=1.0), size_px=16)
    luma = images @ np.array([0.2989, 0.5870, 0.1140])
    for channel in range(3):
        assert_rounded(views[..., channel], luma)


@pytest.mark.parametrize(("channels", "side"), [(3, 64), (1, 64), (3, 23), (1, 224)])
def test_blur_equals_torchvision_in_a_frame_of_zeros_with_each_images_own_sigma(channels, side):
    images = noise(4, channels, side, side)
    augmentation = Augmentation(blur_p=1.0)
    sigma = draw(augmentation, uniforms(0, 0, np.arange(4), 0, augment.NUM_UNIFORMS), height=8, width=8).blur_sigma
    views = view_of(images, augmentation, size_px=side)
    for i in range(4):
        expected = as_levels(float_views.blurred(as_unit(images[i]), float(sigma[i])))
        assert_rounded(views[i], expected, atol=ROUNDING + 0.05)  # weights next to nothing are left out


def test_views_below_twenty_pixels_are_not_blurred():
    images = noise(4, 3, 19, 19)
    np.testing.assert_array_equal(view_of(images, Augmentation(blur_p=1.0), size_px=19), images)


# Evaluation


@pytest.mark.parametrize("size_px", [48, 130])
@pytest.mark.parametrize(("height", "width"), [(80, 100), (300, 70), (5, 260)])
def test_evaluation_resizes_as_torchvision_does(size_px, height, width):
    images = noise(2, 3, height, width)
    views = evaluation(images, size_px=size_px)
    for image, view in zip(images, views, strict=True):
        size = [size_px, size_px]
        expected = vision.resize(as_unit(image), size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        assert_rounded(view, as_levels(expected.clamp(0, 1)))


def test_the_network_gets_floats_in_channels_last_order():
    batch = torch.from_numpy(noise(2, 3, 4, 5)[:, :, :4])
    unit = augment.to_unit(batch, torch.device("cpu"))
    assert unit.dtype == torch.float32
    assert unit.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(unit, batch.permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-7)


# Refusals


@pytest.mark.parametrize(
    "bad",
    [
        {"flip_p": 1.1},
        {"contrast": -0.1},
        {"saturation": 1.2},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_aspect": (2.0, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
    ],
)
def test_impossible_augmentations_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected|use 0 to 1"):
        Augmentation(**bad)


def test_wrong_arrays_and_counts_are_refused():
    with pytest.raises(ValueError, match="3 indices"):
        view_of(noise(4, 1, 8, 8), augment.none(), index=np.arange(3))
    for bad in (
        noise(4, 2, 8, 8),
        noise(4, 1, 8, 8).astype(np.float32),
        noise(4, 1, 8, 8)[:, :, ::-1],
        noise(4)[:, :0],
    ):
        with pytest.raises(ValueError, match="expected contiguous uint8"):
            view_of(bad, augment.none())
    with pytest.raises(ValueError, match="expected contiguous uint8"):
        augment.evaluate(noise(1)[0], out_SSC=np.empty((8, 8, 3), np.uint8))

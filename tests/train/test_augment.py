import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from medssl.train import augment, pixels
from medssl.train.augment import Augmentation, apply, draw, evaluation, uniforms

EVERYTHING = replace(augment.simclr(1.0), rotation_deg=45.0)
PRESETS = {
    "none": augment.none(),
    "simclr": augment.simclr(1.0),
    "chexpert_pretrain": augment.chexpert_pretrain(0.5),
    "micle_partial": augment.micle_partial(),
    "chexpert_supervised": augment.chexpert_supervised(),
}


def random_images(num, channels=1, height=64, width=64, seed=0):
    """Smooth images, so that interpolation has something to agree on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, channels, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def view_of(images, augmentation, *, index=None, seed=0, epoch=0, view=0, size_px=64):
    index = np.arange(len(images)) if index is None else np.asarray(index)
    return apply(images, augmentation=augmentation, seed=seed, epoch=epoch, index_N=index, view=view, size_px=size_px)


def draws_of(augmentation, num=20_000, height=64, width=64):
    return draw(augmentation, uniforms(1, 0, np.arange(num), 0, augment.NUM_UNIFORMS), height=height, width=width)


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
    images = random_images(24, channels)
    whole = view_of(images, EVERYTHING, index=np.arange(100, 124))
    order = np.random.default_rng(0).permutation(24)
    shuffled = view_of(images[order], EVERYTHING, index=order + 100)
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-6)
    alone = torch.cat([view_of(images[i : i + 1], EVERYTHING, index=[100 + i]) for i in range(24)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)


def test_views_repeat_and_differ_by_seed_epoch_view_and_index():
    images = random_images(4)
    first = view_of(images, EVERYTHING)
    assert torch.equal(view_of(images, EVERYTHING), first)
    for other in [{"seed": 1}, {"epoch": 1}, {"view": 1}, {"index": np.arange(4) + 4}]:
        assert (view_of(images, EVERYTHING, **other) - first).abs().amax(dim=(1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_views_are_in_range_and_leave_their_input_alone(name, channels, dtype):
    images = (torch.rand(16, channels, 50, 60) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    before = images.clone()
    view = view_of(images, PRESETS[name], size_px=48)
    assert view.shape == (16, channels, 48, 48)
    assert view.dtype == torch.float32
    assert view.min() >= 0
    assert view.max() <= 1
    assert view.std() > 0.01
    assert torch.equal(images, before)


# Geometry


def test_no_augmentation_returns_the_image_itself():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(view_of(images, augment.none(), size_px=32), images / 255)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_of_everything_returns_the_image(interpolation):
    images = torch.rand(5, 1, 40, 40)
    whole = Augmentation(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0), interpolation=interpolation)
    torch.testing.assert_close(view_of(images, whole, size_px=40), images, rtol=0, atol=1e-5)


def test_a_flip_mirrors_left_and_right():
    images = torch.rand(5, 3, 40, 40)
    flipped = view_of(images, Augmentation(flip_p=1.0), size_px=40)
    torch.testing.assert_close(flipped, images.flip(-1), rtol=0, atol=1e-5)


def resampled(images, *, crop, degrees=0.0, flip=False, size_px, mode="bilinear"):
    num = len(images)
    return pixels.resample(
        images,
        crop_N4=np.tile(np.array(crop, float), (num, 1)),
        is_flipped_N=np.full(num, flip),
        rotation_rad_N=np.full(num, np.radians(degrees)),
        size_px=size_px,
        mode=mode,
    )


def test_a_quarter_turn_is_counter_clockwise():
    images = torch.rand(2, 1, 32, 32)
    turned = resampled(images, crop=(0, 0, 32, 32), degrees=90, size_px=32)
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("degrees", [-45, -10, 20, 33])
def test_rotation_equals_torchvision(degrees):
    images = random_images(3)
    turned = resampled(images, crop=(0, 0, 64, 64), degrees=degrees, size_px=64)
    expected = reference.rotate(images, degrees, interpolation=InterpolationMode.BILINEAR, fill=0)
    solid = reference.rotate(torch.ones(1, 1, 64, 64), degrees, interpolation=InterpolationMode.BILINEAR)
    inside = torch.nn.functional.max_pool2d(1 - solid, 5, 1, 2)[0, 0] == 0
    outside = torch.nn.functional.max_pool2d(solid, 5, 1, 2)[0, 0] == 0
    assert inside.sum() > 2000
    torch.testing.assert_close(turned[..., inside], expected[..., inside], rtol=0, atol=1e-4)
    assert not turned[..., outside].any()


def test_a_crop_reads_its_box_and_a_flip_mirrors_it():
    images = torch.rand(2, 1, 40, 60)
    # Columns 10 to 29 and rows 5 to 24: the box's centre lies at (-10, -5) from the image's.
    box = resampled(images, crop=(-10, -5, 20, 20), size_px=20)
    torch.testing.assert_close(box, images[..., 5:25, 10:30], rtol=0, atol=1e-5)
    mirrored = resampled(images, crop=(-10, -5, 20, 20), flip=True, size_px=20)
    torch.testing.assert_close(mirrored, images[..., 5:25, 10:30].flip(-1), rtol=0, atol=1e-5)


def test_rotation_comes_before_crop_and_flip():
    images = random_images(2)
    turned = reference.rotate(images, 30, interpolation=InterpolationMode.BILINEAR)
    expected = turned[..., 20:44, 24:48].flip(-1)
    view = resampled(images, crop=(4, 0, 24, 24), degrees=30, flip=True, size_px=24)
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shrinking_does_not_alias_and_stays_in_place(factor):
    checkerboard = (torch.arange(96)[:, None] + torch.arange(96)).remainder(2).float()[None, None]
    small = resampled(checkerboard, crop=(0, 0, 96, 96), size_px=96 // factor, mode="bicubic")
    assert (small - 0.5).abs().max() < 0.1
    images = random_images(2, height=97, width=97)
    small = resampled(images, crop=(0, 0, 97, 97), size_px=97 // factor)
    expected = reference.resize(images, [97 // factor] * 2, antialias=True)
    torch.testing.assert_close(small, expected, rtol=0, atol=0.03)


def test_images_of_one_batch_may_shrink_by_different_amounts():
    images = random_images(3)
    crops = np.array([[0, 0, 64, 64], [0, 0, 16, 16], [0, 0, 32, 32]], float)
    still = {"is_flipped_N": np.zeros(3, bool), "rotation_rad_N": np.zeros(3)}
    batch = pixels.resample(images, crop_N4=crops, **still, size_px=16, mode="bilinear")
    for i in range(3):
        alone = resampled(images[i : i + 1], crop=crops[i], size_px=16)
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=0, atol=1e-6)


# Colour


def numpy_contrast(image, factor):
    mean = image.mean(axis=(1, 2), keepdims=True)
    return (image - mean) * factor + mean


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_contrast_equal_numpy_in_each_images_own_order(channels):
    images = random_images(40, channels)
    augmentation = Augmentation(jitter_p=0.8, brightness=0.8, contrast=0.8)
    drawn = draw(augmentation, uniforms(0, 0, np.arange(40), 0, augment.NUM_UNIFORMS), height=64, width=64)
    view = view_of(images, augmentation).numpy()
    brightness_first = 0
    for i, image in enumerate(images.double().numpy()):
        factor, stretch = drawn.jitter[i, :2]
        order = drawn.jitter_order[i].tolist()
        if not drawn.is_jittered[i]:
            expected = image
        elif order.index(0) < order.index(1):
            brightness_first += 1
            expected = np.clip(numpy_contrast(np.clip(image * factor, 0, 1), stretch), 0, 1)
        else:
            expected = np.clip(np.clip(numpy_contrast(image, stretch), 0, 1) * factor, 0, 1)
        np.testing.assert_allclose(view[i], expected, atol=1e-5)
    assert 8 < brightness_first < 26


def test_supervised_jitter_adds_brightness_then_stretches_then_clips_once():
    images = random_images(20, 3)
    augmentation = replace(augment.chexpert_supervised(), crop_scale=None, rotation_deg=0.0, flip_p=0.0)
    drawn = draw(augmentation, uniforms(0, 0, np.arange(20), 0, augment.NUM_UNIFORMS), height=64, width=64)
    view = view_of(images, augmentation).numpy()
    for i, image in enumerate(images.double().numpy()):
        shift, stretch = drawn.jitter[i, :2]
        expected = np.clip(numpy_contrast(image + shift, stretch), 0, 1)
        np.testing.assert_allclose(view[i], expected, atol=1e-5)


COLOURS = [
    *[(0.2, 0.5, 0.9), (0.9, 0.1, 0.3), (0.3, 0.8, 0.3), (0.7, 0.7, 0.1), (0.5, 0.2, 0.5)],
    *[(0.4, 0.4, 0.4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 1.0)],
]


@pytest.mark.parametrize("turns", [-0.2, -0.05, 0.0, 0.1, 0.2])
@pytest.mark.parametrize("factor", [0.2, 1.0, 1.8])
def test_hue_and_saturation_equal_colorsys(turns, factor):
    image = torch.tensor(COLOURS, dtype=torch.float64).T[None, :, :, None]
    hued = pixels.hue(image, torch.full((1, 1, 1, 1), turns))[0, :, :, 0].T
    saturated = pixels.saturation(image, torch.full((1, 1, 1, 1), factor))[0, :, :, 0].T
    for colour, got_hue, got_saturation in zip(COLOURS, hued, saturated, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*colour)
        assert got_hue.tolist() == pytest.approx(colorsys.hsv_to_rgb((h + turns) % 1, s, v), abs=1e-6)
        expected = colorsys.hsv_to_rgb(h, min(s * factor, 1), v)
        assert got_saturation.tolist() == pytest.approx(expected, abs=1e-6)


def test_gray_images_have_equal_channels_of_the_luma():
    images = torch.rand(3, 3, 16, 16)
    view = view_of(images, Augmentation(grayscale_p=1.0), size_px=16)
    luma = 0.2989 * images[:, 0] + 0.5870 * images[:, 1] + 0.1140 * images[:, 2]
    for channel in range(3):
        torch.testing.assert_close(view[:, channel], luma, rtol=0, atol=1e-6)


def test_blur_equals_torchvision_inside_with_each_images_own_sigma():
    images = torch.rand(4, 3, 64, 64)
    augmentation = Augmentation(blur_p=1.0)
    sigma = draw(augmentation, uniforms(0, 0, np.arange(4), 0, augment.NUM_UNIFORMS), height=64, width=64).blur_sigma
    view = view_of(images, augmentation)
    for i in range(4):
        expected = reference.gaussian_blur(images[i : i + 1], [7, 7], [float(sigma[i])] * 2)
        inner = (..., slice(3, -3), slice(3, -3))
        torch.testing.assert_close(view[i : i + 1][inner], expected[inner], rtol=0, atol=1e-5)


# Evaluation


def test_evaluation_resizes_as_torchvision_does():
    images = random_images(2, 3, height=80, width=100)
    expected = reference.resize(images, [48, 48], interpolation=InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(evaluation(images, size_px=48), expected.clamp(0, 1), rtol=0, atol=1e-5)


def test_evaluation_can_keep_a_central_square():
    images = torch.rand(2, 1, 64, 80)
    torch.testing.assert_close(
        evaluation(images, size_px=56, center_crop=0.875), images[..., 4:60, 12:68], rtol=0, atol=0
    )


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


def test_wrong_shapes_and_counts_are_refused():
    with pytest.raises(ValueError, match="N indices"):
        view_of(torch.rand(4, 1, 8, 8), augment.none(), index=np.arange(3))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        view_of(torch.rand(4, 2, 8, 8), augment.none())
    with pytest.raises(ValueError, match="center_crop is 0"):
        evaluation(torch.rand(1, 1, 8, 8), size_px=8, center_crop=0)

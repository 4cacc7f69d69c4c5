import numpy as np
import pytest

from medssl.data.fields import LATTICE, bump, noise, step


def test_step_and_bump_have_their_closed_form_values() -> None:
    distance = np.array([-1.0, 0.0, 0.1, 1.0])
    np.testing.assert_allclose(step(distance, 0.1), 1 / (1 + np.exp(-distance / 0.1)), rtol=1e-5)
    np.testing.assert_allclose(bump(distance, 0.5), np.exp(-((distance / 0.5) ** 2)), rtol=1e-5)


def test_noise_at_lattice_points_is_the_lattice_and_between_them_smooth() -> None:
    heights = np.random.default_rng(5).random((LATTICE, LATTICE), dtype=np.float32)
    column, row = np.meshgrid(np.arange(-3, 40), np.arange(-2, 36))
    place = (column * np.float32(0.25), row * np.float32(0.25))
    values = noise(*place, np.random.default_rng(5), wavelength=0.25)
    np.testing.assert_array_equal(values, heights[row % LATTICE, column % LATTICE])
    halfway = noise(place[0] + np.float32(0.125), place[1], np.random.default_rng(5), wavelength=0.25)
    right = heights[row % LATTICE, (column + 1) % LATTICE]
    np.testing.assert_allclose(halfway, (values + right) / 2, rtol=1e-5)
    fine = np.linspace(0, 3, 3001, dtype=np.float32)[None, :]
    line = noise(fine, np.zeros_like(fine), np.random.default_rng(5), wavelength=0.25)
    assert np.abs(np.diff(line)).max() < 1.5 / 250 * 1.01  # steepest: 1.5 a lattice step, of 250 samples


@pytest.mark.parametrize("octaves", [1, 3])
def test_noise_belongs_to_places_and_stays_between_0_and_1(octaves: int) -> None:
    axis = np.linspace(-2, 2, 41, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    whole = noise(x, y, np.random.default_rng(1), wavelength=0.3, octaves=octaves)
    part = noise(x[::2, 10:], y[::2, 10:], np.random.default_rng(1), wavelength=0.3, octaves=octaves)
    np.testing.assert_array_equal(whole[::2, 10:], part)
    assert 0 <= whole.min() < 0.35 < 0.65 < whole.max() <= 1

import csv
import hashlib
import io
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medssl.data.skin_phantom.conditions import CONDITIONS
from medssl.data.skin_phantom.patients import Case, Patient, SkinPhantomConfig, draw_patient, generate
from medssl.data.skin_phantom.photographs import Photo, Skin, render

HEADER = "image,patient,case,condition,skin_type,sex,age,site"
SMALL = SkinPhantomConfig(patients=12, seed=3, image_size_px=32)
PLAIN_SKIN = Skin(texture=0.0, mottling=0.0)


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [draw_patient(number, 0) for number in range(1, 1801)]


@pytest.fixture(scope="module")
def cases(patients: list[Patient]) -> list[Case]:
    return [case for patient in patients for case in patient.cases]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "cases.csv").read_text(encoding="utf-8"))))


def show(condition: str, *, skin: Skin = PLAIN_SKIN, lesion_seed: int = 1, **photo: Any) -> NDArray[np.float64]:
    """A photograph of one lesion, 0-255 as float; without noise, shadow or blur unless asked for."""
    case = Case((condition,), "arm", skin, lesion_seed, ())
    return render(skin, case.lesion_at, Photo(**photo), size_px=64).astype(float)


def healthy(skin: Skin = PLAIN_SKIN) -> NDArray[np.float64]:
    return render(skin, Case((), "arm", skin, 0, ()).lesion_at, Photo(), size_px=64).astype(float)


# --- The files ------------------------------------------------------------------------------------


def test_the_same_config_gives_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    for name, config in (("one", SMALL), ("two", SMALL), ("three", replace(SMALL, seed=4))):
        generate(tmp_path / name, config)
    first, second, third = (digests(tmp_path / name) for name in ("one", "two", "three"))
    assert first == second
    assert not set(first.values()) & set(third.values())


def test_a_patient_does_not_depend_on_how_many_others_there_are(tmp_path: Path) -> None:
    generate(tmp_path / "few", replace(SMALL, patients=5))
    generate(tmp_path / "many", SMALL)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    del few["cases.csv"]
    assert few.items() <= many.items()
    rows = table(tmp_path / "few")
    assert rows == table(tmp_path / "many")[: len(rows)]


def test_every_row_names_its_own_photograph_and_names_only_number(tmp_path: Path) -> None:
    counts = generate(tmp_path / "set", SMALL)
    assert (tmp_path / "set" / "cases.csv").read_bytes().startswith(f"{HEADER}\n".encode())
    rows = table(tmp_path / "set")
    files = {row["image"] for row in rows}
    assert files | {"cases.csv"} == set(digests(tmp_path / "set"))
    assert len(files) == len(rows) == counts["images"]
    assert len({row["case"] for row in rows}) == counts["cases"]
    assert {row["patient"] for row in rows} == {f"p{number:04d}" for number in range(1, 13)}
    assert counts["patients"] == 12
    for row in rows:
        assert row["case"].startswith(f"{row['patient']}_c")
        assert row["image"].startswith(f"images/{row['case']}_")
        assert set(row["condition"].split("|")) <= set(CONDITIONS)
        assert Image.open(tmp_path / "set" / row["image"]).size == (32, 32)


def test_rows_of_a_case_agree(tmp_path: Path) -> None:
    generate(tmp_path / "set", SMALL)
    said: dict[str, set[tuple[str, ...]]] = {}
    for row in table(tmp_path / "set"):
        said.setdefault(row["case"], set()).add(tuple(text for key, text in row.items() if key != "image"))
    assert all(len(texts) == 1 for texts in said.values())


def test_an_existing_set_is_not_overwritten_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "demo"

    def fail(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match="1 of 12"):
        generate(root, SMALL, progress=fail)
    assert list(tmp_path.iterdir()) == []
    root.mkdir()
    generate(root, SMALL)
    before = digests(root)
    with pytest.raises(FileExistsError, match="not empty"):
        generate(root, SMALL)
    assert digests(root) == before


@pytest.mark.parametrize("fields", [{"patients": 0}, {"seed": -1}, {"image_size_px": 8}])
def test_impossible_sizes_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SkinPhantomConfig(**fields)


# --- Who has what ---------------------------------------------------------------------------------


def test_conditions_have_a_long_tail(cases: list[Case]) -> None:
    counts = Counter(case.conditions[0] for case in cases)
    shares = {name: counts[name] / len(cases) for name in CONDITIONS}
    assert {name for name, share in shares.items() if share > 0.13} == {"Eczema", "Acne"}
    assert sum(share < 0.03 for share in shares.values()) >= 6
    assert min(counts.values()) > 10
    for name, condition in CONDITIONS.items():
        assert shares[name] == pytest.approx(condition.share, abs=4 * math.sqrt(condition.share / len(cases)))
    assert sum(condition.share for condition in CONDITIONS.values()) == pytest.approx(1)


def test_few_cases_have_two_conditions_and_none_has_one_twice(cases: list[Case]) -> None:
    tied = [case.conditions for case in cases if len(case.conditions) > 1]
    assert 0.01 < len(tied) / len(cases) < 0.05
    assert all(len(set(conditions)) == len(conditions) == 2 for conditions in tied)


def test_patients_have_one_to_three_cases_of_one_to_six_photographs(patients: list[Patient], cases: list[Case]) -> None:
    assert {len(patient.cases) for patient in patients} == {1, 2, 3}
    assert len(cases) / len(patients) == pytest.approx(1.5, abs=0.06)
    photos = [len(case.photos) for case in cases]
    assert set(photos) == {1, 2, 3, 4, 5, 6}
    assert np.mean(photos) == pytest.approx(2.05, abs=0.1)


def test_skin_types_are_uneven_and_recorded_as_they_are_or_not_at_all(patients: list[Patient]) -> None:
    share = {number: np.mean([patient.skin_type == number for patient in patients]) for number in range(1, 7)}
    assert min(share[2], share[3]) > 0.25
    assert 0.02 < min(share.values()) <= max(share[1], share[5], share[6]) < 0.1
    recorded = [patient for patient in patients if patient.recorded_skin_type]
    assert 0.9 < len(recorded) / len(patients) < 0.97
    assert all(patient.recorded_skin_type == str(patient.skin_type) for patient in recorded)


def test_sex_age_and_site_are_plausible_or_blank(patients: list[Patient], cases: list[Case]) -> None:
    sexes = Counter(patient.recorded_sex for patient in patients)
    assert set(sexes) == {"female", "male", ""}
    assert sexes[""] < 0.06 * len(patients)
    ages = [int(patient.recorded_age) for patient in patients if patient.recorded_age]
    assert 0.92 < len(ages) / len(patients) < 0.98
    assert min(ages) >= 1
    assert max(ages) <= 92
    sites = Counter(case.site for case in cases)
    assert 0.02 < sites[""] / len(cases) < 0.06
    assert {case.site for case in cases if case.conditions == ("Alopecia areata",)} <= {"scalp", ""}


# --- What the pictures show -----------------------------------------------------------------------


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_each_condition_shows_on_skin_and_varies_within_itself(condition: str) -> None:
    skin = replace(PLAIN_SKIN, hair=0.85, melanin=0.4)  # on hair, as one of them is its absence
    first, again, other = (show(condition, skin=skin, lesion_seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - healthy(skin)).max() > 15
    assert np.abs(first - other).max() > 15


def test_redness_fades_and_lost_pigment_stands_out_as_skin_gets_darker() -> None:
    def change(condition: str, melanin: float) -> NDArray[np.float64]:
        skin = replace(PLAIN_SKIN, melanin=melanin)
        return show(condition, skin=skin) - healthy(skin)

    reddened = [change("Acne", melanin) for melanin in (0.05, 0.4, 1.0)]
    redness = [float((pixels[..., 0] - pixels[..., 1]).max()) for pixels in reddened]
    assert redness == sorted(redness, reverse=True)
    patches = [float(np.abs(change("Vitiligo", melanin)).mean()) for melanin in (0.05, 0.4, 1.0)]
    assert patches == sorted(patches)
    assert patches[0] < 0.3 * patches[2]


def test_skin_gets_darker_from_type_to_type(patients: list[Patient]) -> None:
    means = []
    for skin_type in range(1, 7):
        some = [patient.cases[0] for patient in patients if patient.skin_type == skin_type][:8]
        means.append(np.mean([healthy(replace(case.skin, hair=0.0)).mean() for case in some]))
    assert means == sorted(means, reverse=True)


def test_a_lesion_stays_where_it_is_on_the_skin_when_the_camera_moves() -> None:
    near, far = show("Melanocytic nevus"), show("Melanocytic nevus", distance=2.0)
    small = near.reshape(32, 2, 32, 2, 3).mean((1, 3))
    inside = np.s_[22:42, 22:42]
    scaled = far[16:48, 16:48]
    assert np.corrcoef(small.ravel(), scaled.ravel())[0, 1] > 0.95
    turned = show("Melanocytic nevus", turn_rad=math.pi)
    assert np.abs(turned[::-1, ::-1] - near)[inside].mean() < 4


def test_what_a_tilted_camera_sees_farther_away_is_smaller() -> None:
    def dark_share(**photo: Any) -> float:
        return float((show("Melanocytic nevus", **photo).sum(axis=2) < 0.7 * healthy().sum(axis=2)).mean())

    near, far = dark_share(tilt=(0.2, 0.0), shift=(0.4, 0.0)), dark_share(tilt=(0.2, 0.0), shift=(-0.4, 0.0))
    assert near > 1.2 * far > 0
    assert dark_share(shift=(0.4, 0.0)) == pytest.approx(dark_share(shift=(-0.4, 0.0)), rel=0.1)


def test_photographs_of_a_case_differ_more_than_two_lesions_under_one_light(cases: list[Case]) -> None:
    """The nuisance is strong: pixels do not give the condition away."""
    between_photos, between_lesions = [], []
    for case in [case for case in cases if len(case.photos) > 1][:40]:
        one, two = (render(case.skin, case.lesion_at, photo, size_px=32).astype(float) for photo in case.photos[:2])
        other = replace(case, lesion_seed=case.lesion_seed + 1)
        swapped = render(case.skin, other.lesion_at, case.photos[0], size_px=32).astype(float)
        between_photos.append(np.abs(one - two).mean())
        between_lesions.append(np.abs(one - swapped).mean())
    assert np.median(between_photos) > 2 * np.median(between_lesions)


def test_render_is_pure_and_its_grain_comes_from_the_photograph() -> None:
    first, again, other = (show("Acne", grain=0.03, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5

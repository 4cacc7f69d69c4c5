import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medssl.data.phantom import (
    FINDING_RATES,
    Exposure,
    Findings,
    Patient,
    PhantomConfig,
    draw_patient,
    generate,
    render,
)

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
    "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,"
    "Fracture,Support Devices"
)
# Counted in CheXpert's public training table: shares of rows.
CHEXPERT_UNCERTAIN = {
    "Atelectasis": 0.151,
    "Cardiomegaly": 0.036,
    "Consolidation": 0.124,
    "Edema": 0.058,
    "Pleural Effusion": 0.052,
}
CHEXPERT_BLANK = {
    "Atelectasis": 0.69,
    "Cardiomegaly": 0.79,
    "Consolidation": 0.68,
    "Edema": 0.62,
    "Pleural Effusion": 0.40,
}
SMALL = PhantomConfig(patients=12, seed=3, image_size_px=32, valid_patients=3)


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    config = PhantomConfig(patients=1500)
    return [draw_patient(number, config) for number in range(1, config.patients + 1)]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def auc(truth: NDArray[Any], score: NDArray[Any]) -> float:
    above = score[truth][:, None] - score[~truth][None, :]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def test_the_same_config_gives_the_same_bytes_and_another_seed_gives_others(tmp_path: Path) -> None:
    generate(tmp_path / "one" / "demo", SMALL)
    generate(tmp_path / "two" / "demo", SMALL)
    other = PhantomConfig(patients=12, seed=4, image_size_px=32, valid_patients=3)
    generate(tmp_path / "three" / "demo", other)
    first = digests(tmp_path / "one" / "demo")
    assert first == digests(tmp_path / "two" / "demo")
    third = digests(tmp_path / "three" / "demo")
    assert (
        first["train/patient00001/study1/view1_frontal.jpg"] != (third["train/patient00001/study1/view1_frontal.jpg"])
    )


def test_a_patient_does_not_depend_on_how_many_others_there_are() -> None:
    assert draw_patient(7, PhantomConfig(patients=10)) == draw_patient(7, PhantomConfig(patients=400))


def test_layout_and_header_are_those_of_chexpert(tmp_path: Path) -> None:
    root = tmp_path / "CheXpert-v1.0-small"
    generate(root, SMALL)
    files = set(digests(root))
    for part in ("train", "valid"):
        text = (root / f"{part}.csv").read_text(encoding="utf-8")
        assert text.splitlines()[0] == CHEXPERT_HEADER
        for row in table(root / f"{part}.csv"):
            assert row["Path"].startswith(f"CheXpert-v1.0-small/{part}/patient000")
            files.remove(row["Path"].removeprefix("CheXpert-v1.0-small/"))
            is_lateral = row["Path"].endswith("view2_lateral.jpg")
            assert is_lateral or row["Path"].endswith("view1_frontal.jpg")
            assert row["Frontal/Lateral"] == ("Lateral" if is_lateral else "Frontal")
            assert row["AP/PA"] in ({""} if is_lateral else {"AP", "PA"})
            assert row["Sex"] in {"Male", "Female"}
            assert 18 <= int(row["Age"]) <= 90
            assert {row[name] for name in CHEXPERT_HEADER.split(",")[5:]} <= {"1.0", "0.0", "-1.0", ""}
    assert files == {"train.csv", "valid.csv"}
    assert {row["Path"].split("/")[2] for row in table(root / "valid.csv")} == {
        "patient00013",
        "patient00014",
        "patient00015",
    }


def test_an_existing_set_is_not_overwritten_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "demo"

    def fail(done: int, total: int) -> None:
        raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match="1 of 15"):
        generate(root, SMALL, progress=fail)
    assert list(tmp_path.iterdir()) == []
    generate(root, SMALL)
    before = digests(root)
    with pytest.raises(FileExistsError, match="not empty"):
        generate(root, SMALL)
    assert digests(root) == before


def test_corrupt_files_are_counted_do_not_decode_and_leave_the_patient_another_image(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    counts = generate(root, SMALL)
    broken = []
    for path in sorted(root.rglob("*.jpg")):
        try:
            Image.open(path).load()
        except (OSError, SyntaxError):
            broken.append(path)
    assert len(broken) == counts["corrupt"] == SMALL.corrupt_files == 4
    assert sorted(path.stat().st_size == 0 for path in broken) == [False, False, False, True]
    for path in broken:
        patient_dir = path.parents[1]
        assert patient_dir.parent.name == "train"
        assert len(set(patient_dir.rglob("*.jpg")) - set(broken)) >= 1
    rows = table(root / "train.csv") + table(root / "valid.csv")
    assert counts["images"] == len(rows) == len(list(root.rglob("*.jpg")))
    assert counts["patients"] == 15


@pytest.mark.parametrize("name", sorted(FINDING_RATES))
def test_labels_have_chexperts_rates_and_little_noise_under_the_usual_map(patients: list[Patient], name: str) -> None:
    studies = [study for patient in patients for study in patient.studies for _ in study.views]
    labels = np.array([study.labels[name] for study in studies])
    truth = np.array([study.is_present[name] for study in studies])
    assert (labels == "-1.0").mean() == pytest.approx(CHEXPERT_UNCERTAIN[name], abs=0.025)
    assert (labels == "").mean() == pytest.approx(CHEXPERT_BLANK[name], abs=0.06)
    assert 0.11 < truth.mean() < 0.44
    mapped = (labels == "1.0") | ((labels == "-1.0") & (name in {"Atelectasis", "Edema"}))
    assert (mapped != truth).mean() < 0.06


def test_findings_mostly_persist_in_a_patient_but_not_always(patients: list[Patient]) -> None:
    for name in FINDING_RATES:
        stays = [
            later.is_present[name]
            for patient in patients
            for earlier, later in zip(patient.studies, patient.studies[1:], strict=False)
            if earlier.is_present[name]
        ]
        assert 0.65 < np.mean(stays) < 0.95


def test_the_mean_pixel_does_not_give_findings_away(patients: list[Patient]) -> None:
    means, truth = [], []
    for patient in patients[:400]:
        for study in patient.studies:
            for view, exposure in study.views:
                pixels = render(patient.anatomy, study.findings, exposure, view_position=view, size_px=32)
                means.append(pixels.mean())
                truth.append([study.is_present[name] for name in FINDING_RATES])
    for column in np.array(truth).T:
        assert 0.4 < auc(column, np.array(means)) < 0.6


def test_exposure_control_keeps_the_mean_whatever_is_drawn(patients: list[Patient]) -> None:
    for patient in patients[:10]:
        means = [
            render(patient.anatomy, findings, Exposure(), view_position="AP", size_px=32).mean()
            for findings in (Findings(), Findings(effusion=(0.7, 0.7)), Findings(edema=0.7))
        ]
        assert np.ptp(means) < 3


def frontal(patient: Patient, **findings: Any) -> NDArray[np.float64]:
    """A frontal radiograph without noise, scaled to mean 0 and standard deviation 1."""
    pixels = render(patient.anatomy, Findings(**findings), Exposure(), view_position="PA", size_px=128)
    scaled: NDArray[np.float64] = (pixels - pixels.mean()) / pixels.std()
    return scaled


def dark_gap_share(image: NDArray[np.float64]) -> float:
    """Share of dark (air) columns between the chest walls at the level of the heart."""
    rows = image[74:82]
    return float((rows < -0.2)[:, 20:108].mean())


def test_an_enlarged_heart_leaves_less_air_at_its_level(patients: list[Patient]) -> None:
    for patient in patients[:20]:
        narrow, wide = (dark_gap_share(frontal(patient, cardiothoracic_ratio=ratio)) for ratio in (0.45, 0.62))
        assert wide < narrow


def test_each_local_finding_makes_its_own_region_denser(patients: list[Patient]) -> None:
    for patient in patients[:20]:
        healthy = frontal(patient)
        size, anatomy = 128, patient.anatomy
        base = int((anatomy.diaphragm_y + 0.04 + 1) / 2 * size)
        angle = np.s_[base - 8 : base, 18:26]  # right costophrenic angle: image left
        hilum_row = int((anatomy.hilum_y + 1) / 2 * size)
        hila = np.s_[hilum_row - 10 : hilum_row + 16, 28:100]
        assert frontal(patient, effusion=(0.6, 0.0))[angle].mean() > healthy[angle].mean() + 0.1
        assert frontal(patient, edema=0.6)[hila].mean() > healthy[hila].mean() + 0.05
        patch = frontal(patient, consolidation=0.7, consolidation_site=(1.0, 0.4, 0.0)) - healthy
        assert patch[:, 64:].max() > 0.5 > np.abs(patch[:, :58]).max()
        raised = frontal(patient, atelectasis=(0.7, 0.0))[base - 22 : base - 8, 34:52]
        assert raised.mean() > healthy[base - 22 : base - 8, 34:52].mean()


def test_render_is_pure_and_its_noise_comes_from_the_exposure(patients: list[Patient]) -> None:
    first, second = (Exposure(noise=0.05, noise_seed=seed) for seed in (1, 2))
    anatomy = patients[0].anatomy

    def draw(exposure: Exposure) -> NDArray[np.uint8]:
        return render(anatomy, Findings(), exposure, view_position="AP", size_px=48)

    assert draw(first).dtype == np.uint8
    assert draw(first).shape == (48, 48)
    np.testing.assert_array_equal(draw(first), draw(first))
    assert (draw(first) != draw(second)).mean() > 0.5


def test_nearest_images_are_of_the_same_patient_far_above_chance(patients: list[Patient]) -> None:
    images, owners = [], []
    for patient in patients[:150]:
        for study in patient.studies:
            view, exposure = study.views[0]
            images.append(render(patient.anatomy, study.findings, exposure, view_position=view, size_px=32))
            owners.append(patient.number)
    flat = np.stack(images).reshape(len(images), -1).astype(float)
    flat = (flat - flat.mean(1, keepdims=True)) / np.linalg.norm(flat - flat.mean(1, keepdims=True), axis=1)[:, None]
    similarity = flat @ flat.T
    np.fill_diagonal(similarity, -2)
    owner = np.array(owners)
    same = owner[:, None] == owner[None, :]
    chance = (same.sum(1) - 1).mean() / len(owner)
    assert (owner[similarity.argmax(1)] == owner).mean() > 2 * chance


@pytest.mark.parametrize("fields", [{"patients": 0}, {"seed": -1}, {"image_size_px": 8}])
def test_impossible_sizes_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PhantomConfig(**fields)

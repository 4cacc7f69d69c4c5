"""Batches made by threads, against the same rows made one after the other, on stored images."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from medssl import imaging
from medssl.config import PretrainRun, ShardConfig
from medssl.data import shards
from medssl.exit_codes import BadInputError, TerminatedError, sigterm_as_exception
from medssl.shardset import Cohort, ShardSet
from medssl.train import augment
from medssl.train.batches import Batches, Plan, Rows
from medssl.train.distributed import Ranks
from medssl.train.loader import Bags, Images
from medssl.train.pretrain import Pairs, next_views, run_augmentation

CPU = torch.device("cpu")
NUM, SIZE, OUT = 24, 20, 16
AUGMENTATION = augment.simclr()
NOTHING, EVERYTHING = 0, 2**30  # bytes of decoded images to keep


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    """Compiled, so that no test has to wait for it."""
    for channels in (1, 3):
        images = np.zeros((1, SIZE, SIZE, channels), np.uint8)
        augment.evaluation(images, size_px=OUT)
        key = {"seed": 0, "epoch": 0, "view": 0}
        augment.apply(images, augmentation=AUGMENTATION, index_N=np.arange(1), size_px=OUT, **key)


@pytest.fixture(autouse=True)
def no_test_hangs() -> Iterator[None]:
    """A test that waits for ever fails instead."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the test hangs")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module", params=[1, 3])
def cohort(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Cohort:
    return make_cohort(tmp_path_factory.mktemp("cohort"), channels=request.param)


def make_cohort(folder: Path, *, channels: Literal[1, 3] = 1, damaged: int | None = None) -> Cohort:
    """24 images of noise, of 8 patients with a case of three each; the stored bytes of one may be no image."""
    config = ShardConfig(image_size_px=SIZE, num_parts=1, channels=channels)
    patients, image_ids = [f"{n // 3:032x}" for n in range(NUM)], [f"{n + 500:032x}" for n in range(NUM)]

    def stored(row: shards.Row, root: Path, config: ShardConfig) -> shards.Stored:
        number = image_ids.index(row[1])
        data = imaging.encode(original(number, channels), encoding="png", quality=95)
        return shards.Stored(row[0], row[1], b"no image" if number == damaged else data)

    order = np.random.default_rng(0).permutation(NUM).tolist()  # of the file, which is not that of the rows
    rows = [(patients[n], image_ids[n], "") for n in order]
    shards.write_summary([shards.write_part((0, rows), folder, folder, config, 1, stored)], folder, config)
    columns: dict[str, Any] = {"patient_id": patients, "case_id": patients, "image_id": image_ids}
    return Cohort("train", pa.table(columns), np.argsort(order), 0, ShardSet.open(folder))


def original(number: int, channels: int) -> imaging.Pixels:
    shape = (SIZE, SIZE) if channels == 1 else (SIZE, SIZE, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def varied(images: Images) -> Plan:
    """Batches of 3 to 17 rows: some images drawn twice, some alone, one as in evaluation."""

    def plan(step: int) -> list[Rows]:
        order = np.random.default_rng(step).permutation(NUM)[: 1 + step % 8].astype(np.int64)
        num = len(order)
        groups = [
            Rows.drawn(images, np.arange(num) + view * num, order, AUGMENTATION, seed=5, epoch=step, view=view)
            for view in (0, 1)
        ]
        return [*groups, Rows(np.array([2 * num]), order[:1])]

    return plan


def one_by_one(images: Images, plan: Plan, step: int, channels: int) -> list[bytes]:
    """The rows of a batch from the original pixels, without threads or shards."""
    groups = plan(step)
    rows = {}
    for group in groups:
        for number, (row, image) in enumerate(zip(group.row_N.tolist(), group.image_N.tolist(), strict=True)):
            out_SSC = np.empty((OUT, OUT, channels), np.uint8)
            pixels_HWC = original(image, channels).reshape(SIZE, SIZE, channels)
            if group.draws is None:
                augment.evaluate(pixels_HWC, out_SSC=out_SSC)
            else:
                augment.render(pixels_HWC, AUGMENTATION, group.draws, number, out_SSC)
            rows[row] = out_SSC.tobytes()
    return [rows[row] for row in sorted(rows)]


def all_batches(images: Images, plan: Plan, steps: range, **options: Any) -> list[list[bytes]]:
    with Batches(images, plan, steps=steps, size_px=OUT, device=CPU, **options) as batches:
        return [[row.numpy().tobytes() for row in batch] for batch in batches]


@pytest.mark.parametrize("max_bytes", [NOTHING, EVERYTHING])
def test_batches_are_those_made_one_row_after_the_other_for_any_number_of_threads_and_batches_ahead(
    cohort: Cohort, max_bytes: int
) -> None:
    images = Images(cohort, max_bytes=max_bytes)
    plan, channels = varied(images), cohort.shards.channels
    expected = [one_by_one(images, plan, step, channels) for step in range(12)]
    for num_threads, ahead in ((1, 0), (1, 2), (2, 1), (4, 2), (4, 30)):
        assert all_batches(images, plan, range(12), num_threads=num_threads, ahead=ahead) == expected
    assert all_batches(images, plan, range(7, 12), num_threads=2) == expected[7:]  # as a resumed run begins
    assert all_batches(images, plan, range(5, 5), num_threads=2) == []


def test_images_are_kept_only_where_they_take_no_more_than_they_may(
    cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = NUM * SIZE * SIZE * cohort.shards.channels
    assert Images(cohort, max_bytes=needed).num_bytes_kept == needed
    assert f"decode train: {NUM}/{NUM} images" in capsys.readouterr().out
    assert Images(cohort, max_bytes=needed - 1).num_bytes_kept == 0
    assert "decoded at each use" in capsys.readouterr().out


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_cohort(tmp_path_factory.mktemp("grey"))


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(grey: Cohort) -> None:
    images = Images(grey)
    plan = varied(images)
    with Batches(images, plan, steps=range(8), size_px=OUT, device=CPU, num_threads=2, ahead=1) as batches:
        for step, batch in enumerate(batches):
            before = batch.clone()
            time.sleep(0.02)  # in which the threads fill what is free
            assert torch.equal(batch, before)
            assert [row.numpy().tobytes() for row in batch] == one_by_one(images, plan, step, 1)


def test_what_cannot_be_decoded_is_told_by_its_position_at_its_batch_and_the_threads_end(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, damaged=7)
    images = Images(cohort, max_bytes=NOTHING)

    def plan(step: int) -> list[Rows]:
        return [Rows(np.arange(4), np.arange(4) + 4 * step)]

    position, identifier = cohort.positions[7], cohort.rows["image_id"][7].as_py()
    with Batches(images, plan, steps=range(6), size_px=OUT, device=CPU, num_threads=3) as batches:
        assert len(next(batches)) == 4
        with pytest.raises(BadInputError, match=f"image number {position}: damaged") as caught:
            next(batches)
    assert identifier not in str(caught.value)
    assert not threads_of_batches()


def test_an_error_in_augmentation_names_image_and_step(grey: Cohort) -> None:
    images = Images(grey)

    def plan(step: int) -> list[Rows]:
        draws = augment.draws(AUGMENTATION, seed=0, epoch=0, index_N=np.arange(1), view=0, height=SIZE, width=SIZE)
        return [Rows(np.arange(3), np.arange(3), AUGMENTATION, draws)]  # draws for one of three

    with (
        pytest.raises(RuntimeError, match=r"image number \d+ of the shards, for step 4: "),
        Batches(images, plan, steps=range(4, 6), size_px=OUT, device=CPU, num_threads=2) as batches,
    ):
        next(batches)
    assert not threads_of_batches()


def test_an_error_in_a_plan_is_raised_where_its_batch_is_wanted(grey: Cohort) -> None:
    def plan(step: int) -> list[Rows]:
        raise BadInputError("no such batch")

    with (
        pytest.raises(BadInputError, match="no such batch"),
        Batches(Images(grey), plan, steps=range(9), size_px=OUT, device=CPU, num_threads=2) as batches,
    ):
        next(batches)


def raise_terminated() -> None:
    raise TerminatedError("stopped")


def send_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [raise_terminated, send_signal])
def test_a_stop_in_the_loop_ends_the_threads_at_once(grey: Cohort, stop: Callable[[], None]) -> None:
    images = Images(grey, max_bytes=NOTHING)
    begin_s = time.monotonic()

    def training() -> None:
        steps = range(10**6)
        with Batches(images, varied(images), steps=steps, size_px=OUT, device=CPU, num_threads=4) as batches:
            next(batches)
            stop()

    with sigterm_as_exception(), pytest.raises(TerminatedError):
        training()
    assert not threads_of_batches()
    assert time.monotonic() - begin_s < 4


def test_a_stop_that_comes_while_the_loop_waits_ends_the_wait(grey: Cohort) -> None:
    release, went_on = threading.Event(), []

    def plan(step: int) -> list[Rows]:
        release.wait(10)
        return [Rows(np.arange(1), np.arange(1))]

    def training() -> None:
        with Batches(Images(grey), plan, steps=range(4), size_px=OUT, device=CPU, num_threads=1) as batches:
            threading.Timer(0.2, send_signal).start()
            threading.Timer(0.5, release.set).start()
            next(batches)
            went_on.append(True)

    with sigterm_as_exception(), pytest.raises(TerminatedError):
        training()
    assert not went_on
    assert not threads_of_batches()


def threads_of_batches() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_the_share_of_waiting_is_near_one_where_only_images_take_time_and_near_zero_where_none_do(
    grey: Cohort,
) -> None:
    images = Images(grey)

    def slow(step: int) -> list[Rows]:
        time.sleep(0.03)
        return [Rows(np.arange(2), np.arange(2))]

    shares = []
    for pause_s in (0.0, 0.1):
        with Batches(images, slow, steps=range(6), size_px=OUT, device=CPU, num_threads=1) as batches:
            next(batches)
            for _ in batches:
                time.sleep(pause_s)
            shares.append(batches.data_wait_share)
            assert batches.images_per_s > 0
    assert shares[0] > 0.8
    assert shares[1] < 0.3


# --- the pairs of pretraining ---


def pairs_of(cohort: Cohort, **settings: Any) -> Pairs:
    run = {"name": "a", "method": "simclr", "encoder": "e", "num_steps": 5, "batch_size": 8, "image_size_px": OUT}
    return Pairs.of(Images(cohort), PretrainRun.model_validate(run | settings))


def views_of(pairs: Pairs, rank: int, world_size: int, first_step: int = 0) -> Iterator[list[bytes]]:
    with pairs.batches(first_step, Ranks(rank, world_size, CPU)) as batches:
        for _ in range(first_step, pairs.run.num_steps):
            views = next_views(batches, CPU)
            yield [b"".join(view.numpy().tobytes() for view in pair) for pair in zip(*views, strict=True)]


@pytest.mark.parametrize(
    "settings", [{}, {"method": "micle", "augmentation": "micle_partial"}, {"augmentation": "simclr"}]
)
def test_the_shares_of_ranks_unite_to_the_global_batch(grey: Cohort, settings: dict[str, Any]) -> None:
    pairs = pairs_of(grey, **settings)
    whole = list(views_of(pairs, 0, 1))
    for world_size in (2, 4):
        shares = [list(views_of(pairs, rank, world_size)) for rank in range(world_size)]
        assert [list(chain.from_iterable(step)) for step in zip(*shares, strict=True)] == whole
    assert list(views_of(pairs, 0, 1, first_step=3)) == whole[3:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_micro_batch_holds_the_same_pairs_however_many_ranks_share_it(grey: Cohort, world_size: int) -> None:
    pairs = pairs_of(grey, batch_size=8, micro_batch_size=4)
    whole = next(views_of(pairs, 0, 1))
    shares = [next(views_of(pairs, rank, world_size)) for rank in range(world_size)]
    part = 4 // world_size
    for piece in range(2):
        together = list(chain.from_iterable(share[piece * part : (piece + 1) * part] for share in shares))
        assert together == whole[piece * 4 : (piece + 1) * 4]


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("simclr", augment.simclr(1.0)),
        ("chexpert_pretrain", augment.chexpert_pretrain(0.5)),
        ("micle_partial", augment.micle_partial()),
    ],
)
def test_a_run_without_ranges_of_its_own_has_those_of_the_paper(
    grey: Cohort, name: str, paper: augment.Augmentation
) -> None:
    assert run_augmentation(pairs_of(grey, augmentation=name).run, name) == paper
    turned = pairs_of(grey, augmentation=name, rotation_deg=10, crop_area_min=0.5).run
    assert run_augmentation(turned, name) == replace(paper, rotation_deg=10, crop_scale=(0.5, 1.0))


def test_a_bag_of_one_image_gets_the_views_of_simclr_in_a_partial_run(grey: Cohort) -> None:
    pairs = pairs_of(grey, method="micle", augmentation="micle_partial", batch_size=3)
    bag_N = pairs.images.case_N.copy()
    bag_N[:3] = (100, 101, 102)  # the first patient's images, each a bag of its own
    lonely = Pairs(pairs.images, pairs.run, Bags(pairs.images.patient_N, bag_N))
    found: set[tuple[bool, bool]] = set()
    for step in range(6):
        for group in lonely.plan(step, Ranks(0, 1, CPU)):
            is_full = group.augmentation == augment.simclr()
            found.update((bool(is_lonely), is_full) for is_lonely in np.isin(group.image_N, (0, 1, 2)))
    assert found == {(True, True), (False, False)}

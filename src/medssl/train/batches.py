"""Batches of images made ready ahead of the training loop, by threads of its own process.

Decoding and augmentation run without the interpreter's lock, so threads use all cores, and write into a ring of
batch buffers: nothing is pickled, copied between processes or collated. A row of a batch is a pure function of what
its plan says, so the bytes are the same for any number of threads, and however far they work ahead.

Shape suffixes: N rows of a batch, S pixels a side, C channels.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from medssl.exit_codes import BadInputError
from medssl.imaging import Pixels
from medssl.train import augment
from medssl.train.loader import Images, Index
from medssl.train.resources import loader_threads

AHEAD = 2  # batches ready, or being made ready, beside the one in use
_CHUNK = 8  # images that a thread takes at a time: few enough to share out a batch, enough to make sharing cheap


@dataclass(frozen=True)
class Rows:
    """Rows of a batch that are drawn alike.

    Attributes:
        row_N: Which rows.
        image_N: Number of each row's image.
        augmentation: None: nothing is drawn, as in evaluation.
        draws: Of these images, where there is an augmentation.
    """

    row_N: Index
    image_N: Index
    augmentation: augment.Augmentation | None = None
    draws: augment.Draws | None = None

    @classmethod
    def drawn(
        cls, images: Images, row_N: Index, image_N: Index, augmentation: augment.Augmentation, **keys: int
    ) -> Self:
        """Rows with an augmentation, drawn by `keys`: seed, epoch and view."""
        height, width, _ = images.shape
        draws = augment.draws(augmentation, **keys, index_N=image_N, height=height, width=width)
        return cls(row_N, image_N, augmentation, draws)

    def render(self, number: int, image_HWC: Pixels, batch_NSSC: Pixels) -> None:
        """Write row `row_N[number]` of a batch from its image."""
        out_SSC = batch_NSSC[self.row_N[number]]
        if self.augmentation is None or self.draws is None:
            augment.evaluate(image_HWC, out_SSC=out_SSC)
        else:
            augment.render(image_HWC, self.augmentation, self.draws, number, out_SSC)


Plan = Callable[[int], Sequence[Rows]]  # of the batch of a step: a pure function, called from any thread
_Uses = list[tuple[Rows, int]]  # what is made of one image


class Batches:
    """Iterator over the batches of some steps, in their order; a context manager, which ends the threads.

    A batch is uint8, shape (N, S, S, C), on the device of the training. On a CPU it is a buffer that is written again:
    valid until the next batch is asked for. On GPUs the buffers lie in pinned memory, and the copy to the device
    overlaps with what the device computes.

    An error in a thread is raised in the training loop, when it comes to the batch that could not be made.

    Args:
        images: Where pixels come from.
        plan: What the batch of a step is made of.
        steps: In which order batches are wanted.
        size_px: S.
        device: Where batches are wanted.
        num_threads: Default: as the resources say.
        ahead: Batches to keep ready beside the one in use; each takes N·S·S·C bytes.

    Attributes:
        data_wait_share: Share of the time so far (0-1) that the loop has waited for batches.
        images_per_s: Rows handed out a second so far.
    """

    def __init__(
        self,
        images: Images,
        plan: Plan,
        *,
        steps: range,
        size_px: int,
        device: torch.device,
        num_threads: int | None = None,
        ahead: int = AHEAD,
    ) -> None:
        self._images, self._plan, self._steps, self._size_px = images, plan, steps, size_px
        self._num_threads = num_threads or loader_threads(network_on_cpu=device.type == "cpu")
        self._pool = ThreadPoolExecutor(self._num_threads, "batches", _use_device, (device,))
        self._ring = [_Slot(device) for _ in range(min(1 + ahead, len(steps)))]
        self._num_out = 0
        self._begin_s, self._waited_s, self._num_rows = time.perf_counter(), 0.0, 0
        for slot, step in zip(self._ring, steps, strict=False):
            slot.parts = self._pool.submit(self._begin, step, slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # No thread ever waits for the loop, so they end as soon as what they have in hand is done.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._num_out:
            self._refill(self._num_out - 1)
        if self._num_out == len(self._steps):
            raise StopIteration
        slot = self._ring[self._num_out % len(self._ring)]
        begin_s = time.perf_counter()
        for part in slot.parts.result():
            part.result()
        self._waited_s += time.perf_counter() - begin_s
        self._num_out += 1
        self._num_rows += slot.num_rows
        return slot.hand_out()

    @property
    def data_wait_share(self) -> float:
        """See the class."""
        return self._waited_s / (time.perf_counter() - self._begin_s)

    @property
    def images_per_s(self) -> float:
        """See the class."""
        return self._num_rows / (time.perf_counter() - self._begin_s)

    def _refill(self, number: int) -> None:
        """Give the buffer of batch `number`, which is used up, to the batch that comes one round later."""
        if number + len(self._ring) < len(self._steps):
            slot = self._ring[number % len(self._ring)]
            slot.parts = self._pool.submit(self._begin, self._steps[number + len(self._ring)], slot)

    def _begin(self, step: int, slot: "_Slot") -> list[Future[None]]:
        """Plan a batch and share it out among the threads; each image is read once, in the order of the cohort."""
        uses: dict[int, _Uses] = {}
        rows = self._plan(step)
        for group in rows:
            for number, image in enumerate(group.image_N.tolist()):
                uses.setdefault(image, []).append((group, number))
        batch_NSSC = slot.buffer(sum(len(group.row_N) for group in rows), self._size_px, self._images.shape[-1])
        work = sorted(uses.items(), key=lambda item: item[0])
        size = max(1, min(_CHUNK, -(-len(work) // self._num_threads)))
        return [
            self._pool.submit(self._fill, step, work[begin : begin + size], batch_NSSC)
            for begin in range(0, len(work), size)
        ]

    def _fill(self, step: int, work: Sequence[tuple[int, _Uses]], batch_NSSC: Pixels) -> None:
        """Write the rows that show some images."""
        for image, uses in work:
            try:
                image_HWC = self._images.pixels(image)
                for rows, number in uses:
                    rows.render(number, image_HWC, batch_NSSC)
            except BadInputError:  # tells the image's position
                raise
            except Exception as error:
                position = self._images.cohort.positions[image]
                raise RuntimeError(f"image number {position} of the shards, for step {step}: {error}") from error


class _Slot:
    """A buffer of the ring, and who fills it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffer_NSSC = torch.empty(0, 1, 1, 1, dtype=torch.uint8)
        self._copied = torch.cuda.Event() if self._pinned else None
        self._stream = torch.cuda.Stream(device) if self._pinned else None
        self.num_rows = 0
        self.parts: Future[list[Future[None]]] = Future()

    def buffer(self, num_rows: int, size_px: int, channels: int) -> Pixels:
        """The rows to write, once they are free; the memory grows with the largest batch so far."""
        if self._copied is not None:
            self._copied.synchronize()
        if num_rows > len(self._buffer_NSSC):
            shape = (num_rows, size_px, size_px, channels)
            self._buffer_NSSC = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        self.num_rows = num_rows
        rows: Pixels = self._buffer_NSSC[:num_rows].numpy()
        return rows

    def hand_out(self) -> Tensor:
        """The batch on the device; the copy runs on a stream of its own, which the present stream waits for."""
        batch_NSSC = self._buffer_NSSC[: self.num_rows]
        if self._stream is None or self._copied is None:
            return batch_NSSC
        present = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved_NSSC = batch_NSSC.to(self._device, non_blocking=True)
            self._copied.record()
        present.wait_stream(self._stream)
        moved_NSSC.record_stream(present)
        return moved_NSSC


def _use_device(device: torch.device) -> None:
    """Let a thread pin memory for its process's own GPU: the choice of the main thread does not reach it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)

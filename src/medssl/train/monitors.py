"""What is watched while a pretraining runs: its curves, whether it collapses or diverges, how fast it is.

Shape suffixes: N pairs of all ranks, M views, R representation, D projection.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medssl.config import PretrainRun
from medssl.exit_codes import BadInputError
from medssl.model.losses import contrastive_metrics
from medssl.progress import Progress, say
from medssl.train.contrastive import Outcome
from medssl.train.distributed import Ranks
from medssl.train.history import COLLAPSED, History, last

NUM_HISTORY_POINTS = 200  # of each training curve, at least, and less than twice as many; fewer steps: all
MAX_STEPS_UNCHECKED = 50  # between two looks at whether the loss is finite, each of which waits for the device
COLLAPSED_STD = 0.01  # of unit-length vectors times sqrt(their length); 1 when all directions are used evenly
AT_CHANCE = 0.995  # of log(2N - 1), the loss where all projections coincide; fresh networks start near or above it
PATIENCE_POINTS = 10  # consecutive points of the curves, 2.5 to 5 % of a run of 200 steps or more


@torch.no_grad()
def measure(outcome: Outcome, run: PretrainRun, ranks: Ranks) -> dict[str, float]:
    """Points of the training curves from one step; every rank calls it and gets the same."""
    z_a_ND, z_b_ND, representation_MR = (
        ranks.gather(rows) for rows in (outcome.z_a_ND, outcome.z_b_ND, outcome.representation_MR)
    )
    accuracy, entropy = contrastive_metrics(z_a_ND, z_b_ND, run.temperature)
    return {
        "loss": outcome.loss.item(),
        "contrastive_accuracy": float(accuracy),
        "contrastive_entropy": float(entropy),
        "projection_std": spread(z_a_ND),
        "representation_std": spread(representation_MR),
    }


def spread(rows_MD: Tensor) -> float:
    """Mean standard deviation of unit-length rows times sqrt(D): 0 when all coincide, 1 when directions are even.

    References:
        Chen & He 2021, Exploring Simple Siamese Representation Learning, section 4.1.
    """
    return float(nn.functional.normalize(rows_MD).std(dim=0).mean()) * math.sqrt(rows_MD.shape[1])


def chance_loss(run: PretrainRun) -> float:
    """The loss where all projections of a global batch coincide: log(2N - 1), twice that as Google's code sums."""
    return math.log(2 * run.batch_size - 1) * (2 if run.loss_reduction == "code" else 1)


def collapse(history: History, run: PretrainRun, *, is_over: bool = False) -> str:
    """Why a run counts as collapsed at the end of `history`; "" where it does not.

    It has collapsed when projections or representations have coincided, or the loss was no better than chance, at
    all of the last PATIENCE_POINTS points after the warm-up. Once the run is over, one point of vectors that
    coincide is enough.
    """

    def recent(name: str) -> list[float]:
        return [value for metric, step, value in history if metric == name and step >= run.warmup_steps][
            -PATIENCE_POINTS:
        ]

    def holds(values: Sequence[float], is_bad: Callable[[float], bool], *, num: int = PATIENCE_POINTS) -> bool:
        return len(values) >= num and all(map(is_bad, values[-num:]))

    for name, what in (("projection_std", "projections"), ("representation_std", "representations")):
        values = recent(name)
        if holds(values, lambda value: value < COLLAPSED_STD, num=1 if is_over else PATIENCE_POINTS):
            return f"the {what} coincide (std {values[-1]:.4f})"
    chance = chance_loss(run)
    if holds(losses := recent("loss"), lambda value: value >= AT_CHANCE * chance):
        return f"the loss, {losses[-1]:.3f}, is no better than that of coinciding projections, {chance:.3f}"
    return ""


def watch_collapse(history: History, run: PretrainRun, step: int, *, speaks: bool) -> None:
    """Note in `history` when a run collapses or recovers; warn, or end the run, the first time.

    Args:
        history: Of all steps to `step`, which has just been measured.
        run: Settings.
        step: Counted from 0.
        speaks: Whether this process prints the warning.

    Raises:
        BadInputError: It collapsed, and `run.on_collapse` is "stop".
    """
    reason = collapse(history, run, is_over=step + 1 == run.num_steps)
    before = last(history, COLLAPSED)
    if bool(reason) == bool(before):
        return
    history.append((COLLAPSED, step, float(bool(reason))))
    if not reason:
        return
    message = f"pretrain {run.name}: collapsed by step {step}: {reason}; lower learning_rate or lengthen warmup_steps"
    if run.on_collapse == "stop":
        raise BadInputError(message)
    if speaks and before is None:
        say(f"warning: {message}")


class Divergence:
    """Remembers on the device whether every loss was finite, so that only asking waits for the device."""

    def __init__(self, run: PretrainRun, device: torch.device) -> None:
        self._name = run.name
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)

    def note(self, loss: Tensor) -> None:
        """Look at the loss of a step, without waiting for it."""
        self._is_finite &= torch.isfinite(loss)

    def refuse(self, model: nn.Module, step: int) -> None:
        """Refuse to go on, or to keep `model`, after a loss or with a weight that is not finite.

        Raises:
            BadInputError: There was one.
        """
        norms = torch.stack(torch._foreach_norm(list(model.parameters())))
        if not bool(self._is_finite & torch.isfinite(norms).all()):
            raise BadInputError(
                f"pretrain {self._name}: the loss or a weight is not finite by step {step}; lower learning_rate"
            )


class Throughput:
    """How fast a training is, over the window since it was last asked.

    Args:
        images_per_step: Images that all ranks put through the network in a step: two a pair.
        progress: Knows how long the run still takes.
        device: Of this rank.
        clock: Monotonic time in seconds; a test passes its own.
    """

    def __init__(
        self,
        images_per_step: int,
        progress: Progress,
        device: torch.device,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._images_per_step, self._progress, self._device, self._clock = images_per_step, progress, device, clock
        self.begin_window()

    def begin_window(self) -> None:
        """Forget the time until now, which went into something else than training."""
        self._begin_s, self._num_steps, self._waited_s = self._clock(), 0, 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """What happens within is the wait for the images of one step."""
        begin_s = self._clock()
        yield
        self._waited_s += self._clock() - begin_s
        self._num_steps += 1

    def measure(self, done: int) -> dict[str, float]:
        """Figures of the window, which ends here and must follow a wait for the device; `done` steps are finished.

        Returns:
            images_per_s; data_wait_share, the share of the time (0-1) in which this rank waited for images;
            remaining_s of the run; and on GPUs peak_gpu_memory_mib, of tensors of this rank since the start.
        """
        elapsed_s = max(self._clock() - self._begin_s, 1e-9)
        found = {
            "images_per_s": self._num_steps * self._images_per_step / elapsed_s,
            "data_wait_share": self._waited_s / elapsed_s,
            "remaining_s": self._progress.remaining_s(done),
        }
        if self._device.type == "cuda":
            found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(self._device) / 2**20
        self.begin_window()
        return found

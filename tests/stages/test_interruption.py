"""The stages that train, killed at random moments and resumed: real processes, torchrun among them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medssl import layout
from medssl.__main__ import main
from medssl.config import load_study
from medssl.model.networks import build_encoder
from medssl.stages import data
from medssl.store import STORE_VARIABLE, Store
from medssl.train.checkpoint import load_state

TINY = Path(__file__).parents[2] / "pipelines" / "studies" / "tiny.yaml"
EVERY_STEPS = 7  # does not divide the steps of an epoch: most checkpoints lie in the middle of one
TIMEOUT_S = 300


@dataclass
class Stage:
    """The command of one stage over a store of its own, run again and again."""

    store: Path
    arguments: list[str]
    environment: dict[str, str]
    name: str = "pretrain"
    begun: str = r"from step (\d+)"  # what it prints when its work begins

    def start(self, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "medssl", self.name, str(TINY), *self.arguments]
        return subprocess.Popen(
            command,
            env=self.environment | {STORE_VARIABLE: str(self.store)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def copy(self, folder: Path) -> "Stage":
        return replace(self, store=shutil.copytree(self.store, folder, symlinks=True))

    def made(self, **environment: str) -> Path:
        """Run to the end; returns the folder of the result."""
        process = self.start(**environment)
        printed, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, printed[-3000:]
        return Path(json.loads(printed.strip().splitlines()[-1])["uri"])

    def finish(self, **environment: str) -> dict[str, Tensor]:
        """Run to the end; returns the encoder's weights."""
        return load_file(self.made(**environment) / layout.ENCODER)

    def kill(self, *, after_s: float, how: signal.Signals = signal.SIGKILL, **environment: str) -> tuple[int, bool]:
        """Start, wait until training has begun and `after_s` more, kill all its processes.

        Returns:
            The step that it began with, and whether it was killed in time.
        """
        process = self.start(**environment)
        assert process.stdout is not None
        begun = None
        for line in process.stdout:
            if begun := re.search(self.begun, line):
                break
        assert begun, "training did not begin"
        time.sleep(after_s)
        if how == signal.SIGKILL:
            self.kill_all()
        else:
            process.send_signal(how)
        code = process.wait(timeout=TIMEOUT_S)
        process.stdout.close()
        return int(begun[1]), code != 0

    def kill_all(self) -> None:
        """Kill every process that works on this store at once, as a pod ends; torchrun has groups of its own."""
        mark = f"{STORE_VARIABLE}={self.store}".encode()
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        own = [pid for pid in pids if mark in environ(pid).split(b"\0")]
        for how in (signal.SIGSTOP, signal.SIGKILL):
            for pid in own:
                with suppress(ProcessLookupError):
                    os.kill(pid, how)

    def saved_step(self) -> int:
        """Step of the state on disk, 0 where there is none."""
        states = [state for folder in (self.store / "work").glob("*") if (state := load_state(folder))]
        assert len(states) <= 1
        return int(states[0]["step"]) if states else 0


def environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""


def prepare(folder: Path, *settings: str, item: str = "simclr") -> Stage:
    """A store with the data of the tiny study, and the command of its SimCLR run, or with the settings of another."""
    root = folder / "set"
    assert main(["demo", "--out", str(root), "--patients", "40", "--image-size-px", "32"]) == 0
    sets = [f"data.root={root}", "data.generate=null", "pretraining.simclr.probe=false", *settings]
    sets.append(f"pretraining.simclr.checkpoint_every_steps={EVERY_STEPS}")
    study, store = load_study(TINY, sets), Store(str(folder / "store"))
    version = {"code_version": "test"}
    source = data.fingerprint(store, study.data, root=str(root), **version)
    digest, key_id = source.metadata["digest"], data.load_key(study.data).key_id
    index = data.ingest(store, study.data, root=str(root), data_digest=digest, key_id=key_id, **version)
    splits = data.assign_splits(store, study.splits, index_uri=index.uri, **version)
    at = {"root": str(root), "data_digest": digest, "index_uri": index.uri}
    shards = data.write_shards(store, study.shards, **at, **version)
    made = {"index": index, "splits": splits, "shards": shards}
    arguments = ["--item", item, *(part for setting in sets for part in ("--set", setting))]
    # Relative to the store, so that a copy of it is used whole.
    arguments += [part for role, one in made.items() for part in ("--input", f"{role}={one.uri}")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSSL_", "MLFLOW_"))}
    return Stage(folder / "store", arguments, clean | {"PYTHONPATH": os.pathsep.join(sys.path), "MEDSSL_THREADS": "1"})


def kill_and_compare(folder: Path, *, kills: int, num_steps: int, longest_s: float) -> None:
    prepared = prepare(folder, f"pretraining.simclr.num_steps={num_steps}")
    whole = prepared.copy(folder / "whole").finish()
    broken = prepared.copy(folder / "broken")
    moments = random.Random(0)
    for number in range(kills):
        before = broken.saved_step()
        began, is_killed = broken.kill(after_s=moments.uniform(0, longest_s))
        assert is_killed, f"the run was over before kill {number + 1}; make it longer"
        assert began == before, "a run goes on from the last checkpoint"
        after = broken.saved_step()
        assert after >= before
        assert after % EVERY_STEPS == 0
    resumed = broken.finish()
    assert resumed.keys() == whole.keys()
    assert all(resumed[name].equal(whole[name]) for name in whole)


def test_three_kills_leave_the_weights_as_they_would_have_been(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=3, num_steps=600, longest_s=1.0)


@pytest.mark.slow
def test_twenty_kills_leave_the_weights_as_they_would_have_been(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=20, num_steps=4000, longest_s=1.5)


def test_a_stopped_run_of_two_processes_goes_on_in_one_with_the_same_batches(tmp_path: Path) -> None:
    """Up to rounding, which training amplifies: little against what other batches would change."""
    prepared = prepare(tmp_path, "pretraining.simclr.num_steps=40", "pretraining.simclr.learning_rate=0.001")
    whole = prepared.copy(tmp_path / "whole").finish()
    broken = prepared.copy(tmp_path / "broken")
    began, is_stopped = broken.kill(after_s=0, how=signal.SIGTERM, MEDSSL_PROCESSES="2")
    assert (began, is_stopped) == (0, True)
    assert 0 < broken.saved_step() < 40
    resumed = broken.finish(MEDSSL_PROCESSES="1")
    torch.manual_seed(0)
    study = load_study(TINY)
    initial = build_encoder(study.encoders["resnet18-eighth"], image_channels=1).state_dict()
    trained = [name for name in whole if name.endswith(("weight", "bias"))]
    change, difference = (
        sum(float((weights[name] - other[name]).square().sum()) for name in trained) ** 0.5
        for weights, other in ((whole, initial), (resumed, whole))
    )
    assert 0 < difference < 0.01 * change


FINETUNE_STEPS = 150


def prepare_search(folder: Path) -> Stage:
    """The command of a search over four grid points."""
    settings = {"num_steps": FINETUNE_STEPS, "evaluate_every_steps": 50, "checkpoint_every_steps": EVERY_STEPS}
    settings |= {"learning_rates": "[0.01,0.02,0.03,0.04]", "repeats": 2}
    prepared = prepare(folder, *(f"finetune.{key}={value}" for key, value in settings.items()), item="random")
    return replace(prepared, name="search-hyperparameters")


def kill_search_and_compare(folder: Path, *, kills: int, longest_s: float) -> None:
    """A search that is killed again and again goes on within its grid and ends with the bytes of a whole one."""
    prepared = prepare_search(folder)
    whole = prepared.copy(folder / "whole").made()
    broken = prepared.copy(folder / "broken")
    moments = random.Random(0)
    finished = 0
    for number in range(kills):
        _, is_killed = broken.kill(after_s=moments.uniform(0, longest_s))
        assert is_killed, f"the search was over before kill {number + 1}; make it longer"
        outcomes = len(list((broken.store / "work").glob(f"*/*/{layout.OUTCOME}")))
        assert outcomes >= finished, "a grid point that is finished stays finished"
        finished = outcomes
    assert broken.made().name == whole.name  # the digest of every byte


def test_two_kills_leave_the_scores_of_a_search_as_they_would_have_been(tmp_path: Path) -> None:
    kill_search_and_compare(tmp_path, kills=2, longest_s=2.0)


@pytest.mark.slow
def test_twelve_kills_leave_the_scores_of_a_search_as_they_would_have_been(tmp_path: Path) -> None:
    kill_search_and_compare(tmp_path, kills=12, longest_s=1.5)


@pytest.mark.slow
def test_repeats_that_are_killed_and_stopped_end_in_the_models_of_a_whole_run(tmp_path: Path) -> None:
    search = prepare_search(tmp_path)
    scores = search.made()
    select = replace(search, name="select", arguments=[*search.arguments, "--input", f"scores={scores}"])
    tune = replace(search, name="finetune", arguments=[*search.arguments, "--input", f"selection={select.made()}"])
    whole = tune.copy(tmp_path / "whole").made()
    for how, after_s in ((signal.SIGKILL, 1.0), (signal.SIGTERM, 0.5), (signal.SIGKILL, 0.2)):
        _, is_killed = tune.kill(after_s=after_s, how=how)
        assert is_killed
    assert tune.made().name == whole.name

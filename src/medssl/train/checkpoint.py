"""Training state on disk: written atomically, checked on reading, loaded by formats that run no code."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medssl.progress import say
from medssl.store import StoreError, file_digest, write_json

STATE = "state.pt"


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's parameters and buffers as safetensors, atomically."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(weights, temporary)
    temporary.replace(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load weights written by `save_weights`; every name and shape must fit.

    Raises:
        StoreError: The file is damaged or belongs to another network.
    """
    try:
        module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(f"{path.name}: cannot be loaded into {type(module).__name__}: {reason}") from None


def save_state(work_dir: Path, state: Mapping[str, Any]) -> None:
    """Write everything that resuming needs: tensors and plain values only.

    The new state replaces the old one by a rename after it has reached the disk, so a kill at any moment leaves one
    that is whole; the digest beside it tells.
    """
    temporary = work_dir / f".{STATE}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    write_json(work_dir / f"{STATE}.{file_digest(temporary)[:16]}.json", {"step": state["step"]})
    temporary.replace(work_dir / STATE)
    current = file_digest(work_dir / STATE)[:16]
    for mark in work_dir.glob(f"{STATE}.*.json"):
        if mark.name != f"{STATE}.{current}.json":
            mark.unlink()


def load_state(work_dir: Path) -> dict[str, Any] | None:
    """The saved state, or None where there is none; one that is damaged is put aside, which is said."""
    path = work_dir / STATE
    if not path.is_file():
        return None
    if not (work_dir / f"{STATE}.{file_digest(path)[:16]}.json").is_file():
        path.replace(path.with_suffix(".damaged"))
        say("the saved training state is damaged and has been put aside; training begins anew: check the disk")
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def forget_state(work_dir: Path) -> None:
    """Remove the saved state, where there is one, and what a kill has left of another."""
    for path in work_dir.glob(f"*{STATE}*"):
        path.unlink()


def cpu_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict that later training steps do not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

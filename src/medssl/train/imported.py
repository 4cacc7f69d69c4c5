"""Published weights as a checkpoint: the files that a pretraining run leaves, and where the weights come from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medssl import layout
from medssl.model.published.conversion import AUTO, FORMS, convert
from medssl.model.published.files import open_checkpoint
from medssl.store import write_json
from medssl.train.checkpoint import save_weights
from medssl.train.history import write_history

FORMATS = (AUTO, *FORMS)


def source_digests(path: Path) -> dict[str, str]:
    """SHA-256 in hex of each file of a checkpoint, by what its name ends with.

    Raises:
        WeightsError: It cannot be opened.
    """
    return dict(open_checkpoint(path).digests)


def import_weights(
    path: Path,
    out_dir: Path,
    *,
    name: str,
    form: str = AUTO,
    depth: int | None = None,
    width: float | None = None,
    input_mean: Sequence[float] | None = None,
    input_std: Sequence[float] | None = None,
    sha256: str | None = None,
) -> Mapping[str, Any]:
    """Convert a file of published weights and leave a checkpoint in `out_dir`.

    Args:
        path: See `conversion.convert`, also for the arguments that are not listed here.
        out_dir: An empty folder.
        name: Of the checkpoint, as a study will name it; it heads the (empty) training curves.
        form: One of `FORMATS`.
        depth: What is expected, if anything.
        width: What is expected, if anything.
        input_mean: What the weights expect, if not what is usual.
        input_std: What the weights expect, if not what is usual.
        sha256: What the file's digest must be, if anything.

    Returns:
        What `layout.PUBLISHED` then holds: format, source's digests, encoder's settings, licence and citation, counts,
        what became of the projection head, and which tensors of the source were left out.

    Raises:
        WeightsError: The file cannot be used.
    """
    found = convert(
        path,
        form=form,
        depth=depth,
        width=width,
        input_mean=input_mean,
        input_std=input_std,
        sha256=sha256,
    )
    save_weights(found.encoder, out_dir / layout.ENCODER)
    if found.head is not None:
        save_weights(found.head, out_dir / layout.PROJECTION_HEAD)
    write_history(name, [], out_dir / layout.HISTORY)
    record = {
        "format": found.form.name,
        "cites": found.form.cites,
        "source_sha256": dict(found.digests),
        "encoder": found.config.dump(),
        "num_parameters": sum(parameter.numel() for parameter in found.encoder.parameters()),
        "projection_head": found.head_note,
        "left_out": list(found.left_out),
    }
    write_json(out_dir / layout.PUBLISHED, record)
    return record

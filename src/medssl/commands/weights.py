"""`medssl import-weights`: published weights as a checkpoint, in the store or in a folder."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medssl import layout
from medssl.code_version import stage_version
from medssl.config import ConfigError, EncoderConfig, Name
from medssl.stages import weights
from medssl.store import Store

# Spelt out, since torch takes seconds to import; a test compares them with medssl.train.imported.
FORMATS = (
    "auto",
    "torchvision",
    "simclr_v1",
    "simclr_v2",
    "lightly",
    "solo_learn",
    "simclr_tf1",
    "simclr_tf2",
    "bit",
    "bit_timm",
)


def add(parser: argparse.ArgumentParser, store: Callable[[argparse.Namespace], Store]) -> None:
    """Let `parser` take the command's options; `store` finds the store that they name."""
    parser.add_argument(
        "file",
        type=Path,
        help="safetensors, .npz, a zip file of torch's, or a TensorFlow checkpoint's .index; code in it is never run",
    )
    parser.add_argument("--name", required=True, help="of the checkpoint")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="default: by the names in the file")
    parser.add_argument("--depth", type=int, help="what is expected (default: whichever fits the names)")
    parser.add_argument("--width", type=float, help="what is expected (default: by the first convolution)")
    for word in ("mean", "std"):
        parser.add_argument(
            f"--{word}",
            type=_numbers,
            metavar="R,G,B",
            help=f'{word} of images in [0, 1] that the weights expect (default: as usual in the format; "": none)',
        )
    parser.add_argument("--sha256", help="refuse a file with another digest (TensorFlow: of a .data file)")
    parser.add_argument("--out", type=Path, help="folder to make, in place of the store")
    parser.set_defaults(command=lambda options: _import(options, store))


def _import(options: argparse.Namespace, find_store: Callable[[argparse.Namespace], Store]) -> None:
    try:
        TypeAdapter(Name).validate_python(options.name)
    except ValidationError:
        raise ConfigError(
            f"--name {options.name[:80]}: expected small letters, digits, _ and -, at most 63 of them"
        ) from None
    settings: dict[str, Any] = {
        "form": options.format,
        "depth": options.depth,
        "width": options.width,
        "input_mean": options.mean,
        "input_std": options.std,
        "sha256": options.sha256,
    }
    if options.out is not None:
        result, record = {"checkpoint": options.out.name}, _into_folder(options, settings)
    else:
        version = stage_version(weights.__name__, "import_weights")
        made, record = weights.import_weights(
            find_store(options), options.file, name=options.name, options=settings, code_version=version
        )
        result = {"uri": made.uri, "metadata": made.metadata}
    # What a study's section "encoders" needs: all that is not a default.
    encoder = EncoderConfig.model_validate(record["encoder"]).model_dump(mode="json", exclude_defaults=True)
    told = {key: record[key] for key in ("format", "cites", "num_parameters", "projection_head", "left_out")}
    sys.stdout.write(f"{json.dumps({**result, 'encoder': encoder, **told})}\n")


def _into_folder(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    from medssl.train import imported

    out: Path = options.out
    if out.exists():
        raise ConfigError(f"--out {out.name}: exists already; name a folder to make")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        folder = Path(scratch, "checkpoint")
        folder.mkdir()
        imported.import_weights(options.file, folder, name=options.name, **settings)
        folder.rename(out)
    record: dict[str, Any] = json.loads((out / layout.PUBLISHED).read_text())
    return record


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part.strip()]

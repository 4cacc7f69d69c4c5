"""Published weights into the store, as a checkpoint like those of pretraining; no part of a study's pipeline."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssl import layout
from medssl.stages import step as steps
from medssl.store import Store


def import_weights(
    store: Store, path: Path, *, name: str, options: Mapping[str, Any], code_version: str
) -> tuple[steps.Made, dict[str, Any]]:
    """Convert a file of published weights into a checkpoint.

    Args:
        store: Where the checkpoint is kept.
        path: The file, which is only read.
        name: Of the checkpoint.
        options: See `medssl.train.imported.import_weights`: form, depth, width, input_mean, input_std, sha256.
        code_version: From `medssl.code_version`.

    Returns:
        The checkpoint, and what its `layout.PUBLISHED` says.

    Raises:
        BadInputError: The file cannot be used.
    """
    from medssl.train import imported

    with steps.start(
        "import_weights",
        store=store,
        code_version=code_version,
        config={"source_sha256": imported.source_digests(path), **options},
        inputs={},
        item=name,
    ) as step:
        if step.made is None:
            record = imported.import_weights(path, step.folder, name=name, **options)
            encoder = record["encoder"]
            step.finish("checkpoint", {"name": name, "encoder": encoder, "channels": encoder["input_channels"]})
    folder = store.open(step.result.uri, kind="checkpoint", verify="size").folder
    return step.result, json.loads((folder / layout.PUBLISHED).read_text())

"""The shard format, read side: images by number, a perfect shuffle, a rank's share of it, and one split's images.

Shards hold images and nothing else. Labels and split are joined here, at read, so that a corrected label or another
split rewrites no image; and an image outside the split that a reader was opened for is refused, not skipped.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl import imaging, schema
from medssl.exit_codes import BadInputError
from medssl.progress import Progress

SHARDS_JSON = "shards.json"
_MAX_EXAMPLES = 5


def read_summary(shards_dir: Path) -> dict[str, Any]:
    """The content of `shards.json`.

    Raises:
        BadInputError: It is missing (an unfinished run) or no JSON.
    """
    try:
        summary: dict[str, Any] = json.loads((shards_dir / SHARDS_JSON).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        raise BadInputError(f"shards: no readable {SHARDS_JSON}; expected a finished run of write_shards") from None
    return summary

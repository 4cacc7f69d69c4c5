"""Which reader reads which kind of data set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from medssl.config import DataConfig
from medssl.data import cases, chexpert, images, nih, padchest
from medssl.data.reading import Reading
from medssl.data.root import check_root
from medssl.identifiers import PatientKey

Reader = Callable[..., Reading]
READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "chexpert": chexpert.read,
        "cases": cases.read,
        "pad_ufes": cases.read,
        "ham10000": cases.read,
        "images": images.read,
        "nih": nih.read,
        "padchest": padchest.read,
    }
)


def read(root: Path, config: DataConfig, key: PatientKey, *, with_files: bool = True) -> Reading:
    """Read and check the tables of a data set; image files are not decoded.

    Args:
        root: The folder that holds the tables, and below which the images lie.
        config: Kind of the set, names of its tables and what is read of them.
        key: Makes the identifiers.
        with_files: False where only tables exist: then no image is looked for.

    Raises:
        BadInputError: A table is missing or holds what it must not, or none of the first listed files exists.
    """
    check_root(root)
    return READERS[config.dataset](root, config, key, with_files=with_files)

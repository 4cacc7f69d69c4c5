"""Which reader reads which kind of data set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from medssl import schema
from medssl.config import DataConfig, UnlabelledConfig
from medssl.data import cases, chexpert, images, nih, padchest
from medssl.data.reading import Reading, is_safe
from medssl.data.root import check_root
from medssl.exit_codes import BadInputError
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
    reading = READERS[config.dataset](root, config, key, with_files=with_files)
    pools = [_read_pool(root, pool, config, key, with_files=with_files) for pool in config.unlabelled]
    return _joined(reading, pools) if pools else reading


def _read_pool(root: Path, pool: UnlabelledConfig, config: DataConfig, key: PatientKey, *, with_files: bool) -> Reading:
    folder = root / pool.folder
    if not is_safe(pool.folder) or not folder.is_dir():
        raise BadInputError("data.unlabelled: a folder does not exist below data.root; give its name relative to that")
    settings = DataConfig(
        dataset="images",
        name=pool.name or config.name,
        root=str(folder),
        train_table=pool.train_table,
        columns=pool.columns,
        group=pool.group,
    )
    return images.read(folder, settings, key, with_files=with_files, below=pool.folder)


def _joined(labelled: Reading, pools: Sequence[Reading]) -> Reading:
    """One index of all images; those without labels are not assessed for any."""
    names = [name for name in labelled.index.column_names if name.startswith(schema.LABEL_PREFIX)]
    tables = [labelled.index]
    for pool in pools:
        index = pool.index
        for name in names:
            index = index.append_column(name, pa.repeat(pa.scalar(schema.NOT_ASSESSED, pa.int8()), index.num_rows))
        tables.append(schema.check(index, schema.INDEX, "index"))
    index = pa.concat_tables(table.select(labelled.index.column_names) for table in tables).sort_by("image_id")
    sources = pa.concat_tables([labelled.sources, *(pool.sources for pool in pools)]).sort_by("image_id")
    if num_twice := sources.num_rows - len(sources["file"].unique()):
        raise BadInputError(
            f"data.unlabelled: {num_twice} images are listed by the data set, too, or by two folders; give folders "
            "that hold no image of the label table"
        )
    counts = [{name: pool.summary[name] for name in ("images", "patients", "cases")} for pool in pools]
    summary = {**labelled.summary, "unlabelled": counts, "unlabelled_images": sum(c["images"] for c in counts)}
    return Reading(index, sources, summary, labelled.dataset, labelled.group_kind)

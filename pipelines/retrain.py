"""Re-training: a run that stops early where no data changed, and that keeps every patient in his split where it did."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medssl import layout
from medssl.config import DataConfig, Study, load_study
from medssl.data.fingerprint import fingerprint
from medssl.exit_codes import BadInputError
from medssl.stages.data import shares_of
from medssl.store import Store
from pipelines import local
from pipelines.publish import RUN_FILE


@dataclass(frozen=True)
class LastRun:
    """What the last finished run in a folder read, and how it split it.

    Attributes:
        sources: By data set, the study's own as "", the artifact of its fingerprint.
        index: Digest of the index.
        splits: Digest of the splits.
    """

    sources: Mapping[str, str]
    index: str
    splits: str

    @classmethod
    def read(cls, out_dir: Path) -> Self | None:
        """The last finished run in `out_dir`, or None where there was none.

        Raises:
            BadInputError: Its record cannot be read.
        """
        try:
            record = json.loads((out_dir / RUN_FILE).read_text(encoding="utf-8"))
            sources = {
                str(task["task"]).removeprefix("fingerprint").strip(): str(task["output"]["digest"])
                for task in record["tasks"]
                if task["output"]["kind"] == "source"
            }
            digests = (record["artifacts"][name]["artifact_digest"] for name in (layout.INDEX, layout.SPLITS))
            return cls(sources, *digests)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise BadInputError(
                f"{RUN_FILE} in --out is not that of a finished run; give the folder of one, or an empty one"
            ) from None


def retrain(study_path: Path, out_dir: Path, overrides: Sequence[str]) -> None:
    """Run a study again if its data changed since the last run in `out_dir`, with the splits of that run extended.

    Raises:
        BadInputError: As `local.run`, or the artifacts of the last run are gone.
    """
    study, last = load_study(study_path, overrides), LastRun.read(out_dir)
    if last is None:
        _tell(f"retrain: no finished run of {study.name} yet; this is the first")
        local.run(study_path, out_dir, overrides)
        return
    store = Store(str(out_dir / "store"))
    changed = list(_changed(study, out_dir, store, last))
    if not changed:
        _tell(f"retrain: the data of {study.name} are those of the last run; nothing to do")
        return
    _tell(f"retrain: changed since the last run: {', '.join(changed)}; the splits of that run are extended")
    local.run(study_path, out_dir, [*overrides, *_extending(study, store, last)])


def _changed(study: Study, out_dir: Path, store: Store, last: LastRun) -> Iterator[str]:
    """Names of the data sets that are not as the last run saw them."""
    sets = [("", study.data, local.data_root(study, out_dir.resolve()))]
    further = (*study.external, *study.pretraining_data)
    sets += [(one.name, one, Path(str(one.root)).expanduser()) for one in further]
    for role, config, root in sets:
        known = last.sources.get(role)
        if known is None or store.open(store.uri("source", known), kind="source").summary != _summary(config, root):
            yield config.name


def _summary(config: DataConfig, root: Path) -> dict[str, Any]:
    """The fingerprint of a set as its artifact tells it."""
    found = fingerprint(root, config.tables, files=config.fingerprint_files)
    return {"fingerprint": found.digest, **{key: value for key, value in vars(found).items() if key != "digest"}}


def _extending(study: Study, store: Store, last: LastRun) -> list[str]:
    """Settings with which the earlier patients keep their splits, and new ones are shared out as the earlier were."""
    settings = [f"splits.extend={last.splits}"]
    if study.splits.mode == "sizes" and not study.splits.exact:
        return settings
    # Exact numbers are used up by the earlier patients: what is new would be left over.
    index, splits = (
        store.open(store.uri(*one), kind=one[0]) for one in (("index", last.index), ("splits", last.splits))
    )
    shares = shares_of(index.folder / layout.INDEX, splits.folder / layout.SPLITS)
    return [*settings, "splits.mode=sizes", *(f"splits.{split}={share!r}" for split, share in shares.items())]


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()

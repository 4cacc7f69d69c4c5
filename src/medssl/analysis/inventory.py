"""Tables of the report that say how a study was made: settings, choices, models, refused images and digests."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medssl.analysis import tables
from medssl.analysis.tables import Cell, Column, Table, percent, setting
from medssl.config import SplitConfig

Json = Mapping[str, Any]


def _made_by(task: str, *values: Any) -> list[Cell]:
    """Cells whose numbers lead to the task that made them."""
    cells = [value if isinstance(value, Cell) else Cell(str(value)) for value in values]
    return [cell if tables.is_absent(cell) or not cell.text else replace(cell, task=task) for cell in cells]


def settings(study: Json, classes: Sequence[str], *, class_word: str, unit_kind: str) -> Table:
    """The settings that decide what the numbers mean; `classes` are findings or conditions, of images or cases."""
    finetune, compare, groups, shards = (study[name] for name in ("finetune", "compare", "subgroups", "shards"))
    search = {"full": "at the largest fraction, then reused", "per_fraction": "at each fraction"}[finetune["search"]]
    splits = SplitConfig.model_validate(study["splits"])
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in splits.sizes.items())
    external = ", ".join(one["name"] for one in study.get("external", ()))
    rows = [
        ("Data set", study["data"]["name"]),
        *([("External data sets", external)] if external else []),
        (f"{class_word.capitalize()}s", ", ".join(classes)),
        ("Splits", f"{sizes}; every {splits.group_by} whole"),
        ("Images", f"{shards['image_size_px']} × {shards['image_size_px']} pixels, {shards['resize']}"),
        (
            "Label fractions",
            ", ".join(map(percent, finetune["label_fractions"])) + f"; {_count(splits.draws, 'draw')}",
        ),
        (
            "Fine-tuning",
            f"{finetune['num_steps']:,} steps of {finetune['batch_size']} {unit_kind}s, "
            f"{_count(finetune['repeats'], 'repeat')}",
        ),
        ("Learning rates tried", ", ".join(map(setting, finetune["learning_rates"]))),
        ("Weight decays tried", ", ".join(map(setting, finetune["weight_decays"]))),
        ("Hyper-parameters searched", search),
        (
            "Intervals",
            f"percentile bootstrap at {percent(1 - compare['alpha'])}, {compare['num_replicates']:,} replicates, "
            f"resampling {' and '.join(f'{unit}s' for unit in compare['resampling_units'])}",
        ),
        ("Subgroups", f"{', '.join(groups['by'])}; at least {groups['min_patients']} patients each".replace("_", " ")),
    ]
    columns = [tables.text("Setting"), tables.text("Value")]
    return tables.build("settings", "Settings of the study.", columns, rows)


def _size(size: float) -> str:
    return f"{size:,.0f} images" if size > 1 else percent(size)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def not_run(study: Json) -> Table:
    """Arms of the study that were left out, because something they need is absent."""
    columns = [tables.text("Arm"), tables.text("Why it was not run")]
    return tables.build("not-run", "Arms that were not run.", columns, list(study["not_run"].items()))


def pretraining(study: Json) -> Table:
    """Pretraining runs, none of which sees a label."""
    rows = [
        (
            run["name"],
            {"simclr": "SimCLR", "micle": "MICLe"}.get(run["method"], run["method"]),
            run["init"],
            run["dataset"] or study["data"]["name"],
            *_made_by(
                f"pretrain {run['name']}",
                f"{run['num_steps']:,}",
                f"{run['batch_size']:,}",
                setting(run["learning_rate"]),
                setting(run["temperature"]),
            ),
            run["augmentation"].replace("_", " "),
        )
        for run in study["pretraining"]
    ]
    columns = [*map(tables.text, ("Run", "Method", "Starts from", "Images of")), Column("Steps"), Column("Batch")]
    columns += [Column("Learning rate"), Column("Temperature"), tables.text("Augmentation")]
    return tables.build("pretraining", "Pretraining without labels.", columns, rows)


def selection(rows: Sequence[Json], arms: Mapping[str, str], *, score: str, absent: str) -> Table:
    """Every point of the hyper-parameter search with why it was chosen or not.

    Args:
        rows: As `ReportInputs.selection`.
        arms: arm_id to the name shown.
        score: What the validation score is.
        absent: Why there is none, for a row without one.
    """
    shown = [
        (
            arms.get(row["arm_id"], row["arm_id"]),
            percent(row["label_fraction"]),
            *_made_by(
                f"search_hyperparameters {row['arm_id']}",
                setting(row["learning_rate"]),
                setting(row["weight_decay"]),
                tables.real(row["validation_score"], decimals=4, reason=absent),
                f"{row['step']:,}",
            ),
            Cell("chosen", strong=True) if row["chosen"] else "not chosen",
            row["reason"],
        )
        for row in _ordered(rows, arms)
    ]
    columns = [tables.text("Arm"), *map(Column, ("Labels", "Learning rate", "Weight decay"))]
    columns += [Column(f"{score}, validation"), Column("Best step"), tables.text("Outcome"), tables.text("Reason")]
    return tables.build("selection", "Points of the hyper-parameter search.", columns, shown, grouped=True)


def models(rows: Sequence[Json], arms: Mapping[str, str], *, score: str, absent: str) -> Table:
    """Every fine-tuned model behind the results; `score` and `absent` as in `selection`."""
    shown = [
        (
            arms.get(row["arm_id"], row["arm_id"]),
            percent(row["label_fraction"]),
            *_made_by(
                f"finetune {row['arm_id']}",
                row["draw"],
                row["repeat"],
                f"{row['num_train_images']:,}",
                f"{row['num_train_patients']:,}",
                setting(row["learning_rate"]),
                setting(row["weight_decay"]),
                tables.real(row["validation_score"], decimals=4, reason=absent),
            ),
            Cell("selected", strong=True) if row["is_selected"] else "",
            row.get("checkpoint_digest", "")[:12],
        )
        for row in _ordered(rows, arms)
    ]
    names = ("Labels", "Draw", "Repeat", "Train images", "Train patients", "Learning rate", "Weight decay")
    columns = [tables.text("Arm"), *map(Column, names), Column(f"{score}, validation")]
    columns += [tables.text("Selected"), tables.text("Checkpoint")]
    caption = "Fine-tuned models; each digest of a checkpoint is given by its first 12 digits."
    return tables.build("models", caption, columns, shown, grouped=True)


def _ordered(rows: Sequence[Json], arms: Mapping[str, str]) -> list[Json]:
    place = {arm: i for i, arm in enumerate(arms)}
    keys = ("label_fraction", "draw", "learning_rate", "weight_decay", "repeat")
    return sorted(rows, key=lambda row: (place.get(row["arm_id"], len(place)), *(row.get(key, 0) for key in keys)))


def undecodable(shards_summary: Json) -> tuple[Table, Table]:
    """Images that could not be used: how many for which reason, and which."""
    counts = sorted(shards_summary.get("undecodable_by_reason", {}).items())
    by_reason = tables.build(
        "undecodable-by-reason",
        "Images that could not be used, by reason.",
        [tables.text("Reason"), Column("Images")],
        counts,
        task="write_shards",
    )
    images = [(image["image_id"], image["reason"]) for image in shards_summary.get("undecodable", [])]
    columns = [tables.text("image_id"), tables.text("Reason")]
    caption = "Images that could not be used. An image_id is a pseudonym; `medssl locate` finds its file."
    return by_reason, tables.build("undecodable", caption, columns, images)


def lineage(digests: Json) -> Table:
    """What the report was made from, by content."""
    columns = [tables.text("Artifact"), tables.text("SHA-256")]
    rows = [(role, str(digest)) for role, digest in sorted(digests.items())]
    return tables.build("lineage", "Digests of everything that this report was made from.", columns, rows)


def tasks(study: Json | None, named: Iterable[str]) -> Table:
    """The tasks behind the numbers, in the order of the pipeline, each with what it read; numbers link to its row.

    Args:
        study: As JSON values, or None where it is not known.
        named: Tasks to which numbers of the page link; those that the study does not explain come last.
    """
    listed = dict(_tasks(study)) if study else {}
    listed |= dict.fromkeys(sorted(set(named) - set(listed)), "")
    rows = [(Cell(task, task=task, anchor=tables.task_anchor(task)), words or "–") for task, words in listed.items()]
    caption = "Tasks of the study: every number of this page leads to the one that made it."
    return tables.build("tasks", caption, [tables.text("Task"), tables.text("Made from")], rows)


def _tasks(study: Json) -> Iterator[tuple[str, str]]:
    """Each task and what it reads."""
    data = "index, splits, shards"
    yield from (
        ("fingerprint", "raw data"),
        ("ingest", "raw data of the digest that fingerprint found"),
        ("assign_splits", "index"),
        ("write_shards", "raw data, index"),
    )
    for one in (*study.get("pretraining_data", ()), *study.get("external", ())):
        yield f"prepare_dataset {one['name']}", "raw data of this set"
    for run in study["pretraining"]:
        yield f"pretrain {run['name']}", f"{data}; starts from {run['init']}"
    for stage, inputs in (
        ("search_hyperparameters", data),
        ("finetune", f"{data}, select"),
        ("predict", f"{data}, finetune"),
    ):
        for arm in study["arms"]:
            yield f"{stage} {arm['name']}", f"{inputs}; starts from {arm['init']}"
        if stage == "search_hyperparameters":
            yield "select", "search_hyperparameters of all arms"
    yield "compare", "predict of all arms"
    yield "analyze_subgroups", "compare"
    yield "write_report", "all of these"

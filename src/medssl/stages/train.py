"""The training stages, in pipeline order; each starts its processes through torchrun."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medssl import layout, schema
from medssl.config import (
    RANDOM_INITIALIZATION,
    ArmConfig,
    EncoderConfig,
    FinetuneConfig,
    PredictConfig,
    PretrainRun,
    TaskConfig,
)
from medssl.exit_codes import BadInputError
from medssl.layout import EXTERNAL_INDEX, EXTERNAL_SHARDS
from medssl.lineage import MODEL_KEYS, MODELS, MODELS_FILE, as_csv
from medssl.references import Reference
from medssl.stages import step as steps
from medssl.stages.evaluations import EVALUATED, Evaluation, told_uses
from medssl.store import Artifact, Store, write_json

if TYPE_CHECKING:
    from medssl.train.jobs import Inputs, PredictJob, SetInputs

SEARCH_REPEAT = -1


class Data:
    """The artifacts that every training stage reads: the study's own set."""

    def __init__(self, store: Store, *, index_uri: str, splits_uri: str, shards_uri: str) -> None:
        self.index = store.open(index_uri, kind="index")
        self.splits = store.open(splits_uri, kind="splits")
        self.shards = store.open(shards_uri, kind="shards")
        self.channels = _channels(self.shards)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """By role, as a step's inputs."""
        return {"index": self.index, "splits": self.splits, "shards": self.shards}

    @property
    def inputs(self) -> "Inputs":
        """As a job's inputs."""
        from medssl.train.jobs import Inputs

        return Inputs(
            index_path=self.index.folder / layout.INDEX,
            splits_path=self.splits.folder / layout.SPLITS,
            shards_dir=self.shards.folder,
        )


class OtherData:
    """A set that pretraining alone sees, all of it: it is not split."""

    def __init__(self, store: Store, name: str, datasets_uri: str | None) -> None:
        if datasets_uri is None:
            raise BadInputError(f"the data set {name} is needed but no catalog of data sets was given")
        found, self.lineage = _datasets(store, datasets_uri)
        if name not in found:
            raise BadInputError(f"the data set {name} is not among those prepared: {sorted(found)}")
        self.index, self.shards = found[name]
        self.channels = _channels(self.shards)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """By role, as a step's inputs."""
        return {"index": self.index, "shards": self.shards}

    @property
    def inputs(self) -> "SetInputs":
        """As a job's inputs."""
        from medssl.train.jobs import SetInputs

        return SetInputs(index_path=self.index.folder / layout.INDEX, shards_dir=self.shards.folder)


def _channels(shards: Artifact) -> int:
    from medssl.shardset import read_summary

    return int(read_summary(shards.folder)["channels"])


def pretrain(
    store: Store,
    run: PretrainRun,
    encoder: EncoderConfig,
    own: Data,
    *,
    task: TaskConfig | None,
    catalog_uri: str | None,
    datasets_uri: str | None = None,
    imported: str = "",
    code_version: str,
) -> steps.Made:
    """Train one encoder without labels, from random or imported weights or from another run's.

    Args:
        store: Where artifacts are found and put.
        run: What to do.
        encoder: The network.
        own: The study's own data, which the run sees unless it names another set.
        task: What the run's probe, if it has one, scores for those who watch: the result does not depend on it.
        catalog_uri: Checkpoints of earlier runs, if there are any.
        datasets_uri: Catalog of the other sets, if there are any.
        imported: Digest of the checkpoint to start from, where that is one brought in by `import-weights`.
        code_version: Of this stage.
    """
    from medssl.train.history import COLLAPSED, last
    from medssl.train.jobs import PretrainJob
    from medssl.train.launch import launch

    data = OtherData(store, run.dataset, datasets_uri) if run.dataset else own
    initial, catalog = _initial(store, run.init, catalog_uri, imported, encoder, data.channels)
    with steps.start(
        "pretrain",
        store=store,
        code_version=code_version,
        config={"run": run.that_counts(), "encoder": encoder.dump()},
        inputs={**data.artifacts, **_role("initial", initial)},
        lineage=_role("catalog", catalog) | (data.lineage if isinstance(data, OtherData) else {}),
        item=run.name,
    ) as step:
        if step.made is None:
            job = PretrainJob(
                inputs=data.inputs,
                run=run,
                encoder=encoder,
                channels=data.channels,
                task=task if run.probe else None,
                initial_dir=initial.folder if initial else None,
                work_dir=store.work_dir(step.key),
                out_dir=step.folder,
            )
            launch("medssl.train.pretrain", job, store.work_dir(step.key) / "job.json", has_machine_alone=True)
            curves = _curves(step.folder / layout.HISTORY)
            step.run.metrics([*curves, *_curves(store.work_dir(step.key) / layout.MONITORED)])
            summary = {"name": run.name, "encoder": encoder.dump(), "channels": data.channels}
            step.finish("checkpoint", summary | {"collapsed": bool(last(curves, COLLAPSED))})
    return step.result


def collect(store: Store, kind: str, uris: Sequence[str], *, previous_uri: str | None, code_version: str) -> steps.Made:
    """List several artifacts by name in one, since KFP hands no list into a loop."""
    artifacts = [store.open(uri, kind=kind, verify="size") for uri in uris]
    previous = store.open(previous_uri, kind="catalog") if previous_uri else None
    inputs = {str(a.summary["name"]): a for a in artifacts}
    level = int(previous.summary["level"]) + 1 if previous else 1
    with steps.start(
        "collect",
        store=store,
        code_version=code_version,
        config={"kind": kind},
        inputs={**inputs, **_role("previous", previous)},
        item=f"{kind.removesuffix('s')}s" + (f" level {level}" if level > 1 else ""),
    ) as step:
        if step.made is None:
            entries = json.loads((previous.folder / layout.CATALOG).read_text()) if previous else {}
            entries |= {name: {"kind": a.kind, "digest": a.digest} for name, a in inputs.items()}
            write_json(step.folder / layout.CATALOG, entries)
            step.finish("catalog", {"num_entries": len(entries), "level": level}, [("entries", 0, len(entries))])
    return step.result


def search_hyperparameters(
    store: Store,
    settings: FinetuneConfig,
    task: TaskConfig,
    arm: ArmConfig,
    encoder: EncoderConfig,
    data: Data,
    *,
    catalog_uri: str | None,
    imported: str = "",
    code_version: str,
) -> steps.Made:
    """Fine-tune one arm over the grid; only validation scores leave this stage."""
    items = grid(settings, arm)
    initial, catalog = _initial(store, arm.init, catalog_uri, imported, encoder, data.channels)
    with steps.start(
        "search_hyperparameters",
        store=store,
        code_version=code_version,
        config=_finetune_config(settings, task, arm, encoder, items),
        inputs={**data.artifacts, **_role("initial", initial)},
        lineage=_role("catalog", catalog),
        item=arm.name,
    ) as step:
        if step.made is None:
            outcomes = _finetune(store, step, items, settings, task, arm, encoder, data, initial, keeps_weights=False)
            rows = [{name: outcome[name] for name in schema.SCORES.columns.names} for outcome in outcomes]
            schema.write(_table(rows, schema.SCORES), schema.SCORES, step.folder / layout.SCORES)
            best = max((o["validation_score"] for o in outcomes if o["validation_score"] is not None), default=None)
            step.finish(
                "scores",
                {"name": arm.name},
                [(f"best_validation_{task.selection_metric}", 0, best)] if best is not None else (),
            )
    return step.result


def select(store: Store, uris: Sequence[str], *, code_version: str) -> steps.Made:
    """Choose each arm's settings by validation score; every grid point stays listed with the reason."""
    artifacts = {str(a.summary["name"]): a for a in (store.open(uri, kind="scores") for uri in uris)}
    with steps.start("select", store=store, code_version=code_version, config={}, inputs=artifacts) as step:
        if step.made is None:
            rows: list[dict[str, Any]] = []
            for artifact in artifacts.values():
                rows += schema.read(artifact.folder / layout.SCORES, schema.SCORES).to_pylist()
            write_json(step.folder / layout.SELECTION, choose(rows))
            step.finish("selection", {"num_arms": len(artifacts)}, [("grid_points", 0, len(rows))])
    return step.result


def finetune(
    store: Store,
    settings: FinetuneConfig,
    task: TaskConfig,
    arm: ArmConfig,
    encoder: EncoderConfig,
    data: Data,
    *,
    draws: int,
    selection_uri: str,
    catalog_uri: str | None,
    imported: str = "",
    code_version: str,
) -> steps.Made:
    """Fine-tune one arm with its chosen settings at every label fraction, several times."""
    settings = settings.of(arm)
    initial, catalog = _initial(store, arm.init, catalog_uri, imported, encoder, data.channels)
    selection = store.open(selection_uri, kind="selection")
    chosen = [row for row in json.loads((selection.folder / layout.SELECTION).read_text()) if row["chosen"]]
    items = repeats(settings, [row for row in chosen if row["arm_id"] == arm.name], draws=draws)
    with steps.start(
        "finetune",
        store=store,
        code_version=code_version,
        config=_finetune_config(settings, task, arm, encoder, items),
        inputs={**data.artifacts, **_role("initial", initial)},
        lineage={**_role("catalog", catalog), "selection": selection},
        item=arm.name,
    ) as step:
        if step.made is None:
            outcomes = _finetune(store, step, items, settings, task, arm, encoder, data, initial, keeps_weights=True)
            marked = mark_selected(outcomes)
            write_json(step.folder / layout.MODELS, marked)
            named = [
                (
                    f"validation_{task.selection_metric}/fraction{o['label_fraction']:g}",
                    int(o["repeat"]),
                    float(o["validation_score"]),
                )
                for o in outcomes
                if o["validation_score"] is not None
            ]
            summary = {"name": arm.name, "encoder": encoder.dump(), "num_models": len(items)}
            models = [{key: m[key] for key in MODEL_KEYS} for m in marked]
            step.finish("models", summary, named, notes={MODELS: models})
            step.run.text(MODELS_FILE, as_csv(models))
    return step.result


def predict(
    store: Store,
    settings: PredictConfig,
    task: TaskConfig,
    arm: ArmConfig,
    encoder: EncoderConfig,
    data: Data,
    *,
    study_id: str,
    dataset: str,
    image_size_px: int,
    catalog_uri: str,
    external_uri: str | None,
    code_version: str,
) -> steps.Made:
    """Predict validation, test and external sets with every model of one arm; only `rescore` opens test images too."""
    from medssl.train.jobs import ExternalSet, PredictItem, PredictJob
    from medssl.train.launch import launch

    models, catalog = from_catalog(store, arm.name, catalog_uri)
    external, listed_sets = _datasets(store, external_uri)
    with steps.start(
        "predict",
        store=store,
        code_version=code_version,
        config={
            "predict": settings.dump(),
            "task": task.dump(),
            "study_id": study_id,
            "dataset": dataset,
            "image_size_px": image_size_px,
        },
        inputs={**data.artifacts, "models": models, **_by_role(external)},
        lineage={"catalog": catalog, **listed_sets},
        item=arm.name,
    ) as step:
        if step.made is None:
            listed = json.loads((models.folder / layout.MODELS).read_text())
            job = PredictJob(
                inputs=data.inputs,
                study_id=study_id,
                dataset=dataset,
                dataset_digest=data.index.digest,
                external=tuple(
                    ExternalSet(
                        name=name,
                        digest=index.digest,
                        index_path=index.folder / layout.INDEX,
                        shards_dir=shards.folder,
                    )
                    for name, (index, shards) in external.items()
                ),
                items=tuple(
                    PredictItem(
                        **{name: m[name] for name in PredictItem.model_fields if name != "weights_path"},
                        weights_path=models.folder / m["folder"] / layout.MODEL,
                    )
                    for m in listed
                ),
                settings=settings,
                task=task,
                encoder=encoder,
                channels=data.channels,
                image_size_px=image_size_px,
                work_dir=store.work_dir(step.key),
                out_dir=step.folder,
            )
            launch("medssl.train.predict", job, store.work_dir(step.key) / "job.json", has_machine_alone=False)
            summary = {"name": arm.name, "splits": list(settings.splits), "num_models": len(listed)}
            evaluated = _evaluated(job)
            step.finish(
                "predictions",
                summary,
                [("models", 0, len(listed)), *told_uses(store, step, evaluated)],
                notes={EVALUATED: [one.noted() for one in evaluated]},
            )
    return step.result


def rescore(
    store: Store,
    settings: PredictConfig,
    task: TaskConfig,
    model: Reference,
    models: Artifact,
    data: Data,
    *,
    dataset: str,
    item: str,
    code_version: str,
) -> steps.Made:
    """Predict the test split of a data set with one finished model, such as an earlier champion.

    Args:
        store: Where the predictions go.
        settings: Batches and precision; the split is "test".
        task: Policies for the truth; how images of a case are fused is the model's own business.
        model: Which one, and how it is built.
        models: The artifact with its weights, of this or another store.
        data: Images and splits.
        dataset: Name of the data set.
        item: What the step is called by.
        code_version: Of the stage.
    """
    from medssl.train.jobs import PredictItem, PredictJob
    from medssl.train.launch import launch

    settings = settings.model_copy(update={"splits": ("test",)})
    task = task.model_copy(update={"fusion": model.fusion})
    described = {"predict": settings.dump(), "task": task.dump(), "model": model.as_json(), "dataset": dataset}
    with steps.start(
        "rescore",
        store=store,
        code_version=code_version,
        config=described,
        inputs={**data.artifacts, "models": models},
        item=item,
    ) as step:
        if step.made is None:
            names = ("arm_id", "label_fraction", "draw", "repeat", "checkpoint_digest")
            job = PredictJob(
                inputs=data.inputs,
                study_id=model.study,
                dataset=dataset,
                dataset_digest=data.index.digest,
                items=(
                    PredictItem(
                        **{name: getattr(model, name) for name in names},
                        is_selected=True,
                        weights_path=models.folder / model.folder / layout.MODEL,
                    ),
                ),
                classes=model.classes,
                settings=settings,
                task=task,
                encoder=EncoderConfig.model_validate(model.encoder),
                channels=data.channels,
                image_size_px=model.image_size_px,
                work_dir=store.work_dir(step.key),
                out_dir=step.folder,
            )
            launch("medssl.train.predict", job, store.work_dir(step.key) / "job.json", has_machine_alone=False)
            step.finish("rescored", {"name": item})
    return step.result


def _evaluated(job: "PredictJob") -> list[Evaluation]:
    """The sets of a job that no model may be chosen by."""
    sets = [(one.name, one.digest, schema.EXTERNAL) for one in job.external]
    if "test" in job.settings.splits:
        sets.append((job.dataset, job.dataset_digest, "test"))
    models = tuple(item.checkpoint_digest for item in job.items)
    return [Evaluation(*one, job.study_id, models) for one in sets]


def grid(settings: FinetuneConfig, arm: ArmConfig) -> list[dict[str, Any]]:
    """The runs of an arm's search: the grid, at the study's largest label fraction or at each of the arm's own."""
    return [
        {
            "label_fraction": f,
            "draw": 0,
            "repeat": SEARCH_REPEAT,
            "learning_rate": rate,
            "weight_decay": decay,
        }
        for f in settings.searched(arm)
        for rate in settings.learning_rates
        for decay in settings.weight_decays
    ]


def choose(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mark the best grid point of each arm and label fraction; ties and unevaluable grids go to the first listed."""
    ordered = sorted(rows, key=lambda r: (r["arm_id"], r["label_fraction"], r["learning_rate"], r["weight_decay"]))
    marked = []
    for row in ordered:
        rivals = [r for r in ordered if (r["arm_id"], r["label_fraction"]) == (row["arm_id"], row["label_fraction"])]
        scored = [r for r in rivals if r["validation_score"] is not None]
        best = max(scored, key=lambda r: r["validation_score"]) if scored else rivals[0]
        if row is best:
            reason = "best validation score" if scored else "nothing evaluable on validation; first of the grid"
        elif row["validation_score"] is None:
            reason = "not evaluable on validation"
        else:
            reason = f"validation score {best['validation_score'] - row['validation_score']:.4f} below the best"
        marked.append({**row, "chosen": row is best, "reason": reason})
    return marked


def repeats(settings: FinetuneConfig, chosen: Sequence[Mapping[str, Any]], *, draws: int) -> list[dict[str, Any]]:
    """The runs of the repeats: each label fraction, draw and repeat with the settings chosen for it.

    Raises:
        BadInputError: The selection says nothing of this arm.
    """
    if not chosen:
        raise BadInputError("the selection holds no settings for this arm; run select again")
    by_fraction = {row["label_fraction"]: row for row in chosen}
    largest = by_fraction[max(by_fraction)]
    return [
        {
            "label_fraction": fraction,
            "draw": draw,
            "repeat": repeat,
            "learning_rate": by_fraction.get(fraction, largest)["learning_rate"],
            "weight_decay": by_fraction.get(fraction, largest)["weight_decay"],
        }
        for fraction in settings.label_fractions
        for draw in range(draws if fraction < 1 else 1)
        for repeat in range(settings.repeats)
    ]


def mark_selected(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mark, for each label fraction and draw, the repeat that validation scores best."""
    best: dict[tuple[float, int], Mapping[str, Any]] = {}
    for outcome in sorted(outcomes, key=lambda o: int(o["repeat"])):
        cell = (outcome["label_fraction"], outcome["draw"])
        if cell not in best or _rank(outcome) > _rank(best[cell]):
            best[cell] = outcome
    return [{**o, "is_selected": best[o["label_fraction"], o["draw"]] is o} for o in outcomes]


def _rank(outcome: Mapping[str, Any]) -> float:
    """The validation score, below every other where it cannot be evaluated."""
    score = outcome["validation_score"]
    return -math.inf if score is None else float(score)


def _finetune(
    store: Store,
    step: steps.Step,
    items: Sequence[Mapping[str, Any]],
    settings: FinetuneConfig,
    task: TaskConfig,
    arm: ArmConfig,
    encoder: EncoderConfig,
    data: Data,
    initial: Artifact | None,
    *,
    keeps_weights: bool,
) -> list[dict[str, Any]]:
    """Run the items; the step's folder then holds a folder an item and all training curves in one table."""
    import pyarrow as pa

    from medssl.store import file_digest
    from medssl.train.jobs import FinetuneItem, FinetuneJob
    from medssl.train.launch import launch

    job = FinetuneJob(
        inputs=data.inputs,
        arm=arm.name,
        items=tuple(FinetuneItem.model_validate(item) for item in items),
        settings=settings,
        task=task,
        encoder=encoder,
        channels=data.channels,
        initial_dir=initial.folder if initial else None,
        keeps_weights=keeps_weights,
        work_dir=store.work_dir(step.key),
        out_dir=step.folder,
    )
    launch("medssl.train.finetune", job, store.work_dir(step.key) / "job.json", has_machine_alone=False)
    outcomes, curves = [], []
    for item in job.items:
        folder = step.folder / item.name
        outcome = json.loads((folder / layout.OUTCOME).read_text())
        made = {"folder": item.name, "checkpoint_digest": file_digest(folder / layout.MODEL)} if keeps_weights else {}
        outcomes.append(outcome | made)
        curves.append(schema.read(folder / layout.HISTORY, schema.HISTORY))
        (folder / layout.HISTORY).unlink()
    schema.write(pa.concat_tables(curves), schema.HISTORY, step.folder / layout.HISTORY)
    return outcomes


def _finetune_config(
    settings: FinetuneConfig,
    task: TaskConfig,
    arm: ArmConfig,
    encoder: EncoderConfig,
    items: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the outcome of the items depends on."""
    return {
        "finetune": settings.that_train(),
        "items": list(items),
        "task": task.dump(),
        "arm": arm.name,
        "encoder": encoder.dump(),
    }


def _initial(
    store: Store, name: str, catalog_uri: str | None, imported: str, encoder: EncoderConfig, channels: int
) -> tuple[Artifact | None, Artifact | None]:
    """The checkpoint to start from, and the catalog it was found in; nothing where weights start at random.

    Raises:
        BadInputError: It is not there, or is that of another network.
    """
    if name == RANDOM_INITIALIZATION:
        return None, None
    if imported:
        checkpoint, catalog = store.open(store.uri("checkpoint", imported), kind="checkpoint"), None
    elif catalog_uri is None:
        raise BadInputError(f"weights {name} are needed but no catalog of checkpoints was given")
    else:
        checkpoint, catalog = from_catalog(store, name, catalog_uri)
    made_with = checkpoint.summary["encoder"]
    found = {**made_with, "input_channels": made_with["input_channels"] or checkpoint.summary["channels"]}
    expected = {**encoder.dump(), "input_channels": encoder.input_channels or channels}
    if found != expected:
        raise BadInputError(
            f"weights {name} are of another network: found {found}, expected {expected}; give encoders the settings "
            "that the weights were made with; grey images are repeated for input_channels: 3"
        )
    return checkpoint, catalog


def from_catalog(store: Store, name: str, catalog_uri: str) -> tuple[Artifact, Artifact]:
    """The artifact of that name in the catalog, and the catalog."""
    catalog = store.open(catalog_uri, kind="catalog")
    entries = json.loads((catalog.folder / layout.CATALOG).read_text())
    if name not in entries:
        raise BadInputError(f"{name} is not in the catalog, which holds {sorted(entries)}; run the stage that makes it")
    entry = entries[name]
    return store.open(store.uri(entry["kind"], entry["digest"]), kind=entry["kind"]), catalog


def _datasets(
    store: Store, catalog_uri: str | None
) -> tuple[dict[str, tuple[Artifact, Artifact]], dict[str, Artifact]]:
    """Index and shards of each further data set, by name; and the artifacts that led to them."""
    if catalog_uri is None:
        return {}, {}
    catalog = store.open(catalog_uri, kind="catalog")
    found, lineage = {}, {"data sets": catalog}
    for name, entry in sorted(json.loads((catalog.folder / layout.CATALOG).read_text()).items()):
        dataset = store.open(store.uri("dataset", entry["digest"]), kind="dataset")
        content = json.loads((dataset.folder / layout.DATASET).read_text())
        index, shards = (store.open(store.uri(kind, content[kind]), kind=kind) for kind in ("index", "shards"))
        found[name], lineage[f"data set {name}"] = (index, shards), dataset
    return found, lineage


def _by_role(external: Mapping[str, tuple[Artifact, Artifact]]) -> dict[str, Artifact]:
    return {
        f"{role}{name}": artifact
        for name, artifacts in external.items()
        for role, artifact in zip((EXTERNAL_INDEX, EXTERNAL_SHARDS), artifacts, strict=True)
    }


def _role(role: str, artifact: Artifact | None) -> dict[str, Artifact]:
    return {role: artifact} if artifact else {}


def _table(rows: Sequence[Mapping[str, Any]], kind: schema.TableSchema) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=kind.columns)


def _curves(path: Path) -> list[tuple[str, int, float]]:
    rows = schema.read(path, schema.HISTORY).to_pylist()
    return [(row["metric"], row["step"], row["value"]) for row in rows]

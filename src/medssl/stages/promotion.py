"""The last stage: a fine-tuned model of the study against the present champion.

What it compares with stands in MLflow's registry and changes without any input changing, so it is never cached. No
weights and no patient's row leave the store: the registry gets digests, counts and differences.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from medssl import layout, schema
from medssl.config import (
    CompareConfig,
    EncoderConfig,
    PredictConfig,
    PromoteConfig,
    SubgroupConfig,
    TaskConfig,
)
from medssl.exit_codes import BadInputError
from medssl.progress import say
from medssl.references import Cohort, Reference
from medssl.registry import Move, Registry, Version
from medssl.stages import step as steps
from medssl.stages import train
from medssl.stages.evaluations import EVALUATED, Evaluation, told_uses
from medssl.store import Artifact, Store, StoreError, write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from medssl.analysis.promotion import Decision

TEST, FIRST = "test", "first test cohort"


@dataclass(frozen=True)
class Rules:
    """What decides, beside the models: sections of the study."""

    promote: PromoteConfig
    compare: CompareConfig
    subgroups: SubgroupConfig
    predict: PredictConfig
    task: TaskConfig

    @property
    def min_patients(self) -> int:
        """Of a subgroup."""
        return self.promote.min_patients or self.subgroups.min_patients

    def dump(self) -> dict[str, Any]:
        """In JSON types, without what the decision does not depend on."""
        return {name: section.dump() for name, section in vars(self).items()}


@dataclass(frozen=True)
class Champion:
    """The present champion: its move and its version, the artifact with its weights, and the first test cohort."""

    move: Move
    version: Version
    models: Artifact
    first: train.Data

    @classmethod
    def find(cls, store: Store, registry: Registry) -> "Champion | None":
        """The champion of a registry, or None where there is none.

        Raises:
            StoreError: Its weights or its test cohort are gone.
        """
        if (move := registry.champion()) is None:
            return None
        version, first = registry.version(move.version), registry.version(registry.history()[0].version)
        home = _home(store, version, "models", version.reference.models)
        models = home.open(home.uri("models", version.reference.models), kind="models")
        origin = _home(store, first, "index", move.cohort.index)
        uris = {f"{kind}_uri": origin.uri(kind, digest) for kind, digest in move.cohort.artifacts.items()}
        return cls(move, version, models, train.Data(origin, **uris))


def promote(
    store: Store,
    rules: Rules,
    *,
    encoder: EncoderConfig,
    data: train.Data,
    study_id: str,
    dataset: str,
    image_size_px: int,
    catalog_uri: str,
    comparison_uri: str,
    code_version: str,
) -> steps.Made:
    """Compare the study's candidate with the champion, and let it take the place if it is better in every respect.

    Args:
        store: Where artifacts are found and put.
        rules: What decides.
        encoder: Of the candidate's arm.
        data: The study's own, with its test set.
        study_id: Name of the study.
        dataset: Name of its data set.
        image_size_px: Side of the candidate's input.
        catalog_uri: Fine-tuned models by arm.
        comparison_uri: With the candidate's predictions.
        code_version: Of this stage.

    Raises:
        BadInputError: There is no registry, or the champion's weights are gone.
        OutrunError: Another model became champion while this one was compared.
    """
    registry = Registry.from_environment(rules.promote.model or study_id)
    models, catalog = train.from_catalog(store, rules.promote.arm, catalog_uri)
    comparison = store.open(comparison_uri, kind="comparison")
    champion = Champion.find(store, registry)
    chosen = _chosen(models)
    tested = _tested(comparison, chosen, dataset)
    candidate = Reference(
        study=study_id,
        models=models.digest,
        **{name: chosen[name] for name in ("folder", "checkpoint_digest", *_KEY)},
        encoder=encoder.dump(),
        fusion=rules.task.fusion,
        task=rules.task.kind,
        classes=_classes(data, rules.task),
        channels=data.channels,
        image_size_px=image_size_px,
        cohort=_cohort(tested, data, dataset),
    )
    with steps.start(
        "promote",
        store=store,
        code_version=code_version,
        config={
            **rules.dump(),
            "model": registry.name,
            "champion": champion.version.reference.checkpoint_digest if champion else "",
        },
        inputs={**data.artifacts, "models": models, "comparison": comparison, **_of_champion(champion)},
        lineage={"catalog": catalog},
        item=rules.promote.arm,
        reuse=False,
    ) as step:
        contest = _Contest(store, rules, data, models, candidate, tested, champion, code_version)
        decision, evaluated = contest.decide()
        uses = told_uses(store, step, evaluated, most=rules.promote.max_test_uses)
        record = {
            "model": registry.name,
            "candidate": candidate.as_json(),
            "champion": champion.version.reference.as_json() if champion else None,
            "champion_version": champion.version.number if champion else None,
            "first_test_cohort": asdict(champion.move.cohort if champion else candidate.cohort),
            "rules": rules.dump(),
            "test_uses": {name: int(value) for name, _, value in uses},
            **decision.as_json(),
        }
        write_json(step.folder / layout.DECISION, record)
        summary = {"name": registry.name, "verdict": decision.verdict}
        step.finish("promotion", summary, uses, notes={EVALUATED: [one.noted() for one in evaluated]})
        _settle(registry, rules.promote, candidate, models, decision, champion, _run_of(store, models))
    return step.result


@dataclass(frozen=True)
class _Contest:
    """A candidate and what it is measured against."""

    store: Store
    rules: Rules
    data: train.Data
    models: Artifact
    candidate: Reference
    tested: "pa.Table"
    champion: Champion | None
    code_version: str

    def decide(self) -> "tuple[Decision, list[Evaluation]]":
        """The decision, and which test sets it has used."""
        from medssl.analysis import promotion

        champion = self.champion
        if champion is None:
            place = "takes the empty place" if self.rules.promote.auto_first else "stays a candidate until approved"
            return promotion.Decision("first", (f"there is no champion yet; the model {place}",)), []
        if champion.version.reference.checkpoint_digest == self.candidate.checkpoint_digest:
            return promotion.Decision("is champion", (f"it is version {champion.version.number}, the champion",)), []
        if obstacles := self._obstacles(champion):
            return promotion.Decision("not comparable", tuple(obstacles)), []
        cohorts = {TEST: promotion.paired_table(self.tested, self._rescored(champion, TEST, self.data, is_own=False))}
        evaluated = [self._evaluation(self.candidate.cohort, champion)]
        if champion.move.cohort.artifacts != self.candidate.cohort.artifacts:
            own, others = (self._rescored(champion, FIRST, champion.first, is_own=is_own) for is_own in (True, False))
            _check_frozen(own, champion.move.cohort)
            cohorts[FIRST] = promotion.paired_table(own, others)
            evaluated.append(self._evaluation(champion.move.cohort, champion))
        return self._decision(cohorts), evaluated

    def _decision(self, cohorts: "Mapping[str, pa.Table]") -> "Decision":
        from medssl.analysis import promotion
        from medssl.analysis.measures import Bootstrap
        from medssl.analysis.partitions import Grouping

        compare, subgroups, promote = self.rules.compare, self.rules.subgroups, self.rules.promote
        return promotion.decide(
            cohorts,
            rules=promotion.Rules(
                promote.margin, promote.ece_margin, self.rules.min_patients, promote.approve_small_groups
            ),
            by=subgroups.by,
            attribute_pairs=subgroups.attribute_pairs if promote.crossed else (),
            grouping=Grouping(subgroups.age_edges, subgroups.skin_type_groups),
            bootstrap=Bootstrap(compare.num_replicates, compare.alpha, compare.seed, compare.specificity),
        )

    def _obstacles(self, champion: Champion) -> list[str]:
        """Why the two cannot be compared fairly; nothing where they can."""
        found, other = [], champion.version.reference
        if other.task != self.candidate.task or set(other.classes) != set(self.candidate.classes):
            common = len(set(other.classes) & set(self.candidate.classes))
            found.append(
                f"the champion tells {len(other.classes)} classes apart, the candidate {len(self.candidate.classes)}, "
                f"{common} in common; name them in the study (task.findings or task.conditions)"
            )
        if {other.channels, champion.first.channels, self.candidate.channels} != {self.candidate.channels}:
            found.append("the images of both studies differ in their channels; see shards.channels")
        home = _home(self.store, champion.version, "splits", other.cohort.splits)
        splits_of_champion = home.open(home.uri("splits", other.cohort.splits), kind="splits")
        for who, trained_by, cohort, its in (
            ("champion", splits_of_champion, TEST, self.data.splits),
            ("candidate", self.data.splits, FIRST, champion.first.splits),
            ("champion", splits_of_champion, FIRST, champion.first.splits),
        ):
            if seen := _num_seen(trained_by, its):
                found.append(
                    f"the {who} was trained on {seen} patients (or images) of the {cohort}; extend the splits of the "
                    f"champion's study instead of drawing new ones: splits.extend={other.cohort.splits}"
                )
        return found

    def _rescored(self, champion: Champion, cohort: str, data: train.Data, *, is_own: bool) -> "pa.Table":
        """Predictions of the candidate or the champion on the test split of `data`."""
        model, models = (self.candidate, self.models) if is_own else (champion.version.reference, champion.models)
        made = train.rescore(
            self.store,
            self.rules.predict,
            self.rules.task,
            model,
            models,
            data,
            dataset=self.candidate.cohort.dataset if cohort == TEST else champion.move.cohort.dataset,
            item=f"{'candidate' if is_own else 'champion'} on {cohort}",
            code_version=self.code_version,
        )
        folder = self.store.open(made.uri, kind="rescored").folder
        return schema.read(folder / layout.PREDICTIONS, schema.PREDICTIONS)

    def _evaluation(self, cohort: Cohort, champion: Champion) -> Evaluation:
        models = (self.candidate.checkpoint_digest, champion.version.reference.checkpoint_digest)
        return Evaluation(cohort.dataset, cohort.index, "test", self.candidate.study, models)


_KEY = ("arm_id", "label_fraction", "draw", "repeat")


def _chosen(models: Artifact) -> dict[str, Any]:
    """The entry of the repeat that validation chose, at the largest label fraction and of the first draw."""
    listed = json.loads((models.folder / layout.MODELS).read_text())
    selected = [one for one in listed if one["is_selected"] and one["draw"] == 0]
    return dict(max(selected, key=lambda one: float(one["label_fraction"])))


def _tested(comparison: Artifact, chosen: Mapping[str, Any], dataset: str) -> "pa.Table":
    """The candidate's predictions on its study's test set."""
    from medssl.analysis.promotion import only_model

    table = schema.read(comparison.folder / layout.PREDICTIONS, schema.PREDICTIONS)
    try:
        return only_model(table, dataset=dataset, split="test", model={name: chosen[name] for name in _KEY})
    except ValueError as error:
        raise BadInputError(str(error)) from None


def _classes(data: train.Data, task: TaskConfig) -> tuple[str, ...]:
    from medssl import labels

    index = schema.read(data.index.folder / layout.INDEX, schema.INDEX)
    return labels.classes(index, schema.read(data.splits.folder / layout.SPLITS, schema.SPLIT_TABLE), task)


def _cohort(predictions: "pa.Table", data: train.Data, dataset: str) -> Cohort:
    units = predictions["unit_id"].unique()
    return Cohort(
        dataset=dataset,
        **{kind: artifact.digest for kind, artifact in data.artifacts.items()},
        units=_units_digest(predictions),
        num_units=len(units),
        num_patients=len(predictions["patient_id"].unique()),
    )


def _units_digest(predictions: "pa.Table") -> str:
    names = sorted(str(name) for name in predictions["unit_id"].unique().to_pylist())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _check_frozen(predictions: "pa.Table", cohort: Cohort) -> None:
    if _units_digest(predictions) != cohort.units:
        raise BadInputError(
            f"the first test cohort holds other units than the {cohort.num_units} that the first champion was tested "
            "on; the code that reads it has changed: use that of the first promotion"
        )


def _num_seen(trained_by: Artifact, tested_by: Artifact) -> int:
    """Units of a test split that stand in the training or validation split of another table of splits."""
    import pyarrow.compute as pc

    one, other = (schema.read(a.folder / layout.SPLITS, schema.SPLIT_TABLE) for a in (trained_by, tested_by))
    unit = schema.split_unit(one) if schema.split_unit(one) == schema.split_unit(other) else "patient_id"
    seen = one.filter(pc.field("split").isin(["train", "validation"]))[unit].unique().to_pylist()
    return len(set(seen) & set(other.filter(pc.field("split") == "test")[unit].unique().to_pylist()))


def _home(store: Store, version: Version, kind: str, digest: str) -> Store:
    """The store that holds an artifact of a version: this one, or that in which it was registered.

    Raises:
        StoreError: It is in neither.
    """
    for home in (store, Store(version.uri.rstrip("/").rsplit("/", 2)[0])):
        try:
            home.open(home.uri(kind, digest), kind=kind, verify="size")
        except StoreError:
            continue
        return home
    raise StoreError(
        f"version {version.number} in the model registry: its {kind} {digest[:12]} is neither in this store nor where "
        "it was registered; bring the artifact back, or roll back with `medssl promote --rollback`"
    )


def _of_champion(champion: Champion | None) -> dict[str, Artifact]:
    if champion is None:
        return {}
    first = {f"first {kind}": artifact for kind, artifact in champion.first.artifacts.items()}
    return {"champion": champion.models, **first}


def _run_of(store: Store, models: Artifact) -> str:
    """The MLflow run that made an artifact, "" where it is not known."""
    made = [one for one in store.records() if one["output"]["digest"] == models.digest]
    return str(made[-1].get("mlflow_run_id", "")) if made else ""


def _note(decision: "Decision") -> Iterator[str]:
    """All differences as a table in Markdown."""
    if not decision.checks:
        return
    yield "| where | metric | candidate | champion | difference [interval] | margin | |"
    yield "|---|---|---|---|---|---|---|"
    for one in decision.checks:
        values = [f"{value:.4f}" if value is not None else "–" for value in (one.candidate, one.champion)]
        shown = "–"
        if one.estimate is not None and one.ci_low is not None and one.ci_high is not None:
            shown = f"{one.estimate:+.4f} [{one.ci_low:+.4f}, {one.ci_high:+.4f}]"
        yield f"| {' | '.join([one.name, one.metric, *values, shown, f'{one.margin:g}', one.status])} |"


def _settle(
    registry: Registry,
    config: PromoteConfig,
    candidate: Reference,
    models: Artifact,
    decision: "Decision",
    champion: Champion | None,
    run_id: str,
) -> None:
    """Write the decision to the registry, and carry it out."""
    if decision.verdict == "is champion":
        say(f"promote: {registry.name}: {decision.reasons[0]}")
        return
    version = registry.register(candidate, uri=models.uri, run_id=run_id)
    version = registry.decide(
        version,
        verdict=decision.verdict,
        reasons=decision.reasons,
        checks=[json.dumps(asdict(check)) for check in decision.checks],
        note=list(_note(decision)),
        after=champion.move.number if champion else 0,
    )
    say(f"promote: {registry.name} version {version.number}: {decision.verdict}")
    for reason in decision.reasons:
        say(f"promote: {reason}")
    if decision.verdict == "promote" or (decision.verdict == "first" and config.auto_first):
        why = "better" if champion else "first"
        registry.promote(version, after=champion.move if champion else None, why=why)
        say(f"promote: version {version.number} of {registry.name} is champion now")
    elif decision.verdict in ("first", "needs approval", "not comparable"):
        say(f"promote: to make it champion: medssl promote --model {registry.name} --approve {version.number}")

"""A candidate against the champion: what each is scored on, and what stands in the way of a fair comparison."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medssl import layout, schema
from medssl.config import CompareConfig, PredictConfig, PromoteConfig, SubgroupConfig, TaskConfig
from medssl.exit_codes import BadInputError
from medssl.references import Cohort, Reference
from medssl.registry import Move, Registry, Version
from medssl.stages import train
from medssl.stages.evaluations import Evaluation
from medssl.store import Artifact, Store, StoreError

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


@dataclass(frozen=True)
class Contest:
    """A candidate and what it is measured against.

    Attributes:
        store: Where what is scored anew goes.
        rules: What decides.
        data: The candidate's study's own.
        models: The artifact with the candidate's weights.
        candidate: Which of them.
        tested: Its predictions on its study's test set.
        champion: None where there is none.
        code_version: Of the stage.
    """

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
        names = {one.dataset for one in (self.candidate.cohort, other.cohort, champion.move.cohort)}
        tables = (self.data.splits, splits_of_champion, champion.first.splits)
        if len(names) > 1 or len({_key_id(table) for table in tables}) > 1:
            found.append(
                f"pseudonyms depend on the patient key and on the name of the data set ({', '.join(sorted(names))}): "
                "whether one was trained on the other's test patients cannot be told; use one data.name and one key"
            )
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


def units_digest(predictions: "pa.Table") -> str:
    """SHA-256 over the sorted names of the units of a predictions table."""
    names = sorted(str(name) for name in predictions["unit_id"].unique().to_pylist())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _check_frozen(predictions: "pa.Table", cohort: Cohort) -> None:
    if units_digest(predictions) != cohort.units:
        raise BadInputError(
            f"the first test cohort holds other units than the {cohort.num_units} that the first champion was tested "
            "on; the code that reads it has changed: use that of the first promotion"
        )


def _key_id(splits: Artifact) -> str:
    table = schema.read(splits.folder / layout.SPLITS, schema.SPLIT_TABLE)
    return schema.metadata_of(table).get("key_id", "")


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

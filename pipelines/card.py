"""The card of the model that a run's `promote` judged, gathered from what the run left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssl import labels, layout, schema
from medssl.analysis.model_card import ModelCard, scores_of
from medssl.config import Study
from medssl.lineage import Graph
from medssl.progress import say
from medssl.registry import Registry
from medssl.stages.evaluations import EVALUATED
from medssl.store import Store


def card(study: Study, store: Store, *, promotion: Path, comparison: Path, report: Path) -> ModelCard:
    """What the card tells.

    Args:
        study: What was run.
        store: Where the model was made.
        promotion: Folder of the decision.
        comparison: Folder of the arms.
        report: Folder of all metrics.
    """
    decision = json.loads((promotion / layout.DECISION).read_text())
    candidate = decision["candidate"]
    arms = schema.read(comparison / layout.ARMS, schema.ARMS).to_pylist()
    metrics = schema.read(report / layout.METRICS, schema.METRICS)
    return ModelCard(
        model_name=decision["model"],
        version=_version(decision["model"], candidate["checkpoint_digest"]),
        arm=next(arm["display_name"] for arm in arms if arm["arm_id"] == candidate["arm_id"]),
        label_fraction=candidate["label_fraction"],
        unit_kind="image" if study.task.kind == "findings" else "case",
        classes=candidate["classes"],
        truth=labels.describe(study.task),
        data=_counts(store, candidate),
        digests=_digests(store, candidate),
        scores=scores_of(metrics, **{key: candidate[key] for key in ("arm_id", "label_fraction", "draw")}),
        level=1 - study.compare.alpha,
        decision=decision,
        num_test_uses=_uses(store, candidate["cohort"]["index"]),
    )


def _version(model: str, checkpoint_digest: str) -> str:
    """The version with these weights; "–" for a model that was not registered, or while MLflow does not answer."""
    try:
        versions = Registry.from_environment(model).versions()
    except Exception as error:  # as of all tracking, no result may depend on it
        say(f"warning: the model's card names no version ({type(error).__name__}: MLflow's registry does not answer)")
        return "–"
    same = [one.number for one in versions if one.reference.checkpoint_digest == checkpoint_digest]
    return str(same[-1]) if same else "–"


def _uses(store: Store, index_digest: str) -> int:
    """Tasks that predicted the test set of an index."""
    noted = [note for record in store.records() for note in record.get(EVALUATED, ())]
    return sum((one["dataset_digest"], one["split"]) == (index_digest, "test") for one in noted)


def _counts(store: Store, candidate: Mapping[str, Any]) -> dict[str, str]:
    folder = Path(store.uri("models", candidate["models"]))
    models = json.loads((folder / layout.MODELS).read_text())
    own = next(one for one in models if one["checkpoint_digest"] == candidate["checkpoint_digest"])
    counts = {
        "Training patients": own["num_train_patients"],
        "Training images": own["num_train_images"],
        "Test patients": candidate["cohort"]["num_patients"],
        f"Test {'images' if candidate['task'] == 'findings' else 'cases'}": candidate["cohort"]["num_units"],
    }
    return {what: f"{count:,}" for what, count in counts.items()}


def _digests(store: Store, candidate: Mapping[str, Any]) -> dict[str, str]:
    """By task, what it made on the way to the model; and of the weights and the raw data."""
    graph = Graph(store.records(), {}, {})
    behind = graph.behind(candidate["models"])
    made = {task: digest for digest in behind if (task := graph.task(digest))}
    raw = [found for digest in behind if (found := graph.raw_data(digest))]
    return {"weights": candidate["checkpoint_digest"], **made, "raw data": ", ".join(dict.fromkeys(raw))}

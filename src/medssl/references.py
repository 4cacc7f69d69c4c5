"""What it takes to find a finished model again, to build it and to test it: digests and settings, no weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Cohort:
    """The units that a model was tested on, by the artifacts that hold them.

    Attributes:
        dataset: Name of the data set.
        index: Digest; so are the next two.
        splits: Whose split "test" it is.
        shards: With the images.
        units: SHA-256 over the sorted unit_ids.
        num_units: Images or cases.
        num_patients: Of these units.
    """

    dataset: str
    index: str
    splits: str
    shards: str
    units: str
    num_units: int
    num_patients: int

    @property
    def artifacts(self) -> dict[str, str]:
        """By kind, the digests."""
        return {"index": self.index, "splits": self.splits, "shards": self.shards}


@dataclass(frozen=True)
class Reference:
    """A fine-tuned model: where its weights are, and all that it takes to predict with them.

    Attributes:
        study: Name of the study that made it.
        models: Digest of the artifact with the weights.
        folder: Of the model in it.
        checkpoint_digest: SHA-256 of the weights.
        arm_id: Of the study.
        label_fraction: It was trained with.
        draw: Of the label fraction.
        repeat: That validation chose.
        encoder: Settings of the network.
        fusion: Of the images of a case.
        task: "findings" or "conditions".
        classes: In the order of its outputs.
        channels: Of the images that it was trained on.
        image_size_px: Side of its input.
        cohort: Its study's test set, and the splits that it was trained by.
    """

    study: str
    models: str
    folder: str
    checkpoint_digest: str
    arm_id: str
    label_fraction: float
    draw: int
    repeat: int
    encoder: Mapping[str, Any]
    fusion: str
    task: str
    classes: tuple[str, ...]
    channels: int
    image_size_px: int
    cohort: Cohort

    @property
    def source(self) -> str:
        """The model by content, which is the same in any store; no local path, which a server would refuse."""
        return f"medssl-store:/models/{self.models}/{self.folder}"

    def as_json(self) -> dict[str, Any]:
        """In JSON types."""
        values = {**vars(self), "classes": list(self.classes), "encoder": dict(self.encoder)}
        return values | {"cohort": dict(vars(self.cohort))}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `as_json` gave."""
        changed = {"classes": tuple(values["classes"]), "cohort": Cohort(**values["cohort"])}
        return cls(**{**values, **changed})

"""From a study to the parameters of its pipeline: what runs, in which level, with which settings.

A loop's items are small and complete in themselves: an item names one run or one arm with its own section of the
study. Adding an arm therefore leaves the others' tasks as they were.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medssl.code_version import stage_version
from medssl.config import Study, arm_groups

# Module and function of each stage, in pipeline order; the KFP task has the same name with hyphens.
STAGES: Mapping[str, str] = {
    "fingerprint": "medssl.stages.data",
    "ingest": "medssl.stages.data",
    "assign_splits": "medssl.stages.data",
    "write_shards": "medssl.stages.data",
    "prepare_dataset": "medssl.stages.data",
    "pretrain": "medssl.stages.train",
    "collect": "medssl.stages.train",
    "search_hyperparameters": "medssl.stages.train",
    "select": "medssl.stages.train",
    "finetune": "medssl.stages.train",
    "predict": "medssl.stages.train",
    "compare": "medssl.stages.analysis",
    "analyze_subgroups": "medssl.stages.analysis",
    "write_report": "medssl.stages.analysis",
    "promote": "medssl.stages.promotion",
}

Item = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Everything that the pipeline of one study is compiled from.

    Attributes:
        pretraining_sets: Data sets, beside the study's own, that pretraining runs see.
        levels: Items of each pretraining level; a run starts from random or imported weights or a run of a level
            before its own.
        external: Data sets that finished models are evaluated on.
        arms: Items of search, fine-tuning and prediction.
        sections: By stage, the settings that every task of it gets.
        code_versions: By stage.
    """

    pretraining_sets: tuple[Item, ...]
    levels: tuple[tuple[Item, ...], ...]
    external: tuple[Item, ...]
    arms: tuple[Item, ...]
    sections: Mapping[str, Item]
    code_versions: Mapping[str, str]

    @property
    def tasks(self) -> list[str]:
        """Stage and item of every task of a whole run, level by level."""
        arms = [str(item["arm"]["name"]) for item in self.arms]
        listed = ["fingerprint", "ingest", "assign_splits", "write_shards"]
        if self.pretraining_sets:
            listed += [f"prepare_dataset {item['name']}" for item in self.pretraining_sets] + ["collect datasets"]
        for number, level in enumerate(self.levels, start=1):
            listed += [f"pretrain {item['run']['name']}" for item in level]
            listed.append("collect checkpoints" + (f" level {number}" if number > 1 else ""))
        listed += [f"search_hyperparameters {arm}" for arm in arms] + ["select"]
        listed += [f"finetune {arm}" for arm in arms] + ["collect models"]
        if self.external:
            listed += [f"prepare_dataset {item['name']}" for item in self.external] + ["collect datasets"]
        listed += [f"predict {arm}" for arm in arms]
        listed += ["compare", "analyze_subgroups", "write_report"]
        return [*listed, f"promote {self.sections['promote']['promote']['arm']}"] if self.promotes else listed

    @property
    def promotes(self) -> bool:
        """Whether a model of the study is compared with the champion."""
        return bool(self.sections["promote"]["promote"]["enabled"])

    @property
    def num_tasks(self) -> int:
        """Tasks of a whole run."""
        return len(self.tasks)

    @property
    def num_training_processes(self) -> int:
        """Tasks that train, each in as many processes as the resources say."""
        return sum(map(len, self.levels)) + 2 * len(self.arms)


def make_plan(study: Study) -> Plan:
    """The plan of a study; pure but for the source files that the code versions are read from."""
    imported = {one.name: one.checkpoint for one in study.weights}
    levels = tuple(
        tuple(
            {
                "run": run.dump(),
                "encoder": study.encoders[run.encoder].dump(),
                "imported": imported.get(run.init, ""),
            }
            # Only for the probe: without one, another task finds the cached result.
            | ({"task": study.task.dump()} if run.probe else {})
            for run in level
        )
        for level in study.levels
    )
    arms = tuple(
        {
            "arm": arm.dump(),
            "encoder": study.encoders[arm.encoder].dump(),
            "imported": imported.get(arm.init, ""),
        }
        for arm in study.arms
    )
    training: Item = {"finetune": study.finetune.dump(), "task": study.task.dump()}
    external, pretraining_sets = (
        tuple(one.model_dump(mode="json", exclude={"generate"}) for one in sets)
        for sets in (study.external, study.pretraining_data)
    )
    # Where the data lies is a parameter of its own, and how a demo was generated changes no stage.
    data: Item = study.data.model_dump(mode="json", exclude={"generate"}) | {"root": ""}
    sections: dict[str, Item] = {
        "fingerprint": data,
        "ingest": data,
        "assign_splits": study.splits.dump(),
        "write_shards": study.shards.dump(),
        "search_hyperparameters": training,
        "finetune": training,
        "predict": {
            "predict": study.predict.dump(),
            "task": study.task.dump(),
            "study_id": study.name,
            "dataset": study.data.name,
            "image_size_px": study.finetune.image_size_px,
        },
        "compare": {
            "compare": study.compare.dump(),
            "arms": [arm.dump() for arm in study.arms],
            "encoders": {name: encoder.dump() for name, encoder in study.encoders.items()},
            "pretraining": [run.dump() for run in study.pretraining],
            "weights": [one.dump() for one in study.weights],
        },
        "analyze_subgroups": {
            "subgroups": study.subgroups.dump(),
            "pairs": [list(pair) for pair in study.compare.pairs],
            "groups": arm_groups(study.arms),
            "specificity": study.compare.specificity,
        },
        "write_report": study.dump()
        | {"data": data, "resources": {}}
        | {
            key: [one | {"root": ""} for one in sets]
            for key, sets in (("external", external), ("pretraining_data", pretraining_sets))
        },
    }
    encoder_of = {arm.name: study.encoders[arm.encoder].dump() for arm in study.arms}
    sections["promote"] = {
        "promote": study.promote.dump(),
        "compare": study.compare.dump(),
        "subgroups": study.subgroups.dump(),
        "predict": study.predict.dump(),
        "task": study.task.dump(),
        "encoder": encoder_of.get(study.promote.arm, {}),
        "study_id": study.name,
        "dataset": study.data.name,
        "image_size_px": study.finetune.image_size_px,
    }
    versions = {stage: stage_version(module, stage) for stage, module in STAGES.items()}
    return Plan(pretraining_sets, levels, external, arms, sections, versions)

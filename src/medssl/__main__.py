"""The `medssl` command: a subcommand a stage, and tools beside them. It works on files; `pipelines` on the DAG."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from medssl import commands, layout, schema
from medssl.code_version import stage_version
from medssl.config import (
    ArmConfig,
    ConfigError,
    DataConfig,
    EncoderConfig,
    GenerateConfig,
    PretrainRun,
    Study,
    TaskConfig,
    arm_groups,
    load_study,
)
from medssl.exit_codes import FAILURE, OK, BadInputError, TerminatedError, exit_code
from medssl.progress import Progress
from medssl.stages import analysis, data, promotion, train
from medssl.stages.contest import Rules
from medssl.stages.step import Made
from medssl.store import STORE_VARIABLE, Store
from medssl.verification.folder import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one subcommand; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (Exception, TerminatedError) as error:
        if (code := exit_code(error)) == FAILURE:
            raise
        sys.stderr.write(f"error: {error}\n")
        return code
    return OK


_URI = re.compile(r"/[a-z_]+/[0-9a-f]{64}/?$")  # of an artifact


class Call:
    """One call of a stage from the command line: the study, the store and the inputs that were given."""

    def __init__(self, stage: str, options: argparse.Namespace) -> None:
        self.study: Study = load_study(options.study, options.overrides)
        self.store = _store(options)
        self.item: str | None = options.item
        self._inputs = [_pair(text) for text in options.input]
        self.code_version = stage_version(MODULES[STAGES[stage][0]].__name__, stage)

    def uri(self, role: str) -> str:
        """The one artifact given for `role`."""
        uri = self.optional_uri(role)
        if uri is None:
            raise ConfigError(f"input {role} is missing; give --input {role}=URI")
        return uri

    def optional_uri(self, role: str) -> str | None:
        """The artifact given for `role`, the last where there are several, or None."""
        return next(reversed(self.uris(role)), None)

    def uris(self, role: str) -> list[str]:
        """All artifacts given for `role`."""
        return [uri for given, uri in self._inputs if given == role]

    @property
    def data_digest(self) -> str:
        """The digest of the raw data that `fingerprint` found."""
        return self.uri("source").rstrip("/").rsplit("/", 1)[-1]

    @property
    def root(self) -> str:
        """The folder of the raw data."""
        if self.study.data.root is None:
            raise ConfigError("data.root is not set; give it by --set data.root=FOLDER")
        return self.study.data.root

    @property
    def data(self) -> train.Data:
        """The three artifacts of every training stage."""
        uris = {f"{role}_uri": self.uri(role) for role in ("index", "splits", "shards")}
        return train.Data(self.store, **uris)

    @property
    def run(self) -> PretrainRun:
        """The pretraining run that --item names."""
        return _named(self.study.pretraining, self.item)

    def imported(self, init: str) -> str:
        """Digest of the checkpoint called `init`, where `medssl import-weights` made it, else ""."""
        return next((one.checkpoint for one in self.study.weights if one.name == init), "")

    @property
    def arm(self) -> ArmConfig:
        """The arm that --item names."""
        return _named(self.study.arms, self.item)

    @property
    def of_arm(self) -> tuple[TaskConfig, ArmConfig, EncoderConfig, train.Data]:
        """What every stage over an arm takes after its settings."""
        return self.study.task, self.arm, self.study.encoders[self.arm.encoder], self.data


Named = TypeVar("Named", PretrainRun, ArmConfig, DataConfig)


def _named(things: Sequence[Named], name: str | None) -> Named:
    found = {thing.name: thing for thing in things}
    if name not in found:
        raise ConfigError(f"--item {name}: expected one of {sorted(found)}")
    return found[name]


def _fingerprint(call: Call) -> Made:
    return data.fingerprint(call.store, call.study.data, root=call.root, code_version=call.code_version)


def _ingest(call: Call) -> Made:
    key_id = data.load_key(call.study.data, create=True).key_id
    return data.ingest(
        call.store,
        call.study.data,
        root=call.root,
        data_digest=call.data_digest,
        key_id=key_id,
        code_version=call.code_version,
    )


def _assign_splits(call: Call) -> Made:
    return data.assign_splits(
        call.store, call.study.splits, index_uri=call.uri("index"), code_version=call.code_version
    )


def _write_shards(call: Call) -> Made:
    return data.write_shards(
        call.store,
        call.study.shards,
        root=call.root,
        data_digest=call.data_digest,
        index_uri=call.uri("index"),
        code_version=call.code_version,
    )


def _prepare_dataset(call: Call) -> Made:
    return data.prepare_dataset(
        call.store,
        _named((*call.study.external, *call.study.pretraining_data), call.item),
        call.study.shards,
        key_id=data.load_key(call.study.data, create=True).key_id,
        code_versions={stage: stage_version(data.__name__, stage) for stage in data.DATASET_STAGES},
    )


def _pretrain(call: Call) -> Made:
    run, study = call.run, call.study
    return train.pretrain(
        call.store,
        run,
        study.encoders[run.encoder],
        call.data,
        task=study.task,
        catalog_uri=call.optional_uri("catalog"),
        datasets_uri=call.optional_uri("datasets"),
        imported=call.imported(run.init),
        code_version=call.code_version,
    )


def _collect(call: Call) -> Made:
    kind = next(kind for kind in ("models", "dataset", "checkpoint") if call.uris(kind) or kind == "checkpoint")
    return train.collect(
        call.store,
        kind,
        call.uris(kind),
        previous_uri=call.optional_uri("previous"),
        code_version=call.code_version,
    )


def _search_hyperparameters(call: Call) -> Made:
    return train.search_hyperparameters(
        call.store,
        call.study.finetune,
        *call.of_arm,
        catalog_uri=call.optional_uri("catalog"),
        imported=call.imported(call.arm.init),
        code_version=call.code_version,
    )


def _select(call: Call) -> Made:
    return train.select(call.store, call.uris("scores"), code_version=call.code_version)


def _finetune(call: Call) -> Made:
    study = call.study
    return train.finetune(
        call.store,
        study.finetune,
        *call.of_arm,
        draws=study.splits.draws,
        selection_uri=call.uri("selection"),
        catalog_uri=call.optional_uri("catalog"),
        imported=call.imported(call.arm.init),
        code_version=call.code_version,
    )


def _predict(call: Call) -> Made:
    study = call.study
    return train.predict(
        call.store,
        study.predict,
        *call.of_arm,
        study_id=study.name,
        dataset=study.data.name,
        image_size_px=study.finetune.image_size_px,
        catalog_uri=call.uri("catalog"),
        external_uri=call.optional_uri("external"),
        code_version=call.code_version,
    )


def _compare(call: Call) -> Made:
    study = call.study
    return analysis.compare(
        call.store,
        study.compare,
        arms=study.arms,
        encoders=study.encoders,
        pretraining=study.pretraining,
        weights=study.weights,
        predictions_uris=call.uris("predictions"),
        code_version=call.code_version,
    )


def _analyze_subgroups(call: Call) -> Made:
    return analysis.analyze_subgroups(
        call.store,
        call.study.subgroups,
        arm_pairs=call.study.compare.pairs,
        groups=arm_groups(call.study.arms),
        specificity=call.study.compare.specificity,
        comparison_uri=call.uri("comparison"),
        code_version=call.code_version,
    )


def _write_report(call: Call) -> Made:
    roles = ("index", "splits", "shards", "selection", "models", "comparison", "subgroups")
    return analysis.write_report(
        call.store,
        call.study,
        checkpoints_uri=call.optional_uri("checkpoints"),
        code_version=call.code_version,
        **{f"{role}_uri": call.uri(role) for role in roles},
    )


def _promote(call: Call) -> Made:
    study = call.study
    names = ("promote", "compare", "subgroups", "predict", "task")
    return promotion.promote(
        call.store,
        Rules(**{name: getattr(study, name) for name in names}),
        encoder=study.encoders[_named(study.arms, study.promote.arm).encoder],
        data=call.data,
        study_id=study.name,
        dataset=study.data.name,
        image_size_px=study.finetune.image_size_px,
        catalog_uri=call.uri("models"),
        comparison_uri=call.uri("comparison"),
        code_version=call.code_version,
    )


MODULES = {"data": data, "train": train, "analysis": analysis, "promotion": promotion}
# By stage: the module that defines it, the inputs it takes ("?": optional, "*": several), and how it is called.
STAGES: Mapping[str, tuple[str, str, Callable[[Call], Made]]] = {
    "fingerprint": ("data", "", _fingerprint),
    "ingest": ("data", "source", _ingest),
    "assign_splits": ("data", "index", _assign_splits),
    "write_shards": ("data", "source index", _write_shards),
    "prepare_dataset": ("data", "", _prepare_dataset),
    "pretrain": ("train", "index splits shards catalog? datasets?", _pretrain),
    "collect": ("train", "checkpoint*, models* or dataset*, previous?", _collect),
    "search_hyperparameters": ("train", "index splits shards catalog?", _search_hyperparameters),
    "select": ("train", "scores*", _select),
    "finetune": ("train", "index splits shards selection catalog?", _finetune),
    "predict": ("train", "index splits shards catalog external?", _predict),
    "compare": ("analysis", "predictions*", _compare),
    "analyze_subgroups": ("analysis", "comparison", _analyze_subgroups),
    "write_report": (
        "analysis",
        "index splits shards selection models comparison subgroups checkpoints?",
        _write_report,
    ),
    "promote": ("promotion", "index splits shards models comparison", _promote),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medssl", description=__doc__)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_tools(parsers)
    on_tables_of = {
        **commands.tables.COMMANDS,
        "compare": commands.compare.COMMAND,
        "write_report": commands.report.COMMAND,
    }
    for stage, (module, inputs, call) in STAGES.items():
        text = getattr(MODULES[module], stage).__doc__ or ""
        command = parsers.add_parser(stage.replace("_", "-"), help=text.splitlines()[0], description=text)
        on_tables = on_tables_of.get(stage)
        is_optional = on_tables or stage == "promote"
        command.add_argument(
            "study", type=Path, nargs="?" if is_optional else None, help="study file whose section is used"
        )
        command.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
        command.add_argument(
            "--input", action="append", default=[], metavar="ROLE=URI", help=f"roles: {inputs or 'none'}"
        )
        command.add_argument("--item", help="name of the pretraining run, further data set or arm")
        _add_store(command)
        command.set_defaults(command=lambda options, stage=stage, call=call: _print(call(Call(stage, options))))
        if on_tables:
            commands.tables.add(command, on_tables)
        if stage == "promote":
            commands.promotion.add(command)
    return parser


def _add_tools(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = parsers.add_parser(
        "demo", help="write a generated data set: radiographs (cxr) or photographs of skin (derm)"
    )
    demo.add_argument("--out", type=Path, required=True, help="folder to make")
    for name, field in GenerateConfig.model_fields.items():
        choices = get_args(field.annotation) or None  # of a Literal
        demo.add_argument(
            f"--{name.replace('_', '-')}", type=str if choices else int, choices=choices, default=field.default
        )
    demo.set_defaults(command=_demo)
    show = parsers.add_parser("schema", help="print the schema of a table as JSON")
    show.add_argument("name", choices=sorted(schema.TABLES))
    show.set_defaults(command=lambda options: sys.stdout.write(f"{schema.describe(schema.TABLES[options.name])}\n"))
    locate = parsers.add_parser("locate", help="print the file of an image; needs the private store")
    locate.add_argument("image_id", help="as an error message or the report names it")
    _add_store(locate)
    locate.set_defaults(command=_locate)
    published = parsers.add_parser("import-weights", help="make a checkpoint of published weights")
    _add_store(published)
    commands.weights.add(published, _store)
    for command in commands.lineage.add(parsers, _store):
        _add_store(command)
    cleaned = parsers.add_parser("gc", help="remove from a store what no champion and no kept run reaches")
    _add_store(cleaned)
    commands.cleanup.add(cleaned, _store)
    check = parsers.add_parser("verify", help="check the folder of a run's results, a store, an artifact or shards")
    check.add_argument("folder", type=Path, help="its files are read, and nothing is changed")
    check.add_argument("--quick", action="store_true", help="do not decode the stored images")
    check.set_defaults(command=_verify)


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument("--store", help=f"folder or URL of the artifacts (default: ${STORE_VARIABLE})")


def _demo(options: argparse.Namespace) -> None:
    from medssl.data import generated

    settings = {name: getattr(options, name) for name in GenerateConfig.model_fields}
    bar = Progress("demo", options.patients, unit="patients")
    try:
        counts = generated.generate(options.out, **settings, progress=bar.of)
    except (FileExistsError, ValueError) as error:
        raise BadInputError(str(error)) from None
    sys.stdout.write(f"{json.dumps(counts)}\n")


def _locate(options: argparse.Namespace) -> None:
    folder = Path(_store(options).root) / "private"
    for path in sorted(folder.glob(f"*/{layout.SOURCES}")):
        table = schema.read(path, schema.SOURCES)
        image_ids = table["image_id"].to_pylist()
        if options.image_id in image_ids:
            sys.stdout.write(f"{table['file'][image_ids.index(options.image_id)]}\n")
            return
    raise BadInputError(f"image_id {options.image_id} is in no table of the private store; is --store right?")


def _verify(options: argparse.Namespace) -> None:
    """Print what is wrong, a line a finding; the exit code is 1 if anything is."""
    verdict = verify(options.folder, quick=options.quick)
    for finding in verdict.findings:
        sys.stdout.write(f"{finding}\n")
    kinds = ("artifacts", "files", "patients", "images")
    counted = ", ".join(f"{verdict.counts[kind]:,} {kind}" for kind in kinds if verdict.counts[kind])
    if verdict.is_sound:
        sys.stdout.write(f"ok: {counted}\n")
        return
    num_wrong = sum(not finding.is_note for finding in verdict.findings)
    sys.stdout.write(f"failed: {num_wrong} findings in {counted}\n")
    raise SystemExit(FAILURE)


def _store(options: argparse.Namespace) -> Store:
    if options.store:
        os.environ[STORE_VARIABLE] = options.store
    return Store.from_environment()


def _pair(text: str) -> tuple[str, str]:
    role, separator, uri = text.partition("=")
    if not separator:
        raise ConfigError(f"--input {text}: expected ROLE=URI")
    if not _URI.search(uri):
        raise ConfigError(f"--input {text}: {uri} is no artifact's URI: expected <store>/<kind>/<sha256>")
    return role, uri


def _print(made: Made) -> None:
    sys.stdout.write(f"{json.dumps({'uri': made.uri, 'metadata': made.metadata})}\n")


if __name__ == "__main__":
    sys.exit(main())

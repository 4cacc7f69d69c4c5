"""`python -m pipelines`: run, compile and inspect a study's DAG."""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from medssl import tracking
from medssl.config import Study, load_study
from medssl.exit_codes import BAD_INPUT, FAILURE, OK, TERMINATED, BadInputError, TerminatedError
from medssl.store import Store
from pipelines import availability, local
from pipelines.estimate import PEAK_TFLOPS, UNLABELLED, UTILIZATION, Assumptions
from pipelines.plan import make_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.command(options)
    except BadInputError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except TerminatedError as error:
        sys.stderr.write(f"stopped: {error}\n")
        return TERMINATED
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on where it stopped\n")
        return TERMINATED
    except RuntimeError as error:
        sys.stderr.write(f"failed: {error}\n")
        return FAILURE
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a study on this machine")
    _study_arguments(run)
    run.add_argument("--out", type=Path, help="folder of the results (default: runs/<study name>)")
    run.set_defaults(command=_run)
    again = commands.add_parser("retrain", help="run a study again if its data changed; patients keep their splits")
    _study_arguments(again)
    again.add_argument("--out", type=Path, help="folder of the last run's results (default: runs/<study name>)")
    again.set_defaults(command=_retrain)
    compiled = commands.add_parser("compile", help="write the pipeline as KFP's YAML")
    _study_arguments(compiled)
    compiled.add_argument("--out", type=Path, required=True, help="YAML file to write")
    compiled.set_defaults(command=_compile)
    plan = commands.add_parser("plan", help="print a study's tasks, its cost from the beginning, and what is missing")
    _study_arguments(plan)
    plan.add_argument("--store", help="where imported weights are looked for (default: that of the study's run)")
    plan.add_argument("--peak-tflops", type=_above_zero, help="of one GPU (default: an A100's, by precision)")
    plan.add_argument(
        "--utilization",
        type=_share,
        default=UTILIZATION,
        help="share of the peak that is reached (default: %(default)s)",
    )
    plan.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="[NAME=]NUMBER",
        help=f'images of a data set, by default the study\'s own; "{UNLABELLED}": its images without labels',
    )
    plan.add_argument("--images-per-case", type=_above_zero, help="on average (default: the most that a step may see)")
    plan.add_argument("--json", action="store_true", help="print all of it as JSON")
    plan.set_defaults(command=_plan)
    ui = commands.add_parser("ui", help="open MLflow on the runs in a folder")
    ui.add_argument("out", type=Path, help="folder of the results")
    ui.set_defaults(command=_ui)
    execute = commands.add_parser("execute")  # the child process of `run`; no help: not for people
    execute.add_argument("out", type=Path)
    execute.set_defaults(command=lambda options: local.execute(options.out))
    return parser


def _study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="study file, for example pipelines/studies/demo.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides", help="change a setting"
    )


def _run(options: argparse.Namespace) -> None:
    out = options.out or Path("runs") / load_study(options.study, options.overrides).name
    local.run(options.study, out, options.overrides)


def _retrain(options: argparse.Namespace) -> None:
    from pipelines.retrain import retrain

    out = options.out or Path("runs") / load_study(options.study, options.overrides).name
    retrain(options.study, out, options.overrides)


def _compile(options: argparse.Namespace) -> None:
    from pipelines.study import compile_pipeline

    if options.out.suffix not in (".yaml", ".yml"):
        raise BadInputError(f"--out {options.out.name}: expected the name of a YAML file, such as pipeline.yaml")
    study = load_study(options.study, options.overrides)
    study = availability.without(study, availability.unnamed(study))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    compile_pipeline(make_plan(study), options.out, parallel_tasks=study.resources.parallel_tasks or 1)
    sys.stdout.write(f"{options.out}\n")


def _plan(options: argparse.Namespace) -> None:
    from pipelines.overview import Overview

    study = load_study(options.study, options.overrides)
    store = Store(options.store or str(Path("runs") / study.name / "store"))
    overview = Overview.of(study, store, _assumptions(options, study))
    if options.json:
        sys.stdout.write(f"{json.dumps(overview.as_json(), indent=2)}\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in overview.lines())


def _assumptions(options: argparse.Namespace, study: Study) -> Assumptions:
    peak = dict.fromkeys(PEAK_TFLOPS, options.peak_tflops) if options.peak_tflops else PEAK_TFLOPS
    images: dict[str, int] = {}
    for given in options.images:
        name, _, number = given.rpartition("=")
        if not number.isdecimal() or given.startswith("="):
            raise BadInputError(f"--images {given[:80]}: expected NAME=NUMBER, or the NUMBER of the study's own set")
        images[name or study.data.name] = int(number)
    known = {UNLABELLED, *(one.name for one in (study.data, *study.external, *study.pretraining_data))}
    if strange := sorted(set(images) - known):
        raise BadInputError(
            f"--images: {', '.join(strange)[:80]}: no data set of the study; known: {', '.join(sorted(known))}"
        )
    return Assumptions(
        peak_tflops=peak,
        utilization=options.utilization,
        images=images,
        images_per_case=options.images_per_case,
    )


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _share(text: str) -> float:
    value = _above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} is above 1; give a share, such as 0.2")
    return value


def _ui(options: argparse.Namespace) -> None:
    command = local.ui_command(options.out)
    sys.stdout.write(f"{' '.join(command)}\n")
    subprocess.run(command, check=False, env={**tracking.ENVIRONMENT, **os.environ})


if __name__ == "__main__":
    sys.exit(main())

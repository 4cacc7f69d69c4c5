"""`python -m pipelines`: run, compile and inspect a study's DAG."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from medssl import tracking
from medssl.config import load_study
from medssl.exit_codes import BAD_INPUT, FAILURE, OK, TERMINATED, BadInputError, TerminatedError
from medssl.progress import counted
from medssl.store import Store
from pipelines import availability, local
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
    compiled = commands.add_parser("compile", help="write the pipeline as KFP's YAML")
    _study_arguments(compiled)
    compiled.add_argument("--out", type=Path, required=True, help="YAML file to write")
    compiled.set_defaults(command=_compile)
    plan = commands.add_parser("plan", help="print the tasks of a study, finished or not")
    _study_arguments(plan)
    plan.add_argument("--store", help="where imported weights are looked for (default: that of the study's run)")
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


def _compile(options: argparse.Namespace) -> None:
    from pipelines.study import compile_pipeline

    if options.out.suffix not in (".yaml", ".yml"):
        raise BadInputError(f"--out {options.out.name}: expected the name of a YAML file, such as pipeline.yaml")
    study = load_study(options.study, options.overrides)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    compile_pipeline(make_plan(study), options.out, parallel_tasks=study.resources.parallel_tasks or 1)
    sys.stdout.write(f"{options.out}\n")


def _plan(options: argparse.Namespace) -> None:
    study = load_study(options.study, options.overrides)
    store = Store(options.store or str(Path("runs") / study.name / "store"))
    study = availability.without(study, availability.absent(study, store))
    for arm, reason in study.not_run.items():
        sys.stdout.write(f"not run: {arm}, which {reason}\n")
    plan = make_plan(study)
    for number, task in enumerate(plan.tasks, start=1):
        sys.stdout.write(f"{number:3d}  {task}\n")
    sys.stdout.write(f"{counted(plan.num_tasks, 'task')}, {plan.num_training_processes} of them train\n")


def _ui(options: argparse.Namespace) -> None:
    command = local.ui_command(options.out)
    sys.stdout.write(f"{' '.join(command)}\n")
    subprocess.run(command, check=False, env={**tracking.ENVIRONMENT, **os.environ})


if __name__ == "__main__":
    sys.exit(main())

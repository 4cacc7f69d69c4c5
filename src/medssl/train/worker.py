"""What every training process does first: read its job, join the others, end with the right exit code."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medssl.config import Section
from medssl.exit_codes import install_excepthook, record_failure
from medssl.train.distributed import Ranks, process_group

JobType = TypeVar("JobType", bound=Section)


def run_worker(work: Callable[[JobType, Ranks], None], kind: type[JobType]) -> None:
    """Do `work` on this rank: `torchrun -m MODULE JOB.json`."""
    install_excepthook()
    job = kind.model_validate_json(Path(sys.argv[1]).read_bytes())
    with process_group() as ranks:
        try:
            work(job, ranks)
        except BaseException as error:
            record_failure(error)  # before the group ends, of which the other ranks die
            raise

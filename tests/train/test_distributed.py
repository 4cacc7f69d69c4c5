"""Two real gloo ranks against one process."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from medssl.model.losses import nt_xent

PROGRAM = """
import sys, torch
from torch import nn
from medssl.model.losses import nt_xent
from medssl.train.distributed import process_group
torch.set_num_threads(1)
with process_group() as ranks:
    torch.manual_seed(0)
    model = ranks.wrap(nn.Linear(5, 3).double())
    x, y = torch.randn(8, 5).double(), torch.randn(8, 5).double()
    mine = slice(ranks.rank * 4, ranks.rank * 4 + 4)
    z_a, z_b = model(torch.cat([x[mine], y[mine]])).chunk(2)
    loss = nt_xent(ranks.gather(z_a), ranks.gather(z_b), temperature=0.5, reduction="paper")
    loss.backward()
    assert ranks.any(ranks.rank == 1) and not ranks.any(False)
    torch.save({"loss": loss.detach(), "grad": model.module.weight.grad}, f"{sys.argv[1]}/{ranks.rank}.pt")
"""


def test_two_ranks_have_the_loss_and_gradient_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command, str(tmp_path / "program.py"), str(tmp_path)], check=True, env=environment, timeout=120)
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    x, y = torch.randn(8, 5).double(), torch.randn(8, 5).double()
    loss = nt_xent(model(x), model(y), temperature=0.5, reduction="paper")
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found["grad"], model.weight.grad, rtol=1e-6, atol=1e-7)

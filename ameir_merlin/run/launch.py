"""Several processes at one run, as torchrun starts them, through Lightning Fabric.

The first process works through the run as one process alone would. The others do its shared stages (search, train)
along with it when it tells them to, and end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import logging
import os
from pathlib import Path
from typing import NoReturn

from ameir_merlin.errors import UserError
from ameir_merlin.ranks import ONE, Lost, Ranks, launched
from ameir_merlin.run.folder import RunFolder
from ameir_merlin.run.stages import Stage, Workspace

# A rank that has ended is noticed at once; this is for one that hangs.
LIMIT = datetime.timedelta(minutes=30)


def launch(device: str = "") -> Ranks:
    """This process's rank. device: "cpu", "cuda", or "" for the GPUs if there are any; each process takes its own.

    `UserError` for a named GPU, or where there are fewer GPUs than processes.
    """
    return _launch(device) if launched() else ONE


@functools.cache
def _launch(device: str) -> Ranks:
    import torch

    here, places = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if device not in ("", "cpu", "cuda"):
        raise UserError(f"device '{device}': expected cpu or cuda; each of several processes takes a GPU of its own")
    kind = device or ("cuda" if places else "cpu")
    if kind == "cuda" and places < here:
        raise UserError(f"--nproc-per-node {here}: torch sees {places} GPUs here; take fewer processes or --device cpu")

    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.fabric.strategies import DDPStrategy

    for part in ("fabric", "pytorch"):  # both say that there are several processes
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=kind,
        devices=here,
        num_nodes=int(os.environ["WORLD_SIZE"]) // here,
        strategy=DDPStrategy(cluster_environment=TorchElasticEnvironment(), timeout=LIMIT),
    )
    fabric.launch()
    # A client of the store by which the processes have found each other.
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    named = torch.distributed.PrefixStore("ameir-merlin", store)
    ranks = Ranks(fabric.global_rank, fabric.world_size, str(fabric.device), named)
    atexit.register(_leave, ranks)
    return ranks


def _leave(ranks: Ranks) -> None:
    import torch.distributed as dist

    if ranks.first:
        with contextlib.suppress(Lost):
            ranks.tell(None)
    dist.destroy_process_group()


def follow(ranks: Ranks, stages: dict[str, Stage]) -> NoReturn:
    """Do what the first process says until it ends; then this one ends, too, with `SystemExit`."""
    workspace: Workspace | None = None
    for word in ranks.told():
        if word is None:
            break
        if workspace is None or workspace.run.path != Path(word["run"]):
            workspace = Workspace(RunFolder.open(word["run"]), ranks=ranks)
        stages[word["stage"]].function(workspace)
    raise SystemExit(0)

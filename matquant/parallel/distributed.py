"""The processes of one job that train a model together, and the collectives by which they agree.

Their launcher (torchrun, or submitit's TorchDistributedEnvironment) describes them in the environment: RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.  With one rank nothing is connected, and every collective returns its
argument.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist

from matquant.config.cell import Cell, QATBase
from matquant.errors import UserError
from matquant.parallel.ranks import num_ranks

T = TypeVar("T")
COMPUTE_TIMEOUT = timedelta(minutes=30)
# While rank 0 evaluates, or hashes a big file, the others wait.  A rank that dies is noticed at once all the same: its
# connections close.
WAITING_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """The ranks of this job and which of them this process is; only the main one, rank 0, writes and prints.

    All ranks must call the same methods of it in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def device(self, kind: torch.device) -> torch.device:
        """The device of this rank: with several on a machine, each has a GPU of its own."""
        if self.size == 1 or kind.type == "cpu":
            return kind
        if self.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"local rank {self.local_rank} has no GPU of its own among {torch.cuda.device_count()}; "
                "start as many ranks on a machine as it has GPUs, or set device=cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def share(self, batch_size: int) -> slice:
        """This rank's part of a batch of the whole world; UserError if the ranks cannot share it evenly."""
        if batch_size % self.size:
            below, above = batch_size // self.size * self.size, -(-batch_size // self.size) * self.size
            remedy = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"base.batch_size={batch_size} cannot be shared evenly by {self.size} ranks; "
                f"set it to {remedy}, or start a number of ranks that divides it"
            )
        mine = batch_size // self.size
        return slice(self.rank * mine, (self.rank + 1) * mine)

    def barrier(self) -> None:
        """Waits until every rank is here, however long that takes."""
        if self.size > 1:
            dist.barrier(group=connected(self))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over ranks of each value; all ranks name the same ones in the same order."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total, group=connected(self))
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def any(self, *flags: bool) -> list[bool]:
        """One answer for each flag, in one exchange: True if it is raised on any rank."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=connected(self))
        return [bool(flag) for flag in raised.tolist()]

    def broadcast(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0, group=connected(self))
        return said[0]


ALONE = World()


def world() -> World:
    """The world that the environment describes; UserError if it describes one in part."""
    size = num_ranks()
    if size == 1:
        return ALONE
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={size}, but the environment lacks {', '.join(missing)}; start several ranks with torchrun, "
            "or unset WORLD_SIZE"
        )
    return World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))


def check_ranks(cell: Cell, world: World) -> None:
    """Refuses, before a model is loaded, a cell that several ranks cannot train together."""
    if world.size == 1:
        return
    if not isinstance(cell.base, QATBase):
        raise UserError(
            f"base={cell.base.kind} runs in one process and was started on {world.size} ranks; "
            "only base=qat runs on several, so start this cell without torchrun"
        )
    world.share(cell.base.batch_size)


@cache
def connected(world: World) -> dist.ProcessGroup:
    """The process group in which ranks wait for each other and agree, on CPUs; the first call connects them.

    It is not torch's default group, which computes, and in which a rank that is late counts as one that hangs.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=COMPUTE_TIMEOUT)
    group = dist.new_group(backend="gloo", timeout=WAITING_TIMEOUT)
    assert isinstance(group, dist.ProcessGroup)
    return group


def leave(world: World) -> None:
    """Disconnects the ranks when all of them have finished; does nothing in a process that has connected to none."""
    if dist.is_initialized():
        world.barrier()
        connected.cache_clear()
        dist.destroy_process_group()

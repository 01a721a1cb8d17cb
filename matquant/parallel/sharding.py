"""A model spread over the ranks of a world, each with a shard of every parameter (PyTorch FSDP2), and states on disk.

For one process alone everything here is the identity, and a state on disk is one of a world of one rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from matquant.parallel.distributed import World, connected


def mesh_of(world: World, device_type: str) -> DeviceMesh | None:
    """The ranks as FSDP wants them; None for one process."""
    if world.size == 1:
        return None
    connected(world)
    return init_device_mesh(device_type, (world.size,))


def shard(module: nn.Module, mesh: DeviceMesh | None, *, outermost: bool = False) -> None:
    """Leaves each rank its shard, on its own device, of every parameter of a module that is not sharded already.

    The module moves to the device whole before it is cut: shard a model block by block, and no device ever holds more
    than one whole block.  The parameters are whole again while the module runs forward or backward.  A grid, for
    example, is therefore computed from the whole weight matrix, as in one process.
    """
    if mesh is not None:
        # The outermost module's own parameters end the forward pass and begin the backward pass: they stay in between.
        fully_shard(module, mesh=mesh, reshard_after_forward=not outermost)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Gathers the parameters of a sharded module on all ranks, for as long as the context lasts."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def full(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over the ranks, gathered on all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be spread over several."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def save_tensors(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Writes tensors, each rank its own shards, in a format that any number of ranks reads (torch's DCP).

    Its `.metadata` is written last: a folder with it is complete.
    """
    _exchange(save, folder, tensors, world)


def load_tensors(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Copies what `save_tensors` wrote into tensors of the same names and whole shapes, however they are cut."""
    _exchange(load, folder, tensors, world)


def _exchange(act: Callable[..., Any], folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    alone = world.size == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # DCP warns every single process
        failures: list[BaseException] = []
        try:
            act(dict(tensors), checkpoint_id=folder, no_dist=alone, process_group=None if alone else connected(world))
        except CheckpointException as error:  # no Exception, and its message is a traceback
            failures = [failure for failure, _ in error.failures.values()]
        if failures:  # raised out here, where it keeps its own context: the error of the disk
            raise failures[0]

"""A GPU that is not there: PyTorch's fake tensors, with an account of what a real card would be asked for.

Tensors have shapes, dtypes and devices, and no values; a number that is read is made up (true, 0 or 1.0), so that code
goes on as if all were well.  On the device `cuda` torch's autograd asks a driver for streams, and there is none; what
has a backward pass is therefore followed as fake tensors of the CPU, which shows memory and waiting, but not devices.
"""

from __future__ import annotations

import ctypes
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, META = 1, 14
"""The numbers of devices in c10/core/DeviceType.h."""
aten = torch.ops.aten
WAITS = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default}
"""Operations whose shape depends on values, for which a CPU waits."""


class Account(TorchDispatchMode):
    """Counts the times that a value is waited for, tensors on another device, and the bytes that the device holds."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.waits: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()
        self.largest: Counter[str] = Counter()
        """The numbers in the largest tensor that each place has made on another device."""
        self.products: Counter[torch.dtype] = Counter()
        """The operations of matrix products, by the dtype of their factors."""
        self.held = self.peak = 0
        self._seen: dict[int, Any] = {}

    def start(self) -> int:
        """Begins anew with what is held now, and returns it."""
        self.waits.clear()
        self.elsewhere.clear()
        self.largest.clear()
        self.products.clear()
        self.peak = self.held
        return self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is aten._local_scalar_dense.default:
            self._waits(given, func)
            return _made_up(given[0].dtype)
        value = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        if func in WAITS or (func is aten.index.Tensor and any(one.dtype == torch.bool for one in given[1:])):
            self._waits(given, func)
        if func in (aten.copy_.default, aten._to_copy.default) and made[0].device.type != self.device:
            self._waits(given[-1:], func)
        if func in (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default):
            left, right = given[-2:]
            self.products[left.dtype] += 2 * left.numel() * right.shape[-1]
        for one in made:
            self._hold(one, func)
        return value

    def read(self, tensor: Tensor) -> None:
        """Counts a list that is made of a tensor."""
        self._waits([tensor], "tolist")

    def _waits(self, given: list[Tensor], func: object) -> None:
        if any(one.device.type == self.device for one in given):
            self.waits[f"{func} at {_place()}"] += 1

    def _hold(self, tensor: Tensor, func: object) -> None:
        if tensor.device.type != self.device:
            if tensor.numel() > 1:
                place = f"{func} at {_place()}"
                self.elsewhere[place] += 1
                self.largest[place] = max(self.largest[place], tensor.numel())
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self.held -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)


@contextmanager
def _guarded() -> Iterator[None]:
    """Lends `cuda` the guard of the meta device, which does nothing: without CUDA torch is built without one.

    FakeTensorMode does the same in a build with CUDA, but without a card.
    """
    if torch.backends.cuda.is_built():
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[CUDA] = guards[META]
    try:
        yield
    finally:
        guards[CUDA] = None


def _made_up(dtype: torch.dtype) -> bool | float:
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 0


def _place() -> str:
    """The innermost line of this project that is at work."""
    ours = [frame for frame in traceback.extract_stack() if "/matquant/" in frame.filename]
    return f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno} {ours[-1].line}" if ours else "elsewhere"


@contextmanager
def fake_card(device: str) -> Iterator[Account]:
    """Lets a device be there, as far as dtypes, shapes and bytes go; autocast too."""
    account = Account(device)

    def tolist(tensor: Tensor) -> list[Any]:
        account.read(tensor)
        return [_made_up(tensor.dtype)] * tensor.numel()

    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch.object(FakeTensor, "tolist", tolist),
        _guarded(),
        FakeTensorMode(allow_non_fake_inputs=True),  # tables that were made before
        account,
    ):
        yield account

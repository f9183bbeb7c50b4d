"""Counts what a program asks of a CUDA device that does not exist, on fake tensors: sizes, dtypes, devices, no numbers.

Bytes of elementwise work, operations of matrix products by dtype, what the host waits for, memory alive, and the order
of streams, by the line of the repository that asked.
"""

import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.gpu.streams import Streams
from tests.paths import ROOT

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_mm"}
# Nothing is launched for these.
VIEWS = {"view", "_unsafe_view", "as_strided", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze"}
VIEWS |= {"squeeze", "split", "split_with_sizes", "unbind", "detach", "alias", "_reshape_alias", "diagonal", "unfold"}
VIEWS |= {"chunk", "narrow", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "lift_fresh"}
WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
# Of equal or concurrent numbers these take whichever comes first on a GPU.
UNORDERED = {"scatter_add", "scatter_add_", "index_add", "index_add_", "scatter_reduce", "scatter_reduce_", "topk"}
UNORDERED |= {"kthvalue", "_index_put_impl_", "put_", "histc", "median"}


class Watch(TorchDispatchMode):
    """What was asked inside the block.

    Args:
        answer: the number that the host is told where it asks for one, by its kind: "bool", "int" or "float".
    """

    def __init__(self, streams: Streams, answer: Callable[[str], Any] | None = None) -> None:
        super().__init__()
        self.streams = streams
        self.answer = answer or {"bool": True, "int": 10**6, "float": 0.004}.__getitem__
        self.waits: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.elementwise: Counter[str] = Counter()
        self.products: Counter[str] = Counter()
        self.launches = 0
        self.live = self.peak = 0
        self._alive: dict[int, int] = {}

    def restart(self) -> None:
        """Forget the counts; what is alive stays so."""
        for table in (self.waits, self.problems, self.elementwise, self.products):
            table.clear()
        self.launches, self.peak = 0, self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, (space, name) = kwargs or {}, func._schema.name.split("::")
        if space == "prim":  # questions about a tensor
            return func(*args, **kwargs)
        where = here()
        inputs = list({id(x): x for x in tensors((args, kwargs))}.values())
        if name == "_local_scalar_dense":
            return self._told(args[0], where)
        on_gpu = any(x.device.type == "cuda" for x in inputs)
        if on_gpu and (name in WAITING or (name == "index" and any(x.dtype == torch.bool for x in tensors(args[1])))):
            self.waits[f"{name} {where}"] += 1
        out = func(*args, **kwargs)
        outputs = tensors(out)
        self._check(name, args, kwargs, inputs, outputs, where)
        for x in outputs:
            self._hold(x)
        if name not in VIEWS and any(x.device.type == "cuda" for x in (*inputs, *outputs)):
            self._launch(func, name, args, inputs, outputs, where)
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Stands for one kernel, which writes (B, N, H, D) and returns it as (B, H, N, D)."""
        where = here()
        self.launches += 1
        self.streams.current().tick()
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        for x in (q, k, v):
            self._touch(x, False, where)
        self._touch(out, True, where)
        return out

    def kernel(self, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Stands for a kernel that reads ``inputs`` once and writes ``out`` once, which is returned."""
        where = here()
        self.launches += 1
        self.streams.current().tick()
        self.elementwise[where] += sum(moved(x) for x in (*inputs, out))
        for x in inputs:
            self._touch(x, False, where)
        self._touch(out, True, where)
        return out

    def _told(self, asked: Tensor, where: str) -> Any:
        if asked.device.type == "cuda":
            self.waits[f"item {where}"] += 1
        kind = "bool" if asked.dtype == torch.bool else "float" if asked.dtype.is_floating_point else "int"
        constant = getattr(asked, "constant", None)
        return constant.item() if constant is not None else self.answer(kind)

    def _check(
        self, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], outputs: list[Tensor], where: str
    ) -> None:
        """Devices that meet, copies that the host waits for, operators without a fixed order."""
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], outputs[0]) if name == "_to_copy" else (args[1], args[0])
            if source.device.type != target.device.type:
                asynchronous = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
                if not asynchronous:
                    self.waits[f"copy {source.device.type} to {target.device.type} {where}"] += 1
            return
        devices = {x.device.type for x in (*inputs, *outputs) if x.dim()}
        if len(devices) > 1 and name != "lift_fresh":
            self.problems[f"{name} of tensors on {' and '.join(sorted(devices))}: {where}"] += 1
        floats = any(x.dtype.is_floating_point for x in outputs)
        if "cuda" in devices and name in UNORDERED and floats:
            self.problems[f"{name} has no fixed order: {where}"] += 1

    def _launch(
        self, func: Any, name: str, args: tuple, inputs: list[Tensor], outputs: list[Tensor], where: str
    ) -> None:
        self.launches += 1
        self.streams.current().tick()
        if name in PRODUCTS:
            factors = [x for x in args if isinstance(x, Tensor)][-2:] if name != "_scaled_mm" else args[:2]
            dtype = str(factors[0].dtype).removeprefix("torch.")
            self.products[dtype] += 2 * outputs[0].numel() * factors[0].shape[-1]
        else:
            self.elementwise[where] += sum(moved(x) for x in outputs)
            if name not in ("fill_", "zero_"):
                written = {id(x) for x in outputs} if name == "copy_" else set()
                self.elementwise[where] += sum(moved(x) for x in inputs if id(x) not in written)
        writes = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        targets = {id(x) for x, write in zip(args, writes, strict=False) if write and isinstance(x, Tensor)}
        for x in inputs:
            if id(x) not in targets:
                self._touch(x, False, where)
        for x in {id(x): x for x in (*(x for x in inputs if id(x) in targets), *outputs)}.values():
            self._touch(x, True, where)

    def _touch(self, x: Tensor, write: bool, where: str) -> None:
        if self.streams.count > 1 and x.numel():
            start = x.storage_offset() * x.itemsize
            extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
            self.streams.touch(x.untyped_storage()._cdata, start, start + extent * x.itemsize, write, where)

    def _hold(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if x.device.type != "cuda" or key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.streams.forget(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._alive.pop(key, 0)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def moved(x: Tensor) -> int:
    """Bytes of ``x`` on the device; what is broadcast counts once."""
    cells = math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride) if x.numel() else 0
    return cells * x.itemsize if x.device.type == "cuda" else 0


def here() -> str:
    """File and line of the repository, outside of this folder, that is being run."""
    frame = sys._getframe(2)
    while frame is not None and not (name := of_the_repository(frame.f_code.co_filename)):
        frame = frame.f_back
    return "?" if frame is None else f"{name}:{frame.f_lineno}"


@cache
def of_the_repository(file: str) -> str:
    """The name of ``file`` in the checkout; nothing for one of another package, or of this folder."""
    inside = file.startswith(str(ROOT)) and "/.venv/" not in file and "/tests/gpu/" not in file
    return file.removeprefix(f"{ROOT}/") if inside else ""

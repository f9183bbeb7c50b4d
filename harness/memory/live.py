"""Measure the memory that a piece of code holds at most: live tensors, counted while operations run.

Works on any device, the meta device included, and without an allocator that keeps statistics. Seen is every storage
that an operation returns; what a kernel uses inside of it and gives back at once is not.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages made inside the block and still alive: ``live`` now, ``peak`` at most.

    Storages that were there before are not counted, nor are views of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()
        self._finalizers: list[weakref.finalize] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        for finalizer in self._finalizers:
            finalizer.detach()

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def reset_peak(self) -> None:
        """Forget the peak so far; what is alive now counts on."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors_in((args, kwargs)):
            self._note(tensor, size=0)
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self._note(tensor, size=tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _note(self, tensor: Tensor, size: int) -> None:
        """Count a storage from now until it is freed; one that is known already is left alone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self._finalizers.append(weakref.finalize(storage, self._freed, key, size))

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def storage_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of the storages behind ``tensors``; one that several of them share counts once."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from (tensor for value in values.values() for tensor in tensors_in(value))
    elif isinstance(values, list | tuple):
        yield from (tensor for value in values for tensor in tensors_in(value))

"""Memory that CUDA locks: whole pages, none shared, and no error left behind where it refuses."""

import mmap
from types import SimpleNamespace

import pytest
import torch

from inference.placement import host_memory

GPU = torch.device("cuda")


@pytest.mark.parametrize("error", [0, 2])
def test_whole_pages_are_locked_and_a_refusal_is_told_and_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    locked: list[tuple[int, int]] = []
    unlocked: list[int] = []
    forgotten: list[torch.device] = []

    def register(address: int, size: int, flags: int) -> int:
        locked.append((address, address + size))
        return error

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unlocked.append)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(host_memory, "_forget_error", forgotten.append)
    tensors = [host_memory.host_tensor((3, size), torch.bfloat16, GPU) for size in (1, 100, 5000)]
    for tensor, (start, end) in zip(tensors, locked, strict=True):
        assert start == tensor.data_ptr() and start % mmap.PAGESIZE == end % mmap.PAGESIZE == 0
        storage = tensor.untyped_storage()
        assert start + tensor.nbytes <= end <= storage.data_ptr() + storage.nbytes()
    assert all(a[1] <= b[0] or b[1] <= a[0] for a in locked for b in locked if a is not b)
    assert forgotten == ([GPU] * 3 if error else [])
    assert ("could not be locked (CUDA error 2)" in caplog.text) == bool(error)
    addresses = [start for start, _ in locked]
    del tensor, storage, tensors
    assert sorted(unlocked) == ([] if error else sorted(addresses))

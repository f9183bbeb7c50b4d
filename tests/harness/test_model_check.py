"""The check before a run: what is missing, what does not fit, and what would."""

from pathlib import Path

import torch

from harness.methods import read_method
from harness.model_check import Request, check_files, check_machine, describe_memory, describe_work, suggestions
from inference.config import load_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB = 2**20


def request(checkpoint: Path, **overrides: object) -> Request:
    config = load_config(checkpoint / "distill.json").with_overrides(**overrides)
    return Request(config, read_method(None, {}))


def test_a_complete_model_is_fine(checkpoint: Path) -> None:
    asked = request(checkpoint)
    files = list(check_files(asked.config))
    assert [finding.name for finding in files] == ["transformer", "VAE", "text encoder", "special tokens"]
    assert all(finding.ok for finding in files), files
    machine = {finding.name: finding for finding in check_machine(asked, CPU)}
    assert machine["processes"].ok and machine["attention sdpa"].detail == "can be used"
    assert "CUDA" in machine["attention flash3"].detail and machine["attention flash3"].ok is None
    (work,) = describe_work(asked, None)
    assert "8 forwards" in work.detail


def test_what_is_missing_or_cannot_be_is_named(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "magi" / "inference_weight.distill" / "model.safetensors").unlink()
    (checkpoint_copy / "vae" / "config.json").unlink()
    (checkpoint_copy / "special_tokens.npz").unlink()
    asked = request(checkpoint_copy, attention_backend="flash2")
    wrong = {finding.name: finding.detail for finding in check_files(asked.config) if finding.ok is False}
    assert set(wrong) == {"transformer", "VAE", "special tokens"}
    assert "model.safetensors" in wrong["transformer"]
    asked = Request(asked.config, asked.method, ranks=3)
    machine = {finding.name: finding for finding in check_machine(asked, CPU)}
    assert machine["processes"].ok is False and "3 processes" in machine["processes"].detail
    assert machine["attention flash2"].ok is False


def test_memory_is_compared_with_what_there_is_and_changes_are_named(checkpoint: Path) -> None:
    asked = request(checkpoint, video_size_h=512, video_size_w=512, kv_offload=False, offload_vae=False)
    needed = asked.plan(GPU, 2**34).device_bytes
    room = int((needed + 2**28) / 0.95) + MIB
    lines = {finding.name: finding for finding in describe_memory(asked, GPU, room)}
    assert lines["memory"].ok is True and lines["transformer"].ok is None
    assert not list(suggestions(asked, GPU, room))
    tight = int(room - 2 * MIB / 0.95)
    lines = {finding.name: finding for finding in describe_memory(asked, GPU, tight)}
    assert lines["memory"].ok is False
    changes = list(suggestions(asked, GPU, tight))
    assert any("--kv_offload true" in change for change in changes)
    assert any("--video_size_h 384" in change for change in changes)

"""Weights with a NaN: the run says where numbers stopped being finite, and leaves nothing under the asked name."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.scripts.conftest import Run


def put_nan(folder: Path, wanted: str) -> str:
    """Make one number of a tensor whose name holds ``wanted`` a NaN, in every file that has one; gives its name."""
    found = ""
    for file in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(file)
        if name := next((name for name in tensors if wanted in name), ""):
            tensors[name].view(-1)[0] = float("nan")
            save_file(tensors, file)
            found = name
    return found


@pytest.mark.parametrize(
    ("folder", "tensor", "stage"),
    [
        ("magi", "final_linear", "denoising: the latents of chunk 0 are not finite after step 1 of"),
        ("vae", "decoder", "decoding: frames of chunk 0: "),
    ],
)
def test_a_nan_in_the_weights_ends_the_run(
    generate: Run,
    checkpoint_copy: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    folder: str,
    tensor: str,
    stage: str,
) -> None:
    name = put_nan(checkpoint_copy / folder, tensor)
    config = checkpoint_copy / "distill.json"
    assert generate("--config_file", str(config), "--num_frames", "48") == 1
    [error] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert stage in error and "nor are weights of the" in error and name.rsplit(".", 1)[0].rsplit(".", 1)[-1] in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []

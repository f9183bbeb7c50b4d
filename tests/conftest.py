"""Fixtures that tests of several folders share."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.tiny_checkpoint import build_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model: distill.json (one pass), base.json (three passes), weights. Not to be changed."""
    root = tmp_path_factory.mktemp("checkpoint")
    build_checkpoint(root)
    return root


@pytest.fixture
def checkpoint_copy(checkpoint: Path, tmp_path: Path) -> Path:
    """The same folder again, to be damaged."""
    root = tmp_path / "copy"
    shutil.copytree(checkpoint, root)
    for config in root.glob("*.json"):
        config.write_text(config.read_text(encoding="utf-8").replace(str(checkpoint), str(root)), encoding="utf-8")
    return root


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are computed fastest by one thread; on a busy machine several mostly wait for each other."""
    torch.set_num_threads(1)

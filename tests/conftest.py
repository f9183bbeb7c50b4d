"""Fixtures that tests of several folders share.

What takes seconds to import is imported by the fixtures: of several processes the one that only hands out tests reads
this file as well.
"""

import shutil
from pathlib import Path

import pytest

# What these make takes seconds, or is a program.
SLOW_FIXTURES = {"made", "start_process"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who uses what is slow is slow."""
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model: distill.json (one pass), base.json (three passes), weights. Not to be changed."""
    from tests.tiny_checkpoint import build_checkpoint

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


@pytest.fixture(scope="session")
def physics_iq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a small Physics-IQ benchmark (tests/physics_iq_folder.py). Not to be changed."""
    from tests.physics_iq_folder import build_benchmark

    root = tmp_path_factory.mktemp("physics_iq")
    build_benchmark(root)
    return root


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors are computed fastest by one thread; on a busy machine several mostly wait for each other."""
    import torch

    torch.set_num_threads(1)

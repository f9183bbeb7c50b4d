"""Regional compilation: one transformer layer is compiled and serves them all (docs/backends.md, "Compiled layers")."""

from collections.abc import Callable
from typing import Any

import torch

from inference.model.dit import VideoDiT


def compile_layers(dit: VideoDiT, backend: str | Callable[..., Any] = "inductor") -> VideoDiT:
    """Let ``torch.compile`` have the layers of ``dit``, which is returned; compiled is at their first forwards.

    Layers of one make share what was compiled. Attention stays outside (it is a kernel already), so a layer is
    compiled in parts. Sizes that were seen to change, as the number of chunks does, become variables.

    Args:
        backend: what compiles, as ``torch.compile`` takes it.
    """
    for layer in dit.videodit_blocks.layers:
        attention = layer.self_attention
        # Which keys are read where is up to objects and numbers that change all the time. Said here and not beside the
        # function: to say it imports the compiler, which takes longer than to import torch.
        attention.attend = torch.compiler.disable(attention.attend)
        layer.compile(backend=backend, dynamic=None)
    return dit

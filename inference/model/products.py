"""Matrix products whose result is wider than their factors.

Products of two bfloat16 numbers (or float16, or float8) are exact in float32, so such a product is the same number
whether the factors are widened before or the matrix units add up in float32 what they multiplied: only the order of
the sum differs. Widened factors would be multiplied without matrix units, a tenth as fast, and take twice the memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
# Since torch 2.8; of AMD's libraries none is asked for it.
KNOWS_WIDE_RESULTS = "dtype" in torch.ops.aten.mm.overloads() and torch.version.hip is None


# Of a feed-forward's hidden values; 3.2 GB would be alive at once for four chunks of 720 x 720 of the 24B model.
HIDDEN_BYTES = 5 * 2**28


def hidden_blocks(rows: int, width: int, itemsize: int) -> int:
    """In how many blocks of rows a feed-forward is computed, so that its hidden values are ``HIDDEN_BYTES`` at most."""
    return max(1, -(-rows * width * itemsize // HIDDEN_BYTES))


def functional() -> bool:
    """Whether tensors must not be written over: gradients need them, and a compiler decides that by itself."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def widened_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` (..., in) of any dtype by ``weight`` (out, in), multiplied and returned in float32, (..., out).

    On a GPU two factors of the same half precision are multiplied by its matrix units, with sums in float32.
    """
    if x.device.type != "cuda" or x.dtype != weight.dtype or x.dtype not in HALF or torch.is_grad_enabled():
        return F.linear(x.float(), weight.float())
    rows = x.reshape(-1, x.shape[-1])
    if KNOWS_WIDE_RESULTS:
        return torch.mm(rows, weight.t(), out_dtype=torch.float32).unflatten(0, x.shape[:-1])
    with _tensor_float():
        return F.linear(x.float(), weight.float())


@contextmanager
def _tensor_float() -> Iterator[None]:
    """TF32, which holds a half-precision number exactly, for the products inside; an older torch has nothing better."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed

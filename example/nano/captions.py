"""Caption features that lie beside the bundled model, so that a first video needs no text encoder:
`python -m example.nano.captions`.
"""

import shutil
from pathlib import Path

import torch

from inference.config import REPOSITORY_ROOT, load_config
from inference.placement.residency import Residency
from inference.text.cache import TextCache, encoder_identity
from inference.text.features import DTYPE, PromptEncoder
from inference.text.t5 import T5_FOLDER, load_t5

WEIGHTS = Path(__file__).parent / "weights"
PROMPTS = REPOSITORY_ROOT / "example" / "assets" / "prompts.txt"
# Of README.md; its first is the first of PROMPTS.
SHOWN = (
    "a small green square moves left on a grey floor",
    "a big red circle moves up",
    "a big blue square bounces in the sky",
)


def prompts() -> list[str]:
    return [*PROMPTS.read_text(encoding="utf-8").splitlines(), *SHOWN]


def write_captions(weights: Path = WEIGHTS) -> None:
    """Encode every prompt with the text encoder in ``weights`` and replace the folder ``captions`` there."""
    length = load_config("configs/model/nano.json").model.caption_max_length
    t5 = load_t5(weights / "t5", dtype=DTYPE, max_length=length)
    folder, cpu = weights / "captions", torch.device("cpu")
    shutil.rmtree(folder, ignore_errors=True)
    cache = TextCache(folder, encoder_identity(weights / "t5" / T5_FOLDER, length, DTYPE, cpu))
    encoder = PromptEncoder(lambda: (t5, Residency(t5.model, cpu)), cache)
    for prompt in prompts():
        encoder.encode(prompt)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in a run of so small a model
    write_captions()

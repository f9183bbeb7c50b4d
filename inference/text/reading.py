"""What a text encoder reads of a prompt, and what is lost on the way: words that cleaning removes or that it does not
know.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from inference.text.cleaning import clean_caption

_WORD = re.compile(r"[^\W_]+")
MOST_NAMED = 8


@dataclass(frozen=True)
class PromptReading:
    """``cleaned``: the text that the encoder gets. ``removed``: words of the prompt that are not in it. ``unknown``:
    words of it that the encoder has no token for.
    """

    cleaned: str
    removed: tuple[str, ...]
    unknown: tuple[str, ...]

    def to_json_dict(self) -> dict[str, Any]:
        return {"cleaned": self.cleaned, "removed": list(self.removed), "unknown": list(self.unknown)}

    def warnings(self) -> Iterator[str]:
        """One line for each kind of loss."""
        if self.removed:
            rest = f"the text encoder reads {self.cleaned!r}" if self.cleaned else "nothing is left of it"
            yield f"cleaning, as MAGI-1 does it, removed from the prompt: {_listed(self.removed)}; {rest}"
        if not words(self.cleaned):
            yield "the prompt has no words that the text encoder can read: the video will follow no text"
        elif len(self.unknown) == len(words(self.cleaned)):
            names = _listed(self.unknown)
            yield f"the text encoder knows no word of the prompt: {names}; the video will follow no text"
        elif self.unknown:
            count = f"{len(self.unknown)} of {len(words(self.cleaned))} words"
            yield f"the text encoder does not know {count} of the prompt, which change nothing: {_listed(self.unknown)}"


def read_prompt(prompt: str, unknown: Sequence[str]) -> PromptReading:
    """``unknown``: words of the cleaned prompt that the encoder does not know. ValueError for text that is none."""
    cleaned = clean_caption(prompt)
    left = words(cleaned)
    removed = tuple(word for word in words(prompt.lower()) if not any(word in kept for kept in left))
    return PromptReading(cleaned, removed, tuple(unknown))


def words(text: str) -> tuple[str, ...]:
    """Runs of letters and digits, each once, in order."""
    return tuple(dict.fromkeys(_WORD.findall(text)))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more

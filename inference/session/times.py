"""When a prompt takes over, as people write it: "4s: a dog runs", a file of such lines, or YAML.

Source: docs/long_video.md, "Prompts over time".
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from inference.files import read_text, read_yaml
from inference.text.cleaning import clean_caption

_TIME = re.compile(r"(?:(?P<minutes>\d+) *m(?:in)? *)?(?:(?P<seconds>\d+(?:\.\d+)?) *s)?|chunk +(?P<chunk>\d+)|0")
_EXAMPLES = 'times are such as "4s", "1m30s" or "chunk 4"'


@dataclass(frozen=True)
class PromptChange:
    """From ``chunk`` on, counted from the first that is made, ``prompt`` rules."""

    chunk: int
    prompt: str


@dataclass(frozen=True)
class TimedPrompt:
    """``prompt`` rules from a time of the video that is made on: ``seconds``, or the number of a chunk."""

    prompt: str
    seconds: Fraction | None = None
    chunk: int | None = None

    def __str__(self) -> str:
        return f"chunk {self.chunk}" if self.seconds is None else f"{float(self.seconds):g}s"


@dataclass(frozen=True)
class ChunkTimes:
    """Where the chunks of a video begin. ``frames``: of a chunk; ``cut``: how many of them the first one lacks, as they
    were given; ``chunks``: None where the video has no end.
    """

    fps: int
    frames: int
    cut: int = 0
    chunks: int | None = None

    def begin(self, chunk: int) -> float:
        """The second at which ``chunk``, counted from the first that is made, begins."""
        return max(0, chunk * self.frames - self.cut) / self.fps

    def change(self, timed: TimedPrompt) -> PromptChange:
        """``timed`` at the chunk that begins nearest to it; ValueError where the video ends before."""
        chunk = timed.chunk
        if timed.seconds is not None:
            chunk = round((timed.seconds * self.fps + self.cut) / self.frames) if timed.seconds else 0
        if self.chunks is not None and chunk >= self.chunks:
            raise ValueError(
                f"a prompt at {timed} comes too late: the video has {self.chunks} chunks, and the last one begins at "
                f"{self.begin(self.chunks - 1):g}s"
            )
        return PromptChange(chunk, timed.prompt)


def parse_timed(text: str) -> TimedPrompt:
    """ "TIME: prompt"; ValueError where it is none."""
    time, colon, prompt = text.partition(":")
    if not colon:
        raise ValueError(f'"{_short(text)}" has no time: write "TIME: prompt", where {_EXAMPLES}')
    return timed_prompt(time, prompt)


def timed_prompt(time: Any, prompt: Any) -> TimedPrompt:
    """Both parts, as they stand in a file; ValueError where they are none."""
    found = _TIME.fullmatch(str(time).strip())
    if found is None or not str(time).strip():
        raise ValueError(f'"{_short(str(time))}" is no time of a video: {_EXAMPLES}')
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"there is no prompt at {time}")
    clean_caption(prompt)
    if found["chunk"] is not None:
        return TimedPrompt(prompt.strip(), chunk=int(found["chunk"]))
    seconds = 60 * int(found["minutes"] or 0) + Fraction(found["seconds"] or 0)
    return TimedPrompt(prompt.strip(), seconds=seconds)


def timed_lines(text: str, source: str) -> Iterator[TimedPrompt]:
    """The prompts of lines "TIME: prompt"; ValueError, with ``source`` and the number of the line, where one is none.

    Empty lines and those that begin with # do not count.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                yield parse_timed(line)
            except ValueError as error:
                raise ValueError(f"{source}, line {number}: {error}") from None


def read_schedule(path: Path) -> list[TimedPrompt]:
    """The prompts of a file: YAML (.yaml, .yml), a list of ``at`` and ``prompt``, or lines "TIME: prompt", where empty
    ones and those that begin with # do not count.

    Raises:
        ValueError: it is not like that; ``path`` and the place are in the message.
        OSError: it cannot be read.
    """
    yaml = path.suffix.lower() in (".yaml", ".yml")
    found = list(_of_yaml(path) if yaml else timed_lines(read_text(path), str(path)))
    if not found:
        raise ValueError(f"{path} has no prompt")
    return found


def whole_schedule(
    prompt: str | None, timed: Iterable[TimedPrompt], times: ChunkTimes
) -> tuple[str, list[PromptChange]]:
    """The prompt that rules from the beginning, and the changes after it, in order.

    ``prompt`` is that one where ``timed`` has none for the first chunk.

    Raises:
        ValueError: none rules from the beginning, or two from one chunk, or one begins after the end.
    """
    found: dict[int, TimedPrompt] = {}
    for one in timed:
        chunk = times.change(one).chunk
        if chunk in found:
            raise ValueError(
                f"two prompts for chunk {chunk}, which begins at {times.begin(chunk):g}s: at {found[chunk]} "
                f'"{_short(found[chunk].prompt)}" and at {one} "{_short(one.prompt)}"'
            )
        found[chunk] = one
    first = found.pop(0).prompt if 0 in found else prompt
    if first is None:
        raise ValueError("no prompt rules from the beginning: give --prompt, or one at 0s")
    return first, [PromptChange(chunk, found[chunk].prompt) for chunk in sorted(found)]


def _of_yaml(path: Path) -> Iterator[TimedPrompt]:
    try:
        entries = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f'{path} is no list of entries such as "- at: 4s" with "prompt: ..." below it')
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or entry.keys() != {"at", "prompt"}:
            raise ValueError(f'{path}, entry {number}: "at" and "prompt" are needed, and nothing else')
        try:
            yield timed_prompt(entry["at"], entry["prompt"])
        except ValueError as error:
            raise ValueError(f"{path}, entry {number}: {error}") from None


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."

"""One sample of a benchmark: what to make, from what, and where it goes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from inference.files import read_text
from inference.session.times import TimedPrompt
from inference.text.cleaning import clean_caption

# Longest file name of every common file system, in bytes; the sidecar's name is one longer than the video's.
LONGEST_NAME = 255
LONGEST_VIDEO_NAME = LONGEST_NAME - 1
SIDECARS = "sidecars"
# Endings of clips; whatever else a video starts from is an image.
CLIPS = frozenset((".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi"))


@dataclass(frozen=True)
class SampleTask:
    """One video to make.

    Attributes:
        path: FOLDER/NAME.mp4, below the output folder.
        prompt: what the model is given; not always what the file is named by.
        identity: names the sample among all of its benchmark, whatever method makes it.
        seed: of the noise; made of the base seed and the identity, and of nothing else.
        conditioning: image or clip that the video starts from.
        later: prompts that take over on the way.
        base_seed: where it is not that of the run.
    """

    path: Path
    prompt: str
    identity: str
    seed: int
    conditioning: Path | None = None
    later: tuple[TimedPrompt, ...] = ()
    base_seed: int | None = None

    @property
    def is_clip(self) -> bool:
        """Whether the conditioning is a clip."""
        return self.conditioning is not None and self.conditioning.suffix.lower() in CLIPS

    @property
    def sidecar(self) -> Path:
        """Where its sidecar goes, below the output folder: not beside the video, since evaluators list that folder."""
        return Path(SIDECARS) / self.path.with_suffix(".json")


@dataclass(frozen=True)
class Listing:
    """The samples of a benchmark, in order, and the groups they are counted by (a sample may be in several)."""

    tasks: tuple[SampleTask, ...]
    groups: dict[str, tuple[SampleTask, ...]]


def make_task(
    folder: str,
    name: str,
    prompt: str,
    identity: str,
    base_seed: int,
    conditioning: Path | None = None,
    later: tuple[TimedPrompt, ...] = (),
    own_seed: int | None = None,
) -> SampleTask:
    """A task whose seed follows from its identity; ``name`` has been checked with :func:`name_problem`."""
    from inference.noise import sample_seed  # with torch, which a run's settings do not need

    seed = sample_seed(base_seed, identity)
    return SampleTask(Path(folder) / name, prompt, identity, seed, conditioning, later, own_seed)


def name_problem(name: str) -> str | None:
    """Why a video cannot have this name, or None.

    Evaluators look for the prompt verbatim, so a name is never changed: it is possible as it is, or refused.
    """
    for character, called in (("/", "a slash"), ("\0", "a zero character")):
        if character in name:
            return f"{called} cannot be part of a file name"
    length = len(name.encode("utf-8", "surrogatepass"))
    if length > LONGEST_VIDEO_NAME:
        return f"the file name would have {length} bytes; {LONGEST_VIDEO_NAME} are possible"
    return None


def prompt_problem(prompt: str) -> str | None:
    """Why the text encoder cannot take this prompt, or None."""
    try:
        clean_caption(prompt)
    except ValueError as error:
        return str(error)
    return None


def refuse(problems: Iterable[str], what: str, shown: int = 10) -> None:
    """ValueError with the first problems and their number, where there are any."""
    found = list(problems)
    if found:
        more = [f"... and {len(found) - shown} more"] if len(found) > shown else []
        raise ValueError(f"{what}:\n  " + "\n  ".join(found[:shown] + more))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and stripped text of every line of a UTF-8 file, empty ones included.

    Only line feeds (and carriage returns) end a line: a prompt may hold other characters that Unicode counts as
    separators. Raises FileNotFoundError, and ValueError where the file is not UTF-8.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    lines = text.split("\n")
    yield from enumerate((line.strip() for line in (lines if lines[-1] else lines[:-1])), 1)

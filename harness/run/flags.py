"""Flags of scripts/generate.py about long videos: when which prompt rules, and how a run ends and goes on.

Read before torch is imported (docs/long_video.md).
"""

import argparse
import math

from inference.config import resolve_path
from inference.session.times import TimedPrompt, parse_timed, read_schedule


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """What the video shows, and when something else."""
    parser.add_argument("--prompt", help="what the video shows, from the beginning")
    parser.add_argument(
        "--prompt_at",
        action="append",
        default=[],
        metavar='"TIME: PROMPT"',
        help='a prompt that takes over at a time such as 4s, 1m30s or "chunk 4"; may be given several times',
    )
    parser.add_argument(
        "--prompt_schedule", metavar="FILE", help="lines TIME: PROMPT, or YAML with at and prompt (docs/long_video.md)"
    )


def add_ending(parser: argparse.ArgumentParser) -> None:
    """When a run ends, and what of it is kept to go on."""
    parser.add_argument(
        "--max_seconds",
        type=positive,
        metavar="S",
        help="let no chunk begin any more after so many seconds of work; those under way are finished",
    )
    parser.add_argument(
        "--save_state",
        nargs="?",
        choices=("auto", "true", "false"),
        const="true",
        default="auto",
        help="keep what --resume needs in OUTPUT.state (default: of runs of more than ten minutes, or without end)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run of the same arguments that was stopped or killed"
    )


def timed_prompts(args: argparse.Namespace) -> list[TimedPrompt]:
    """The prompts that have a time; ValueError where one is not as it should be, or there is no prompt at all."""
    timed = []
    if args.prompt_schedule is not None:
        try:
            timed = read_schedule(resolve_path(args.prompt_schedule))
        except OSError as error:
            raise ValueError(f"--prompt_schedule {args.prompt_schedule}: {error.strerror or error}") from None
    for text in args.prompt_at:
        try:
            timed.append(parse_timed(text))
        except ValueError as error:
            raise ValueError(f"--prompt_at: {error}") from None
    if not timed and args.prompt is None:
        raise ValueError("there is no prompt: give --prompt, --prompt_schedule or --prompt_at")
    return timed


def frame_count(text: str) -> int | str:
    """How many frames, or "endless"."""
    try:
        return text if text == "endless" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is neither a number of frames nor endless') from None


def positive(text: str) -> float:
    """A number above zero, and not infinite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value

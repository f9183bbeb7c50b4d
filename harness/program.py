"""How our programs begin and end: their arguments, their log, and errors as one line and an exit status."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence

from inference.errors import ExpectedError

logger = logging.getLogger(__name__)

FAILED = 1
INTERRUPTED = 130  # what a shell reports of a program stopped by Ctrl-C
# Libraries that talk about themselves.
NOISY = ("httpx", "transformers", "matplotlib", "PIL", "torch")

Parse = Callable[[list[str]], argparse.Namespace]
Work = Callable[[argparse.Namespace], int | None]


def make_parser(description: str | None, usage: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written, and takes no abbreviated flags."""
    return argparse.ArgumentParser(
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_program(
    parse: Parse,
    work: Work,
    argv: Sequence[str] | None,
    *,
    level: int = logging.INFO,
    stopped: str = "stopped",
) -> int:
    """Parse ``argv`` (the process's own by default), do the work, and give the exit status.

    ``work`` gives its status, None meaning 0. What a user can do something about ends it with one line and status 1,
    Ctrl-C with the line ``stopped`` and status 130. An argument ``quiet`` leaves warnings and errors only.
    """
    args = parse(list(sys.argv[1:] if argv is None else argv))
    configure_logging(logging.WARNING if getattr(args, "quiet", False) else level)
    try:
        return work(args) or 0
    except KeyboardInterrupt:
        logger.error(stopped)
        return INTERRUPTED
    except expected_errors() as error:
        logger.error("error: %s", re.sub(r"^\[Errno \d+\] ", "", str(error)))
        return FAILED


def expected_errors() -> tuple[type[Exception], ...]:
    """Those that say in words what is wrong; memory that runs out is one where torch has been imported."""
    torch = sys.modules.get("torch")
    return (OSError, ValueError, ExpectedError, *(() if torch is None else (torch.OutOfMemoryError,)))


def launched_rank() -> int | None:
    """This process's number among those that torchrun started; None where it was started by hand."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def configure_logging(level: int) -> None:
    """To the terminal; of several processes only the first says more than what went wrong."""
    rank = launched_rank()
    form = f"rank {rank}: %(message)s" if rank else "%(message)s"
    logging.basicConfig(level=logging.ERROR if rank else level, format=form, stream=sys.stderr)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)

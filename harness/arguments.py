"""The command line as our entry points read it: dashes or underscores in flags, and a hint for a misspelt one."""

import argparse
import difflib
import re
from collections.abc import Sequence


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse ``argv`` with every flag spelled either way; an unknown one ends the program and names the closest."""
    args, unknown = parser.parse_known_args([with_underscores(argument) for argument in argv])
    if unknown:
        known = re.findall(r"--\w+", parser.format_help())
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; --help lists all flags"
        parser.error(f"unknown argument {unknown[0]}{hint}")
    return args


def with_underscores(argument: str) -> str:
    """``--num-frames=8`` as ``--num_frames=8``; values are left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value

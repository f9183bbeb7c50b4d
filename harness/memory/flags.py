"""Flags for memory (docs/memory.md): what may leave the device, by the configuration's switches, and in how many bits
keys and values are kept.
"""

import argparse
from typing import get_args

from harness.methods import parse_value
from inference.config import SWITCHES, KVDtype


def add_memory_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "memory: what leaves the device while it is not used, and keys in fewer bits (docs/memory.md)"
    )
    values, meaning = ("auto", "true", "false"), "auto: where it does not fit (default: the configuration's)"
    for name in SWITCHES:
        group.add_argument(f"--{name}", choices=values, help=meaning)
    group.add_argument(
        "--kv_dtype",
        choices=get_args(KVDtype),
        help="keys and values are kept in 8 or 4 bits, which changes the video (default: the configuration's)",
    )


def given_switches(args: argparse.Namespace) -> dict[str, bool | str]:
    """Those that were given, by the names of their configuration fields."""
    given = {name: getattr(args, name) for name in (*SWITCHES, "kv_dtype")}
    return {name: parse_value(value) for name, value in given.items() if value is not None}

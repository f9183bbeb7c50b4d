"""Flags for what may leave the device: one for each of the configuration's memory switches (docs/memory.md)."""

import argparse

from harness.methods import parse_value
from inference.config import SWITCHES


def add_memory_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory: what leaves the device while it is not used (docs/memory.md)")
    values, meaning = ("auto", "true", "false"), "auto: where it does not fit (default: the configuration's)"
    for name in SWITCHES:
        group.add_argument(f"--{name}", choices=values, help=meaning)


def given_switches(args: argparse.Namespace) -> dict[str, bool | str]:
    """Those that were given, by the names of their configuration fields."""
    given = {name: getattr(args, name) for name in SWITCHES}
    return {name: parse_value(value) for name, value in given.items() if value is not None}

"""Flags for what may leave the device: one for each of the configuration's memory switches (docs/memory.md)."""

import argparse

from inference.memory_plan import SWITCHES

_VALUES = {"auto": "auto", "true": True, "false": False}


def add_memory_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory: what leaves the device while it is not used (docs/memory.md)")
    for name in SWITCHES:
        group.add_argument(
            f"--{name}", choices=tuple(_VALUES), help="auto: where it does not fit (default: the configuration's)"
        )


def given_switches(args: argparse.Namespace) -> dict[str, bool | str]:
    """Those that were given, by the names of their configuration fields."""
    given = {name: getattr(args, name) for name in SWITCHES}
    return {name: _VALUES[value] for name, value in given.items() if value is not None}

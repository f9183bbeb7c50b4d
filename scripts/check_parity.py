#!/usr/bin/env python
"""Compare this implementation with reference data: python scripts/check_parity.py DIR

Runs every case found in DIR, prints the largest error of each against its tolerance, and exits with 1 on any miss. A
file that no check recognises is a miss too. Where torchrun starts several processes of it, they compute the cases that
are whole runs together, and the first does the rest.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import use_checkout

use_checkout()

import torch

from harness.outputs import check_outputs
from inference.files import read_json, replacing
from inference.parallel.group import ContextParallel
from inference.parallel.launch import meet
from scripts.parity import configs, dit, fp8, kvcompress, sampling, text
from scripts.parity.common import AS_RECORDED, CheckResult, Setup
from scripts.parity.vae import family as vae

MODULES: tuple[ModuleType, ...] = (configs, fp8, text, kvcompress, dit, vae, sampling)
WITHOUT_TENSORS = (configs, text)  # they compute nothing on a device
# The first process of several has more to do than the others, which wait for it.
MINUTES = 30
# Prose beside the data.
IGNORED_SUFFIXES = (".md", ".txt")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="folder with reference data: safetensors files and their indexes")
    parser.add_argument("--verbose", action="store_true", help="one line per compared quantity instead of one per case")
    parser.add_argument("--device", type=torch.device, default=AS_RECORDED.device, help="(default: %(default)s)")
    parser.add_argument(
        "--attention_backend", default=AS_RECORDED.backend, help="of the transformer (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16",),
        help="compute the single forwards of the transformer in this dtype whatever they were recorded in, and nothing "
        "else; the tolerance is that of its roundings",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every result to FILE")
    args = parser.parse_args(argv)
    if not args.directory.is_dir():
        parser.error(f"{args.directory} is not a directory")
    if args.json is not None:
        try:
            check_outputs({args.json: is_ours}, {})
        except (ValueError, OSError) as error:
            parser.error(f"--json: {error}")
    # As on a CPU: the short products of newer GPUs would not reach the tolerances.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with meet("gloo", MINUTES, torch.device("cpu")) as parallel:
        if parallel.is_first:
            return compare(args, parallel)
        for _ in run(sampling, args, parallel):
            pass  # said by the first
    return 0


def compare(args: argparse.Namespace, parallel: ContextParallel) -> int:
    """Run every check and say what came out; gives the exit status."""
    results: list[CheckResult] = []
    began = time.monotonic()
    for module in MODULES if args.dtype is None else (dit,):
        results += show(run(module, args, parallel), args.verbose)
    unrecognised = sorted(find_unrecognised(args.directory)) if args.dtype is None else []
    for name in unrecognised:
        emit(f"MISS  {name}: no check recognises this file")
    misses = [result for result in results if not result.passed]
    if not results:
        emit(f"MISS  nothing to check in {args.directory}")
    if args.json:
        with replacing(args.json) as part:
            part.write_text(json.dumps([vars(result) | {"passed": result.passed} for result in results], indent=1))
    summarise(results, len(misses), len(unrecognised), time.monotonic() - began)
    return 1 if misses or unrecognised or not results else 0


def is_ours(path: Path) -> bool:
    """Whether a file is a list of results."""
    try:
        contents = read_json(path)
    except (OSError, ValueError):
        return False
    wanted = {"family", "case", "quantity", "passed"}
    return isinstance(contents, list) and all(isinstance(one, dict) and wanted <= one.keys() for one in contents)


def run(module: ModuleType, args: argparse.Namespace, parallel: ContextParallel) -> Iterator[CheckResult]:
    """The results of one module; an index that cannot be read is a miss of the family, not the end of the run."""
    setup = Setup(args.device, args.dtype, args.attention_backend)
    try:
        if module is sampling:
            yield from sampling.check(args.directory, parallel, setup)
        else:
            yield from module.check(args.directory, *([] if module in WITHOUT_TENSORS else [setup]))
    except Exception as error:  # noqa: BLE001 - reported as a miss
        family = module.__name__.rsplit(".", 1)[-1]
        yield CheckResult(family, "-", "run", float("inf"), 0, f"{type(error).__name__}: {error}")


def show(results: Iterator[CheckResult], verbose: bool) -> list[CheckResult]:
    """Print results as they come, a case as soon as it is complete; returns all of them."""
    done: list[CheckResult] = []
    case: list[CheckResult] = []
    for result in results:
        done.append(result)
        if verbose or not result.passed:
            emit(line(result))
        if case and (case[0].family, case[0].case) != (result.family, result.case):
            report_case(case, verbose)
            case = []
        case.append(result)
    if case:
        report_case(case, verbose)
    return done


def report_case(results: list[CheckResult], verbose: bool) -> None:
    """One line for a case that passed: the quantity that came closest to its tolerance."""
    if verbose or not all(result.passed for result in results):
        return
    closest = max(results, key=lambda result: result.error / result.tolerance if result.tolerance else result.error)
    emit(f"{line(closest)}  ({len(results)} quantities)")


def line(result: CheckResult) -> str:
    verdict = "ok  " if result.passed else "MISS"
    numbers = (
        f"{result.error:.2e} <= {result.tolerance:.0e}"
        if result.passed
        else f"{result.error:.2e} > {result.tolerance:.0e}"
    )
    note = f"  {result.note}" if result.note else ""
    return f"{verdict}  {result.family}  {result.case}  {result.quantity}  {numbers}{note}"


def find_unrecognised(directory: Path) -> Iterator[str]:
    claims: list[Callable[[str], bool]] = [module.claims for module in MODULES]
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_file() and path.suffix not in IGNORED_SUFFIXES and not any(claim(name) for claim in claims):
            yield name


def summarise(results: list[CheckResult], misses: int, unrecognised: int, seconds: float) -> None:
    families = Counter(result.family for result in results)
    cases = len({(result.family, result.case) for result in results})
    emit(f"families: {', '.join(f'{name} {count}' for name, count in families.items())}")
    emit(
        f"{len(results)} quantities of {cases} cases compared in {seconds:.0f} s: "
        f"{misses} missed, {unrecognised} files unrecognised"
    )


def emit(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

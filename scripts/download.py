#!/usr/bin/env python
"""Fetch published weights: download.py MODEL [MODEL ...]

MODEL is a preset of configs/model, such as 4.5B_distill. Fetched are its transformer, the text encoder and the
autoencoder from the Hugging Face hub, and the special tokens from MAGI-1's code. What is there already is kept, what
was begun is continued at its byte, and sizes and checksums are compared with the hub's. Afterwards
  bash scripts/single_run/flowcache_t2v.sh --config_file configs/model/MODEL.json --prompt "..."
works as it is, as long as the files lie in the checkout's folder `downloads`.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import use_checkout

use_checkout()

from tqdm import tqdm

from harness.arguments import parse
from harness.download import (
    FOLDER,
    REPOSITORY,
    SPECIAL_TOKENS,
    Listing,
    amount,
    expected,
    fetch,
    fetch_special_tokens,
    foreign_remains,
    list_files,
    models,
    needed_paths,
    placed,
    preset,
)
from harness.program import make_parser, run_program
from inference.config import REPOSITORY_ROOT


def main(argv: list[str] | None = None) -> int:
    again = "stopped; the same command goes on"
    return run_program(parse_arguments, download, argv, level=logging.WARNING, stopped=again)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__, "%(prog)s MODEL [MODEL ...] [--dry_run] [--local_dir FOLDER] [...]")
    parser.add_argument("models", nargs="+", choices=models(), metavar="MODEL", help=", ".join(models()))
    parser.add_argument("--dry_run", action="store_true", help="list the files and their sizes, fetch nothing")
    parser.add_argument(
        "--local_dir", help="where the folder MAGI-1 goes (default: downloads in the checkout, as in the presets)"
    )
    parser.add_argument(
        "--revision", default="main", help="branch, tag or commit of the weights (default: %(default)s)"
    )
    parser.add_argument("--endpoint", metavar="URL", help="another hub, such as a mirror")
    parser.add_argument(
        "--special_tokens",
        default=SPECIAL_TOKENS,
        metavar="FILE",
        help="special_tokens.npz, a file or a URL (default: %(default)s)",
    )
    return parse(parser, argv)


def download(args: argparse.Namespace) -> None:
    local = REPOSITORY_ROOT / "downloads" if args.local_dir is None else Path(args.local_dir).expanduser()
    target = local / FOLDER
    needed = {model: needed_paths(model) for model in args.models}
    folders = {str(path) for paths in needed.values() for field, path in paths.items() if field != "special_token_path"}
    try:
        listing = list_files(sorted(folders), args.revision, args.endpoint)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not args.dry_run:
            raise
        describe_without_hub(args.models, target, error)
        return
    describe(listing, target, every_file=args.dry_run)
    if args.dry_run:
        return
    for model, paths in needed.items():  # first, since it is quickly seen whether they can be had
        width = preset(model).model.caption_channels
        fetch_special_tokens(args.special_tokens, target / paths["special_token_path"], width)
    total, left = sum(file.size for file in listing.files), listing.bytes_left(target)
    with tqdm(
        total=total, initial=total - left, unit="B", unit_scale=True, disable=not left, dynamic_ncols=True
    ) as bar:
        fetch(listing, target, args.endpoint, bar.update)
    for model in needed:
        placed(model, target)
        print(f"{model} is complete: --config_file configs/model/{model}.json")
    usual = REPOSITORY_ROOT / "downloads" / FOLDER
    if target.resolve() != usual.resolve():
        print(f"the presets look in ./downloads/{FOLDER}; to have them find it: ln -s {target.resolve()} {usual}")


def describe(listing: Listing, target: Path, every_file: bool) -> None:
    missing = listing.missing(target)
    if every_file:
        for file in listing.files:
            there = listing.received(file, target)
            state = "" if not there else "  (there)" if file not in missing else f"  ({amount(there)} of it there)"
            print(f"{amount(file.size):>12}  {file.path}{state}")
    total = sum(file.size for file in listing.files)
    print(f"{REPOSITORY} at {listing.commit[:12]}: {len(listing.files)} files, {amount(total)}")
    print(f"to be fetched to {target}: {len(missing)} files, {amount(listing.bytes_left(target))}")
    if remains := foreign_remains(target):
        size = sum(file.stat().st_size for file in remains)
        print(
            f"{len(remains)} unfinished files of the hub's own client, {amount(size)}, lie in {target / '.cache'}; "
            "nothing goes on with them, so they may be removed"
        )


def describe_without_hub(models: list[str], target: Path, error: OSError) -> None:
    """What the presets say of sizes, where the hub cannot be asked."""
    sizes = {path: size for model in models for path, size in expected(model).items()}
    for path, size in sizes.items():
        found = [file for file in (target / path, *(target / path).rglob("*")) if file.is_file()]
        there = f"  ({amount(sum(file.stat().st_size for file in found))} there)" if found else ""
        print(f"{amount(size):>12}  {path}{there}")
    print(f"to {target}: about {amount(sum(sizes.values()))} in all, by the presets; {error}")


if __name__ == "__main__":
    sys.exit(main())

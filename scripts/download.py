#!/usr/bin/env python
"""Fetch published weights: download.py MODEL [MODEL ...]

MODEL is a preset of configs/model, such as 4.5B_distill. Fetched are its transformer, the text encoder and the
autoencoder from the Hugging Face hub, and the special tokens from MAGI-1's code. What is there already is kept, what
was begun is continued, and every size is checked. Afterwards
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

from harness.arguments import parse
from harness.download import (
    FOLDER,
    REPOSITORY,
    SPECIAL_TOKENS,
    Listing,
    fetch,
    fetch_special_tokens,
    list_files,
    models,
    needed_paths,
    placed,
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
        "--special_tokens", default=SPECIAL_TOKENS, metavar="URL|FILE", help="special_tokens.npz (default: %(default)s)"
    )
    return parse(parser, argv)


def download(args: argparse.Namespace) -> None:
    local = REPOSITORY_ROOT / "downloads" if args.local_dir is None else Path(args.local_dir).expanduser()
    target = local / FOLDER
    needed = [needed_paths(model) for model in args.models]
    folders = {str(path) for paths in needed for field, path in paths.items() if field != "special_token_path"}
    listing = list_files(sorted(folders), args.revision, args.endpoint)
    describe(listing, target, every_file=args.dry_run)
    if args.dry_run:
        return
    fetch(listing, target, args.endpoint)
    for model, paths in zip(args.models, needed, strict=True):
        config = placed(model, target)
        fetch_special_tokens(args.special_tokens, target / paths["special_token_path"], config.model.caption_channels)
        print(f"{model} is complete: --config_file configs/model/{model}.json")
    usual = REPOSITORY_ROOT / "downloads" / FOLDER
    if target.resolve() != usual.resolve():
        print(f"the presets look in ./downloads/{FOLDER}; to have them find it: ln -s {target.resolve()} {usual}")


def describe(listing: Listing, target: Path, every_file: bool) -> None:
    missing = listing.missing(target)
    if every_file:
        for file in listing.files:
            print(f"{file.size / 1e9:10.3f} GB  {file.path}{'' if file in missing else '  (there)'}")
    total, left = (sum(file.size for file in files) / 1e9 for files in (listing.files, missing))
    print(f"{REPOSITORY} at {listing.commit[:12]}: {len(listing.files)} files, {total:.1f} GB")
    print(f"to be fetched to {target}: {len(missing)} files, {left:.1f} GB")


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Show videos in the browser while they are made, and let them be steered: a page, and an HTTP interface.

Examples:
  serve.py                                          the bundled model on http://127.0.0.1:8000
  serve.py --config_file configs/model/4.5B_distill.json --open
  serve.py --host 0.0.0.0                           for other machines too; the address then has a token

Videos, with what describes each run, are in folders of their own below --folder; a server that is started again finds
them. Ctrl-C ends it.
"""

import argparse
import logging
import secrets
import socket
import sys
import webbrowser
from pathlib import Path
from threading import Timer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bootstrap import use_checkout

use_checkout()

import uvicorn

from harness.arguments import parse
from harness.memory.flags import add_memory_flags, given_switches
from harness.program import make_parser, run_program
from inference.config import load_config
from serving.app import make_app
from serving.guard import LOOPBACK, is_loopback
from serving.studio import Studio

logger = logging.getLogger("serve")

# For streams that are still open when the server ends.
GRACE_SECONDS = 2


def main(argv: list[str] | None = None) -> int:
    return run_program(parse_arguments, serve, argv)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config_file", default="configs/model/nano.json", help="model configuration (default: %(default)s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--token", help="what requests have to bring; made up where other machines can call")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--folder", default="outputs/serve", help="where videos go (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="GPUs that share each video (docs/parallel.md; default: 1)"
    )
    parser.add_argument("--most_waiting", type=int, default=16, metavar="N", help="orders that may wait (default: 16)")
    parser.add_argument("--most_kept", type=int, default=100, metavar="N", help="videos that are kept (default: 100)")
    add_memory_flags(parser)
    return parse(parser, argv)


def serve(args: argparse.Namespace) -> int:
    for name in ("most_waiting", "most_kept", "gpus"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    config = load_config(args.config_file)
    switches = given_switches(args)
    config = config.with_overrides(**switches) if switches else config
    token = args.token or (None if is_loopback(args.host) else secrets.token_urlsafe(24))
    hosts = (*LOOPBACK, args.host) if is_loopback(args.host) else None
    folder = Path(args.folder)
    studio = Studio(config, args.config_file, args.device, folder, args.most_waiting, args.most_kept, args.gpus)
    with listening_socket(args.host, args.port) as listener:
        address = address_of(args.host, listener.getsockname()[1], token)
        logger.info("the page is at %s (Ctrl-C ends the server; videos are in %s)", address, folder)
        if args.open:
            Timer(1, webbrowser.open, [address]).start()
        settings = uvicorn.Config(
            make_app(studio, hosts, token),
            log_level="warning",
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        uvicorn.Server(settings).run([listener])
    return 0


def listening_socket(host: str, port: int) -> socket.socket:
    """Bound already, so that an address that is taken is told before anything is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"cannot listen on {host}, port {port}: {error.strerror}; --port names another"
        ) from error
    return listener


def address_of(host: str, port: int, token: str | None) -> str:
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{shown}:{port}/" + ("" if token is None else f"?token={token}")


if __name__ == "__main__":
    sys.exit(main())

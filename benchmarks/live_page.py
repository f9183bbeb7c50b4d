#!/usr/bin/env python
"""How soon the page shows something, in a real browser: python benchmarks/live_page.py

Starts scripts/serve.py and headless Chromium, orders videos and reports, from the click on: the first picture on the
screen, the first chunk, and the first frame that plays; beside them what a chunk takes. With --screenshot also the
page, wide and narrow, with the uncached video beside the last one. Needs Chromium and `pip install playwright`.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROMPT = "a big red ball bounces up and down in the sky"
# Times in ms since the click, written down by the page itself, so that nothing is missed between two looks.
WATCH = """
window.seen = {};
document.querySelector('#make').addEventListener('click', () => {
  const began = performance.now(), video = document.querySelector('#video');
  const look = () => {
    const now = performance.now() - began;
    const chunks = document.querySelector('#chunks').textContent;
    if (video.poster && !('picture' in window.seen)) window.seen.picture = now;
    if (/^[1-9]/.test(chunks) && !('chunk' in window.seen)) window.seen.chunk = now;
    if (video.currentTime > 0.09 && !('plays' in window.seen)) window.seen.plays = now;
    if (Object.keys(window.seen).length < 3) requestAnimationFrame(look);
  };
  look();
}, true);
"""


@contextmanager
def server(config_file: str) -> Iterator[str]:
    """The address of a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--port", "0", "--folder", folder]
        process = subprocess.Popen([*command, "--config_file", config_file], stderr=subprocess.PIPE, text=True)
        try:
            for line in process.stderr or ():
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    break
            else:
                sys.exit("the server did not start")
        finally:
            process.terminate()
            process.wait(20)


def until(page: Any, condition: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        if time.monotonic() > end:
            sys.exit(f"after {seconds} s still not: {condition}")
        time.sleep(0.05)


def order(page: Any, seconds: float, steps: int, method: str) -> dict[str, float]:
    """One video on a fresh page from the click to its end: seconds to what was seen, and seconds a chunk."""
    page.reload()
    until(page, "document.querySelector('#server').textContent.endsWith(': ready')")
    page.evaluate(WATCH)
    page.fill("#prompt", PROMPT)
    page.fill("#seconds", str(seconds))
    page.fill("#num_steps", str(steps))
    page.select_option("#method", method)
    page.click("#make")
    until(page, "'plays' in window.seen && document.querySelector('#status').textContent === 'done'")
    found = {name: value / 1000 for name, value in page.evaluate("window.seen").items()}
    return found | {"a chunk": 1 / float(page.inner_text("#rate"))}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="configs/model/nano.json", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of video (default: %(default)s)")
    parser.add_argument("--num_steps", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--method", default="flowcache_fast", help="(default: %(default)s)")
    parser.add_argument("--screenshot", type=Path, help="a folder for pictures of the page")
    args = parser.parse_args(argv)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"no browser: one of {', '.join(BROWSERS)} is needed")
    from playwright.sync_api import sync_playwright

    with server(args.config_file) as address, sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1150})
        page.goto(address)
        rounds = [order(page, args.seconds, args.num_steps, args.method) for _ in range(args.rounds)]
        for name, what in (
            ("picture", "first picture"),
            ("chunk", "first chunk"),
            ("plays", "it plays"),
            ("a chunk", "a chunk takes"),
        ):
            values = [found[name] for found in rounds]
            share = statistics.median(found[name] / found["a chunk"] for found in rounds)
            spread = f"{statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})"
            print(f"{what:14s} {spread}, {share:.2f} chunk times")
        if args.screenshot is not None:
            take_pictures(page, args.screenshot)
        browser.close()
    return 0


def take_pictures(page: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    page.click("text=Side by side with the uncached video")
    until(page, "document.querySelectorAll('#likeness circle').length > 5")
    page.evaluate("document.querySelector('#video').currentTime = 2")
    page.screenshot(path=str(folder / "wide.png"))
    page.set_viewport_size({"width": 360, "height": 740})
    page.screenshot(path=str(folder / "narrow.png"), full_page=True)


if __name__ == "__main__":
    sys.exit(main())

"""The page in a real browser: a prompt is typed, the video plays before it is done, is steered, stopped and kept."""

import importlib.util
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.live_server import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or importlib.util.find_spec("playwright") is None,
        reason="THE PAGE IS NOT TESTED: that takes Chromium, and `pip install playwright`",
    ),
]
PROMPT = 'a big red circle moves up <img src=x onerror="document.title=1">'
PATIENCE = 120


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    page, complaints = browser.new_page(viewport={"width": 1280, "height": 1000}), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    page.wait_for_selector("#method option", state="attached")
    yield page
    page.close()
    assert not [text for text in complaints if "400" not in text], complaints


def until(page: Any, condition: str) -> None:
    """Return when the JavaScript ``condition`` holds. The page itself allows no ``eval``, the browser's tools do."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"{condition} does not become true; {page.inner_text('body')}"
        time.sleep(0.05)


def make(page: Any, prompt: str, seconds: str, method: str, steps: str = "16") -> None:
    page.fill("#prompt", prompt)
    page.fill("#seconds", seconds)
    page.select_option("#method", method)
    page.fill("#num_steps", steps)
    page.click("#make")


def test_a_video_plays_while_it_is_made_and_is_steered(page: Any, server: Server) -> None:
    make(page, PROMPT, "60", "flowcache_fast")
    # What is expected of it is shown before it can play.
    until(page, "document.querySelector('#video').poster.startsWith('data:image/webp')")
    assert page.evaluate("document.querySelector('#video').currentTime") == 0
    until(page, "document.querySelector('#video').currentTime > 0.1")
    assert page.inner_text("#status") == "being made"
    assert page.inner_text("#stage-title") == PROMPT and page.title() == "FlowCache live", "it is text, not HTML"
    page.fill("#next", "a small green square moves left")
    page.press("#next", "Enter")
    until(page, "document.querySelectorAll('#prompts li').length === 2")
    assert "a small green square moves left (from chunk" in page.inner_text("#prompts")
    until(page, "document.querySelector('#reused').textContent !== '0 %'")
    until(page, "/[1-9]\\d* advanced from memory/.test(document.querySelector('#map').getAttribute('aria-label'))")
    # After a reload it is on the stage again, and goes on.
    page.reload()
    until(page, "document.querySelector('#video').currentTime > 0.1")
    page.click("#stop")
    until(page, "document.querySelector('#status').textContent.startsWith('stopped;')")
    until(page, "document.querySelectorAll('#links a').length === 3")
    # Beside the uncached one of the same noise and the same prompts.
    page.click("text=Side by side with the uncached video")
    until(page, "document.querySelector('#twin-video').currentTime > 0.1")
    twin = server.json("GET", "/videos")[1]["data"][0]
    assert twin["order"]["method"] == "none" and len(twin["order"]["prompts"]) == 1
    until(page, "document.querySelectorAll('#likeness circle').length > 1")
    assert "dB" in page.inner_text("#likeness-words")
    assert "second 2: " in page.get_attribute("#likeness-curve", "aria-label")
    server.json("POST", f"/videos/{twin['id']}/stop")
    server.wait(twin["id"])


def test_the_gallery(page: Any, server: Server) -> None:
    make(page, "a small blue square stays still", "1", "none", "8")
    until(page, "document.querySelector('#status').textContent === 'done'")
    first = "document.querySelector('#gallery li')"
    until(page, f"{first}.textContent.includes('a small blue square stays still')")
    count = len(server.studio.videos)
    page.fill("#prompt", "something else")
    page.click("#gallery li:first-child >> text=Again with")
    assert page.input_value("#prompt") == "a small blue square stays still" and page.input_value("#num_steps") == "8"
    page.click("#gallery li:first-child >> text=Delete")
    until(page, f"document.querySelectorAll('#gallery li').length === {count - 1}")
    assert len(server.studio.videos) == count - 1


def test_an_upload_that_is_refused(page: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "text.png"))
    make(page, "a ball", "1", "none", "8")
    until(page, "document.querySelector('#refusal').textContent.includes('neither a picture')")


def test_it_fits_a_phone_and_has_words_for_everything(browser: Any, server: Server) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(server.url)
    page.wait_for_selector("#method option", state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).map(e => e.id)"
    )
    assert unnamed == []
    # By keyboard alone, from the prompt to the button.
    page.focus("#prompt")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert {"method", "seconds", "endless", "num_steps", "seed", "file", "make"} <= set(seen)
    page.close()

"""Fetching of large files: killed, interrupted, broken and wrong transfers against a hub of our own."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Thread

import pytest

from harness.download import REPOSITORY, HubFile, Listing, fetch, list_files, transfer
from harness.download.transfer import Checksum, Remote, receive_all
from inference.files import open_locked
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from tests.paths import ROOT
from tests.warm.start import warm_python

LARGE, SMALL = "ckpt/x/large.safetensors", "ckpt/x/small.json"
SIZE = 3 * 2**20 + 5
FETCH = "import sys; from harness.download.transfer import *; from pathlib import Path\n"
FETCH += "receive_all([(Remote(sys.argv[1], int(sys.argv[2]), sys.argv[3]), Path(sys.argv[4]))])"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    root = tmp_path / "hub"
    (root / LARGE).parent.mkdir(parents=True)
    (root / LARGE).write_bytes(os.urandom(SIZE))
    (root / SMALL).write_bytes(b"{}\n")
    with fake_hub(REPOSITORY, root) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def listed(hub: FakeHub) -> Listing:
    return list_files(["ckpt/x"], endpoint=hub.url)


def large(hub: FakeHub) -> Remote:
    listing = listed(hub)
    return listing.remote(next(file for file in listing.files if file.path == LARGE), hub.url)


def begun(hub: FakeHub, target: Path, count: int) -> Path:
    """As a process leaves it that was killed after ``count`` bytes."""
    part = large(hub).part(target / LARGE)
    part.parent.mkdir(parents=True)
    part.write_bytes((hub.root / LARGE).read_bytes()[:count])
    return part


@pytest.mark.slow
def test_a_killed_transfer_goes_on_at_its_byte(hub: FakeHub, target: Path) -> None:
    remote, place = large(hub), target / LARGE
    hub.silent.add(LARGE)
    command = [warm_python(), "-c", FETCH, remote.url, str(remote.size), remote.version, str(place)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as child:
        while remote.received(place) < SIZE // 2:
            assert child.poll() is None
            time.sleep(0.02)
        child.kill()
    hub.silent.clear()
    fetch(listed(hub), target, hub.url)
    assert [first for name, first in hub.fetched if name == LARGE] == [0, SIZE // 2]
    assert place.read_bytes() == (hub.root / LARGE).read_bytes()
    assert sorted(os.listdir(place.parent)) == ["large.safetensors", "small.json"]


def test_ctrl_c_does_not_wait_for_a_silent_server(hub: FakeHub, target: Path) -> None:
    hub.silent.add(LARGE)
    remote, received = large(hub), Event()

    def press() -> None:
        received.wait()
        signal.raise_signal(signal.SIGINT)

    def count(size: int) -> None:
        if remote.received(target / LARGE) == SIZE // 2:
            received.set()

    # A shell starts what runs in its background with the signal ignored, these tests among it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Thread(target=press).start()
        with pytest.raises(KeyboardInterrupt):
            receive_all([(remote, target / LARGE)], count)
    finally:
        signal.signal(signal.SIGINT, before)
    waiting = [thread for thread in threading.enumerate() if thread.name == "download"]
    assert waiting and all(thread.daemon for thread in waiting), "the process would wait for them at its end"
    assert remote.received(target / LARGE) == SIZE // 2


def test_what_is_received_is_counted(hub: FakeHub, target: Path) -> None:
    begun(hub, target, 1000)
    counts: list[int] = []
    assert listed(hub).bytes_left(target) == SIZE + 3 - 1000
    fetch(listed(hub), target, hub.url, counts.append)
    assert sum(counts) == SIZE + 3 - 1000 and listed(hub).bytes_left(target) == 0


@pytest.mark.parametrize("free", [SIZE + 3 - 1000, SIZE + 3 - 1001])
def test_room_is_needed_for_what_is_missing(
    hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    begun(hub, target, 1000)
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda place: real(place)._replace(free=free))
    if free == SIZE + 3 - 1000:
        fetch(listed(hub), target, hub.url)
    else:
        with pytest.raises(OSError, match=r"3\.14 MB are still to be fetched, but .* has 3\.14 MB free: 1 bytes too"):
            fetch(listed(hub), target, hub.url)
        assert not hub.fetched


def test_a_broken_connection_is_followed_by_another(hub: FakeHub, target: Path) -> None:
    hub.cut.add(LARGE)
    fetch(listed(hub), target, hub.url)
    assert [first for name, first in hub.fetched if name == LARGE] == [0, SIZE - 10]
    assert (target / LARGE).read_bytes() == (hub.root / LARGE).read_bytes()


def test_a_server_without_ranges_begins_anew(hub: FakeHub, target: Path) -> None:
    begun(hub, target, 1000)
    hub.whole.add(LARGE)
    counts: list[int] = []
    fetch(listed(hub), target, hub.url, counts.append)
    assert (target / LARGE).read_bytes() == (hub.root / LARGE).read_bytes()
    assert sum(counts) == SIZE + 3 - 1000


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(hub: FakeHub, target: Path) -> None:
    hub.answers[LARGE] = [503]
    fetch(listed(hub), target, hub.url)
    hub.answers[SMALL] = [403, 403]
    (target / SMALL).unlink()
    with pytest.raises(OSError, match="403"):
        fetch(listed(hub), target, hub.url)
    assert hub.answers[SMALL] == [403]


def test_a_server_that_gives_nothing_is_given_up(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TRIES", 1)
    begun(hub, target, 1000)
    hub.answers[LARGE] = [500]
    with pytest.raises(
        OSError, match=rf"large.safetensors: stopped at byte 1000 of {SIZE} \(the server answered 500\)"
    ):
        fetch(listed(hub), target, hub.url)


@pytest.mark.parametrize("path", [LARGE, SMALL])
def test_other_contents_than_the_hub_says_are_removed(hub: FakeHub, target: Path, path: str) -> None:
    listing = listed(hub)
    assert {file.checksum.kind for file in listing.files} == {"sha256", "git"}
    contents = bytearray((hub.root / path).read_bytes())
    contents[0] ^= 1
    (hub.root / path).write_bytes(contents)
    with pytest.raises(OSError, match=f"{Path(path).name} arrived with other contents .* and was removed"):
        fetch(listing, target, hub.url)
    assert not list(target.rglob(f"{Path(path).name}*"))


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_another_size_than_was_said(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(transfer, "TRIES", 1)
    wrong = Listing(COMMIT, (HubFile(LARGE, size),))
    with pytest.raises(OSError, match=f"is longer than its {size} bytes|stopped at byte {SIZE} of {size}"):
        fetch(wrong, target, hub.url)
    assert not (target / LARGE).exists()


@pytest.mark.parametrize("in_use", [False, True])
def test_what_was_begun_of_other_contents_is_not_continued(hub: FakeHub, target: Path, in_use: bool) -> None:
    other = Remote("", SIZE, "f" * 64, Checksum("sha256", "f" * 64)).part(target / LARGE)
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(1000))
    with open_locked(other, "") if in_use else nullcontext():
        fetch(listed(hub), target, hub.url)
    assert (target / LARGE).read_bytes() == (hub.root / LARGE).read_bytes() and other.exists() == in_use


def test_two_transfers_of_one_file_do_not_mix(hub: FakeHub, target: Path) -> None:
    part = begun(hub, target, 1000)
    with (
        open_locked(part, ""),
        pytest.raises(BlockingIOError, match=r"another download is fetching .*large.safetensors"),
    ):
        receive_all([(large(hub), target / LARGE)])
    assert part.stat().st_size == 1000 and not hub.fetched


def test_a_full_disk_keeps_what_was_received(hub: FakeHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, piece: bytes) -> None:
        raise OSError(28, "No space left on device")

    part = begun(hub, target, 1000)
    monkeypatch.setattr(transfer, "_write", full)
    with pytest.raises(OSError, match="No space left on device"):
        receive_all([(large(hub), target / LARGE)])
    assert part.stat().st_size == 1000 and len(hub.fetched) == 1

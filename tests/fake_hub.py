"""A Hugging Face hub on this machine that has one repository: enough of the protocol for listing and fetching."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """``root`` holds the repository's files. ``fetched``: path and first byte of every file that was sent.

    A path in ``cut`` is sent but for its last bytes, once: then the connection breaks. Of one in ``silent`` half is
    sent, and then nothing. Of one in ``whole`` everything is sent, whatever is asked for. ``answers``: what is answered
    in place of a path, one after the other.
    """

    repository: str
    root: Path
    url: str = ""
    fetched: list[tuple[str, int]] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    answers: dict[str, list[int]] = field(default_factory=dict)
    closed: Event = field(default_factory=Event)

    def tree(self, folder: str) -> list[dict[str, object]] | None:
        """Entries below ``folder`` as the hub lists them; None where there is no such folder."""
        if not (self.root / folder).is_dir():
            return None
        files = [path for path in sorted((self.root / folder).rglob("*")) if path.is_file()]
        return [self.entry(path) for path in files]

    def entry(self, path: Path) -> dict[str, object]:
        """A file as the hub lists it; weights are stored large (LFS), everything else in git itself."""
        body = path.read_bytes()
        size, name = len(body), str(path.relative_to(self.root))
        found = {"type": "file", "path": name, "size": size}
        if path.suffix == ".safetensors":
            large = {"oid": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 130}
            return found | {"oid": digest(path), "lfs": large}
        return found | {"oid": hashlib.sha1(f"blob {size}\0".encode() + body).hexdigest()}


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def fake_hub(repository: str, root: Path) -> Iterator[FakeHub]:
    """The hub at ``url`` for as long as the block lasts."""
    hub = FakeHub(repository, root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, hub)

        def do_HEAD(self) -> None:
            answer(self, hub)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, hub: FakeHub) -> None:
    path = unquote(request.path.partition("?")[0])
    api, files = f"/api/models/{hub.repository}", f"/{hub.repository}/resolve/{COMMIT}/"
    if path == f"{api}/revision/main":
        send_json(request, {"id": hub.repository, "sha": COMMIT, "siblings": []})
    elif path.startswith(f"{api}/tree/{COMMIT}"):
        entries = hub.tree(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/"))
        send_json(request, entries) if entries is not None else send_missing(request, "EntryNotFound")
    elif path.startswith(files) and (hub.root / path.removeprefix(files)).is_file():
        send_file(request, hub, path.removeprefix(files))
    else:
        send_missing(request, "RevisionNotFound" if "/revision/" in path else "EntryNotFound")


def send_json(request: BaseHTTPRequestHandler, contents: object) -> None:
    body = json.dumps(contents).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def send_missing(request: BaseHTTPRequestHandler, code: str) -> None:
    request.send_response(404)
    request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()


def send_file(request: BaseHTTPRequestHandler, hub: FakeHub, name: str) -> None:
    """The file from the first byte that is asked for; all of it after a request without a range."""
    if hub.answers.get(name):
        request.send_response(hub.answers[name].pop(0))
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    body = (hub.root / name).read_bytes()
    asked = re.match(r"bytes=(\d+)-", request.headers.get("Range", "")) if name not in hub.whole else None
    first = int(asked.group(1)) if asked else 0
    request.send_response(206 if asked else 200)
    request.send_header("ETag", f'"{digest(hub.root / name)}"')
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("Content-Length", str(len(body) - first))
    request.end_headers()
    if request.command == "HEAD":
        return
    hub.fetched.append((name, first))
    if name in hub.cut:
        hub.cut.remove(name)
        request.wfile.write(body[first:-10])
        request.close_connection = True
    elif name in hub.silent:
        request.wfile.write(body[first : len(body) // 2])
        hub.closed.wait()
        request.close_connection = True
    else:
        request.wfile.write(body[first:])

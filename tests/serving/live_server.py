"""A server of ours in a thread, with a worker of its own, and calls to it."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from inference.config import load_config
from serving.app import make_app
from serving.guard import LOOPBACK
from serving.orders import ENDED
from serving.studio import Studio
from tests.paths import CONFIGS

NANO = str(CONFIGS / "nano.json")
PATIENCE = 120


@dataclass
class Server:
    studio: Studio
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body, headers or {})
        return connection, connection.getresponse()

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection, answer = self.open(method, path, body, headers)
        contents = answer.read()
        connection.close()
        return answer.status, contents

    def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        status, contents = self.call(method, path, data, {"content-type": "application/json"})
        return status, json.loads(contents)

    def order(self, **fields: Any) -> dict[str, Any]:
        """Queue a short video; returns its state."""
        order = {"prompt": "a big red circle moves up", "seconds": 2, "num_steps": 8, "method": "none"} | fields
        status, video = self.json("POST", "/videos", order)
        assert status == 201, video
        return video

    def wait(self, name: str, *states: str) -> dict[str, Any]:
        """The video, once it is in one of ``states``, or has ended."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            video = self.json("GET", f"/videos/{name}")[1]
            if video["status"] in (states or ENDED):
                return video
            time.sleep(0.05)
        raise AssertionError(f"{name} is still {video['status']}")

    def until(self, name: str, field: str) -> None:
        """Return when ``field`` of the video is no longer empty or 0."""
        end = time.monotonic() + PATIENCE
        while not self.json("GET", f"/videos/{name}")[1][field]:
            assert time.monotonic() < end, f"{field} of {name} stays empty"
            time.sleep(0.02)

    def events(self, name: str, last: int | None = None) -> list[dict[str, Any]]:
        """All events until the video ends."""
        headers = {} if last is None else {"last-event-id": str(last)}
        _, contents = self.call("GET", f"/videos/{name}/events", headers=headers)
        return [json.loads(line[6:]) for line in contents.decode().splitlines() if line.startswith("data: ")]


@contextmanager
def serving(folder: Path, config_file: str = NANO, **limits: int) -> Iterator[Server]:
    studio = Studio(load_config(config_file), config_file, "cpu", folder, **limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            make_app(studio, LOOPBACK), log_level="warning", ws="none", lifespan="on", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            found = Server(studio, listener.getsockname()[1])
            end = time.monotonic() + PATIENCE
            while found.studio.worker_state == "starting" and time.monotonic() < end:
                time.sleep(0.05)
            yield found
        finally:
            server.should_exit = True
            thread.join()

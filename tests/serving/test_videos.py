"""Videos by the HTTP interface: made by a real worker, watched while they are, steered, and kept."""

import io
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import av
import pytest

from tests.loading import load_script
from tests.paths import ROOT
from tests.serving.live_server import NANO, Server, serving

pytestmark = pytest.mark.slow

IMAGE = ROOT / "example/assets/image.png"
FORM = "multipart/form-data; boundary=edge"


def form(fields: dict[str, str], upload: bytes | None = None, name: str = "input_reference") -> bytes:
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
    ]
    body = "".join(parts).encode()
    if upload is not None:
        body += f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="../../x"\r\n\r\n'.encode()
        body += upload + b"\r\n"
    return body + b"--edge--\r\n"


def test_the_video_is_that_of_the_command_line(server: Server, tmp_path: Path) -> None:
    video = server.order(method="flowcache_fast", num_steps=16, seed=5)
    assert (video["object"], video["progress"]) == ("video", 0)
    done = server.wait(video["id"])
    assert (done["status"], done["progress"], done["chunks_done"], done["has_file"]) == ("completed", 100, 2, True)
    target = tmp_path / "same.mp4"
    flags = ["--prompt", video["order"]["prompt"], "--num_frames", "48", "--num_steps", "16", "--seed", "5", "--quiet"]
    script = load_script("generate")
    assert script.main([*flags, "--method", "flowcache_fast", "--device", "cpu", "--output_path", str(target)]) == 0
    assert server.call("GET", f"/videos/{video['id']}/content")[1] == target.read_bytes()
    sidecar = server.json("GET", f"/videos/{video['id']}/sidecar")[1]
    assert sidecar["seed"]["base"] == 5 and sidecar["method"]["source"].endswith("flowcache_fast.yaml")
    assert server.call("GET", f"/videos/{video['id']}/reuse_map")[1].startswith(b"\x89PNG")


def test_it_is_watched_while_it_is_made(server: Server) -> None:
    video = server.order(seconds=6, num_steps=16)
    connection, answer = server.open("GET", f"/videos/{video['id']}/stream")
    first = answer.read1(2**20)
    state = server.json("GET", f"/videos/{video['id']}")[1]
    assert first[4:8] == b"ftyp" and state["status"] == "in_progress", "it came before the video was done"
    received = first + answer.read()
    connection.close()
    assert received.count(b"moof") == 6
    assert count_frames(received) == 144
    events = server.events(video["id"])
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["in_progress", "begun"] and kinds[-1] == "completed" and kinds.count("chunk") == 6
    steps = [event for event in events if event["type"] == "step"]
    assert [step["number"] for step in steps] == list(range(len(steps)))
    assert sum(len(step["computed"]) for step in steps) == 6 * 16 == steps[-1]["cost"]["computed"]
    # A connection that broke goes on where it was.
    assert server.events(video["id"], last=len(events) - 3) == events[-2:]


def count_frames(contents: bytes) -> int:
    with av.open(io.BytesIO(contents)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_it_is_steered_and_stopped(server: Server) -> None:
    video = server.order(seconds=None, num_steps=8, method="multistep_fast")
    server.wait(video["id"], "in_progress")
    assert server.json("POST", f"/videos/{video['id']}/prompt", {"prompt": "a small green square"})[0] == 202
    server.until(video["id"], "wished")
    assert server.json("POST", f"/videos/{video['id']}/stop")[0] == 202
    done = server.wait(video["id"])
    assert done["status"] == "stopped" and done["has_file"] and done["chunks_done"] >= 1
    (wish,) = done["wished"]
    prompts = server.json("GET", f"/videos/{video['id']}/sidecar")[1]["prompts"]
    assert [each["prompt"] for each in prompts] == [video["order"]["prompt"], "a small green square"]
    assert prompts[1]["chunk"] == wish["chunk"]
    status, refused = server.json("POST", f"/videos/{video['id']}/prompt", {"prompt": "a ball"})
    assert status == 400 and "its prompt can be changed while it is made" in refused["error"]["message"]
    # The uncached twin has the prompts that were wished for.
    status, twin = server.json("POST", f"/videos/{video['id']}/again", {"method": "none", "seconds": 30})
    assert status == 201 and twin["order"]["prompts"] == [wish] and twin["order"]["method"] == "none"
    assert server.json("POST", f"/videos/{twin['id']}/stop")[0] == 202
    server.wait(twin["id"])


def test_a_picture_is_continued(server: Server) -> None:
    fields = {"prompt": "a big red circle moves up", "seconds": "1", "num_steps": "8"}
    status, contents = server.call("POST", "/videos", form(fields, IMAGE.read_bytes()), {"content-type": FORM})
    assert status == 201, contents
    name = contents.decode().split('"id":"')[1].split('"')[0]
    done = server.wait(name)
    assert (done["status"], done["input"]) == ("completed", "image")
    assert server.json("GET", f"/videos/{name}/sidecar")[1]["prefix_frames"] == 1
    broken = IMAGE.read_bytes()[:40]
    status, contents = server.call("POST", "/videos", form(fields, broken), {"content-type": FORM})
    done = server.wait(contents.decode().split('"id":"')[1].split('"')[0])
    assert done["status"] == "failed" and "no picture that can be read" in done["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"[" * 100_000, "application/json", "neither JSON nor a form"),
        (b"[]", "application/json", "an order is a JSON object"),
        (b"{}", "application/json", "prompt: Field required"),
        (b'{"prompt": "a", "method": "none", "target_psnr": 3}', "application/json", "exclude each other"),
        (b'{"prompt": "a", "num_steps": 7}', "application/json", "num_steps 7"),
        (form({"prompt": "a"}, b"#!/bin/sh"), FORM, "neither a picture"),
        (form({"prompt": "a", "seconds": "soon"}), FORM, "seconds"),
    ],
)
def test_orders_that_are_refused(server: Server, body: bytes, kind: str, message: str) -> None:
    before = len(server.studio.videos)
    status, contents = server.call("POST", "/videos", body, {"content-type": kind})
    assert status == 400 and message in contents.decode() and len(server.studio.videos) == before


@pytest.mark.parametrize(
    "path",
    [
        "/videos/..%2f..%2fetc%2fpasswd/content",
        "/videos/%2e%2e/content",
        "/page/../../scripts/serve.py",
        "/page/%2e%2e/app.py",
    ],
)
def test_no_path_leads_to_other_files(server: Server, path: str) -> None:
    status, contents = server.call("GET", path)
    assert status in (404, 422) and b"root:" not in contents and b"import" not in contents


def test_requests_of_other_pages_and_huge_ones(server: Server) -> None:
    order = b'{"prompt": "a ball"}'
    headers = {"content-type": "application/json"}
    for strange in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        assert server.call("POST", "/videos", order, headers | strange)[0] in (403, 421)
    connection, answer = server.open("POST", "/videos", b"", headers | {"content-length": str(2**40)})
    assert answer.status == 413
    connection.close()


def test_many_watch_and_some_go_away(server: Server) -> None:
    video = server.order(seconds=4)
    path = f"/videos/{video['id']}/stream"
    received: dict[int, bytes] = {}

    def watch(number: int) -> None:
        connection, answer = server.open("GET", path)
        if number % 5 == 4:  # a closed tab
            answer.read1(100)
            connection.close()
            return
        received[number] = answer.read()
        connection.close()

    watchers = [threading.Thread(target=watch, args=(number,)) for number in range(50)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join()
    assert server.wait(video["id"])["status"] == "completed"
    assert len(received) == 40 and all(count_frames(contents) == 96 for contents in set(received.values()))


def test_a_killed_worker_ends_its_video_and_no_other(server: Server) -> None:
    video, following = server.order(seconds=60), server.order(seconds=1)
    server.wait(video["id"], "in_progress")
    server.until(video["id"], "chunks_done")
    process: Any = server.studio._worker.first
    os.kill(process.pid, signal.SIGKILL)
    done = server.wait(video["id"])
    assert done["status"] == "failed" and "ended with signal 9" in done["error"]["message"]
    assert server.events(video["id"])[-1]["type"] == "failed"
    assert server.wait(following["id"])["status"] == "completed"


def test_the_queue_has_an_end_and_a_restart_finds_what_was_made(tmp_path: Path) -> None:
    with serving(tmp_path, most_waiting=2, most_kept=3) as server:
        done = server.order(seconds=1)
        server.wait(done["id"])
        running, waiting, last = server.order(seconds=60), server.order(), server.order()
        server.wait(running["id"], "in_progress")
        assert server.json("GET", f"/videos/{last['id']}")[1]["position"] == 2
        status, refused = server.json("POST", "/videos", {"prompt": "a ball"})
        assert status == 429 and "2 videos wait already" in refused["error"]["message"]
        assert server.json("DELETE", f"/videos/{running['id']}")[0] == 400
        assert server.json("POST", f"/videos/{waiting['id']}/stop")[1]["status"] == "stopped"
        assert server.json("DELETE", f"/videos/{waiting['id']}")[0] == 200
        assert server.json("GET", f"/videos/{waiting['id']}")[0] == 404
        # Four are more than are kept: the oldest that has ended is gone.
        assert server.json("GET", f"/videos/{done['id']}")[0] == 404
    with serving(tmp_path) as server:
        states = {video["id"]: video for video in server.json("GET", "/videos")[1]["data"]}
        assert set(states) == {running["id"], last["id"]}
        assert all(video["status"] == "failed" for video in states.values())
        assert "the server was stopped" in states[last["id"]]["error"]["message"]
        again = server.order(seconds=1)
        assert server.wait(again["id"])["status"] == "completed"


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    config = json.loads(Path(NANO).read_text(encoding="utf-8"))
    config["runtime_config"]["load"] = str(tmp_path / "nothing")
    (tmp_path / "missing.json").write_text(json.dumps(config), encoding="utf-8")
    with serving(tmp_path / "videos", config_file=str(tmp_path / "missing.json")) as server:
        assert server.studio.worker_state.startswith("broken: ") and "nothing" in server.studio.worker_state
        status, refused = server.json("POST", "/videos", {"prompt": "a ball"})
        assert status == 503 and "the models cannot be loaded" in refused["error"]["message"]

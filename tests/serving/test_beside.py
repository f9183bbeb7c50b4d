"""What is expected of a video before its first chunk, how like its uncached twin is, a full disk, many who order."""

import base64
import io
import json
import resource
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.run.video_maker import VideoMaker
from metrics.similarity.measures import psnr, squared_errors
from tests.serving.live_server import NANO, Server, serving
from tests.serving.test_videos import FORM, form

pytestmark = pytest.mark.slow


def test_a_picture_comes_before_the_first_chunk(server: Server) -> None:
    video = server.order(seconds=2, num_steps=16)
    server.wait(video["id"])
    events = server.events(video["id"])
    kinds = [event["type"] for event in events]
    assert kinds.index("preview") < kinds.index("step") < kinds.index("chunk")
    previews = [event for event in events if event["type"] == "preview"]
    assert previews[0]["level"] == 0 and 4 <= len(previews) <= 9
    kind, _, data = previews[-1]["picture"].partition(",")
    assert kind == "data:image/webp;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), np.float64)
    first = next(iter(VideoMaker.load(NANO, "cpu").video(video["order"]["prompt"], seconds=2, num_steps=16))).frames[0]
    # Of the last steps, and stored with loss: nearly the frame that comes.
    assert shown.shape == (64, 64, 3) and np.abs(shown - first.numpy()).mean() < 6


def test_the_uncached_twin_is_compared_second_by_second(server: Server) -> None:
    order = {"seconds": 3, "num_steps": 16, "seed": 3}
    video = server.order(method="flowcache_fast", **order)
    assert server.wait(video["id"])["likeness"] == []
    status, twin = server.json("POST", f"/videos/{video['id']}/again", {"method": "none"})
    assert status == 201 and twin["beside"] == video["id"]
    done = server.wait(twin["id"])
    maker = VideoMaker.load(NANO, "cpu")
    frames = [
        [chunk.frames for chunk in maker.video(video["order"]["prompt"], method=method, **order)]
        for method in ("flowcache_fast", "none")
    ]
    expected = [psnr(float(np.mean(squared_errors(*pair)))) for pair in zip(*frames, strict=True)]
    assert done["likeness"] == pytest.approx(expected, abs=0.006)
    told = [event["psnr"] for event in server.events(twin["id"]) if event["type"] == "likeness"]
    assert told == done["likeness"]
    # The same once more is the same; what has another seed is not compared.
    same = server.json("POST", f"/videos/{twin['id']}/again", {"method": "none"})[1]
    other = server.json("POST", f"/videos/{twin['id']}/again", {"method": "none", "seed": 4, "seconds": 1})[1]
    assert server.wait(same["id"])["likeness"] == [None] * 3
    assert other["beside"] is None and server.wait(other["id"])["likeness"] == []


def test_the_twin_of_a_stopped_video_ends_with_it(server: Server) -> None:
    video = server.order(seconds=60, num_steps=8, method="multistep_fast")
    server.until(video["id"], "chunks_done")
    server.json("POST", f"/videos/{video['id']}/stop")
    chunks = server.wait(video["id"])["chunks_done"]
    twin = server.json("POST", f"/videos/{video['id']}/again", {"method": "none"})[1]
    done = server.wait(twin["id"])
    assert done["status"] == "completed" and len(done["likeness"]) == chunks <= done["chunks_done"] <= chunks + 1


def test_a_full_disk_ends_the_video_and_keeps_what_is_finished(server: Server) -> None:
    process: Any = server.studio._worker.first
    video = server.order(seconds=None, num_steps=8)
    server.until(video["id"], "chunks_done")
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    written = server.studio.videos[video["id"]].folder.stat().st_size
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000 + written, most))
    done = server.wait(video["id"])
    assert done["status"] == "failed" and "the disk is full" in done["error"]["message"]
    assert done["has_file"] and done["chunks_done"] >= 1
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
    assert server.wait(server.order(seconds=1)["id"])["status"] == "completed"
    assert process is server.studio._worker.first, "the worker lives on"


def test_twenty_who_order_at_once(server: Server) -> None:
    answers: list[tuple[int, Any]] = []

    def order() -> None:
        fields = {"prompt": "a small blue square stays still", "seconds": 0.5, "num_steps": 4, "method": "none"}
        answers.append(server.json("POST", "/videos", fields))

    clients = [threading.Thread(target=order) for _ in range(20)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    taken = [video["id"] for status, video in answers if status == 201]
    refused = [error["error"]["message"] for status, error in answers if status == 429]
    assert len(answers) == 20 and len(taken) + len(refused) == 20 and len(taken) > server.studio.most_waiting
    assert all("16 videos wait already" in message for message in refused)
    assert {server.wait(name)["status"] for name in taken} == {"completed"}
    contents = {server.call("GET", f"/videos/{name}/content")[1] for name in taken}
    assert len(contents) == 1, "each is the same video"


def test_what_is_kept_for_comparing_gives_the_same_frames(tmp_path_factory: pytest.TempPathFactory) -> None:
    from serving.likeness import keep_latents, kept_chunks, kept_latents, likeness

    folder = tmp_path_factory.mktemp("kept") / "latents"
    video = VideoMaker.load(NANO, "cpu").video("a big red circle moves up", seconds=1.5, num_steps=8)
    for chunk in video:
        keep_latents(folder, chunk)
        kept = kept_latents(folder, chunk.number)
        assert likeness(kept, chunk, video.pipeline.vae) is None
        changed = chunk.frames.clone()
        changed[0, 0, 0, 0] ^= 1
        assert likeness(kept, type(chunk)(chunk.number, changed, chunk.latents), video.pipeline.vae) > 60
    assert kept_latents(folder, 2) is None and kept_chunks(folder) == 2 and len(chunk.frames) == 12
    assert torch.equal(video.pipeline.vae.decode_chunk(chunk.latents)[:12], chunk.frames)


def test_two_processes_make_a_video_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("ranks"), ranks=2) as server:
        assert server.studio.worker_state == "ready"
        video = server.order(method="flowcache_fast", seconds=3)
        server.wait(video["id"], "in_progress")
        server.json("POST", f"/videos/{video['id']}/prompt", {"prompt": "a small green square moves left"})
        done = server.wait(video["id"])
        assert done["status"] == "completed", done
        sidecar = server.json("GET", f"/videos/{video['id']}/sidecar")[1]
        assert sidecar["ranks"]["count"] == 2
        twin = server.json("POST", f"/videos/{video['id']}/again", {"method": "none"})[1]
        assert len(server.wait(twin["id"])["likeness"]) == 3
        # What cannot be begun leaves both processes alive; where one is lost, both start anew.
        before = server.studio._worker
        fields = {"prompt": "a ball", "seconds": "1", "num_steps": "8"}
        refused = server.call("POST", "/videos", form(fields, b"\x89PNG nothing"), {"content-type": FORM})[1]
        assert server.wait(json.loads(refused)["id"])["status"] == "failed"
        assert server.wait(server.order(seconds=1)["id"])["status"] == "completed" and server.studio._worker is before
        lost = server.order(seconds=None)
        server.until(lost["id"], "chunks_done")
        before.processes[1].kill()
        failed = server.wait(lost["id"])
        assert failed["status"] == "failed" and failed["has_file"], failed
        assert server.wait(server.order(seconds=1)["id"])["status"] == "completed"
        assert server.studio._worker is not before and not any(process.is_alive() for process in before.processes)

"""The server's side of the work: a queue with a bound, the videos and what is known of them, the worker process.

All of it runs in the event loop; the worker's pipe is read by a thread. Videos lie in folders of their own below one
folder, so a server that is started again finds them.
"""

import asyncio
import json
import logging
import secrets
import shutil
import time
from collections import deque
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

from inference.config import MagiConfig
from inference.errors import ExpectedError
from inference.files import replacing
from serving.orders import ENDED, Input, LaterPrompt, Video, VideoOrder
from serving.spawning import SECONDS_TO_TELL, Worker, spawn_worker
from serving.wishes import Task, Wish

logger = logging.getLogger(__name__)

ORDER = "order.json"
MOST_EVENTS = 20_000
# Of those that are kept after so many: a long video's last steps.
EVENTS_KEPT = 10_000


class QueueFullError(ExpectedError):
    """As many videos wait as may."""


class NoModelsError(ExpectedError):
    """The models cannot be loaded."""


class Studio:
    """Makes videos one after another.

    Args:
        config: what is loaded; ``config_file`` names it.
        folder: where videos go.
        most_waiting: orders that may wait.
        most_kept: videos that are kept; older ones that have ended go first.
        ranks: processes that make a video together, each on a GPU of its own.
    """

    def __init__(
        self,
        config: MagiConfig,
        config_file: str,
        device: str,
        folder: Path,
        most_waiting: int = 16,
        most_kept: int = 100,
        ranks: int = 1,
    ) -> None:
        self.config, self.config_file, self.device, self.folder = config, config_file, device, folder
        self.most_waiting, self.most_kept, self.ranks = most_waiting, most_kept, ranks
        self.videos: dict[str, Video] = {}
        self.worker_state = "starting"
        self._waiting: deque[str] = deque()
        self._current: str | None = None
        self._changed: dict[str, asyncio.Event] = {}
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    async def start(self) -> None:
        """Find the videos that are there, and start the worker."""
        self._loop = asyncio.get_running_loop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._find_videos()
        self._start_worker()

    async def close(self) -> None:
        """End the worker; what is being made stays as far as it is."""
        self._closing = True
        if self._worker is not None:
            await asyncio.to_thread(self._worker.end, 10)
            self._worker.pipe.close()

    def submit(
        self,
        order: VideoOrder,
        upload: bytes | None = None,
        given: Input | None = None,
        beside: str | None = None,
    ) -> Video:
        """Queue a video, to be compared with that of the id ``beside``. QueueFullError where too many wait,
        NoModelsError where none can be made, ValueError where this one cannot.
        """
        if self.worker_state.startswith("broken"):
            raise NoModelsError(f"the models cannot be loaded: {self.worker_state.removeprefix('broken: ')}")
        order.resolve(self.config, self.config_file, given)
        if len(self._waiting) >= self.most_waiting:
            raise QueueFullError(f"{len(self._waiting)} videos wait already; try again when some are done")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        video = Video(name, order, int(time.time()), self.folder / name, given, beside=beside)
        video.folder.mkdir()
        if upload is not None:
            video.input_path.write_bytes(upload)
        self.videos[name], self._changed[name] = video, asyncio.Event()
        self._save(video)
        self._waiting.append(name)
        self._make_room()
        self._next()
        return video

    def again(self, video: Video, changes: dict[str, Any]) -> Video:
        """Queue it once more, with some fields of its order replaced; how it is cached only as a whole. Where that is
        all that differs, the two are compared while it is made.
        """
        fields = video.order.model_dump()
        if {"method", "target_psnr", "target_speedup"} & changes.keys():
            fields |= dict.fromkeys(("method", "target_psnr", "target_speedup"))
        # What viewers wished for belongs to it.
        first = video.wished[0].chunk if video.wished else None
        planned = [later for later in video.order.prompts if first is None or later.chunk < first]
        fields["prompts"] = [later.model_dump() for later in (*planned, *video.wished)]
        upload = video.input_path.read_bytes() if video.given is not None else None
        same_noise = changes.keys() <= {"method", "target_psnr", "target_speedup"}
        beside = video.id if same_noise and video.latents.is_dir() else None
        return self.submit(VideoOrder.model_validate(fields | changes), upload, video.given, beside)

    def set_prompt(self, video: Video, prompt: str) -> None:
        """From the next chunk that enters on; ValueError where the video is not being made."""
        VideoOrder(prompt=prompt)
        if video.id != self._current or self._worker is None:
            raise ValueError(f"the video is {video.status}: its prompt can be changed while it is made")
        self._worker.pipe.send(Wish(video.id, prompt=prompt))

    def stop(self, video: Video) -> None:
        """End it: chunks under way are finished. One that waits is not begun."""
        if video.id in self._waiting:
            self._waiting.remove(video.id)
            self._end(video, "stopped", None)
        elif video.id == self._current and self._worker is not None:
            self._worker.pipe.send(Wish(video.id, end=True))

    def delete(self, video: Video) -> None:
        """Forget it and remove its files; ValueError while it is made."""
        if video.id == self._current:
            raise ValueError("the video is being made; stop it first")
        if video.id in self._waiting:
            self._waiting.remove(video.id)
        del self.videos[video.id]
        self._notify(video.id)
        del self._changed[video.id]
        shutil.rmtree(video.folder, ignore_errors=True)

    def position(self, video: Video) -> int | None:
        """How many videos come before it."""
        if video.id not in self._waiting:
            return None
        return list(self._waiting).index(video.id) + (self._current is not None)

    async def wait_for_change(self, video: Video, seconds: float) -> bool:
        """Until something happens to the video, or for ``seconds``; whether something has."""
        changed = self._changed.get(video.id)
        if changed is None:
            return True
        try:
            await asyncio.wait_for(changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    # The worker.

    def _start_worker(self) -> None:
        self.worker_state = "starting"
        self._worker = spawn_worker(self.config, self.config_file, self.device, self.ranks)
        Thread(target=self._listen, args=(self._worker,), daemon=True, name="worker-pipe").start()
        for process in self._worker.processes[1:]:
            Thread(target=self._watch, args=(self._worker, process), daemon=True, name="worker-rank").start()

    def _listen(self, worker: Worker) -> None:
        """In a thread: events into the loop, until the worker is gone."""
        loop = self._loop
        assert loop is not None
        try:
            while True:
                loop.call_soon_threadsafe(self._on_event, worker.pipe.recv())
        except (EOFError, OSError):
            worker.first.join(5)
            exit_code = worker.first.exitcode
            if not self._closing:
                worker.end()
                loop.call_soon_threadsafe(self._on_death, exit_code)
        except RuntimeError:  # the loop is closed
            return

    def _watch(self, worker: Worker, process: BaseProcess) -> None:
        """In a thread: where one of several processes ends, the first one, which may say why, ends too."""
        process.join()
        worker.first.join(SECONDS_TO_TELL)
        if not self._closing and worker.first.is_alive():
            worker.first.kill()

    def _on_event(self, event: dict[str, Any]) -> None:
        kind, name = event.pop("type"), event.pop("video")
        if not name:
            if kind == "ready":
                self.worker_state = kind
                self._next()
            else:
                self._give_up(event["message"])
            return
        video = self.videos.get(name)
        if video is None:
            return
        if kind == "begun":
            video.begun, video.chunks = True, event["chunks"]
        elif kind == "chunk":
            video.chunks_done = event["number"] + 1
        elif kind == "likeness":
            video.likeness.append(event["psnr"])
        elif kind == "step":
            video.progress = event["cost"]
        elif kind == "prompt":
            earlier = [later for later in video.wished if later.chunk < event["chunk"]]
            video.wished = [*earlier, LaterPrompt(chunk=event["chunk"], prompt=event["prompt"])]
        if kind in ENDED:
            self._current = None
            self._end(video, kind, event.get("message"))
            self._next()
        else:
            self._note(video, {"type": kind, **event})

    def _on_death(self, exit_code: int | None) -> None:
        """The worker is gone: its video ends, and a new worker starts, unless the models cannot be loaded."""
        name, self._current = self._current, None
        reason = f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"status {exit_code}"
        logger.error("the worker has ended with %s", reason)
        if name is not None and not (self.videos[name].begun or self.videos[name].taken_back):
            # It was sent to a process that was about to end: once more, and no more than that.
            video = self.videos[name]
            video.taken_back, video.status = True, "queued"
            self._waiting.appendleft(name)
        elif name is not None:
            why = "; on a full machine that is usually memory" if exit_code == -9 else ""
            self._end(self.videos[name], "failed", f"the process that made it has ended with {reason}{why}")
        if self.worker_state == "starting":  # the next one would fare no better
            self._give_up(f"the process has ended with {reason} while it loaded them")
        elif not self.worker_state.startswith("broken"):
            self._start_worker()

    def _give_up(self, message: str) -> None:
        """The models cannot be loaded: no video can be made."""
        self.worker_state = f"broken: {message}"
        logger.error("the models cannot be loaded: %s", message)
        while self._waiting:
            self._end(self.videos[self._waiting.popleft()], "failed", message)

    def _next(self) -> None:
        if self._current is not None or not self._waiting or self.worker_state != "ready" or self._worker is None:
            return
        video = self.videos[self._waiting.popleft()]
        self._current, video.status = video.id, "in_progress"
        path = str(video.input_path) if video.given is not None else None
        try:
            order = video.order.model_dump(mode="json")
            other = self.videos.get(video.beside or "")
            beside = None if other is None else str(other.latents)
            stopped = other is not None and other.status == "stopped"
            task = Task(video.id, order, str(video.path), path, video.given, str(video.latents), beside, stopped)
            self._worker.pipe.send(task)
        except OSError:
            return  # it is gone; its death is on the way
        self._note(video, {"type": "in_progress"})

    # What is known.

    def _note(self, video: Video, event: dict[str, Any]) -> None:
        video.events.append(event)
        if len(video.events) > MOST_EVENTS:
            video.dropped += len(video.events) - EVENTS_KEPT
            video.events = video.events[-EVENTS_KEPT:]
        self._notify(video.id)

    def _end(self, video: Video, status: Any, error: str | None) -> None:
        video.status, video.error = status, error
        self._save(video)
        self._note(video, {"type": status, **({} if error is None else {"message": error})})

    def _notify(self, name: str) -> None:
        """Wake whoever waits, and be waited for anew."""
        self._changed[name].set()
        self._changed[name] = asyncio.Event()

    def _save(self, video: Video) -> None:
        with replacing(video.folder / ORDER) as part:
            part.write_text(json.dumps(video.to_json_dict(), indent=1), encoding="utf-8")

    def _find_videos(self) -> None:
        for path in sorted(self.folder.glob(f"*/{ORDER}")):
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                order = VideoOrder.model_validate(known["order"])
                video = Video(path.parent.name, order, known["created_at"], path.parent, known["input"])
                video.chunks, video.chunks_done = known["chunks"], known["chunks_done"]
                video.progress = known["cost"]
                video.wished = [LaterPrompt.model_validate(later) for later in known["wished"]]
                video.beside, video.likeness = known.get("beside"), known.get("likeness", [])
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s is left out: %s", path.parent, error)
                continue
            video.status = known["status"] if known["status"] in ENDED else "failed"
            video.error = (known["error"] or {}).get("message")
            if known["status"] not in ENDED:
                video.error = "the server was stopped before it was made"
            self.videos[video.id], self._changed[video.id] = video, asyncio.Event()

    def _make_room(self) -> None:
        ended = [video for video in self.videos.values() if video.status in ENDED]
        for video in ended[: max(0, len(self.videos) - self.most_kept)]:
            self.delete(video)

"""Makes samples: the models of a worker, and the way of a video and its sidecar to their places."""

import os
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.json_files import write_json
from harness.run.video_maker import MadeVideo
from inference.pipeline import MagiPipeline
from sampling.job import Job
from sampling.task import SampleTask
from sampling.verify import file_digest, later_prompts


class SampleMaker:
    """The models of a job, loaded once, on one device.

    ``name`` is the worker's; unfinished files go into a folder of that name below the output folder, so that two
    workers never write the same file.
    """

    def __init__(self, job: Job, device: torch.device, name: str) -> None:
        self.job = job
        self.name = name
        self.pipeline = MagiPipeline.load(job.model, device)

    def make(self, task: SampleTask) -> None:
        """Make the video and its sidecar; both appear under their names when they are complete, the video last."""
        pipeline = self.pipeline.with_config(self.job.model_of(task))
        video = MadeVideo(pipeline, self.job.method, self.job.sample(task))
        with self._folder() as folder:
            writer = video.writer(folder / "video.mp4")
            deque(video.written_by(writer), maxlen=0)
            write_json(folder / "sidecar.json", video.description(writer) | self._more(task, folder / "video.mp4"))
            for made, place in (("sidecar.json", task.sidecar), ("video.mp4", task.path)):
                target = self.job.output / place
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / made, target)

    def _more(self, task: SampleTask, video: Path) -> dict[str, Any]:
        """What the sidecar of a sample says besides that of a single run."""
        conditioning = None
        if task.conditioning is not None:
            size, digest = task.conditioning.stat().st_size, file_digest(task.conditioning)
            conditioning = {"name": task.conditioning.name, "bytes": size, "sha256": digest}
        return {
            "video": task.path.name,
            "file": {"bytes": video.stat().st_size, "sha256": file_digest(video)},
            "conditioning": conditioning,
            "later": later_prompts(task),
            "worker": self.name,
        }

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = self.job.private / "work" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

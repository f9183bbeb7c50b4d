"""A sampling run put together: model configuration, method, and every sample to make."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.methods import Method, read_method
from inference.config import MagiConfig, load_config, require_path
from sampling.config import PhysicsIqRun, PromptsRun, Run, VBenchRun
from sampling.physics_iq import FPS, FRAMES, list_original, list_verified
from sampling.prompts import list_prompts
from sampling.task import Listing, SampleTask
from sampling.vbench import list_vbench

if TYPE_CHECKING:
    from inference.pipeline import Sample

OVERRIDES = ("seed", "num_frames", "num_steps", "video_size_h", "video_size_w")


@dataclass(frozen=True)
class Job:
    """``model`` holds every setting of the videos, length and base seed included; ``output`` is their folder."""

    run: Run
    model: MagiConfig
    method: Method
    model_name: str
    output: Path
    listing: Listing

    @property
    def tasks(self) -> tuple[SampleTask, ...]:
        return self.listing.tasks

    @property
    def private(self) -> Path:
        """What only the run itself reads: unfinished files, and errors until they are summed up."""
        return self.output / ".sampling"

    @property
    def failures(self) -> Path:
        return self.output / "failures.json"

    def model_of(self, task: SampleTask) -> MagiConfig:
        """The settings of one video."""
        return self.model if task.base_seed is None else self.model.with_overrides(seed=task.base_seed)

    def sample(self, task: SampleTask) -> "Sample":
        """The task as the pipeline takes it; the conditioning is read. Raises as ``inference.video.reading`` does, and
        ValueError where a prompt comes after the end.
        """
        from harness.run.times import chunk_times
        from inference.pipeline import Sample
        from inference.session.times import whole_schedule
        from inference.video.reading import read_image, read_video

        runtime = self.model.runtime
        size, prefix = (runtime.video_size_h, runtime.video_size_w), None
        # Benchmarks take pictures as they are.
        fit = {"fit": self.run.fit} if isinstance(self.run, PromptsRun) else {}
        if task.is_clip:
            prefix = read_video(task.conditioning, runtime.fps, *size, select=runtime.prefix_selection, **fit)
        elif task.conditioning is not None:
            prefix = read_image(task.conditioning, *size, **fit)
        _, times = chunk_times(self.model, prefix)
        prompt, later = whole_schedule(task.prompt, task.later, times)
        return Sample(prompt, prefix, task.identity, tuple(later))


def make_job(run: Run) -> Job:
    """Everything a configuration names, read and checked; no model is loaded.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, prompts or rows that no sample can be made of, settings
            that contradict each other.
    """
    method = read_method(run.method_config, run.method_overrides)
    overrides = {name: getattr(run, name) for name in OVERRIDES if getattr(run, name) is not None}
    model = method.apply_window(load_config(run.config_file))
    if isinstance(run, PhysicsIqRun):
        overrides.setdefault("num_frames", FRAMES)
    model = model.with_overrides(**overrides)
    if isinstance(run, PhysicsIqRun):
        check_physics_iq(model, run)
    name = run.model_name or default_name(run)
    if "/" in name or name.startswith("."):
        raise ValueError(f"model_name {name!r} must be the name of a folder, without slash and leading dot")
    output = Path(run.output).expanduser() if run.output else Path("outputs") / run.benchmark / name
    job = Job(run, model, method, name, output, list_samples(run, model.runtime.seed, name))
    # What imports torch comes after all that can be refused without it.
    from harness.run.times import chunk_times

    # The prefixes of a benchmark are all of one length, so the first of a kind stands for all.
    for task in first_of_each_kind(job.tasks):
        schedule, _ = chunk_times(model, job.sample(task).prefix)
        method.check(schedule)
    return job


def first_of_each_kind(tasks: Iterable[SampleTask]) -> list[SampleTask]:
    """Of those from text, from an image and from a clip the first; and all from text whose prompt changes."""
    found: dict[tuple[object, ...], SampleTask] = {}
    for task in tasks:
        from_text = task.conditioning is None
        found.setdefault((from_text, task.is_clip, task.later if from_text else ()), task)
    return list(found.values())


def list_samples(run: Run, seed: int, model_name: str) -> Listing:
    data = require_path(run.data, "data")
    if isinstance(run, VBenchRun):
        augmented = run.augmented_prompts
        return list_vbench(
            data,
            seed,
            dimensions=run.dimensions,
            samples_per_prompt=run.samples_per_prompt,
            flickering_samples=run.flickering_samples,
            augmented=None if augmented is None else require_path(augmented, "augmented_prompts"),
        )
    if isinstance(run, PromptsRun):
        return list_prompts(data, seed, run.samples_per_prompt)
    if run.layout == "verified":
        return list_verified(data, seed, model_name, run.mode, run.prompt_sets, run.runs)
    descriptions = None if run.descriptions is None else require_path(run.descriptions, "descriptions")
    return list_original(data, seed, model_name, run.mode, descriptions)


def check_physics_iq(model: MagiConfig, run: PhysicsIqRun) -> None:
    """ValueError where the videos would not be what the benchmark compares."""
    runtime = model.runtime
    if (runtime.fps, runtime.num_frames) != (FPS, FRAMES):
        raise ValueError(
            f"Physics-IQ takes {FRAMES} frames at {FPS} fps, exactly 5 s; the settings give {runtime.num_frames} "
            f"frames at {runtime.fps} fps"
        )
    if run.mode == "v2v" and runtime.prefix_selection != "last":
        raise ValueError(
            f"prefix_selection {runtime.prefix_selection!r} would continue from the middle of the conditioning clip; "
            'Physics-IQ needs what follows its end: set it to "last"'
        )


def default_name(run: Run) -> str:
    """Model, method and mode: two runs of different methods never share a folder."""
    method = Path(run.method_config).stem
    parts = [Path(run.config_file).stem, "magi" if method == "none" else method]
    return "-".join(parts + ([run.mode] if isinstance(run, PhysicsIqRun) else []))

"""Whether a sample is there and right: file by file, since the benchmarks' evaluators only warn, or do not look.

(docs/sampling.md, "Verification")
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inference.files import read_json
from sampling.job import Job
from sampling.task import SampleTask

DURATION_TOLERANCE = 1e-3  # s, that of Physics-IQ
ONE_VALUE = 2  # of 255: what encoding leaves of one

Kind = Literal["missing", "damaged", "foreign"]

# Fields of the configuration that say where or how fast a video is made, not what it shows.
IMMATERIAL = {
    *("cp_size", "pp_size", "cp_strategy", "ulysses_overlap_degree", "kv_offload", "enable_cuda_graph"),
    *("distributed_backend", "distributed_timeout_minutes", "attention_backend", "t5_device"),
    *("fp8_matmul", "fused_kernels", "compile"),
    *("offload_t5", "offload_vae", "overlap_decode", "text_cache", "known_prompts", "stream_weights"),
}
WEIGHTS = ("load", "t5_pretrained", "vae_pretrained", "special_token_path")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a sample.

    "missing": no video. "damaged": the video or its sidecar is not what was written; it is made again. "foreign": it
    was made with other settings, which only the user can decide about.
    """

    task: SampleTask
    kind: Kind
    reason: str


def check_sample(job: Job, task: SampleTask, decode: bool = True) -> Finding | None:
    """What is wrong with the sample in the job's output folder, or None.

    With ``decode`` the whole file is read and decoded to its end; without, its sidecar and its size are looked at.
    """
    video = job.output / task.path
    if not video.is_file():
        return Finding(task, "missing", "there is no such file")
    try:
        contents = read_json(job.output / task.sidecar)
        found, written = comparable(contents), contents["file"]
        size, digest = int(written["bytes"]), str(written["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Finding(task, "damaged", f"its sidecar {task.sidecar} cannot be used: {type(error).__name__}: {error}")
    try:
        differing = differences(expected_record(job, task), found)
        if differing:
            return Finding(task, "foreign", "made with other settings: " + "; ".join(differing[:5]))
        if video.stat().st_size != size:
            return Finding(task, "damaged", f"{video.stat().st_size} bytes; {size} were written")
        problem = damage(video, digest, job) if decode else None
    except OSError as error:
        problem = str(error)
    return None if problem is None else Finding(task, "damaged", problem)


def damage(video: Path, digest: str, job: Job) -> str | None:
    """What is wrong with the contents of a file, or None: its bytes, its frames to the last one, size, rate, length."""
    found = file_digest(video)
    if found != digest:
        return f"its contents have changed since it was written (SHA-256 {found[:12]}, was {digest[:12]})"
    from inference.video.reading import probe_video  # with torch, which a list of samples does not need

    try:
        info = probe_video(video)
    except (OSError, ValueError) as error:
        return str(error)
    runtime = job.model.runtime
    frames, fps, height, width = runtime.num_frames, runtime.fps, runtime.video_size_h, runtime.video_size_w
    if (info.frames, info.height, info.width) != (frames, height, width):
        return f"{info.frames} frames of {info.width}x{info.height} instead of {frames} of {width}x{height}"
    if abs(info.fps - fps) > 1e-3 or abs(info.duration - frames / fps) > DURATION_TOLERANCE:
        return f"{info.duration:.4f} s at {info.fps:g} fps instead of {frames / fps:.4f} s at {fps} fps"
    if info.brightest - info.darkest <= ONE_VALUE:
        return f"every pixel of its {info.frames} frames has the same brightness ({info.darkest} of 255): no picture"
    return None


def verify(job: Job, threads: int = 4, on_sample: Callable[[], object] = lambda: None) -> list[Finding]:
    """Check every sample of a job, in order of the tasks; ``on_sample`` is called after each."""

    def check(task: SampleTask) -> Finding | None:
        finding = check_sample(job, task)
        on_sample()
        return finding

    with ThreadPoolExecutor(threads) as pool:
        return [finding for finding in pool.map(check, job.tasks) if finding is not None]


def unlisted_videos(job: Job) -> Iterator[Path]:
    """Videos in the folders of the samples that are none of them; an evaluator may take them for samples."""
    listed = {task.path for task in job.tasks}
    for folder in sorted({path.parent for path in listed}):
        for video in sorted((job.output / folder).glob("*.mp4")):
            if video.relative_to(job.output) not in listed:
                yield video


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_kind(findings: Iterable[Finding], kind: Kind) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def expected_record(job: Job, task: SampleTask) -> dict[str, Any]:
    """What a sidecar must say of the task's video, flat: settings, method, seed, prompt, conditioning."""
    conditioning = None
    if task.conditioning is not None:
        conditioning = {"name": task.conditioning.name, "bytes": task.conditioning.stat().st_size}
    model = job.model_of(task)
    return comparable(
        {
            "prompt": task.prompt,
            "seed": {"base": model.runtime.seed, "sample": task.identity, "noise": task.seed},
            "later": later_prompts(task),
            "conditioning": conditioning,
            "method": job.method.to_json_dict(),
            "config": model.to_json_dict(full=True),
        }
    )


def later_prompts(task: SampleTask) -> list[list[str]]:
    """When which prompt takes over, in words."""
    return [[str(timed), timed.prompt] for timed in task.later]


def comparable(contents: dict[str, Any]) -> dict[str, Any]:
    """The entries of a sidecar that say what a video shows, flat, as JSON gives them back.

    Of a path to weights only the last part is compared: a checkout or a download may be moved.
    """
    found: dict[str, Any] = {"prompt": contents["prompt"]}
    if "later" in contents:
        found["later"] = contents["later"]
    found |= {f"seed.{key}": value for key, value in contents["seed"].items()}
    conditioning = contents["conditioning"] or {}
    found |= {f"conditioning.{key}": conditioning.get(key) for key in ("name", "bytes")}
    found |= {f"method.{key}": value for key, value in contents["method"].items() if key != "source"}
    for section in contents["config"].values():
        for key, value in section.items():
            if key in WEIGHTS:
                found[key] = None if value is None else Path(value).name
            elif key not in IMMATERIAL:
                found[key] = value
    return found


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, in words. A setting that only one side knows is a later version's and is left out."""
    return [
        f"{key} is {found[key]!r} instead of {value!r}"
        for key, value in expected.items()
        if key in found and not _same(value, found[key])
    ]


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=1e-12)
    return first == second

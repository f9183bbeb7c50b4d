"""Tables of how alike videos are: for people, as JSON and as CSV (docs/metrics.md, "What is written")."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from metrics.similarity.measures import Similarity

# Name in the files, heading in the table, what it is, and its digits.
FIGURES = {
    "psnr": ("PSNR", "dB, from the mean squared error over all frames", 2),
    "psnr_frame_mean": ("PSNR/frame", "dB, mean over the frames that differ of each one's own PSNR", 2),
    "ssim": ("SSIM", "mean over the frames", 4),
    "lpips": ("LPIPS", "AlexNet, mean over pixels and frames; lower is closer", 4),
}
PER_FRAME = ("psnr", "ssim", "lpips")

Results = Mapping[str, Similarity]


def figures(result: Similarity) -> dict[str, float | None]:
    """The figures of one video by the names of ``FIGURES``."""
    return {
        "psnr": result.psnr,
        "psnr_frame_mean": result.psnr_frame_mean,
        "ssim": result.ssim_mean,
        "lpips": result.lpips_mean,
    }


def per_frame(result: Similarity) -> dict[str, list[float | None] | None]:
    """The curves of one video; PSNR of identical frames and LPIPS that was not computed are None."""
    lpips = None if result.lpips is None else list(result.lpips)
    return {"psnr": list(result.psnr_per_frame), "ssim": list(result.ssim), "lpips": lpips}


def summary(results: Results) -> dict[str, Any]:
    """Mean and standard deviation (of the sample) over the videos that differ; identical ones are only counted."""
    differing = [figures(result) for result in results.values() if not result.identical]
    found: dict[str, Any] = {"videos": len(results), "identical": len(results) - len(differing)}
    for name in FIGURES:
        values = [value for row in differing if (value := row[name]) is not None]
        found[name] = {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
    return found


def video_entry(result: Similarity) -> dict[str, Any]:
    """One video as the JSON file has it."""
    return {
        "frames": len(result.mse),
        "identical": result.identical,
        "identical_frames": result.identical_frames,
        **figures(result),
        "per_frame": per_frame(result),
    }


def shown(results: Results, names: Sequence[str] = tuple(FIGURES)) -> list[str]:
    """Those of the figures that tables have a column for: LPIPS only where it was computed."""
    computed = any(result.lpips is not None for result in results.values())
    return [name for name in names if name != "lpips" or computed]


def videos_csv(results: Results) -> str:
    """A row per video; what is infinite is empty."""
    columns = shown(results)
    rows = [
        [name, len(result.mse), result.identical, result.identical_frames, *map(figures(result).get, columns)]
        for name, result in results.items()
    ]
    return _csv(["video", "frames", "identical", "identical_frames", *columns], rows)


def frames_csv(results: Results) -> str:
    """A row per video and frame."""
    rows, columns = [], shown(results, PER_FRAME)
    for name, result in results.items():
        curves = per_frame(result)
        rows += [
            [name, frame, *(None if (curve := curves[figure]) is None else curve[frame] for figure in columns)]
            for frame in range(len(result.mse))
        ]
    return _csv(["video", "frame", *columns], rows)


def table(results: Results) -> str:
    """Lines for people: one per video, then mean and spread over those that differ."""
    columns = shown(results)
    width = max(len("mean of the others"), *(len(name) for name in results))
    head = "  ".join([f"{'video':{width}}", f"{'frames':>6}", *(f"{FIGURES[name][0]:>10}" for name in columns)])
    lines = [head, "-" * len(head)]
    for name, result in results.items():
        if result.identical:
            lines.append(f"{name:{width}}  {len(result.mse):6d}  identical, left out of the mean")
        else:
            lines.append(
                _line(f"{name:{width}}  {len(result.mse):6d}", {each: figures(result)[each] for each in columns})
            )
    overall = summary(results)
    counted = overall["videos"] - overall["identical"]
    if counted and len(results) > 1:
        title = "mean of the others" if overall["identical"] else "mean"
        lines.append("-" * len(head))
        lines.append(_line(f"{title:{width}}  {counted:6d}", {name: overall[name]["mean"] for name in columns}))
        if counted > 1:
            lines.append(_line(f"{'deviation':{width}}  {'':6}", {name: overall[name]["std"] for name in columns}))
    return "\n".join(lines)


def _line(front: str, values: Mapping[str, float | None]) -> str:
    cells = [f"{'-':>10}" if value is None else f"{value:10.{FIGURES[name][2]}f}" for name, value in values.items()]
    return "  ".join([front, *cells])


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()

"""The written report of a comparison: table.md, and report.html, which needs no other file (docs/compare.md)."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.compare.goals import Outcome
from benchmarks.compare.methods import Entry
from benchmarks.compare.summary import Mean, Summary

_TYPES = {".png": "image/png", ".mp4": "video/mp4"}
_MARKS = {True: "met", False: "not met", None: "cannot be told"}

# Headings of the columns behind the method's name, the ones that say most first: a phone shows few.
COLUMNS = {
    "flop": "FLOP, times fewer",
    "psnr": "PSNR (dB)",
    "low": "PSNR: 5 %, lowest",
    "speedup": "denoising, times faster",
    "quality": "task: all right",
    "changed": "became wrong / right",
    "computed": "chunk-forwards computed",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "seconds": "seconds",
    "kv": "KV cache",
}


@dataclass(frozen=True)
class Group:
    name: str
    text: str
    rows: Sequence[Mapping[str, str]]


def cells(row: Summary, how: str, has_lpips: bool) -> dict[str, str]:
    """A method's row in words, by the keys of ``COLUMNS``, with its name and how it is set."""
    return {
        "name": row.name,
        "how": how,
        "computed": f"{row.computed_share:.1%}",
        "flop": f"{row.flop_ratio:.2f}",
        "speedup": _speedup(row),
        "seconds": f"{row.seconds:.2f}",
        "kv": f"{row.kv_cache_bytes / 2**20:.2f} MiB",
        "psnr": _psnr(row),
        "low": "" if row.psnr is None or row.reference is None else f"{row.psnr.low_end:.1f}, {row.psnr.min:.1f}",
        "ssim": _likeness(row, row.ssim),
        "lpips": _likeness(row, row.lpips) if has_lpips else "not available",
        "quality": _quality(row),
        "changed": "" if row.quality is None or row.reference is None else f"{row.lost} / {row.gained}",
    }


def _speedup(row: Summary) -> str:
    if row.speedup is None:
        return "reference"
    spread = f" ({row.speedup.min:.2f} to {row.speedup.max:.2f})" if row.samples > 1 else ""
    return f"{row.speedup.median:.2f}{spread}"


def _psnr(row: Summary) -> str:
    if row.reference is None:
        return "reference"
    identical = f"{row.identical} identical" if row.identical else ""
    if row.psnr is None:
        return identical
    spread = "" if row.psnr.std is None else f" ± {row.psnr.std:.1f}"
    return f"{row.psnr.mean:.1f}{spread}" + (f", {identical}" if identical else "")


def _likeness(row: Summary, value: Mean | None) -> str:
    if row.reference is None:
        return ""
    return "" if value is None else f"{value.mean:.4f}"


def _quality(row: Summary) -> str:
    if row.quality is None:
        return "not measured"
    found = row.quality["all"]
    return f"{found.right} of {found.count} ({found.low:.0%} to {found.high:.0%})"


def describe_settings(entry: Entry) -> str:
    """How a method is set, as far as figures depend on it: steps, key window, passes, memory."""
    reuse = entry.method.make_reuse()
    window = ",".join(map(str, entry.window)) if entry.window else "full history"
    settings = entry.method.settings
    parts = [
        f"{entry.config.runtime.num_steps} steps",
        f"window {window}",
        "clean pass" if reuse.clean_pass else "no clean pass",
        "nearly-clean copy" if reuse.nearly_clean_copy else "no nearly-clean copy",
    ]
    if settings is not None and settings.compress_kv_cache:
        parts.append(f"cache compressed to {settings.total_cache_chunk_nums} chunks")
    return ", ".join(parts)


def markdown(title: str, about: Sequence[str], groups: Sequence[Group], outcomes: Sequence[Outcome]) -> str:
    lines = [f"# {title}", "", *(f"- {sentence}" for sentence in about), ""]
    if outcomes:
        lines += ["## Goals", "", "| goal | | found |", "|---|---|---|"]
        lines += [f"| {one.text} | {_MARKS[one.met]} | {one.found} |" for one in outcomes]
        lines.append("")
    for group in groups:
        lines += [f"## {group.name}", "", group.text, ""]
        lines.append("| " + " | ".join(["method", *COLUMNS.values(), "settings"]) + " |")
        lines.append("|---" * (len(COLUMNS) + 2) + "|")
        lines += [
            "| " + " | ".join([row["name"], *(row[key] for key in COLUMNS), row["how"]]) + " |" for row in group.rows
        ]
        lines.append("")
    return "\n".join(lines)


def data_uri(path: Path) -> str:
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def html(contents: Mapping[str, Any]) -> str:
    """The page: benchmarks/compare/report.html filled with ``contents``; every value is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(columns=COLUMNS, marks=_MARKS, data_uri=data_uri)
    return environment.get_template("report.html").render(contents)

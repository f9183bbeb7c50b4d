"""What a sampling run says about its samples: counts per dimension, and ``failures.json``."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from harness.json_files import save_json
from sampling.job import Job
from sampling.task import SampleTask
from sampling.verify import Finding


def summary(job: Job, findings: Mapping[SampleTask, Finding | None]) -> str:
    """A table of the groups (dimensions, categories or run folders): folder, files, and how many are there."""
    rows = [("", "folder", "files", "there", "to make")]
    for name, tasks in job.listing.groups.items():
        folders = ", ".join(sorted({task.path.parent.name for task in tasks}))
        rows.append((name, folders, *_counts(tasks, findings)))
    rows.append(("all (a file counts once)", str(job.output), *_counts(job.tasks, findings)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def _counts(tasks: Iterable[SampleTask], findings: Mapping[SampleTask, Finding | None]) -> tuple[str, str, str]:
    there = [findings[task] is None for task in tasks]
    return str(len(there)), str(sum(there)), str(len(there) - sum(there))


def write_failures(job: Job, findings: Iterable[Finding]) -> None:
    """``failures.json``: every sample that is not right, with the error of each attempt at it."""
    errors = read_errors(job)
    entries = [
        {
            "path": str(finding.task.path),
            "state": finding.kind,
            "reason": finding.reason,
            "prompt": finding.task.prompt,
            "seed": finding.task.seed,
            "errors": errors.get(str(finding.task.path), []),
        }
        for finding in findings
    ]
    save_json(job.failures, {"output": str(job.output), "samples": len(job.tasks), "failures": entries})


def read_errors(job: Job) -> dict[str, list[str]]:
    """The errors that workers left, by path, in order of the attempts."""
    found: dict[str, list[str]] = {}
    for file in sorted((job.private / "errors").glob("*.json")):
        entry: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(entry["path"], []).append(entry["error"])
    return found

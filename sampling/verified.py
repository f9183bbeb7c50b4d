"""Finished sampling runs as the score scripts take them: nothing is scored before every sample was looked at."""

import logging
from collections.abc import Callable
from pathlib import Path

from sampling.config import read_run
from sampling.job import Job, make_job
from sampling.verify import unlisted_videos, verify

logger = logging.getLogger(__name__)

MOST_SHOWN = 20


def verified_job(config: str | Path, before: Callable[[Job], object] = lambda job: None) -> Job:
    """The run of a sampling configuration, all of whose videos are there and right, seeds included.

    ``before`` is called before the videos are looked at, which takes long.

    Other videos in the samples' folders are warned about: VBench's evaluator is not shown them, Physics-IQ's scores
    refuse them. Raises FileNotFoundError and ValueError for the configuration, and ValueError that names what is wrong
    with the samples.
    """
    job = make_job(read_run(config))
    before(job)
    logger.info("verifying %d samples in %s", len(job.tasks), job.output)
    problems = [f"{finding.task.path}: {finding.reason}" for finding in verify(job)]
    if problems:
        more = [f"and {len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
        raise ValueError(
            f"{len(problems)} of {len(job.tasks)} samples in {job.output} are not right, nothing is scored; sample "
            "again, which makes what is missing:\n  " + "\n  ".join([*problems[:MOST_SHOWN], *more])
        )
    for video in unlisted_videos(job):
        logger.warning("%s is no sample of this run", video)
    return job

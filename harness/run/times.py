"""When the chunks of a video begin, whatever it begins with."""

from torch import Tensor

from inference.config import MagiConfig
from inference.pipeline import plan, usable_prefix
from inference.schedule import Schedule
from inference.session.times import ChunkTimes


def chunk_times(config: MagiConfig, prefix: Tensor | None) -> tuple[Schedule, ChunkTimes]:
    """The schedule of a video that begins with ``prefix``, and where its chunks begin."""
    given = 0 if prefix is None else len(usable_prefix(config, prefix))
    _, schedule = plan(config, given)
    runtime = config.runtime
    frames = runtime.chunk_width * runtime.temporal_downsample_factor
    # The chunk of a given image is made as a whole.
    cut = given % frames if given > 1 else 0
    return schedule, ChunkTimes(
        runtime.fps, frames, cut, None if runtime.endless else schedule.chunk_num - schedule.offset
    )

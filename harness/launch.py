"""Processes that work together: started by torchrun, one per GPU (docs/parallel.md, "Starting a run")."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from harness.device import choose_device
from harness.program import launched_rank
from harness.signals import STOPPING
from inference.config import MagiConfig
from inference.parallel.launch import check_ranks

# After Ctrl-C; torchrun itself leaves 30 s, in which a busy machine does not always come to close the video.
SECONDS_TO_END = 300


def own_device(name: str) -> torch.device:
    """The device called ``name``; of several processes on a machine each has its own GPU."""
    device = choose_device(name)
    if launched_rank() is None or device.type == "cpu":
        return device
    if device.index is not None:
        raise ValueError(f"--device {name} is one device, but torchrun started several processes; use --device cuda")
    local, count = dist.get_node_local_rank(), torch.cuda.device_count()
    # Every process looks at all of them: one alone would leave the others waiting for it.
    if max(local + 1, int(os.environ["LOCAL_WORLD_SIZE"])) > count:
        raise ValueError(
            f"more processes were started on this machine than the {count} CUDA devices that can be used here"
        )
    return torch.device("cuda", local)


def share_among(gpus: int | None, device: str, config: MagiConfig, script: Path, arguments: Sequence[str]) -> None:
    """Become torchrun with ``gpus`` processes of ``script``, where that is more than one and we are not one of them.

    Raises:
        ValueError: so many cannot be started here, or cannot share the work of ``config``.
    """
    if launched_rank() is not None:
        if gpus not in (None, int(os.environ["LOCAL_WORLD_SIZE"])):
            raise ValueError(f"--gpus {gpus}, but torchrun started {os.environ['LOCAL_WORLD_SIZE']}; leave one out")
        # Before the ranks meet: then each says it for itself, and none only that another one has ended.
        check_ranks(config, int(os.environ["WORLD_SIZE"]))
        return
    if gpus is None:
        return
    if gpus < 1:
        raise ValueError(f"--gpus must be at least 1, got {gpus}")
    check_ranks(config, gpus)
    if gpus == 1:
        return
    chosen = choose_device(device)
    if chosen.type == "cuda" and (chosen.index is not None or gpus > torch.cuda.device_count()):
        count = torch.cuda.device_count()
        raise ValueError(f"--gpus {gpus} on --device {device}: {count} CUDA devices can be used here; try --device cpu")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_END))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
    os.execv(sys.executable, [*launcher, str(script), *arguments])


@contextmanager
def undisturbed_end() -> Iterator[None]:
    """Of several processes, once the block has failed, no signal interrupts what is done about that.

    torchrun terminates the processes that are left at the moment in which they notice that one is missing.
    """
    try:
        yield
    except BaseException:
        if launched_rank() is not None:
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)
        raise

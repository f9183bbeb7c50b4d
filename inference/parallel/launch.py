"""From processes that torchrun started to a ``ContextParallel``: checks, back end, joining and leaving.

Source: docs/parallel.md, "Starting a run". torchrun tells every process its rank and where the first one is;
``torch.distributed`` reads that itself. A process that was not started by torchrun is alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from inference.config import MagiConfig
from inference.parallel.group import ALONE, ContextParallel, RankLostError
from inference.parallel.lookout import STOPPED, UNREACHABLE, Lookout
from inference.parallel.ulysses import Ulysses

# "none" states no wish; all published files say "cp_ulysses".
STRATEGIES = ("cp_ulysses", "none")


@contextmanager
def context_parallel(config: MagiConfig, device: torch.device) -> Iterator[ContextParallel]:
    """The ranks that torchrun started, for as long as the block lasts; ``ALONE`` where it started none.

    Leaving the block waits for all ranks. Where it ends with an exception nobody is waited for: the others notice.

    Args:
        config: back end, timeout, and what the number of ranks must fit.
        device: this process's own.

    Raises:
        ValueError: the number of ranks does not fit the configuration, or the back end the device.
        RankLostError: another rank cannot be reached, or ended while this one was interrupted.
    """
    with meet(config.engine.distributed_backend, config.engine.distributed_timeout_minutes, device) as parallel:
        check_ranks(config, parallel.ranks)
        yield parallel


@contextmanager
def meet(backend: str, minutes: float, device: torch.device) -> Iterator[ContextParallel]:
    """``context_parallel`` for those who check themselves what the ranks are to share.

    Args:
        backend: "nccl" or "gloo", as in ``engine_config``.
        minutes: how long to wait for the others, to meet and in any one exchange.
        device: this process's own.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    chosen = choose_backend(backend, device)
    try:
        dist.init_process_group(chosen, timeout=timedelta(minutes=minutes))
    except RuntimeError as error:
        raise RankLostError(f"the processes of this run did not meet within {minutes:g} minutes: {error}") from error
    if dist.get_world_size() == 1:
        yield ALONE
    else:
        yield from _watched(device)
    dist.destroy_process_group()


def check_ranks(config: MagiConfig, ranks: int) -> None:
    """ValueError with every reason why ``ranks`` processes cannot share the work of ``config``."""
    if problems := list(_problems(config, ranks)):
        raise ValueError("; ".join(problems))


def choose_backend(name: str, device: torch.device) -> str:
    """torch.distributed's name of the back end for ``device``. On a CPU it is always gloo: nccl needs GPUs.

    Small things, such as which chunks to compute, are exchanged between CPUs in any case.
    """
    if name not in ("nccl", "gloo"):
        raise ValueError(f"engine_config.distributed_backend {name!r} is not supported; nccl (GPUs) and gloo (CPU) are")
    if device.type != "cuda":
        return "gloo"
    if name == "gloo":
        raise ValueError(
            "engine_config.distributed_backend gloo cannot exchange what lies on GPUs: set it to nccl, or compute on "
            "the CPU with --device cpu"
        )
    if not dist.is_nccl_available():
        raise ValueError("engine_config.distributed_backend nccl is not part of this PyTorch; try --device cpu")
    return "cpu:gloo,cuda:nccl"


def _watched(device: torch.device) -> Iterator[ContextParallel]:
    lookout = Lookout()
    try:
        yield Ulysses(device, lookout)
    except KeyboardInterrupt as interrupt:
        if lookout.lost in (None, STOPPED):
            lookout.leave(STOPPED)
            raise
        # torchrun terminates the ranks that are left; what it does that for is the better message.
        raise RankLostError(f"{lookout.verdict()}, so this rank was told to stop") from interrupt
    except BaseException as error:
        lookout.leave(UNREACHABLE if isinstance(error, RankLostError) else dist.get_rank())
        raise
    lookout.finish()


def _problems(config: MagiConfig, ranks: int) -> Iterator[str]:
    engine, groups = config.engine, config.model.num_query_groups
    if engine.pp_size > 1:
        yield (
            f"engine_config.pp_size {engine.pp_size}: layers cannot be spread over devices here; set pp_size to 1 and "
            "use context parallelism (cp_size)"
        )
    if ranks == 1:
        return
    if engine.cp_strategy not in STRATEGIES:
        yield f"engine_config.cp_strategy {engine.cp_strategy!r} is not supported; {STRATEGIES[0]} is"
    if engine.cp_size not in (1, ranks):
        yield (
            f"engine_config.cp_size {engine.cp_size} asks for that many processes, but {ranks} were started; start "
            f"{engine.cp_size}, or set cp_size to 1 (as many as are started)"
        )
    if groups % ranks:
        fitting = ", ".join(str(count) for count in range(1, groups + 1) if groups % count == 0)
        yield (
            f"{ranks} processes cannot share the {groups} key/value groups of this model evenly "
            f"(model_config.num_query_groups); start {fitting}"
        )
    if config.tokens_per_chunk < ranks:
        yield f"{ranks} processes cannot share the {config.tokens_per_chunk} tokens of a chunk at this video size"

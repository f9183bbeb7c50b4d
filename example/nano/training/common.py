"""What both trainings share: budget, optimizers, averaged weights, checkpoints, curves."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

WORK = Path(__file__).parents[1] / "work"

# They change speed only, and are read when a process starts: threads that sleep instead of spinning while another
# process needs the cores, and an allocator that keeps its pages (a training step is otherwise bound by page faults).
_FASTER_ON_CPU = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def restart_tuned(module: str) -> None:
    """Start this process anew, as `python -m module`, with the environment that makes CPU training fast, unless it
    is set.
    """
    if any(name not in os.environ for name in _FASTER_ON_CPU):
        environment = {**_FASTER_ON_CPU, **os.environ}
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


@cache
def bfloat16_is_fast() -> bool:
    """Whether the processor has instructions for it; elsewhere its products are slower than float32's by far."""
    product, seconds = torch.ones(256, 256), {}
    for dtype in (torch.float32, torch.bfloat16):
        factor = product.to(dtype)
        factor @ factor
        began = time.perf_counter()
        for _ in range(5):
            factor @ factor
        seconds[dtype] = time.perf_counter() - began
    return seconds[torch.bfloat16] < 1.5 * seconds[torch.float32]


def low_precision() -> torch.autocast:
    """Products in bfloat16 where that is fast."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast())


@dataclass(frozen=True)
class Budget:
    """How long to train: so many steps, or so many minutes of wall-clock time (then the schedules follow the clock)."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(
                f"give either steps or minutes, not both or none (steps={self.steps}, minutes={self.minutes})"
            )

    def progress(self, step: int, seconds: float) -> float:
        """0 at the start, 1 (or a little more) when the training is over."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        assert self.steps is not None
        return step / self.steps


def learning_rate_factor(step: int, progress: float, warmup_steps: int, decay_from: float) -> float:
    """Linear warm-up over the first steps, then 1, then linear to 0 from the share `decay_from` of the budget on."""
    warmup = min(1.0, (step + 1) / warmup_steps)
    return warmup * min(1.0, max(0.0, (1 - progress) / (1 - decay_from)))


class Optimizers:
    """Muon for the matrices of the hidden layers, AdamW for everything else; AdamW for all where bfloat16, in which
    Muon finds its direction, is slow.
    """

    def __init__(
        self, modules: Iterable[nn.Module], lr: float, vector_names: tuple[str, ...], beta2: float = 0.95
    ) -> None:
        self.lr = lr
        named = [(n, p) for module in modules for n, p in module.named_parameters() if p.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        hidden = bfloat16_is_fast()
        matrix = [p for n, p in named if hidden and p.ndim == 2 and not any(part in n for part in vector_names)]
        chosen = {id(p) for p in matrix}
        other = [p for _, p in named if id(p) not in chosen]
        self._all = [torch.optim.AdamW(other, lr=lr, betas=(0.9, beta2), weight_decay=0.0)]
        if matrix:
            muon = {"lr": lr, "weight_decay": 0.0, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
            self._all.append(torch.optim.Muon(matrix, **muon))

    def step(self, factor: float, clip: float = 1.0) -> float:
        """One update at `factor` times the learning rate; returns the gradient norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.parameters, clip)
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self._all]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


@dataclass(frozen=True)
class Team:
    """Worker processes, one thread each, that train one model on different batches.

    On a busy machine this is far faster than one process with as many threads, which wait for one another in every
    operation instead of once a step.
    """

    rank: int
    size: int

    @classmethod
    def join(cls, rank: int, size: int, meeting_point: Path) -> Team:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=size)
        return cls(rank, size)

    def agree(self, value: float) -> float:
        """Rank 0's value, in every worker."""
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]) / self.size
        dist.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)


class Average:
    """Exponential moving average of a module's parameters; its first steps average over a shorter time."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [value.detach() for _, value in module.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)


def save_checkpoint(path: Path, state: dict) -> None:
    """Written beside and renamed, so that a stopped run never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(path)


def load_checkpoint(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


@dataclass
class Log:
    """Rows of figures, kept as JSON lines and drawn as curves over the step."""

    path: Path
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        if self.path.exists():
            self.rows = [json.loads(line) for line in self.path.read_text().splitlines()]

    def truncate(self, step: int) -> None:
        """Forget rows after `step`: a resumed run goes on from its checkpoint."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def plot(self, logarithmic: tuple[str, ...] = ()) -> None:
        """One panel per figure, as PNG beside the log."""
        names = [
            name for name in dict.fromkeys(name for row in self.rows for name in row) if name not in ("step", "minutes")
        ]
        if not names:
            return
        figure, panels = plt.subplots(
            1, len(names), figsize=(3.4 * len(names), 2.8), squeeze=False, layout="constrained"
        )
        for panel, name in zip(panels[0], names, strict=True):
            points = [(row["step"], row[name]) for row in self.rows if name in row]
            panel.plot(*zip(*points, strict=True))
            panel.set_title(name)
            panel.set_xlabel("step")
            if name in logarithmic:
                panel.set_yscale("log")
        figure.savefig(self.path.with_suffix(".png"), dpi=90)
        plt.close(figure)


@dataclass
class Course:
    """A training under way in one worker: what is trained, and how far it has come.

    All workers hold the same weights; the first one measures and saves.
    """

    team: Team
    budget: Budget
    model: nn.Module
    optimizers: Optimizers
    average: Average
    log: Log
    checkpoint: Path
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def begin(self, resume: bool) -> None:
        """Go on from the checkpoint, or start the curves anew."""
        if resume:
            state = load_checkpoint(self.checkpoint)
            self.model.load_state_dict(state["model"])
            self.optimizers.load_state_dict(state["optimizers"])
            self.average.weights = state["average"]
            self.step, self.seconds = state["step"], state["seconds"]
        if self.team.rank == 0:
            self.log.truncate(self.step if resume else -1)

    @property
    def is_over(self) -> bool:
        return self.budget.progress(self.step, self.seconds) >= 1

    def steps(self) -> Iterator[float]:
        """The share of the budget that is used, once a step; the time between two of them counts."""
        while (progress := self.team.agree(self.budget.progress(self.step, self.seconds))) < 1:
            self._started = time.monotonic()
            yield progress

    def update(self, loss: Tensor, factor: float) -> None:
        """One step along the gradient of ``loss``, averaged over the workers, at ``factor`` times the learning rate."""
        loss.backward()
        self.team.average_gradients(self.optimizers.parameters)
        self.optimizers.step(factor)
        self.average.update(self.model, self.step)
        self.losses.append(loss.item())
        self.step += 1
        self.seconds += time.monotonic() - self._started

    def report(self, measured: dict[str, float], steps: int, logarithmic: tuple[str, ...] = ()) -> None:
        """Add a row to the curves and say it: the loss over the last ``steps``, and what was measured."""
        row = {"step": self.step, "minutes": self.seconds / 60, "loss": float(np.mean(self.losses[-steps:]))}
        self.log.add(row | measured)
        self.log.plot(logarithmic)
        print(" ".join(f"{name} {value:.4g}" for name, value in self.log.rows[-1].items()), flush=True)

    def save(self, **more: object) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.weights}
        state |= {"optimizers": self.optimizers.state_dict(), "step": self.step, "seconds": self.seconds}
        save_checkpoint(self.checkpoint, state | more)


def training_parser(description: str | None, checkpoint: Path, minutes: float) -> argparse.ArgumentParser:
    """The arguments of every training; ``minutes`` is the budget where none is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, help=f"wall-clock budget (default: {minutes:.0f} unless --steps is given)"
    )
    parser.add_argument("--steps", type=int, help="budget in steps instead")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (default 2e-3)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, one core each (default 2)")
    parser.add_argument("--resume", action="store_true", help=f"go on from work/{checkpoint.name}")
    return parser


def budget_of(args: argparse.Namespace, minutes: float) -> Budget:
    return Budget(args.steps, args.minutes if args.minutes or args.steps else minutes)


def start_workers(train: Callable[[Team, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run ``train`` in ``args.workers`` processes."""
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (train, args, Path(folder) / "meeting"), nprocs=args.workers)


def _work(
    rank: int, train: Callable[[Team, argparse.Namespace], None], args: argparse.Namespace, meeting_point: Path
) -> None:
    train(Team.join(rank, args.workers, meeting_point), args)

"""Whether a configuration can run: files, machine, memory, work, and what to change (docs/check_model.md).

Nothing is loaded: of weight files the headers are read.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError

from harness.methods import Method
from inference.config import MagiConfig, require_path
from inference.memory.dry_run import dry_run, largest_forward
from inference.memory.estimate import MemoryEstimate, estimate, vae_config, vae_dtype
from inference.memory.host import PROCESS_BYTES, free_host_bytes
from inference.memory.plan import MemoryPlan, Placement, device_parts, plan_memory
from inference.model.attention import available_backends
from inference.model.dit import VideoDiT
from inference.model.fused import kernels_problem
from inference.model.weights import WeightsError, check_weights, checkpoint_directory
from inference.parallel.launch import check_ranks
from inference.pipeline import load_special_tokens, plan
from inference.record import RunRecord
from inference.text.t5 import check_t5
from inference.video.vae import WEIGHTS_NAME, ViTVAE
from metrics.flops import TransformerSize, counted_flops

GIB = 2**30
# What is worth installing on a GPU (docs/performance.md).
GAINS = {
    "varlen": "captions without padding",
    "flash2": "captions without padding, where torch is older than 2.10",
    "flash3": "faster attention, four fifths of a forward at 720x720; by how much was not measured here",
    "fused kernels": "1.05 to 1.09 times as fast on an H200",
}
# Of a large product that is timed: long enough for the processor to reach its speed.
TIMED_SECONDS = 0.5


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``ok`` None: for information."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Request:
    """What is asked about: a run of ``config`` with ``method``, by ``ranks`` processes, after ``prefix_frames``."""

    config: MagiConfig
    method: Method
    prefix_frames: int = 0
    ranks: int = 1

    def record(self) -> RunRecord:
        """What the run would do if nothing were reused."""
        config, schedule = plan(self.config, self.prefix_frames)
        self.method.check(schedule)
        reuse = self.method.make_reuse()
        prefix = config.runtime.chunk_width * schedule.offset
        passes = {"clean_pass": reuse.clean_pass, "nearly_clean_copy": reuse.nearly_clean_copy}
        return dry_run(config, prefix, self.method.make_cache, **passes)

    def size(self, device: torch.device) -> MemoryEstimate:
        """Memory of the run."""
        config, schedule = plan(self.config, self.prefix_frames)
        return estimate(
            config,
            schedule,
            largest_forward(self.record()),
            device=device,
            make_cache=self.method.make_cache,
            remembered=self.method.remembered,
            ranks=self.ranks,
        )

    def plan(self, device: torch.device, free: int | None) -> MemoryPlan:
        """What would stay on the device, of which ``free`` bytes are free."""
        return plan_memory(self.config, self.size(device), free)


def check_files(config: MagiConfig) -> Iterator[Finding]:
    """Every file that the configuration names is there, and every tensor in it."""
    for name, look in (
        ("transformer", _check_transformer),
        ("VAE", _check_vae),
        ("text encoder", _check_text_encoder),
        ("special tokens", _check_tokens),
    ):
        try:
            yield Finding(name, True, look(config))
        except (OSError, ValueError, WeightsError, SafetensorError) as error:
            yield Finding(name, False, str(error))


def check_machine(request: Request, device: torch.device) -> Iterator[Finding]:
    """The device, the number of processes, and the attention back ends."""
    config = request.config
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        yield Finding("device", False, f"{device}: {torch.cuda.device_count()} CUDA devices can be used here")
        return
    try:
        check_ranks(config, request.ranks)
        yield Finding("processes", True, str(request.ranks))
    except ValueError as error:
        yield Finding("processes", False, str(error))
    wanted = config.engine.attention_backend
    problems = available_backends(device, config.model.dtype, config.model.kv_channels)
    for name, problem in problems.items():
        ok = None if name != wanted else problem is None
        gain = f"; it would gain: {GAINS[name]}" if name in GAINS and device.type == "cuda" else ""
        yield Finding(f"attention {name}", ok, "can be used" if problem is None else problem + gain)
    if config.engine.fused_kernels is not False:
        problem = kernels_problem(device)
        gain = f"; they would gain: {GAINS['fused kernels']}" if device.type == "cuda" else ""
        yield Finding("fused kernels", None, "can be used" if problem is None else problem + gain)


def describe_memory(request: Request, device: torch.device, free: int | None) -> Iterator[Finding]:
    """Every part's bytes on the device as planned, their sum, and what there is."""
    size = request.size(device)
    found = plan_memory(request.config, size, free)
    parts = device_parts(request.config, size, found.placement)
    whole = device_parts(request.config, size, Placement())
    for name, value in parts.items():
        if value or whole[name]:
            moved = f", of {gib(whole[name])} in all" if value < whole[name] else ""
            yield Finding(name, None, gib(value) + moved)
    off = [name for name, chosen in vars(found.placement).items() if chosen]
    yield Finding("off the device", None, ", ".join(off) or "nothing")
    if found.host_bytes:
        yield Finding("host memory", None, gib(found.host_bytes))
    if found.usable is None:
        needed, there = PROCESS_BYTES + found.device_bytes + found.host_bytes, free_host_bytes()
        yield Finding("memory", needed <= there, f"{gib(needed)} at most with the process, {gib(there)} are free here")
    else:
        yield Finding(
            "memory", found.fits, f"{gib(found.device_bytes)} at most, {gib(found.usable)} can be planned with"
        )


def describe_work(request: Request, device: torch.device | None) -> Iterator[Finding]:
    """Forwards and floating point operations, if nothing were reused; on ``device``, where it is here, how long that
    takes at least.
    """
    record = request.record()
    size = TransformerSize.of(request.config.model.model_dump())
    flop = counted_flops(size, record.forward_counts()) / request.ranks
    each = " by each process" if request.ranks > 1 else ""
    yield Finding(
        "work",
        None,
        f"{record.summary()['transformer_forwards']} forwards, {flop / 1e15:.3g} PFLOP{each} if nothing is reused",
    )
    if device is not None:
        rate = product_rate(device, request.config.model.dtype)
        yield Finding(
            "time", None, f"{duration(flop / rate)} or more at the {rate / 1e12:.3g} TFLOP/s of a large product"
        )


def suggestions(request: Request, device: torch.device, free: int) -> Iterator[str]:
    """Changes with which the run fits, each on its own; nothing where it fits as it is, or where none is enough."""
    if request.plan(device, free).fits:
        return
    for flags, change in _changes(request):
        try:
            changed = change()
            found = changed.plan(device, free)
        except ValueError:
            continue
        if found.fits:
            yield f"{flags}: {gib(found.device_bytes)} at most"


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product, timed for half a second."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def products(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    products(1)
    count = max(1, round(TIMED_SECONDS / max(products(2) / 2, 1e-6)))
    return 2 * size**3 * count / products(count)


def duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 5.1 h, 3.2 days."""
    for most, unit, name in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < most:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds / 86400:,.1f} days"


def gib(value: int) -> str:
    return f"{value / GIB:.2f} GiB"


def _changes(request: Request) -> Iterator[tuple[str, Callable[[], Request]]]:
    """Flags, and the request with them."""

    def with_fields(**fields: object) -> Callable[[], Request]:
        return lambda: replace(request, config=request.config.with_overrides(**fields))

    off = {"offload_t5": True, "offload_vae": True}
    for fields in (
        off,
        off | {"kv_offload": True},
        off | {"stream_weights": True},
        off | {"kv_offload": True, "stream_weights": True},
    ):
        yield " ".join(f"--{name} true" for name in fields), with_fields(**fields)
    for bits in ("int8", "int4"):
        yield f"--kv_dtype {bits} (the video is another one, a little)", with_fields(kv_dtype=bits)
    settings = request.method.settings
    if settings is not None and not settings.compress_kv_cache:
        smaller = settings.model_copy(update={"compress_kv_cache": True})
        yield "--compress_kv_cache true", lambda: replace(request, method=replace(request.method, settings=smaller))
    everything = dict.fromkeys((*off, "kv_offload", "stream_weights"), True)
    runtime = request.config.runtime
    for share in (0.75, 0.5, 0.375):
        height, width = (max(16, int(side * share) // 16 * 16) for side in (runtime.video_size_h, runtime.video_size_w))
        flags = f"--video_size_h {height} --video_size_w {width}, with all four of the above"
        yield flags, with_fields(**everything, video_size_h=height, video_size_w=width)


def _check_transformer(config: MagiConfig) -> str:
    folder = checkpoint_directory(config)
    with torch.device("meta"):
        dit = VideoDiT(config.model, distill=config.engine.distill, fp8=config.engine.fp8_quant)
    check_weights(dit, folder, name="transformer")
    return f"{len(dit.state_dict())} tensors in {folder}"


def _check_vae(config: MagiConfig) -> str:
    folder = require_path(config.runtime.vae_pretrained, "runtime_config.vae_pretrained")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json")
    with torch.device("meta"):
        vae = ViTVAE(ddconfig=dict(vars(vae_config(config))))
    vae.to(vae_dtype(config, torch.device("cpu")))
    check_weights(vae, folder, name="VAE", base_name=WEIGHTS_NAME)
    return f"{len(vae.state_dict())} tensors in {folder}"


def _check_text_encoder(config: MagiConfig) -> str:
    folder, width = check_t5(require_path(config.runtime.t5_pretrained, "runtime_config.t5_pretrained"))
    if width != config.model.caption_channels:
        raise ValueError(f"{folder} gives features of {width} numbers, not {config.model.caption_channels}")
    return str(folder)


def _check_tokens(config: MagiConfig) -> str:
    tokens = load_special_tokens(config)
    return "not needed" if tokens is None else f"{config.runtime.special_token_path}"

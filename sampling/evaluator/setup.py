"""The evaluator's environment: made once and looked over, dimension by dimension (docs/scores.md, "VBench").

Everything pinned is in ``configs/vbench_environment.txt``. detectron2 is on no package index and is built from its
repository, which takes a compiler; without it the other twelve dimensions work. VBench-Long's tables of figures are in
no package either and are fetched from VBench's repository, at one commit.
"""

import json
import logging
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.config import REPOSITORY_ROOT
from inference.files import replacing
from metrics.vbench import DIMENSIONS
from sampling.evaluator.log import EvaluatorError

logger = logging.getLogger(__name__)

ENVIRONMENT = Path("downloads/vbench")
PINS = Path("configs/vbench_environment.txt")
PYTHON_VERSION = "3.11"
PROBE = Path(__file__).with_name("probe.py")
DETECTRON2 = "detectron2 @ git+https://github.com/facebookresearch/detectron2.git"
STANDARD, LONG = "vbench", "vbench2_beta_long"

LONG_TABLES_FROM = "https://raw.githubusercontent.com/Vchitect/VBench/3147fdc04bc84f169f2a0c3497472f8e90fc6ce5/vbench2_beta_long/configs/"
LONG_TABLES = (
    "clip_length_mix.yaml",
    "slow_fast_params.yaml",
    "subject_mapping_table.yaml",
    "background_mapping_table.yaml",
)
FETCH_SECONDS = 60

# Per dimension the files that it fetches on first use, below the folders that the probe names, and from where.
_MODELS = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
_GRIT = (
    "vbench",
    "grit_model/grit_b_densecap_objectdet.pth",
    "https://datarelease.blob.core.windows.net/grit/models/grit_b_densecap_objectdet.pth",
)
_CLIP_B = (
    "clip",
    "ViT-B-32.pt",
    _CLIP + "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
)
_CLIP_L = (
    "clip",
    "ViT-L-14.pt",
    _CLIP + "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
)
_VICLIP = ("vbench", "ViCLIP/ViClip-InternVid-10M-FLT.pth", _MODELS + "ViClip-InternVid-10M-FLT.pth")
_RAFT = (
    "vbench",
    "raft_model/models/raft-things.pth",
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
)
WEIGHTS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "subject_consistency": (
        (
            "hub",
            "checkpoints/dino_vitbase16_pretrain.pth",
            "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        ),
    ),
    "background_consistency": (_CLIP_B,),
    "temporal_flickering": (_RAFT,),  # of the static filter
    "motion_smoothness": (
        ("vbench", "amt_model/amt-s.pth", "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth"),
    ),
    "dynamic_degree": (_RAFT,),
    "aesthetic_quality": (
        _CLIP_L,
        (
            "vbench",
            "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
            "https://github.com/LAION-AI/aesthetic-predictor/blob/main/sa_0_4_vit_l_14_linear.pth?raw=true",
        ),
    ),
    "imaging_quality": (
        (
            "vbench",
            "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
            "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
        ),
    ),
    **dict.fromkeys(("object_class", "multiple_objects", "color", "spatial_relationship"), (_GRIT,)),
    "human_action": (
        (
            "vbench",
            "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
            _MODELS + "l16_ptk710_ftk710_ftk400_f16_res224.pth",
        ),
    ),
    "scene": (
        (
            "vbench",
            "caption_model/tag2text_swin_14m.pth",
            "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
        ),
    ),
    "appearance_style": (_CLIP_B,),
    "temporal_style": (_VICLIP,),
    "overall_consistency": (_VICLIP,),
}


@dataclass(frozen=True)
class Survey:
    """What the evaluator's environment can do. ``standard`` and ``long``: per dimension the error of its import, None
    where there is none; ``roots``: where weights lie, by the names in ``WEIGHTS``.
    """

    standard: Mapping[str, str | None]
    long: Mapping[str, str | None]
    roots: Mapping[str, Path]
    gpus: int

    def missing_weights(self, dimension: str) -> list[str]:
        """URLs of the files that are not there yet."""
        return [
            url
            for root, name, url in WEIGHTS[dimension]
            if root not in self.roots or not (self.roots[root] / name).is_file()
        ]


def set_up(folder: Path | None = None) -> Path:
    """Make the environment, or complete it; returns its Python.

    Raises:
        EvaluatorError: a step that everything needs has failed; what it said is in the message.
    """
    folder = REPOSITORY_ROOT / ENVIRONMENT if folder is None else folder
    python = folder / "bin" / "python"
    uv = find_uv()
    if not python.is_file():
        logger.info("making the environment %s", folder)
        call([*uv, "venv", "--python", PYTHON_VERSION, str(folder)])
    install = [*uv, "pip", "install", "--python", str(python)]
    logger.info("installing what %s pins (a few GB)", PINS)
    call([*install, "-r", str(REPOSITORY_ROOT / PINS)])
    add_detectron2(python, install)
    add_long_tables(python)
    return python


def find_uv() -> list[str]:
    """The command that runs uv: the one that set this environment up, or the one on the PATH."""
    beside, on_path = Path(sys.executable).with_name("uv"), shutil.which("uv")
    if beside.is_file():
        return [str(beside)]
    if on_path is not None:
        return [on_path]
    raise EvaluatorError(f"uv is neither beside {sys.executable} nor on the PATH: pip install uv")


def call(command: Sequence[str]) -> None:
    """Run a step of the set-up with its output in sight; EvaluatorError where it fails."""
    found = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if found.returncode:
        raise EvaluatorError(f"`{' '.join(command)}` ended with status {found.returncode}; what it said stands above")


def add_detectron2(python: Path, install: Sequence[str]) -> None:
    """Build it, unless it is there; four dimensions do without where that fails."""
    if not subprocess.run([python, "-c", "import detectron2"], capture_output=True, check=False).returncode:
        return
    logger.info("building detectron2, which object_class, multiple_objects, color and spatial_relationship need")
    try:
        # It asks for torch while it is built.
        call([*install, "--no-build-isolation", DETECTRON2])
    except EvaluatorError:
        logger.warning("detectron2 could not be built (it takes git, a C++ compiler and the network): 12 dimensions")


def add_long_tables(python: Path) -> None:
    """Fetch VBench-Long's tables, unless they are there; it does without where that fails."""
    package = survey(python, dimensions=()).roots.get("long")
    if package is None:
        return
    for target in missing_tables(package):
        try:
            with urllib.request.urlopen(LONG_TABLES_FROM + target.name, timeout=FETCH_SECONDS) as answer:
                contents = answer.read()
        except OSError as error:
            logger.warning("VBench-Long needs %s%s, which cannot be fetched (%s)", LONG_TABLES_FROM, target.name, error)
            return
        target.parent.mkdir(exist_ok=True)
        with replacing(target) as part:
            part.write_bytes(contents)


def missing_tables(package: Path) -> list[Path]:
    """VBench-Long's tables that are not there yet."""
    return [path for path in (package / "configs" / name for name in LONG_TABLES) if not path.is_file()]


def survey(python: Path, dimensions: Sequence[str] = DIMENSIONS) -> Survey:
    """Try every dimension's import in the evaluator's environment; EvaluatorError where its Python does not run."""
    command = [str(python), str(PROBE), STANDARD, LONG, "--", *dimensions]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise EvaluatorError(f"{python} cannot be run: {error}") from error
    lines = answer.stdout.splitlines()
    if answer.returncode or not lines:
        raise EvaluatorError(f"{python} could not look for the dimensions: {answer.stderr.strip()[-500:]}")
    found = json.loads(lines[-1])
    roots = {name: Path(place) for name, place in found["roots"].items() if place is not None}
    return Survey(found["dimensions"][STANDARD], found["dimensions"][LONG], roots, found["gpus"])


def describe(found: Survey) -> Iterator[str]:
    """The survey as a table, a line a dimension, and what is to be fetched."""
    yield f"{'dimension':24s}{'VBench':8s}{'VBench-Long':13s}weights"
    for dimension in DIMENSIONS:
        missing = found.missing_weights(dimension)
        states = ["no" if errors[dimension] else "yes" for errors in (found.standard, found.long)]
        weights = "there" if not missing else f"{len(missing)} of {len(WEIGHTS[dimension])} to fetch"
        yield f"{dimension:24s}{states[0]:8s}{states[1]:13s}{weights}"
    yield ""
    for errors, name in ((found.standard, "VBench"), (found.long, "VBench-Long")):
        reasons: dict[str, list[str]] = {}
        for dimension, error in errors.items():
            if error is not None:
                reasons.setdefault(error, []).append(dimension)
        for error, dimensions in reasons.items():
            yield f"{name} cannot judge {', '.join(dimensions)}: {error}"
    urls = list(dict.fromkeys(url for dimension in DIMENSIONS for url in found.missing_weights(dimension)))
    if urls:
        yield "Weights are fetched on first use, from:"
        yield from (f"  {url}" for url in urls)
    if "long" in found.roots and missing_tables(found.roots["long"]):
        yield f"VBench-Long's tables are to be fetched from {LONG_TABLES_FROM}"
    yield f"{found.gpus} GPUs are here" if found.gpus else "No GPU is here: judging needs one, the set-up does not."

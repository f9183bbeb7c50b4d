"""What scripts/generate.py refuses: with status 1, one clear message, before models are loaded, and no file is left."""

import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from inference.pipeline import MagiPipeline
from inference.text.t5 import T5_FOLDER
from inference.video.reading import probe_video
from inference.video.writing import VideoWriter
from tests.scripts.conftest import Run, Start

Refuse = Callable[..., str]


@pytest.fixture
def refuse(
    generate: Run, script: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Refuse:
    """Run with ``flags``, check what every refusal has in common, give the message."""
    older = tmp_path / "out" / "video.mp4"
    older.parent.mkdir()
    older.write_bytes(b"an older video")

    def run(*flags: str, loads: bool = False) -> str:
        if not loads:
            monkeypatch.setattr(MagiPipeline, "load", lambda *_: pytest.fail("models were loaded"))
        assert generate(*flags) == 1
        assert os.listdir(older.parent) == ["video.mp4"] and older.read_bytes() == b"an older video"
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        caplog.clear()
        assert len(errors) == 1 and errors[0].exc_info is None
        return errors[0].getMessage()

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_file", "no.json"], "configuration file: no.json does not exist"),
        (["--method_config", "no.yaml"], "method file no.yaml does not exist, and no preset is called so"),
        (["--mode", "i2v", "--image_path", "no.png"], "image not found: no.png"),
        (["--mode", "v2v", "--prefix_video_path", "no.mp4"], "video not found: no.mp4"),
        (["--mode", "i2v"], "mode i2v needs --image_path"),
        (["--mode", "v2v"], "mode v2v needs --prefix_video_path"),
        (["--image_path", "a.png"], "mode t2v does not take --image_path"),
        (
            ["--mode", "i2v", "--prefix_video_path", "a.mp4", "--image_path", "a.png"],
            "does not take --prefix_video_path",
        ),
        (["--num_steps", "10"], "num_steps 10 is not a multiple of window_size 4; the nearest are 8 and 12"),
        (["--num_frames", "0"], "num_frames is 0: input should be greater"),
        (["--seed", "-1"], "seed is -1: input should be greater"),
        (["--video_size_h", "40"], "video_size_h 40 is not a multiple of 16"),
        (["--video_size_w", "56"], "video_size_w 56 is not a multiple of 16"),
        (["--noise2clean_kvrange", "5,x"], "'5,x' is neither numbers such as 5,4,3,2 nor full"),
        (["--noise2clean_kvrange", "3,2,1"], "num_steps 8 is not a multiple of the 3 entries"),
        (["--rel_l1_thresh", "nan"], "rel_l1_thresh = nan: Input should be a finite number"),
        (["--rel_l1_thresh", "-0.1"], "rel_l1_thresh = -0.1: Input should be greater than or equal to 0"),
        (["--compress_strategy", "tokens"], "Input should be 'token', 'frame' or 'chunk'"),
        (
            ["--compress_kv_cache", "true", "--total_cache_chunk_nums", "4"],
            r"total_cache_chunk_nums 4 is below window_size \+ 1 = 5",
        ),
        (["--device", "toaster"], "--device 'toaster' is not supported; auto, cpu, cuda"),
        (["--device", "cuda:64"], "--device cuda:64: .* CUDA devices can be used here; try --device cpu"),
        (["--attention_backend", "magic"], 'attention_backend is "magic": input should be'),
        (["--output_path", "video.avi"], r"must end in \.mp4: video\.avi"),
        (["--prompt", "\udcff"], "the prompt is not valid Unicode at character 1"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_flags(refuse: Refuse, flags: list[str], message: str) -> None:
    said = refuse(*flags)
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rel_l1_tresh: 0.1", "unknown parameter 'rel_l1_tresh'; known are .*rel_l1_thresh"),
        ("method: teacup", "unknown method 'teacup'; known are none, flowcache"),
        (
            "method: none\nwarmup_steps: 3\n1: 2",
            "method none takes no parameters, but these were given: 1, warmup_steps",
        ),
        ("rel_l1_thresh: .nan", "rel_l1_thresh = nan: Input should be a finite number"),
        ("noise2clean_kvrange: 5", r"noise2clean_kvrange = 5 is no list of chunks such as \[5, 4, 3, 2\]"),
        ("noise2clean_kvrange: [5, many]", "is no list of chunks"),
        ("noise2clean_kvrange: [0]", "noise2clean_kvrange.0 is 0"),
        ("- 1", "must hold a mapping of parameters, not list"),
        ("", "must hold a mapping of parameters, not NoneType"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_method_files(refuse: Refuse, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "method.yaml"
    path.write_text(content, encoding="utf-8")
    said = refuse("--method_config", str(path))
    assert re.search(message, said), said
    assert str(path) in said or "configuration with overrides" in said


def test_method_none_refuses_flags(refuse: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("method: none", encoding="utf-8")
    assert "these were given: rel_l1_thresh" in refuse("--method_config", str(path), "--rel_l1_thresh", "0.1")


def test_unknown_flags_have_a_hint(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, hint in (("--rel_l1_thres=1", "did you mean --rel_l1_thresh?"), ("--bananas", "--help lists all flags")):
        with pytest.raises(SystemExit) as ended:
            script.main(["--prompt", "x", flag])
        assert ended.value.code == 2
        assert f"unknown argument {flag}; {hint}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--num-inference-steps=30", "here it is --num_steps"),
        ("--height", "here it is --video_size_h"),
        ("--resolution", "give --video_size_h and --video_size_w"),
        ("--fps", "fps in runtime_config"),
        ("--negative_prompt", "MAGI-1 has none"),
        ("--guidance_scale", "text_scales"),
        ("--image", "here it is --image_path"),
        ("--cpu-offload", "--stream_weights"),
    ],
)
def test_flags_of_other_programs_are_known(
    script: ModuleType, capsys: pytest.CaptureFixture[str], flag: str, meant: str
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--prompt", "x", flag, "1"])
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("target", [("--target_psnr", "nan"), ("--target_psnr", "0"), ("--target_speedup", "-1")])
def test_targets_that_are_none(refuse: Refuse, target: tuple[str, str]) -> None:
    assert f"{target[0][2:]} must be a number above 0, got {target[1]}" in refuse(*target)


def test_a_file_that_is_no_calibration(refuse: Refuse, checkpoint: Path) -> None:
    said = refuse("--target_speedup", "2", "--calibration", str(checkpoint / "distill.json"))
    assert "distill.json is no calibration file: about: Field required" in said and "\n" not in said.strip()


def test_a_parameter_without_its_method_names_the_method(refuse: Refuse) -> None:
    said = refuse("--computed_share", "0.2")
    assert "--computed_share belongs to multistep; say which method with --method, such as --method multistep" in said
    said = refuse("--method", "flowcach")
    assert "method file flowcach does not exist, and no preset is called so; presets are flowcache_fast," in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: flowcache\nrel_l1_thresh: 1\nrel_l1_thresh: 2\n", "given twice: rel_l1_thresh"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_method_files_that_say_two_things_or_none(refuse: Refuse, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "method.yaml"
    path.write_text(content, encoding="utf-8")
    assert message in refuse("--method", str(path))


@pytest.mark.parametrize("mode", ["i2v", "v2v"])
def test_text_named_as_media(refuse: Refuse, tmp_path: Path, mode: str) -> None:
    flag, name = {"i2v": ("--image_path", "text.png"), "v2v": ("--prefix_video_path", "text.mp4")}[mode]
    (tmp_path / name).write_text("no picture at all\n" * 100, encoding="utf-8")
    assert f"{tmp_path / name} cannot be read as" in refuse("--mode", mode, flag, str(tmp_path / name))


def test_an_image_of_one_pixel(refuse: Refuse, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert "is 1x1 pixels" in refuse("--mode", "i2v", "--image_path", str(tmp_path / "dot.png"))


def test_a_truncated_video_without_index(refuse: Refuse, tmp_path: Path) -> None:
    clip = still_clip(tmp_path / "clip.mp4", 24)
    clip.write_bytes(clip.read_bytes()[:-200])
    assert f"{clip} cannot be read as a video" in refuse("--mode", "v2v", "--prefix_video_path", str(clip))


def still_clip(path: Path, count: int) -> Path:
    with VideoWriter(path, 24, 32, 48) as writer:
        writer.append(torch.full((count, 32, 48, 3), 90, dtype=torch.uint8))
    return path


def test_a_prefix_longer_than_the_cache(refuse: Refuse, tmp_path: Path) -> None:
    clip = still_clip(tmp_path / "clip.mp4", 120)
    flags = ("--mode", "v2v", "--prefix_video_path", str(clip), "--compress_kv_cache", "true")
    assert "the prefix fills 5 chunks, but total_cache_chunk_nums 5 leaves room for 4" in refuse(*flags)


def test_an_output_folder_that_is_a_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refuse("--output_path", str(tmp_path / "file" / "video.mp4"))
    assert message == f"error: cannot write to the output folder {tmp_path / 'file'}: it is a file"


def test_an_output_folder_without_permission(refuse: Refuse, tmp_path: Path) -> None:
    folder = Path("/proc")  # not even root may write here
    if os.geteuid() != 0:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
    assert f"cannot write to the output folder {folder}" in refuse("--output_path", str(folder / "video.mp4"))


def test_no_input_is_ever_an_output(refuse: Refuse, tmp_path: Path, checkpoint_copy: Path) -> None:
    config, clip, picture = checkpoint_copy / "distill.json", tmp_path / "clip.mp4", tmp_path / "u.reuse.png"
    still_clip(clip, 24)
    Image.new("RGB", (48, 32)).save(picture)
    for video, *flags in (
        (config.with_suffix(".mp4"), "--config_file", str(config)),
        (clip, "--mode", "v2v", "--prefix_video_path", str(clip)),
        (tmp_path / "u.mp4", "--mode", "i2v", "--image_path", str(picture)),
    ):
        given = Path(flags[-1])
        before = given.read_bytes()
        message = refuse(*flags, "--output_path", str(video))
        assert f"{given} would be written, but it is the input of {flags[-2]}; name another output" in message
        assert given.read_bytes() == before


def test_a_file_of_the_users_is_not_replaced(refuse: Refuse, tmp_path: Path) -> None:
    for name, kind in {"notes.json": "sidecar", "notes.reuse.png": "picture"}.items():
        (tmp_path / name).write_bytes(b"[1, 2, 3]")
        message = refuse("--output_path", str(tmp_path / "notes.mp4"))
        assert f"{tmp_path / name} would be replaced by the run's {kind}, but no run has left it" in message
        assert (tmp_path / name).read_bytes() == b"[1, 2, 3]"
        (tmp_path / name).unlink()


def without_a_tensor(root: Path) -> str:
    file = root / "magi" / "inference_weight.distill" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    del tensors["final_linear.linear.weight"]
    save_file(tensors, file)
    return r"the checkpoint in .*inference_weight\.distill does not fit the model\n  1 missing:\n    final_linear"


def with_a_pickle(root: Path) -> str:
    file = root / "magi" / "inference_weight.distill" / "model.safetensors"
    torch.save({"final_linear.linear.weight": torch.zeros(3)}, file)
    return r"transformer: .*model\.safetensors .* it is a pickle under another name"


def with_a_damaged_file(root: Path) -> str:
    file = root / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    return r"VAE: .*diffusion_pytorch_model\.safetensors \(5000 bytes\) cannot be read: truncated or damaged"


def without_special_tokens(root: Path) -> str:
    (root / "special_tokens.npz").unlink()
    return r"no special tokens at .*special_tokens\.npz: copy"


def without_text_encoder(root: Path) -> str:
    shutil.rmtree(root / "t5")
    return r"runtime_config\.t5_pretrained: .*t5 does not exist"


def with_text_as_text_encoder(root: Path) -> str:
    (root / "t5" / T5_FOLDER / "model.safetensors").write_text("no weights", encoding="utf-8")
    return r"the T5 weights in .* cannot be read"


@pytest.mark.parametrize(
    "damage",
    [
        without_a_tensor,
        with_a_pickle,
        with_a_damaged_file,
        without_special_tokens,
        without_text_encoder,
        with_text_as_text_encoder,
    ],
)
def test_damaged_checkpoints(refuse: Refuse, checkpoint_copy: Path, damage: Callable[[Path], str]) -> None:
    message = damage(checkpoint_copy)
    said = refuse("--config_file", str(checkpoint_copy / "distill.json"), loads=True)
    assert re.search(message, said), said


def test_a_missing_path_is_named_whatever_the_memory(
    refuse: Refuse, checkpoint_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = without_text_encoder(checkpoint_copy)
    # A model of unknown size counts as the published one.
    monkeypatch.setattr("inference.memory.host.free_host_bytes", lambda: 4 * 10**9)
    assert re.search(message, refuse("--config_file", str(checkpoint_copy / "distill.json"), loads=True))


def test_full_disk(start_process: Start, tmp_path: Path) -> None:
    """A limit on the size of files makes the operating system refuse to write, as a full disk does."""
    (tmp_path / "video.mp4").write_bytes(b"an older video")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = start_process(tmp_path, "--num_frames", "240", "--quiet", setup=limit)
    _, errors = process.communicate()
    assert process.returncode == 1, errors.decode()
    lines = [line for line in errors.decode().splitlines() if line.startswith("error: ")]
    failed = re.search(r"video\.mp4 failed after (\d+) frames: the disk is full$", lines[0])
    assert len(lines) == 1 and failed is not None
    assert "Traceback" not in errors.decode()
    kept = sorted(f"video.partial.{ending}" for ending in ("json", "mp4", "reuse.png"))
    assert sorted(os.listdir(tmp_path)) == ["video.mp4", *kept]
    assert (tmp_path / "video.mp4").read_bytes() == b"an older video"
    assert probe_video(tmp_path / "video.partial.mp4").frames == int(failed[1]) > 0

"""scripts/generate.py makes videos of the length, with the method and with the settings that were asked for."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import pytest
import torch
from PIL import Image

from flowcache.config import FlowCacheConfig
from harness.methods import read_method
from inference.video.reading import probe_video
from inference.video.writing import VideoWriter
from teacache.config import TeaCacheConfig
from tests.scripts.conftest import ROOT, Run, Start

FAST = str(ROOT / "configs" / "method" / "flowcache_fast.yaml")
# The tiny model's latents move fast: with the threshold of a real model nothing would be reused.
FLOWCACHE = ("--method_config", FAST, "--rel-l1-thresh", "1.0")
FLAGS = (*FLOWCACHE, "--num-frames", "190", "--seed=7", "--sample_id", "b")


def read_sidecar(folder: Path, stem: str = "video") -> dict[str, Any]:
    return json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))


def moving_clip(path: Path, count: int) -> Path:
    """A clip of another size and rate than the model's: ``count`` frames of 64x40 at 12 frames per second."""
    frames = torch.randint(0, 255, (count, 40, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with VideoWriter(path, 12, 40, 64) as writer:
        writer.append(frames)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, start_process: Start) -> tuple[Path, str]:
    """The folder of a FlowCache run of eight chunks, made by a process of its own, and what it said."""
    folder = tmp_path_factory.mktemp("made")
    process = start_process(folder, *FLAGS)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return folder, errors.decode()


def test_video_and_what_stands_beside_it(made: tuple[Path, str]) -> None:
    folder, said = made
    assert sorted(path.name for path in folder.iterdir()) == ["video.json", "video.mp4", "video.reuse.png"]
    info = probe_video(folder / "video.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (190, 48, 32, 24.0)
    assert info.duration == pytest.approx(190 / 24, abs=1e-3)
    assert "22/22" in said and "190 frames" in said and "chunk-forwards reused" in said
    with Image.open(folder / "video.reuse.png") as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 20)
    assert picture.format == "PNG" and {(31, 78, 121), (244, 177, 131)} <= {colour for _, colour in colours}


def test_sidecar_says_everything(made: tuple[Path, str]) -> None:
    sidecar = read_sidecar(made[0])
    assert (sidecar["video"], sidecar["stopped"], sidecar["prompt"]) == ("video.mp4", False, "a cat on a mat")
    assert sidecar["inputs"]["mode"] == "t2v" and sidecar["inputs"]["image_path"] is None
    assert sidecar["seed"]["base"] == 7 and sidecar["seed"]["sample"] == "b" and sidecar["seed"]["noise"] > 0
    assert sidecar["frames"] == {"written": 190, "fps": 24} and sidecar["chunks"] == {"all": 8, "given": 0}
    assert sidecar["config"]["runtime_config"]["num_frames"] == 190  # the flag's, not the file's 24
    assert sidecar["config"]["runtime_config"]["prefix_selection"] == "last"  # what no file states is there too
    assert (sidecar["method"]["method"], sidecar["method"]["source"]) == ("flowcache", FAST)
    assert {"load", "text", "denoise", "decode", "write", "total"} <= set(sidecar["seconds"])
    assert all(seconds >= 0 for seconds in sidecar["seconds"].values())
    assert sidecar["seconds"]["total"] >= sidecar["seconds"]["denoise"] > 0
    assert sidecar["peak_memory_bytes"]["process"] > 50e6
    assert sidecar["device"]["type"] == "cpu" and sidecar["device"]["threads"] == 1
    assert sidecar["attention_backend"] in ("sdpa", "eager")
    assert sidecar["versions"]["torch"] == torch.__version__.split("+")[0] and sidecar["versions"]["python"]
    # Keys and values of 4 groups, 2 x 8 wide, in 2 layers, for 5 chunks of 36 tokens, float32.
    assert sidecar["kv_cache_bytes"] == 5 * 36 * 2 * 4 * 16 * 4


def test_work_and_reuse_map_agree(made: tuple[Path, str]) -> None:
    sidecar = read_sidecar(made[0])
    work, flat = sidecar["work"], [cell for row in sidecar["reuse_map"] for cell in row]
    assert work["steps"] == len(sidecar["reuse_map"]) == 22 and {len(row) for row in sidecar["reuse_map"]} == {8}
    assert work["chunk_forwards_reused"] == flat.count(1) > 0
    assert work["chunk_forwards_computed"] == flat.count(0) > 0
    assert flat.count(0) + flat.count(1) == 8 * 8 and work["share_reused"] == flat.count(1) / 64
    assert work["kv_compactions"] == 3 and work["clean_passes"] == 7 and work["flop_estimate"] > 1e8


def test_an_identical_run_gives_an_identical_file(made: tuple[Path, str], generate: Run, tmp_path: Path) -> None:
    assert generate(*FLAGS) == 0
    assert (tmp_path / "out" / "video.mp4").read_bytes() == (made[0] / "video.mp4").read_bytes()
    assert read_sidecar(tmp_path / "out")["reuse_map"] == read_sidecar(made[0])["reuse_map"]


def test_what_leaves_the_device_changes_no_frame(made: tuple[Path, str], generate: Run, tmp_path: Path) -> None:
    assert generate(*FLAGS, "--stream_weights", "true", "--kv_offload", "true") == 0
    assert (tmp_path / "out" / "video.mp4").read_bytes() == (made[0] / "video.mp4").read_bytes()
    engine = read_sidecar(tmp_path / "out")["config"]["engine_config"]
    assert engine["stream_weights"] is True and engine["kv_offload"] is True


@pytest.mark.parametrize("count", [1, 6, 23, 49])
def test_exact_number_of_frames(generate: Run, tmp_path: Path, count: int) -> None:
    assert generate("--num_frames", str(count)) == 0
    info = probe_video(tmp_path / "out" / "video.mp4")
    assert info.frames == count and info.duration == pytest.approx(count / 24, abs=1e-3)
    sidecar = read_sidecar(tmp_path / "out")
    assert sidecar["method"]["method"] == "none" and sidecar["work"]["chunk_forwards_reused"] == 0
    assert sidecar["chunks"] == {"all": -(-count // 24), "given": 0}


def test_from_an_image(generate: Run, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "image.png")
    assert generate("--mode", "i2v", "--image_path", str(tmp_path / "image.png"), "--num_frames", "25") == 0
    assert probe_video(tmp_path / "out" / "video.mp4").frames == 25
    sidecar = read_sidecar(tmp_path / "out")
    assert (sidecar["prefix_frames"], sidecar["chunks"]) == (1, {"all": 2, "given": 0})


def test_a_continued_video_with_reuse_and_compression(generate: Run, tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "clip.mp4", 30)  # 2.5 s: two whole seconds of it are used, two chunks
    flags = ("--mode", "v2v", "--prefix_video_path", str(clip), *FLOWCACHE, "--num_frames", "150")
    assert generate(*flags) == 0
    assert probe_video(tmp_path / "out" / "video.mp4").frames == 150
    sidecar = read_sidecar(tmp_path / "out")
    assert (sidecar["prefix_frames"], sidecar["chunks"]) == (48, {"all": 9, "given": 2})
    assert sidecar["work"]["chunk_forwards_reused"] > 0 and sidecar["work"]["kv_compactions"] == 4
    assert sidecar["seconds"]["encode_prefix"] >= 0


@pytest.mark.parametrize("method", ["flowcache_fast", "flowcache_published"])
def test_three_passes_with_reuse_and_compression(generate: Run, checkpoint: Path, tmp_path: Path, method: str) -> None:
    method_file = str(ROOT / "configs" / "method" / f"{method}.yaml")
    base = ("--config_file", str(checkpoint / "base.json"), "--method_config", method_file, "--rel_l1_thresh", "1")
    assert generate(*base, "--num_frames", "168") == 0
    assert probe_video(tmp_path / "out" / "video.mp4").frames == 168
    sidecar = read_sidecar(tmp_path / "out")
    assert sidecar["config"]["runtime_config"]["cfg_number"] == 3
    assert sidecar["work"]["chunk_forwards_reused"] > 0 and sidecar["work"]["kv_compactions"] == 2
    assert sidecar["work"]["clean_passes"] == (6 if method == "flowcache_fast" else 0)


@pytest.mark.parametrize("method", ["flowcache_fast", "teacache_fast"])
def test_a_method_that_reuses_nothing_says_what_would(
    generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    assert generate("--method", method, "--rel_l1_thresh", "1e-9") == 0
    [said] = [record.getMessage() for record in caplog.records if "reused nothing" in record.getMessage()]
    here = "1e-09 (8e-09 at 8 steps)"  # the presets' threshold is that of 64 steps
    assert said.startswith(f"{method} reused nothing: rel_l1_thresh is {here}, and over a step of 8 latents changed by")
    enough = re.search(r"--rel_l1_thresh (\S+) would reuse some", said)
    assert generate("--method", method, "--rel_l1_thresh", enough[1]) == 0
    assert read_sidecar(tmp_path / "out")["work"]["chunk_forwards_reused"] > 0
    assert caplog.text.count("reused nothing") == 1


@pytest.mark.parametrize(
    ("flags", "said", "size"),
    [
        ((), "50% of its height are cut off", (48, 32)),
        (("--fit", "pad"), "black bars take", (48, 32)),
        (("--video_size", "auto"), "is 48x64: the video is", (32, 48)),
    ],
)
def test_an_image_of_another_shape(
    generate: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    flags: tuple[str, ...],
    said: str,
    size: tuple[int, int],
) -> None:
    Image.new("RGB", (48, 64), (200, 60, 30)).save(tmp_path / "tall.png")
    image = ("--mode", "i2v", "--image_path", str(tmp_path / "tall.png"), "--num_frames", "4")
    assert generate(*image, *flags) == 0
    info = probe_video(tmp_path / "out" / "video.mp4")
    assert said in caplog.text and (info.width, info.height) == size


def test_the_clip_in_front_of_what_continues_it(generate: Run, tmp_path: Path) -> None:
    clip = moving_clip(tmp_path / "clip.mp4", 30)  # two and a half seconds
    flags = ("--mode", "v2v", "--prefix_video_path", str(clip), "--num_frames", "24", "--include_prefix")
    assert generate(*flags) == 0
    assert probe_video(tmp_path / "out" / "video.mp4").frames == 48 + 24
    sidecar = read_sidecar(tmp_path / "out")
    assert (sidecar["frames"]["written"], sidecar["prefix_frames"]) == (72, 48)
    assert sidecar["inputs"]["include_prefix"] is True


def test_an_empty_prompt_is_made_with_a_warning(
    generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert generate("--prompt", "", "--num_frames", "4") == 0
    assert "the prompt has no words" in caplog.text and probe_video(tmp_path / "out" / "video.mp4").frames == 4


def test_a_very_long_prompt_is_cut_with_a_warning(
    generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = ("the dog runs " * 800)[:10_000]
    assert generate("--prompt", prompt, "--num_frames", "4") == 0
    assert "were cut" in caplog.text and probe_video(tmp_path / "out" / "video.mp4").frames == 4
    assert read_sidecar(tmp_path / "out")["prompt"] == prompt


def test_a_truncated_clip_is_used_as_far_as_it_goes(
    generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = index_first(moving_clip(tmp_path / "clip.mp4", 30), tmp_path / "streamable.mp4")
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    assert generate("--mode", "v2v", "--prefix_video_path", str(clip)) == 0
    assert read_sidecar(tmp_path / "out")["prefix_frames"] == 24
    assert "streamable.mp4 is damaged or incomplete" in caplog.text


def index_first(source: Path, target: Path) -> Path:
    """The same video with its index in front, where cutting the file leaves it."""
    with av.open(str(source)) as given, av.open(str(target), "w", options={"movflags": "faststart"}) as result:
        stream = result.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                result.mux(packet)
    return target


def settings(script: ModuleType, *flags: str) -> tuple[dict[str, Any], Any]:
    """The method and the configuration that ``flags`` come to, without a run."""
    args = script.parse_arguments(["--prompt", "x", *flags])
    method = read_method(args.method_config, script.given_parameters(args))
    return method.to_json_dict(), script.resolve_config(args, method)


def test_flag_over_method_file_over_default(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "method.yaml"
    path.write_text("method: flowcache\nrel_l1_thresh: 0.5\nwarmup_steps: 3\nmax_consecutive_reuse: 2\n")
    method, _ = settings(script, "--method_config", str(path), "--warmup-steps=4", "--max_consecutive_reuse", "null")
    assert (method["rel_l1_thresh"], method["warmup_steps"], method["max_consecutive_reuse"]) == (0.5, 4, None)
    assert method["mix_lambda"] == FlowCacheConfig().mix_lambda and method["source"] == str(path)


def test_a_method_is_named_or_a_file(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, by_path = (
        settings(script, flag, value) for flag, value in (("--method", "flowcache_fast"), ("--method", FAST))
    )
    assert {**named[0], "source": ""} == {**by_path[0], "source": ""}
    assert named[0]["source"] == "configs/method/flowcache_fast.yaml"
    # In the checkout there is a folder of code that is called so.
    monkeypatch.chdir(ROOT)
    assert settings(script, "--method", "multistep")[0]["source"] == "configs/method/multistep.yaml"
    # A file of the user's that has the name of a preset is the user's; numbers may be written as in JSON, with a mark.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multistep").write_text("\ufeffmethod: flowcache\nrel_l1_thresh: 1e-2\n", encoding="utf-8")
    assert settings(script, "--method", "multistep")[0]["rel_l1_thresh"] == 0.01


def test_parameters_without_a_file_mean_flowcache(script: ModuleType, tmp_path: Path) -> None:
    method, _ = settings(script, "--compress-kv-cache", "true", "--query_granularity=frame")
    assert (method["method"], method["source"]) == ("flowcache", "command line")
    assert (method["compress_kv_cache"], method["query_granularity"], method["rel_l1_thresh"]) == (True, "frame", 0)
    assert settings(script)[0]["method"] == "none"
    path = tmp_path / "method.yaml"
    path.write_text("warmup_steps: 3\n")
    assert settings(script, "--method_config", str(path))[0]["method"] == "flowcache"


def test_teacache_takes_its_own_parameters(script: ModuleType) -> None:
    file = ("--method_config", str(ROOT / "configs" / "method" / "teacache_slow.yaml"))
    method, _ = settings(script, *file)
    assert (method["method"], method["coefficients"], method["compress_kv_cache"]) == ("teacache", None, False)
    method, _ = settings(script, *file, "--coefficients=-2,0.5,1e-3", "--compress-kv-cache", "true")
    assert (method["coefficients"], method["compress_kv_cache"]) == ([-2.0, 0.5, 0.001], True)
    assert settings(script, *file, "--coefficients", "[3]")[0]["coefficients"] == [3.0]
    with pytest.raises(ValueError, match=r"unknown parameter 'max_consecutive_reuse'; known are .*coefficients"):
        settings(script, *file, "--max_consecutive_reuse", "2")
    with pytest.raises(ValueError, match="--coefficients belongs to teacache"):
        settings(script, "--coefficients", "1,0")


def test_run_settings_replace_the_configuration(script: ModuleType, checkpoint: Path) -> None:
    file = ("--config_file", str(checkpoint / "distill.json"))
    _, config = settings(script, *file)
    assert (config.runtime.num_frames, config.runtime.num_steps, config.runtime.seed) == (24, 8, 1234)
    flags = ("--num-frames", "50", "--num_steps=16", "--seed", "3", "--video_size_h", "64", "--video-size-w", "32")
    _, config = settings(script, *file, *flags, "--attention_backend", "eager")
    runtime = config.runtime
    assert (runtime.num_frames, runtime.num_steps, runtime.seed) == (50, 16, 3)
    assert (runtime.video_size_h, runtime.video_size_w, config.engine.attention_backend) == (64, 32, "eager")


def test_key_window_of_flag_over_method_over_configuration(script: ModuleType, checkpoint: Path) -> None:
    file = ("--config_file", str(checkpoint / "distill.json"))
    published = ("--method_config", str(ROOT / "configs" / "method" / "flowcache_published.yaml"))
    windows = [
        settings(script, *file, *flags)[1].runtime.noise2clean_kvrange
        for flags in (
            (),
            ("--method_config", FAST),
            published,
            (*published, "--noise2clean_kvrange", "4,2"),
            ("--noise2clean-kvrange=full",),
        )
    ]
    assert windows == [(5, 4, 3, 2), (5, 4, 3, 2), (), (4, 2), ()]


def test_help_names_choices_and_defaults(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "--compress_strategy {token,frame,chunk} what is kept or dropped as one (default: token)" in text
    assert "--max_consecutive_reuse INT|null" in text and "--clean_pass true|false" in text
    fields = FlowCacheConfig.model_fields | TeaCacheConfig.model_fields
    assert "coefficients FLOAT,...|null" in text and "flowcache only" in text
    for name, field in fields.items():
        entry = text.split(f"--{name} ")[-1].split(" --")[0]
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        # Behind a semicolon stand the methods that have another.
        assert re.search(rf"\(default: {re.escape('null' if default is None else str(default))}[;)]", entry)
        assert field.description in entry

"""scripts/calibrate.py, and the targets of scripts/generate.py that its file serves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.calibration.files import Entry, Ratio, choose
from inference.config import load_config
from inference.pipeline import MagiPipeline, Sample
from tests.loading import load_script
from tests.scripts.conftest import Run


def entry(length: int, psnr: list[float], speedup: float, discard: bool = False) -> Entry:
    ratio = Ratio(median=speedup, min=speedup, max=speedup)
    return Entry(
        pattern=tuple(range(length)),
        discard_nearly_clean_chunk=discard,
        psnr=psnr,
        checked_psnr=psnr,
        flop_ratio=speedup,
        seconds_ratio=ratio,
    )


# Leaving out the copies of the longest pattern gains more than a shorter pattern does.
ENTRIES = [entry(8, [40, 44], 2.0), entry(2, [20, 22], 7.0), entry(4, [30, 38], 4.0), entry(8, [29, 33], 5.0, True)]


@pytest.mark.parametrize(
    ("target", "chosen"), [(15, (2, False)), (28, (8, True)), (30.4, (4, False)), (30.5, (8, False))]
)
def test_psnr_target_takes_the_fastest_that_19_of_20_videos_reach(target: float, chosen: tuple[int, bool]) -> None:
    found = choose(ENTRIES, "file", target, None)
    assert (len(found.pattern), found.discard_nearly_clean_chunk) == chosen


def test_one_bad_video_of_forty_is_seen_whichever_set_it_is_in() -> None:
    good, bad = [50.0] * 20, [50.0] * 18 + [20.0, 20.0]
    one = entry(4, good, 4.0)
    assert one.promised_psnr == 50
    assert one.model_copy(update={"checked_psnr": bad}).promised_psnr == 20
    assert one.model_copy(update={"psnr": bad}).promised_psnr == 20


@pytest.mark.parametrize(("target", "length"), [(1.0, 8), (2.0, 8), (2.1, 4), (4.5, 8), (7.0, 2)])
def test_speedup_target_takes_the_best_that_is_fast_enough(target: float, length: int) -> None:
    assert len(choose(ENTRIES, "file", None, target).pattern) == length


def test_targets_out_of_reach_name_the_best_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"target_psnr 50 is above the highest that 19 of 20 calibrated videos reach, 40\.2 dB"
    ):
        choose(ENTRIES, "file", 50, None)
    with pytest.raises(ValueError, match=r"target_speedup 9 is above the highest calibrated, 7\.00"):
        choose(ENTRIES, "file", None, 9)


@pytest.fixture(scope="module")
def calibration(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of the tiny model."""
    folder = tmp_path_factory.mktemp("calibration")
    prompts = folder / "prompts.txt"
    prompts.write_text("a cat\n\na mat\na dog\n", encoding="utf-8")
    output = folder / "tiny.json"
    assert load_script("calibrate").main(calibration_flags(checkpoint, output)) == 0
    return output


def calibration_flags(checkpoint: Path, output: Path) -> list[str]:
    folder = output.parent
    paths = {"config_file": checkpoint / "distill.json", "prompts": folder / "prompts.txt", "work": folder / "work"}
    flags = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    return [*flags, "--num_frames", "48", "--lengths", "8", "3", "--output", str(output)]


@pytest.mark.parametrize("output", ["distill.json", "prompts.txt", "link.txt", "notes.json"])
def test_only_a_calibration_is_replaced(
    checkpoint_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, output: str
) -> None:
    (checkpoint_copy / "prompts.txt").write_text("a cat\na dog\na sun\na ball\n", encoding="utf-8")
    (checkpoint_copy / "link.txt").symlink_to("prompts.txt")
    (checkpoint_copy / "notes.json").write_text("{}", encoding="utf-8")
    before = (checkpoint_copy / output).read_bytes()
    inputs = ["--config_file", str(checkpoint_copy / "distill.json"), "--prompts", str(checkpoint_copy / "prompts.txt")]
    assert load_script("calibrate").main([*inputs, "--output", str(checkpoint_copy / output)]) == 1
    flag = {"distill.json": "config_file", "notes.json": None}.get(output, "prompts")
    assert (f"is the input of --{flag}" if flag else "this program has not left it") in caplog.text
    assert (checkpoint_copy / output).read_bytes() == before


def test_calibration_file(calibration: Path) -> None:
    contents = json.loads(calibration.read_text(encoding="utf-8"))
    assert contents["about"]["prompts"] == ["a cat", "a mat"] and contents["about"]["held_out_prompts"] == ["a dog"]
    steps = contents["conditions"]["num_steps"]
    # The tiny model is distilled: every pattern with its copies and without.
    assert [entry["discard_nearly_clean_chunk"] for entry in contents["entries"]] == [False, True, False, True]
    short, frugal, whole, _ = contents["entries"]
    assert short["tried"] and not whole["tried"]  # there are several patterns of 3 steps, and one of all 8
    mean = sum(short["psnr"]) / 2
    assert all(one["pattern"] != short["pattern"] and one["mean"] <= mean + 0.01 for one in short["tried"])
    assert frugal["pattern"] == short["pattern"] and frugal["flop_ratio"] >= short["flop_ratio"]
    assert len(short["pattern"]) == 3 and len(short["psnr"]) == 2 and len(short["checked_psnr"]) == 1
    if steps == 8:  # all computed: the uncached video itself
        assert whole["psnr"] == [99.0, 99.0] and whole["flop_ratio"] == 1
    assert short["flop_ratio"] > whole["flop_ratio"] and max(short["psnr"]) < min(whole["psnr"])


def test_every_prompt_has_its_own_noise(calibration: Path, checkpoint: Path) -> None:
    config = load_config(str(checkpoint / "distill.json")).with_overrides(num_frames=48)
    pipeline = MagiPipeline.load(config, torch.device("cpu"))
    for number, prompt in enumerate(("a cat", "a mat", "a dog")):  # the last one is held out
        (file,) = (calibration.parent / "work").glob(f"{number:03d}-*.npz")
        made = {identity: frames_of(pipeline, prompt, identity) for identity in (f"calibration/{number}", "0")}
        kept = np.load(file)["frames"]
        assert np.array_equal(kept, made[f"calibration/{number}"]) and not np.array_equal(kept, made["0"])


def frames_of(pipeline: MagiPipeline, prompt: str, identity: str) -> np.ndarray:
    return torch.cat(list(pipeline.frames(Sample(prompt, identity=identity)))).numpy()


def test_a_calibration_goes_on_where_it_was_stopped(
    calibration: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(calibration.read_text(encoding="utf-8"))
    work = calibration.parent / "work"
    times = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    lost = sorted(times)[1]
    lost.unlink()
    again = calibration.with_name("again.json")
    assert load_script("calibrate").main(calibration_flags(checkpoint, again)) == 0
    after = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    assert after.keys() == times.keys()
    assert [file for file in times if after[file] != times[file]] == [lost]
    entries = json.loads(again.read_text(encoding="utf-8"))["entries"]
    assert [entry["psnr"] for entry in entries] == [entry["psnr"] for entry in before["entries"]]


def test_a_fitted_solver_is_kept_or_its_figures_are(calibration: Path, checkpoint: Path) -> None:
    output = calibration.with_name("fitted.json")
    flags = [*calibration_flags(checkpoint, output), "--solver", "3", "--solver_no_copies", "3", "--iterations", "2"]
    assert load_script("calibrate").main(flags) == 0
    entries = json.loads(output.read_text(encoding="utf-8"))["entries"]
    assert len(list((output.parent / "work").glob("fit-*.pt"))) == 2  # with copies and without
    # One held-out video decides nothing, so the rule stays, with what the solver reached beside it.
    short = [entry for entry in entries if len(entry["pattern"]) == 3]
    assert [entry["solver"] for entry in entries] == [None] * 4
    assert all(entry["tried"][-1]["found_by"] == "fitted, on held-out prompts" for entry in short)


def test_a_solver_belongs_to_its_mode(
    calibration: Path, generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = json.loads(calibration.read_text(encoding="utf-8"))
    rule = contents["entries"][0]
    rows = [[0.1] * (row + 1) for row in range(3)]
    solver = {"levels": [0.0, 0.1, 0.5], "first": rows, "later": rows}
    better = rule | {"solver": solver, "psnr": [80.0, 80.0], "checked_psnr": [80.0], "flop_ratio": 90.0}
    contents["entries"] = [rule, better]
    both = tmp_path / "both.json"
    both.write_text(json.dumps(contents), encoding="utf-8")
    flags = ("--target_psnr", "1", "--calibration", str(both))
    sidecar = tmp_path / "out" / "video.json"
    assert generate(*flags) == 0
    assert json.loads(sidecar.read_text(encoding="utf-8"))["method"]["solver"] == solver
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64), "red").save(image)
    assert generate(*flags, "--mode", "i2v", "--image_path", str(image)) == 0
    assert json.loads(sidecar.read_text(encoding="utf-8"))["method"]["solver"] is None
    assert "was made in mode t2v; what it promises is not known for i2v" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--solver", "4"], "a solver of [4] steps: its length must be among the lengths [8, 3]"),
        (["--iterations", "0"], "at least 1, got 0"),
    ],
)
def test_fits_that_make_no_sense(
    flags: list[str], message: str, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n", encoding="utf-8")
    assert load_script("calibrate").main([*calibration_flags(checkpoint, tmp_path / "x.json"), *flags]) == 1
    assert message in caplog.text and not (tmp_path / "work").exists()


def test_target_runs_the_pattern_and_says_so(calibration: Path, generate: Run, tmp_path: Path) -> None:
    assert generate("--target_psnr", "1", "--calibration", str(calibration)) == 0
    sidecar = json.loads((tmp_path / "out" / "video.json").read_text(encoding="utf-8"))
    entries = json.loads(calibration.read_text(encoding="utf-8"))["entries"]
    short = max(entries, key=lambda entry: entry["flop_ratio"])
    assert len(short["pattern"]) == 3
    assert sidecar["method"]["method"] == "multistep" and sidecar["method"]["pattern"] == short["pattern"]
    assert sidecar["method"]["chosen"]["target_psnr"] == 1
    assert sidecar["method"]["chosen"]["expected_speedup"] == short["seconds_ratio"]["median"]
    assert sidecar["work"]["share_reused"] == pytest.approx(1 - 3 / sidecar["config"]["runtime_config"]["num_steps"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target_psnr", "30"], "does not exist; make it with scripts/calibrate.sh"),
        (["--target_psnr", "30", "--target_speedup", "2"], "exclude each other"),
        (["--target_speedup", "2", "--method_config", "configs/method/none.yaml"], "a target chooses the method"),
        (["--calibration", "x.json"], "needs a target, target_psnr or target_speedup"),
    ],
)
def test_targets_that_make_no_sense(
    flags: list[str], message: str, generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert generate(*flags) == 1
    assert message in caplog.text
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_calibration_of_other_conditions(calibration: Path, generate: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert generate("--target_psnr", "1", "--calibration", str(calibration), "--noise2clean_kvrange", "full") == 1
    assert "was made with noise2clean_kvrange" in caplog.text and "calibrate it" in caplog.text


def test_calibration_of_other_weights(
    calibration: Path, generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = json.loads(calibration.read_text(encoding="utf-8"))
    contents["conditions"]["weights"] = "0123456789abcdef"
    old = tmp_path / "old.json"
    old.write_text(json.dumps(contents), encoding="utf-8")
    assert generate("--target_psnr", "1", "--calibration", str(old)) == 1
    assert "was made with weights 0123456789abcdef" in caplog.text and "calibrate it" in caplog.text


def test_files_that_are_no_calibration(generate: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"entries": 3}', encoding="utf-8")
    assert generate("--target_psnr", "1", "--calibration", str(broken)) == 1
    assert "broken.json is no calibration file: about: Field required" in caplog.text

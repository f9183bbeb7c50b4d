"""A small benchmark in the official layout: finding its files, refusing what cannot be scored, and known scores."""

import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from metrics.physics_iq import files
from metrics.physics_iq.files import (
    Benchmark,
    check_generated,
    read_frames,
    read_take,
    score_or_problem,
    score_view,
)
from metrics.physics_iq.motion_masks import motion_masks, write_masks
from metrics.physics_iq.scores import Comparison, ViewResult, compare, original_score, set_score, verified_score
from metrics.physics_iq.table import find_descriptions, read_descriptions
from tests.physics_iq_folder import FPS, FRAMES, SIZE, generated_names, square, submit_still, submit_take, write

NAMES = list(generated_names())


@pytest.fixture(scope="module")
def data(physics_iq: Path) -> Path:
    return physics_iq


@pytest.fixture(scope="module")
def filmed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Take 2 as if a model had made it. Not to be changed."""
    folder = tmp_path_factory.mktemp("filmed")
    submit_take(data, folder, take=2)
    return folder


def score_all(data: Path, generated: Path) -> list[ViewResult]:
    views = read_descriptions(find_descriptions(data))
    benchmark = Benchmark(data, check_generated(generated, views))
    return [score_view(benchmark, view, generated / view.generated_name) for view in views]


@pytest.mark.slow
def test_take_1_as_generated(data: Path, tmp_path: Path) -> None:
    submit_take(data, tmp_path, take=1)
    results = score_all(data, tmp_path)
    for result in results:
        assert result.first == Comparison((0.0,) * FRAMES, (1.0,) * FRAMES, 1.0, 1.0)
        assert result.second == result.variance
        assert 0.3 < result.variance.mean("spatiotemporal_iou") < 0.95 and result.variance.mean("mse") > 1e-3
    assert original_score(results) == 100
    assert verified_score(results).score == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_take_2_as_generated_is_as_near_as_reality(data: Path, filmed: Path) -> None:
    results = score_all(data, filmed)
    assert original_score(results) == pytest.approx(100, abs=0.05)
    assert set_score(results).original == pytest.approx(1, abs=1e-9)
    assert verified_score(results).score == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_a_still_video_scores_near_zero(data: Path, tmp_path: Path) -> None:
    submit_still(tmp_path)
    results = score_all(data, tmp_path)
    # All it gets are the first frames, before the motion has become large enough for a mask.
    assert all(result.first.spatiotemporal_iou[3:] == (0.0,) * (FRAMES - 3) for result in results)
    assert original_score(results) < 5
    components = verified_score(results).components
    assert components["spatial_iou"] == components["weighted_spatial_iou"] == 0
    assert components["spatiotemporal_iou"] < 0.05 and components["mse"] < 0.5


def test_frames_are_those_that_opencv_reads(data: Path) -> None:
    path = next(data.rglob("0001_testing*.mp4"))
    capture = cv2.VideoCapture(str(path))
    for frame in read_frames(path):
        assert np.array_equal(frame, cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
    assert not capture.read()[0]


def test_takes_are_read_at_a_quarter_of_the_size_of_the_first(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "large.mp4", square(speed=4, row=30, size=96))
    take = read_take(tmp_path / "large.mp4", FPS, FRAMES)
    assert take.pictures.shape == (FRAMES, 24, 24, 3) and take.masks.shape == (FRAMES, 24, 24)
    take = read_take(tmp_path / "large.mp4", FPS, 7, size=(16, 12))
    assert take.pictures.shape == (7, 12, 16, 3) and take.masks.shape == (7, 12, 16)
    frame = next(read_frames(tmp_path / "large.mp4"))
    assert np.array_equal(take.pictures[0], cv2.resize(frame, (16, 12), interpolation=cv2.INTER_LINEAR))
    assert not take.masks[0].any() and take.masks[3].any()


def test_masks_that_come_with_the_data_are_used(data: Path, filmed: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    view = read_descriptions(find_descriptions(root))[0]
    computed = score_view(Benchmark(root, FPS), view, filmed / view.generated_name)
    folder = root / "physics-IQ-benchmark" / "video-masks" / "real" / f"{FPS}FPS"
    folder.mkdir(parents=True)
    masks = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    masks[:, :32] = 255
    write_masks(folder / f"0001_video-masks_{FPS}FPS_{view.view}_take-1_{view.scenario}.mp4", masks, FPS)
    take_1 = read_take(Benchmark(root, FPS).testing(view, 1), FPS, FRAMES, mask=Benchmark(root, FPS).mask(view, 1))
    assert take_1.masks[:, :7].all() and not take_1.masks[:, 9:].any()
    shipped = score_view(Benchmark(root, FPS), view, filmed / view.generated_name)
    assert shipped.first.mse == computed.first.mse
    assert shipped.first.spatial_iou != computed.first.spatial_iou
    assert shipped.second == computed.second  # take 2 has no mask of its own


def test_data_that_is_not_there(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Physics-IQ data in"):
        Benchmark(tmp_path, FPS)
    with pytest.raises(FileNotFoundError, match=r"no real videos at 24 fps: .*24FPS is missing \(there: 8FPS\)"):
        Benchmark(data, 24)
    root = shutil.copytree(data, tmp_path / "data")
    next(root.rglob("*_take-2_trimmed-slide.mp4")).unlink()
    benchmark = Benchmark(root / "physics-IQ-benchmark", FPS)
    missing = [view for view in read_descriptions(find_descriptions(root)) if view.scenario == "trimmed-slide"]
    with pytest.raises(FileNotFoundError, match=r"trimmed-slide\.mp4, take 2, is not in"):
        for view in missing:
            benchmark.testing(view, 2)


def test_two_files_for_one_take(data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    file = next(root.rglob("0001_testing*.mp4"))
    shutil.copy(file, file.with_name(file.name.replace("0001", "0099")))
    with pytest.raises(ValueError, match="are both take 1 of trimmed-slide"):
        Benchmark(root, FPS)


def write_any(path: Path, frames: torch.Tensor, fps: Fraction | int) -> None:
    """A video of any size and rate, frames (T, H, W, 3) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.numpy()), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage(path: Path) -> None:
    """Overwrite the pictures in the middle of the file, which stays a file that can be opened."""
    contents = bytearray(path.read_bytes())
    middle = contents.index(b"mdat") + 2000
    contents[middle : middle + 300] = b"\xff" * 300
    path.write_bytes(contents)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, r"0002_.* is missing"),
    "cut off": (truncate, r"0002_\S+ cannot be decoded"),
    "no video": (lambda path: path.write_text("nothing"), r"0002_\S+ cannot be decoded"),
    "a frame short": (lambda path: write(path, square(2, 20, frames=39)), r"lasts 4\.875 s and has 39 frames at 8 fps"),
    "a frame too many": (lambda path: write(path, square(2, 20, frames=41)), r"lasts 5\.125 s"),
    "with the prefix": (lambda path: write(path, square(2, 20, frames=64)), r"lasts 8\.000 s and has 64 frames"),
    "another rate": (
        lambda path: write(path, square(2, 20, frames=50), fps=10),
        r"several frame rates \(3 at 8, 1 at 10 fps\)",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_generated_videos_that_cannot_be_scored(data: Path, filmed: Path, tmp_path: Path, case: str) -> None:
    harm, message = DAMAGES[case]
    folder = shutil.copytree(filmed, tmp_path / "generated")
    views = read_descriptions(find_descriptions(data))
    assert check_generated(folder, views) == FPS
    harm(folder / NAMES[1])
    with pytest.raises(ValueError, match=message):
        check_generated(folder, views)


def test_a_damaged_video_is_found_when_it_is_scored(data: Path, filmed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(filmed, tmp_path / "generated")
    view = read_descriptions(find_descriptions(data))[1]
    damage(folder / view.generated_name)
    with pytest.raises(ValueError, match=r"0002_\S+ (is damaged at|cannot be decoded beyond) frame \d"):
        score_view(Benchmark(data, FPS), view, folder / view.generated_name)
    problem = score_or_problem(Benchmark(data, FPS), view, folder / view.generated_name)
    assert isinstance(problem, str) and "0002_" in problem


def test_every_video_is_decoded_once(data: Path, filmed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counting(path: Path) -> Iterator[np.ndarray]:
        decoded.append(path.name)
        return read_frames(path)

    monkeypatch.setattr(files, "read_frames", counting)
    views = read_descriptions(find_descriptions(data))
    benchmark = Benchmark(data, check_generated(filmed, views))
    score_view(benchmark, views[0], filmed / views[0].generated_name)
    found = {name: decoded.count(name) for name in decoded if name != "mask.mp4"}
    assert len(found) == 3 and set(found.values()) == {1}
    assert decoded.count("mask.mp4") == 3  # each one's own, which is written anew


def test_a_rate_that_is_no_whole_number(data: Path, tmp_path: Path) -> None:
    """119 frames at 23.8 fps are 5 s: the real videos of that rate lie in 23FPS, as the official code calls it."""
    root, fps = tmp_path / "data", Fraction(119, 5)
    views, generated = read_descriptions(find_descriptions(data)), tmp_path / "generated"
    folder = root / "physics-IQ-benchmark" / "split-videos" / "testing" / "23FPS"
    for view in views:
        for take in (1, 2):
            name = f"{view.number}_testing-videos_23FPS_{view.view}_take-{take}_{view.scenario}.mp4"
            write_any(folder / name, square(1, row=20, start=3 * take, frames=119), fps)
        write_any(generated / view.generated_name, square(1, row=20, start=6, frames=119), fps)
    found = check_generated(generated, views)
    assert found == pytest.approx(23.8)
    result = score_view(Benchmark(root, found), views[0], generated / views[0].generated_name)
    assert len(result.first.mse) == 119 and result.second.spatial_iou == 1.0


def test_odd_sizes_are_scored(data: Path, tmp_path: Path) -> None:
    """65x63 pictures: whatever the mask loses, a take compared with itself is perfect, and the takes differ."""
    for take in (1, 2):
        write_any(tmp_path / f"take-{take}.mp4", square(2, row=20, start=4 * take, size=66)[:, :63, :65], FPS)
    first, second = (read_take(tmp_path / f"take-{take}.mp4", FPS, FRAMES) for take in (1, 2))
    assert first.pictures.shape == (FRAMES, 15, 16, 3) and first.masks.shape == (FRAMES, 15, 16)
    assert compare(first, first).spatial_iou == 1.0 and 0.3 < compare(first, second).weighted_spatial_iou < 1.0
    # By hand: the mask of the 64x62 pixels that are left, resized.
    frames = list(read_frames(tmp_path / "take-1.mp4"))
    assert frames[0].shape == (63, 65, 3)
    number = 9
    mask = list(motion_masks(frames))[number][:62, :64]
    expected = cv2.resize(mask, (16, 15)) > 127
    assert np.mean(first.masks[number] != expected) < 0.05  # the file is lossy


def test_all_that_is_wrong_is_named(data: Path, filmed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(filmed, tmp_path / "generated")
    (folder / NAMES[0]).unlink()
    write(folder / NAMES[3], square(2, 20, frames=20))
    shutil.copy(folder / NAMES[1], folder / "0005_perspective-left_trimmed-other.mp4")
    with pytest.raises(ValueError) as error:
        check_generated(folder, read_descriptions(find_descriptions(data)))
    for part in (f"{NAMES[0]} is missing", "0005_perspective-left_trimmed-other.mp4 is not one", "20 frames"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="no folder of generated videos"):
        check_generated(tmp_path / "nothing", read_descriptions(find_descriptions(data)))

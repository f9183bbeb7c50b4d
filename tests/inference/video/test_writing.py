"""Writing of videos: exact counts, reproducible files, and what remains when a run is stopped or the disk is full."""

import errno
import os
import re
import signal
import subprocess
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from inference.files import hidden_beside
from inference.model.finite import NotFiniteError
from inference.video.fragments import FragmentEncoder, VideoForm
from inference.video.names import check_output_path
from inference.video.reading import probe_video, read_video
from inference.video.unfinished import UnfinishedVideo
from inference.video.writing import VideoWriter
from tests.paths import ROOT
from tests.warm.start import warm_python


def frames_of(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """A bright bar that moves down by one row a frame: (count, height, width, 3) uint8."""
    frames = torch.full((count, height, width, 3), 40, dtype=torch.uint8)
    for number in range(count):
        frames[number, number % height] = torch.tensor([200, 120, 90], dtype=torch.uint8)
    return frames


def write(path: Path, frames: torch.Tensor, fps: int = 24) -> VideoWriter:
    with VideoWriter(path, fps, frames.shape[1], frames.shape[2]) as writer:
        for part in frames.split(10):
            writer.append(part)
    return writer


def run_python(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [warm_python(), "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # A test run in the background may have been started with Ctrl-C ignored, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(("count", "fps", "duration"), [(48, 24, 2.0), (1, 24, 1 / 24), (25, 8, 3.125), (3, 30, 0.1)])
def test_exact_count_and_duration(tmp_path, count, fps, duration):
    writer = write(tmp_path / "video.mp4", frames_of(count), fps)
    assert writer.frames_written == count and not writer.stopped
    info = probe_video(tmp_path / "video.mp4")
    assert (info.frames, info.fps, info.width, info.height) == (count, float(fps), 48, 32)
    assert info.duration == pytest.approx(duration, abs=1e-4)
    assert os.listdir(tmp_path) == ["video.mp4"]


def test_colours_survive(tmp_path):
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [120, 60, 200]])
    frames = colours.to(torch.uint8)[:, None, None, :].expand(6, 32, 48, 3).contiguous()
    write(tmp_path / "video.mp4", frames, fps=8)
    difference = (read_video(tmp_path / "video.mp4", 8, 32, 48).int() - frames.int()).abs()
    assert difference.max() <= 6


def test_equal_frames_give_equal_files(tmp_path):
    write(tmp_path / "one.mp4", frames_of(30))
    write(tmp_path / "two.mp4", frames_of(30))
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_equal_frames_give_equal_files_at_any_size(tmp_path):
    """Nine macroblocks wide, textured, several at once: x264's tree of macroblocks gives half of them other bits."""
    texture = torch.randint(0, 60, (24, 48, 144, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, frame in enumerate(texture):
        frame[10 + number : 30 + number, number : number + 20] += 120

    def written(number: int) -> bytes:
        path = tmp_path / f"{number}.mp4"
        write(path, texture)
        return path.read_bytes()

    with ThreadPoolExecutor(4) as at_once:
        assert len(set(at_once.map(written, range(16)))) == 1


def test_the_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new folder" / "video.mp4"
    path.parent.mkdir()
    path.write_bytes(b"an older video")
    with VideoWriter(path, 24, 32, 48) as writer:
        writer.append(frames_of(100))  # x264 looks far ahead before it writes the first frame
        assert path.read_bytes() == b"an older video"
        [hidden] = [name for name in os.listdir(path.parent) if name.startswith(".~")]
        assert probe_video(path.parent / hidden).frames == 100  # a video by itself, whatever happens from here on
    assert probe_video(path).frames == 100 and os.listdir(path.parent) == ["video.mp4"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_stopped_run_leaves_a_playable_file(tmp_path, error):
    writer = VideoWriter(tmp_path / "video.mp4", 24, 32, 48)
    with pytest.raises(type(error)), writer:
        writer.append(frames_of(30))
        raise error
    assert writer.stopped and probe_video(tmp_path / "video.mp4").frames == writer.frames_written == 30
    assert os.listdir(tmp_path) == ["video.mp4"] and writer.saved_as == tmp_path / "video.mp4"


def test_an_unfinished_video_never_replaces_an_older_one(tmp_path, caplog):
    (tmp_path / "video.mp4").write_bytes(b"an older video")
    for count in (5, 7):  # an older partial one does not count as worth keeping
        writer = VideoWriter(tmp_path / "video.mp4", 24, 32, 48)
        with pytest.raises(KeyboardInterrupt), writer:
            writer.append(frames_of(count))
            raise KeyboardInterrupt
        assert writer.saved_as == tmp_path / "video.partial.mp4" and probe_video(writer.saved_as).frames == count
        assert (tmp_path / "video.mp4").read_bytes() == b"an older video"
        assert sorted(os.listdir(tmp_path)) == ["video.mp4", "video.partial.mp4"]
    assert "the older video.mp4 is unchanged" in caplog.text
    writer = write(tmp_path / "video.mp4", frames_of(3))
    assert writer.saved_as == tmp_path / "video.mp4" and probe_video(tmp_path / "video.mp4").frames == 3


def test_what_was_finished_before_numbers_went_wrong_is_a_partial_video(tmp_path, caplog):
    writer = VideoWriter(tmp_path / "video.mp4", 24, 32, 48)
    with pytest.raises(NotFiniteError), writer:
        writer.append(frames_of(5))
        raise NotFiniteError("decoding: frames of chunk 1")
    assert os.listdir(tmp_path) == ["video.partial.mp4"] and probe_video(writer.saved_as).frames == 5
    assert writer.stopped and "unchanged" not in caplog.text


@pytest.mark.slow
def test_a_lock_that_ctrl_c_left_taken_stops_nothing(tmp_path):
    """Ctrl-C may interrupt the main thread in the middle of a log line, whose lock it then keeps."""
    code = """
        import logging, sys, torch
        from inference.video.writing import VideoWriter
        logging.basicConfig(format="%(message)s", stream=sys.stdout)
        lock = logging.getLogger().handlers[0]
        for batches in (0, 1):
            try:
                with VideoWriter(sys.argv[1], 24, 32, 48) as writer:
                    for _ in range(batches):
                        writer.append(torch.zeros(4, 32, 48, 3, dtype=torch.uint8))
                    lock.acquire()
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                lock.release()
                print(writer.frames_written, flush=True)
    """
    with run_python(code, str(tmp_path / "video.mp4")) as process:
        try:
            lines = process.communicate(timeout=120)[0].splitlines()
        finally:
            process.kill()
    assert process.returncode == 0 and (lines[1], lines[3]) == ("0", "4")
    assert lines[0].startswith("stopped before the first frame") and lines[2].startswith("stopped early")


def test_stopped_before_the_first_frame(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"an older video")
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "video.mp4", 24, 32, 48):
        raise KeyboardInterrupt
    assert (tmp_path / "video.mp4").read_bytes() == b"an older video" and os.listdir(tmp_path) == ["video.mp4"]


def test_no_frame_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no frames were written"), VideoWriter(tmp_path / "video.mp4", 24, 32, 48):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_ctrl_c_leaves_whole_batches(tmp_path):
    """A real SIGINT, at no particular moment, while batches of 7 frames are being encoded."""
    code = """
        import sys, torch
        from inference.video.writing import VideoWriter
        frames = torch.randint(0, 255, (7, 128, 128, 3), dtype=torch.uint8)
        with VideoWriter(sys.argv[1], 24, 128, 128) as writer:
            for batch in range(10_000):
                writer.append(frames)
                if batch == 2:
                    print("writing", flush=True)
    """
    with run_python(code, str(tmp_path / "video.mp4")) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode != 0
    info = probe_video(tmp_path / "video.mp4")
    assert info.frames >= 21 and info.frames % 7 == 0 and info.duration == pytest.approx(info.frames / 24, abs=1e-3)
    assert os.listdir(tmp_path) == ["video.mp4"]


@pytest.mark.slow
def test_full_disk(tmp_path):
    """A limit on the file size makes the operating system refuse to write, as a full disk does."""
    (tmp_path / "video.mp4").write_bytes(b"an older video")
    code = """
        import resource, sys, torch
        from inference.video.writing import VideoWriter
        frames = torch.randint(0, 255, (12, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for limit in (100, 60_000, 150_000, 400_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                with VideoWriter(sys.argv[1], 24, 128, 128) as writer:
                    for _ in range(12):
                        writer.append(frames)
            except OSError as error:
                print(error)
    """
    with run_python(code, str(tmp_path / "video.mp4")) as process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0 and len(lines) == 4
    done = [int(re.search(r"video.mp4 failed after (\d+) frames: the disk is full", line)[1]) for line in lines]
    assert done[0] == done[1] == 0 < done[2] < done[3] and not any(count % 12 for count in done)
    # What was finished is kept, beside the older video, which stays as it is.
    assert (tmp_path / "video.mp4").read_bytes() == b"an older video"
    assert sorted(os.listdir(tmp_path)) == ["video.mp4", "video.partial.mp4"]
    assert probe_video(tmp_path / "video.partial.mp4").frames == done[3]


# Appends batches of six frames for ever and says so; the video's name is the argument.
ENDLESS = """
    import itertools, sys, torch
    from inference.video.writing import VideoWriter
    torch.set_num_threads(1)
    with VideoWriter(sys.argv[1], 24, 32, 48) as writer:
        for number in itertools.count(1):
            writer.append(torch.full((6, 32, 48, 3), number % 256, dtype=torch.uint8))
            print(number, flush=True)
"""


@pytest.mark.parametrize("pause", [0.0, 0.007, 0.05])
def test_a_killed_process_leaves_every_finished_batch(tmp_path, pause, caplog):
    path = tmp_path / "video.mp4"
    with run_python(ENDLESS, str(path)) as process:
        for _ in range(3):
            process.stdout.readline()
        time.sleep(pause)
        process.kill()
        said = process.stdout.read().split()
    finished = 6 * max(int(number) for number in ["3", *said])
    [hidden] = os.listdir(tmp_path)
    # Killed between the disk's having a batch and our saying so, there is one more.
    assert probe_video(tmp_path / hidden).frames in (finished, finished + 6)
    write(path, frames_of(30))
    assert sorted(os.listdir(tmp_path)) == ["video.mp4", "video.partial.mp4"]
    rescued = probe_video(tmp_path / "video.partial.mp4")
    assert rescued.frames in (finished, finished + 6) and rescued.duration == pytest.approx(rescued.frames / 24)
    assert f"an earlier run onto video.mp4 was killed: its {rescued.frames} frames are" in caplog.text
    assert probe_video(path).frames == 30


def left_behind(path: Path, torn: int = 0) -> Path:
    """What a killed run leaves that had finished two batches of six frames; of the last one ``torn`` bytes lack."""
    unfinished, encoder = UnfinishedVideo(path), FragmentEncoder(VideoForm(24, 32, 48))
    for cut in (0, torn):
        fragment = encoder.encode(frames_of(6))
        unfinished.add(fragment[: len(fragment) - cut])
    unfinished.leave()
    return unfinished.path


@pytest.mark.parametrize("torn", [1, 50, 200])
def test_half_a_fragment_at_the_end_is_left_out(tmp_path, torn):
    left_behind(tmp_path / "video.mp4", torn)
    write(tmp_path / "video.mp4", frames_of(10))
    assert probe_video(tmp_path / "video.partial.mp4").frames == 6
    assert sorted(os.listdir(tmp_path)) == ["video.mp4", "video.partial.mp4"]


def test_what_cannot_be_rescued_now_stays(tmp_path):
    """Nothing of a killed run is given up because the place to keep it in cannot be written."""
    hidden = left_behind(tmp_path / "video.mp4")
    (tmp_path / "video.partial.mp4").mkdir()
    with pytest.raises(OSError, match=r"writing .*video\.mp4 failed"):
        write(tmp_path / "video.mp4", frames_of(10))
    assert probe_video(hidden).frames == 12
    (tmp_path / "video.partial.mp4").rmdir()
    write(tmp_path / "video.mp4", frames_of(10))
    assert probe_video(tmp_path / "video.partial.mp4").frames == 12


def test_a_video_without_room_for_a_second_copy_stays_in_fragments(tmp_path, monkeypatch, caplog):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("inference.video.writing.make_plain", full)
    write(tmp_path / "video.mp4", frames_of(12))
    assert os.listdir(tmp_path) == ["video.mp4"] and probe_video(tmp_path / "video.mp4").frames == 12
    assert "video.mp4 is in fragments: a plain copy failed, [Errno 28] No space left on device" in caplog.text


def test_a_video_that_cannot_get_its_name_stays_beside_it(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4", 24, 32, 48)
    with pytest.raises(OSError, match=r"the 6 frames are in .*\.part\.mp4"), writer:
        writer.append(frames_of(6))
        (tmp_path / "video.mp4").mkdir()
    [hidden] = [name for name in os.listdir(tmp_path) if name.startswith(".~")]
    assert probe_video(tmp_path / hidden).frames == 6


def test_remains_without_a_whole_fragment_are_removed(tmp_path, caplog):
    hidden_beside(tmp_path / "video.mp4", "part.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    write(tmp_path / "video.mp4", frames_of(10))
    assert os.listdir(tmp_path) == ["video.mp4"] and not caplog.text


def test_a_second_run_onto_the_same_name_is_refused(tmp_path):
    path = tmp_path / "video.mp4"
    with run_python(ENDLESS, str(path)) as process:
        process.stdout.readline()
        with pytest.raises(BlockingIOError, match=r"another run is writing .*video\.mp4 at this moment"):
            check_output_path(path)
        check_output_path(tmp_path / "other.mp4")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    check_output_path(path)
    assert probe_video(path).frames % 6 == 0 and os.listdir(tmp_path) == ["video.mp4"]


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.mp4").write_bytes(b"older")
    (tmp_path / "video.mp4").symlink_to(tmp_path / "disk" / "real.mp4")
    writer = write(tmp_path / "video.mp4", frames_of(12))
    assert writer.saved_as == tmp_path / "video.mp4" and (tmp_path / "video.mp4").is_symlink()
    assert probe_video(tmp_path / "disk" / "real.mp4").frames == 12
    assert os.listdir(tmp_path / "disk") == ["real.mp4"]


def test_long_names(tmp_path):
    longest = tmp_path / ("ä" * 122 + "a" + ".mp4")  # 249 bytes; .reuse.png makes it 255
    write(longest, frames_of(6))
    writer = VideoWriter(longest, 24, 32, 48)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.append(frames_of(6))
        raise KeyboardInterrupt
    partial = writer.saved_as
    assert partial.name.startswith("ä" * 100) and partial.name.endswith(".partial.mp4") and partial.exists()
    assert len(os.fsencode(partial.with_suffix(".reuse.png").name)) <= 255
    with pytest.raises(OSError, match=r"is too long: with \.reuse\.png .* it has 256 bytes, and .* takes 255; shorten"):
        check_output_path(tmp_path / ("a" * 246 + ".mp4"))


def test_lossless_keeps_every_value(tmp_path):
    frames = torch.randint(0, 256, (13, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with VideoWriter(tmp_path / "video.mp4", 24, 32, 48, lossless=True) as writer:
        for part in frames.split(5):
            writer.append(part)
    assert torch.equal(read_video(tmp_path / "video.mp4", 24, 32, 48), frames)


def test_output_path(tmp_path):
    assert check_output_path(str(tmp_path / "a" / "b" / "video.mp4")) == tmp_path / "a" / "b" / "video.mp4"
    assert os.listdir(tmp_path / "a" / "b") == []
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        check_output_path(tmp_path / "video.avi")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_output_path(tmp_path / "folder.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to the output folder"):
        check_output_path(tmp_path / "file" / "video.mp4")


def test_output_folder_without_permission(tmp_path):
    folder = Path("/proc")  # not even root may write here
    if os.geteuid() != 0:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
    with pytest.raises(OSError, match="cannot write to the output folder"):
        check_output_path(folder / "video.mp4")


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 47), (0, 48)])
def test_odd_sizes_are_refused(tmp_path, height, width):
    with pytest.raises(ValueError, match=f"even sizes, got {width}x{height}"):
        VideoWriter(tmp_path / "video.mp4", 24, height, width)


def test_wrong_frames_are_refused(tmp_path):
    with VideoWriter(tmp_path / "video.mp4", 24, 32, 48) as writer:
        writer.append(frames_of(2))
        with pytest.raises(ValueError, match=r"\(T, 32, 48, 3\), got \(1, 48, 32, 3\)"):
            writer.append(frames_of(1, 48, 32))
        with pytest.raises(ValueError, match=r"torch\.float32"):
            writer.append(frames_of(1).float())
    with pytest.raises(RuntimeError, match="not open"):
        writer.append(frames_of(1))
    assert probe_video(tmp_path / "video.mp4").frames == 2

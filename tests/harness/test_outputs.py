"""What a program writes is none of what it reads, and replaces nothing that is not ours."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from harness.outputs import PICTURE_MARK, is_our_picture, numbered, refuse_foreign_report, refuse_inputs


def test_an_output_that_is_an_input(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    (tmp_path / "link.mp4").symlink_to(clip)
    (tmp_path / "hard.mp4").hardlink_to(clip)
    for output in ("clip.mp4", "link.mp4", "hard.mp4", "../" + tmp_path.name + "/clip.mp4"):
        with pytest.raises(ValueError, match=r"would be written, but it is the input of --prefix_video_path; name"):
            refuse_inputs([tmp_path / output], {"image_path": None, "prefix_video_path": str(clip)})
    refuse_inputs([tmp_path / "new.mp4"], {"image_path": None, "prefix_video_path": clip})


def test_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    sidecar, picture = tmp_path / "video.json", tmp_path / "video.reuse.png"
    refuse_foreign_report(sidecar, picture)
    for foreign in ("{}", "no json", "[" * 100_000, json.dumps({"video": 1, "reuse_map": 2})):
        sidecar.write_text(foreign, encoding="utf-8")
        with pytest.raises(ValueError, match=r"video\.json would be replaced by the run's sidecar, but no run"):
            refuse_foreign_report(sidecar, picture)
    sidecar.unlink()
    Image.new("RGB", (4, 4)).save(picture)
    with pytest.raises(ValueError, match=r"video\.reuse\.png would be replaced by the run's picture, but no run"):
        refuse_foreign_report(sidecar, picture)
    sidecar.write_text(json.dumps({"video": "video.mp4", "reuse_map": [], "config": {}}), encoding="utf-8")
    refuse_foreign_report(sidecar, picture)  # an older version's, whose pictures have no mark


def test_our_pictures_are_known(tmp_path: Path) -> None:
    figure, _ = plt.subplots()
    figure.savefig(tmp_path / "ours.png", metadata=PICTURE_MARK)
    figure.savefig(tmp_path / "other.png")
    plt.close(figure)
    assert is_our_picture(tmp_path / "ours.png") and not is_our_picture(tmp_path / "other.png")


def test_names_are_numbered(tmp_path: Path) -> None:
    assert numbered(tmp_path / "a.mp4") == tmp_path / "a.mp4"
    (tmp_path / "a.mp4").touch()
    assert numbered(tmp_path / "a.mp4") == tmp_path / "a_2.mp4"
    (tmp_path / "a_2.mp4").symlink_to(tmp_path / "nothing")
    assert numbered(tmp_path / "a.mp4") == tmp_path / "a_3.mp4"

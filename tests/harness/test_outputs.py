"""What a program writes is none of what it reads, and replaces nothing that is not ours."""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from harness.outputs import (
    PICTURE_MARK,
    Ours,
    beginning_with,
    check_outputs,
    is_our_figure,
    is_our_picture,
    json_with,
    numbered,
    own_json,
    refuse_foreign_report,
    refuse_inputs,
)


def test_an_output_that_is_an_input(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    (tmp_path / "link.mp4").symlink_to(clip)
    (tmp_path / "hard.mp4").hardlink_to(clip)
    for output in ("clip.mp4", "link.mp4", "hard.mp4", "../" + tmp_path.name + "/clip.mp4"):
        with pytest.raises(ValueError, match=r"would be written, but it is the input of --prefix_video_path; name"):
            refuse_inputs([tmp_path / output], {"image_path": None, "prefix_video_path": str(clip)})
    refuse_inputs([tmp_path / "new.mp4"], {"image_path": None, "prefix_video_path": clip})
    with pytest.raises(ValueError, match=r"hard\.mp4 would be written, but it is the input of --videos"):
        refuse_inputs([tmp_path / "hard.mp4"], {"videos": [tmp_path / "none.mp4", clip]})


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


@pytest.mark.parametrize(
    ("ours", "own", "foreign"),
    [
        (json_with("a", "b"), '{"a": 1, "b": 2, "c": 3}', ["", "{}", "[]", '{"a": 1}', "[" * 100_000]),
        (beginning_with("video,frame", "Model,"), "Model,mean\n", ["", "video", "scenario,x\n", "\ufeffModel,"]),
        (is_our_figure, "PNG figure of a comparison of videos, drawn beside its table", ["", "PNG"]),
    ],
)
def test_only_what_the_program_left_is_replaced(tmp_path: Path, ours: Ours, own: str, foreign: list[str]) -> None:
    path = tmp_path / "file"
    check_outputs({path: ours}, {})
    path.write_text(own, encoding="utf-8")
    check_outputs({path: ours}, {})
    with pytest.raises(ValueError, match="it is the input of --config"):
        check_outputs({path: ours}, {"config": path})
    for contents in foreign:
        path.write_text(contents, encoding="utf-8")
        with pytest.raises(ValueError, match=f"{path} would be replaced, but this program has not left it"):
            check_outputs({path: ours}, {})
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file"):
        check_outputs({tmp_path: ours}, {})


def test_a_flag_refuses_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    assert own_json("runs")(str(tmp_path / "new.json")) == tmp_path / "new.json"
    with pytest.raises(argparse.ArgumentTypeError, match=r"notes\.json would be replaced"):
        own_json("runs")(str(tmp_path / "notes.json"))


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

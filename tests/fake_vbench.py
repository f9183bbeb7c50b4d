"""A stand-in for VBench's command: the same arguments, the same files, the same habits, no networks.

As the official one (0.1.5) it takes the suffix of the first file it lists for that of all videos, looks for indices 0
to 4 of the prompts it knows, leaves out videos of ``color`` in which it finds no object, and exits with 0 whatever
happens. `install` makes it a command; each call is noted in ``calls.jsonl`` beside it. Beside it lies a ``python`` that
knows VBench-Long and nothing else.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

STEM = "results_2026-11-22-10:00:00"


def install(folder: Path, **knows: Any) -> Path:
    """Make the command FOLDER/vbench.

    Of ``knows`` it reads: prompts; scores by dimension; broken, dimensions that fail; error, what is logged then;
    static, file names that its filter keeps; crash, what the filter logs as it fails; unseen, file names without their
    object.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("python", "vbench"):
        command = folder / name
        command.write_text(f"#!{sys.executable}\n{Path(__file__).read_text(encoding='utf-8')}", encoding="utf-8")
        command.chmod(0o755)
    defaults = {"prompts": [], "scores": {}, "broken": [], "static": [], "unseen": []}
    defaults |= {"error": "RuntimeError: out of memory", "crash": ""}
    (folder / "knows.json").write_text(json.dumps(defaults | knows), encoding="utf-8")
    return command


def calls(command: Path) -> list[dict[str, Any]]:
    notes = command.with_name("calls.jsonl")
    return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()] if notes.exists() else []


def main() -> None:
    here = Path(sys.argv[0]).parent
    knows = json.loads((here / "knows.json").read_text(encoding="utf-8"))
    if Path(sys.argv[0]).name == "python":
        judge_long(here, knows, *sys.argv[1:])
        return
    arguments = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    videos = Path(arguments["--videos_path"])
    names = os.listdir(videos)
    note = arguments | {"command": sys.argv[1], "names": names, "first": os.environ["PATH"].split(os.pathsep)[0]}
    with (here / "calls.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")
    if sys.argv[1] == "static_filter":
        print(knows["crash"])
        if not knows["crash"]:
            pick_static(videos, names, knows, Path(arguments["--result_path"]))
    else:
        judge(videos, names, knows, arguments["--dimension"], Path(arguments["--output_path"]))


def judge_long(
    here: Path, knows: dict[str, Any], script: str, folder: str, dimension: str, samples: str, static_filter: str
) -> None:
    """Clips of two seconds, five of every video; the working directory gets the result."""
    videos = Path(folder)
    names = sorted(path.name for path in videos.glob("*.mp4"))
    note = {"command": Path(script).name, "names": names, "dimension": dimension, "static_filter": static_filter}
    with (here / "calls.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")
    if dimension in knows["broken"]:
        print(knows["error"])
        sys.exit(1)
    if static_filter == "1":
        names = [name for name in names if name in knows["static"]]
        picked = videos / "temporal_filtered_cilps"
        (picked / "filtered_videos").mkdir(parents=True)
        (picked / "filtered_static_video.json").write_text("{}", encoding="utf-8")
        for name in names:
            shutil.copy(videos / name, picked / "filtered_videos" / name)
    assert samples == "5"
    clips = [f"{Path(name).stem}_{clip:03d}.mp4" for name in names for clip in range(5)]
    entries = [{"video_path": str(videos / "split_clip" / clip), "video_results": 0.5} for clip in clips]
    by_video = [{"video_path": f"{clip}/{clip.split('_')[0]}.mp4", "video_results": 0.5} for clip in clips]
    parts = [entries, [*by_video, {"long_video_cnt": len(clips)}]] if static_filter == "1" else [entries, by_video]
    if dimension.endswith("consistency"):
        parts = [by_video]
    results = {dimension: [knows["scores"].get(dimension, 0.5), *parts]}
    Path("results_long_eval_results.json").write_text(json.dumps(results), encoding="utf-8")


def pick_static(videos: Path, names: list[str], knows: dict[str, Any], target: Path) -> None:
    (target / "filtered_videos").mkdir(parents=True)
    (target / "filtered_static_video.json").write_text("{}", encoding="utf-8")
    for prompt in knows["prompts"]:
        static = [name for name in sorted(names) if name.rpartition("-")[0] == prompt and name in knows["static"]]
        for index, name in enumerate(static[:5]):
            shutil.copy(videos / name, target / "filtered_videos" / f"{prompt}-{index}.mp4")


def judge(videos: Path, names: list[str], knows: dict[str, Any], dimension: str, output: Path) -> None:
    print("start evaluation of", dimension, flush=True)
    if dimension in knows["broken"]:
        print(knows["error"])
        return
    suffix = Path(names[0]).suffix
    wanted = [f"{prompt}-{index}{suffix}" for prompt in knows["prompts"] for index in range(5)]
    judged = [name for name in wanted if name in names and not (dimension == "color" and name in knows["unseen"])]
    entries = [{"video_path": str(videos / name), "video_results": 0.5} for name in judged]
    (output / f"{STEM}_full_info.json").write_text(json.dumps(wanted), encoding="utf-8")
    results = {dimension: [knows["scores"].get(dimension, 0.5), entries]}
    (output / f"{STEM}_eval_results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Many videos of one's own prompts: what a file asks for, and the same bytes as the single run's."""

from pathlib import Path

import pytest

from inference.noise import sample_seed
from sampling.config import read_run
from sampling.job import make_job
from sampling.prompts import list_prompts
from tests.loading import load_script
from tests.paths import ROOT

IMAGE, CLIP = ROOT / "example/assets/image.png", ROOT / "example/assets/clip.mp4"


def written(folder: Path, text: str, name: str = "prompts.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "# mine\n\na big red ball, in the sky!\nein roter Würfel\n", "prompts.txt")
    listing = list_prompts(path, 5)
    assert [str(task.path) for task in listing.tasks] == [
        "videos/a_big_red_ball_in_the_sky-5.mp4",
        "videos/ein_roter_Würfel-5.mp4",
    ]
    assert [task.prompt for task in listing.tasks] == ["a big red ball, in the sky!", "ein roter Würfel"]
    assert {(task.identity, task.seed) for task in listing.tasks} == {("0", sample_seed(5, "0"))}
    three = list_prompts(path, 5, samples_per_prompt=3).tasks
    assert [task.base_seed for task in three] == [5, 6, 7, 5, 6, 7] and len({task.path for task in three}) == 6


def test_yaml(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").symlink_to(CLIP)
    path = written(
        tmp_path,
        f"""- a ball
- prompt: a ball
  seed: 7
- {{prompt: a square, name: mine, image: {IMAGE}}}
- {{prompt: a square, clip: clip.mp4, prompts: [{{at: 1s, prompt: a triangle}}]}}
""",
    )
    listing = list_prompts(path, 1)
    first, second, third, fourth = listing.tasks
    assert [task.path.name for task in listing.tasks] == ["a_ball-1.mp4", "a_ball-7.mp4", "mine.mp4", "a_square-1.mp4"]
    assert second.seed == sample_seed(7, "0") and first.seed != second.seed
    assert third.conditioning == IMAGE and not third.is_clip
    assert fourth.conditioning == CLIP.resolve() and fourth.is_clip, "looked for from the folder of the file"
    assert [(str(timed), timed.prompt) for timed in fourth.later] == [("1s", "a triangle")]
    assert {name: len(group) for name, group in listing.groups.items()} == {
        "from text": 2,
        "from an image": 1,
        "from a clip": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list of prompts"),
        ("[]", "holds no prompts"),
        ("a: b", "no list of prompts"),
        ("- 3", "entry 1: a prompt or a mapping is needed, not int"),
        ("- {seed: 3}", "entry 1: it has no prompt"),
        ("- {prompt: a, sed: 3}", "entry 1: unknown: sed"),
        ("- {prompt: a, seed: -3}", "entry 1: seed must be a whole number"),
        ("- {prompt: a, name: b/c}", "entry 1: a slash cannot be part"),
        ("- {prompt: a, name: .b}", "entry 1: a name cannot begin with a dot"),
        ("- a ball\n- a, ball", "entry 2: the video 'a_ball-1' is that of entry 1 already"),
        ("- {prompt: a, image: nothing.png}", "nothing.png does not exist"),
        (f"- {{prompt: a, image: {CLIP}}}", "image clip.mp4: clips end with"),
        (f"- {{prompt: a, clip: {IMAGE}}}", "clip image.png: clips end with"),
        (f"- {{prompt: a, clip: {CLIP}, image: {IMAGE}}}", "exclude each other"),
        ("- {prompt: a, prompts: [b]}", 'each needs "at" and "prompt"'),
        ("- {prompt: a, prompts: [{at: soon, prompt: b}]}", '"soon" is no time'),
        ("- {prompt: ''}", "entry 1: "),
    ],
)
def test_entries_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        list_prompts(written(tmp_path, text), 1)
    assert message in str(error.value)


def test_a_prompt_that_comes_too_late_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, "- a\n- {prompt: a ball, prompts: [{at: 9s, prompt: b}]}")
    run = read_run(ROOT / "configs/sample/prompts.yaml", {"data": str(path), "num_frames": 48, "num_steps": 8})
    with pytest.raises(ValueError, match="a prompt at 9s comes too late"):
        make_job(run)


@pytest.mark.slow
def test_the_videos_are_those_of_single_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(
        tmp_path,
        f"""- prompt: a small blue square stays still
  seed: 7
  name: turned
  prompts: [{{at: 1s, prompt: a small green square bounces}}]
- {{prompt: a big red circle moves up, clip: {CLIP}, seed: 3}}
""",
    )
    common = ["--method", "flowcache_fast", "--num_frames", "48", "--num_steps", "8", "--device", "cpu"]
    sample = load_script("sample")
    arguments = ["--prompts", "prompts.yaml", "--output", "out", "--workers", "1", *common]
    assert sample.main(arguments) == 0
    generate = load_script("generate")
    for name, flags in {
        "turned": [
            *("--prompt", "a small blue square stays still", "--seed", "7"),
            *("--prompt_at", "1s: a small green square bounces"),
        ],
        "a_big_red_circle_moves_up-3": [
            *("--prompt", "a big red circle moves up", "--seed", "3"),
            *("--mode", "v2v", "--prefix_video_path", str(CLIP)),
        ],
    }.items():
        output = ["--output_path", f"{name}.mp4", "--threads", "1", "--quiet"]
        assert generate.main([*flags, *common, *output]) == 0
        assert (tmp_path / f"{name}.mp4").read_bytes() == (tmp_path / f"out/videos/{name}.mp4").read_bytes()
    # The same once more keeps them; other settings under an old name are refused.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    assert sample.main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.mp4")}
    text = (tmp_path / "prompts.yaml").read_text()
    written(tmp_path, text.replace("square bounces", "circle bounces"))
    assert sample.main(arguments) == 1, "made with another prompt on the way"


def test_something_has_to_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("sample").main([])
    assert "Give a CONFIG, such as configs/sample/vbench.yaml, or --prompts FILE" in capsys.readouterr().err

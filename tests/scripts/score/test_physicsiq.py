"""scripts/score/physicsiq.py on a small benchmark: tables, files, several runs, and what must not be scored."""

import csv
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from sampling.config import read_run
from sampling.job import make_job
from tests.fake_checkout import fake_checkout
from tests.loading import load_script
from tests.metrics.physics_iq.strict_reader import read_table, scores_of
from tests.paths import ROOT
from tests.physics_iq_folder import FPS, VIEWS, generated_names, submit_still, submit_take
from tests.tiny_runs import make_samples, write_run

pytestmark = pytest.mark.slow

NAMES = list(generated_names())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("score/physicsiq")


@pytest.fixture(scope="module")
def runs(physics_iq: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Take 2 and a still video as models: the folders filmed and still. Not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    submit_take(physics_iq, root / "filmed", take=2)
    submit_still(root / "still")
    return root


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_folder_of_videos_is_scored(
    physics_iq: Path, runs: Path, tmp_path: Path, script: ModuleType, capsys
) -> None:
    scores = tmp_path / "scores"
    arguments = ["--generated", runs, "--data", physics_iq, "--scores-folder", scores]
    assert script.main([str(argument) for argument in arguments]) == 0
    assert {path.name for path in scores.iterdir()} == {
        *(f"{name}{end}" for name in ("filmed", "still") for end in (".csv", "_metrics.json", "_details.json")),
        "scores.md",
    }
    filmed, still = (read_json(scores / f"{name}_metrics.json") for name in ("filmed", "still"))
    assert filmed["final_score_origround"] == pytest.approx(100, abs=0.05)
    assert filmed["final_score_view"] == pytest.approx(1, abs=1e-5)
    assert still["final_score_origround"] < 5
    details = read_json(scores / "still_details.json")
    assert details["fps"] == FPS and set(details["categories"]) == {"Solid Mechanics", "Fluid Dynamics"}
    rows = read_table((scores / "still.csv").read_text(encoding="utf-8"), VIEWS)
    assert [row["scenario"] for row in rows] == ["trimmed-slide.mp4", "trimmed-pour.mp4"]
    expected = scores_of(rows, VIEWS)
    assert {name: still[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert set(still) == {*expected, "final_score_origround"}
    printed = capsys.readouterr().out
    assert printed == (scores / "scores.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in printed.splitlines()[2:]] == ["filmed", "still"]


def test_processes_give_the_same(physics_iq: Path, runs: Path, tmp_path: Path, script: ModuleType) -> None:
    tables = []
    for processes in ("1", "2"):
        scores = tmp_path / processes
        command = ["--generated", str(runs / "still"), "--data", str(physics_iq)]
        assert script.main([*command, "--scores_folder", str(scores), "--processes", processes]) == 0
        tables.append((scores / "still.csv").read_text(encoding="utf-8"))
    assert tables[0] == tables[1]


def test_runs_of_the_verified_layout(physics_iq: Path, runs: Path, tmp_path: Path, script: ModuleType, caplog) -> None:
    for run, source in enumerate(("filmed", "still"), 1):
        shutil.copytree(runs / source, tmp_path / "out" / f"tiny-op-run_{run:02}")
    command = ["--generated", str(tmp_path / "out"), "--data", str(physics_iq), "--layout", "verified"]
    assert script.main(command) == 0
    assert "tiny-op has 2 runs; Verified asks for 4" in caplog.text
    scores = tmp_path / "out" / "scores"
    each = [read_json(scores / f"tiny-op-run_0{run}_metrics.json")["final_score_view"] for run in (1, 2)]
    assert {path.name for path in (scores / "models").iterdir()} == {"tiny-op_verified.csv", "tiny-op_original.csv"}
    (model,) = csv.DictReader((scores / "models" / "tiny-op_verified.csv").open(encoding="utf-8"))
    assert model["Model"] == "tiny-op"
    assert float(model["Phys-IQ verified mean"]) == pytest.approx(50 * sum(each), abs=0.005)
    assert float(model["Phys-IQ verified std"]) == pytest.approx(100 * abs(each[0] - each[1]) / 2**0.5, abs=0.005)
    shutil.copytree(runs / "still", tmp_path / "other" / "tiny")
    command[1] = str(tmp_path / "other")
    assert script.main(command) == 1
    assert "'tiny' is not named MODEL-op-run_NN" in caplog.text


def test_files_that_are_no_scores_are_not_replaced(
    physics_iq: Path, runs: Path, tmp_path: Path, script: ModuleType, caplog
) -> None:
    shutil.copytree(runs / "still", tmp_path / "descriptions")
    scores = tmp_path / "scores"
    [table] = physics_iq.rglob("descriptions.csv")
    (scores / "models").mkdir(parents=True)
    shutil.copy(table, scores)
    command = ["--generated", str(tmp_path / "descriptions"), "--data", str(physics_iq), "--scores_folder", str(scores)]
    given = ["--descriptions", str(scores / "descriptions.csv")]
    for flags, said in ((given, "it is the input of --descriptions"), ([], "this program has not left it")):
        assert script.main([*command, *flags]) == 1
        assert f"descriptions.csv would be {'written' if flags else 'replaced'}, but {said}" in caplog.text
    (scores / "descriptions.csv").unlink()
    for name in ("descriptions_metrics.json", "descriptions_details.json", "scores.md"):
        (scores / name).write_text("{}", encoding="utf-8")
        assert script.main(command) == 1
        assert f"{name} would be replaced" in caplog.text and (scores / name).read_text() == "{}"
        (scores / name).unlink()
    assert script.main(command) == 0 and script.main(command) == 0


def test_nothing_is_scored_where_one_video_is_missing(
    physics_iq: Path, runs: Path, tmp_path: Path, script: ModuleType, caplog
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "still" / NAMES[2]).unlink()
    assert script.main(["--generated", str(tmp_path / "runs"), "--data", str(physics_iq)]) == 1
    assert f"{NAMES[2]} is missing" in caplog.text
    assert not (tmp_path / "runs" / "scores").exists()


def test_a_folder_with_a_damaged_video_has_no_scores(
    physics_iq: Path, runs: Path, tmp_path: Path, script: ModuleType, caplog
) -> None:
    shutil.copytree(runs / "filmed", tmp_path / "filmed")
    for name in NAMES[1:3]:
        contents = bytearray((tmp_path / "filmed" / name).read_bytes())
        middle = contents.index(b"mdat") + 1100  # seen only where the pictures are decoded
        contents[middle : middle + 300] = b"\xff" * 300
        (tmp_path / "filmed" / name).write_bytes(contents)
    assert script.main(["--generated", str(tmp_path / "filmed"), "--data", str(physics_iq)]) == 1
    assert f"{tmp_path / 'filmed'} cannot be scored, 4 videos are needed" in caplog.text
    assert all(f"{name} is damaged" in caplog.text or f"{name} cannot be decoded" in caplog.text for name in NAMES[1:3])
    assert not list(tmp_path.glob("scores/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a sampling configuration or --generated"),
        (["run.yaml", "--generated", "x"], "give either a sampling configuration or --generated"),
        (["--generated", "x"], "--generated needs --data"),
        (["run.yaml", "--layout", "verified"], "the configuration says them itself"),
        (["--generated", "x", "--data", "y", "--score-folder", "z"], "did you mean --scores_folder?"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: list[str], message: str, script: ModuleType, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        script.main(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_folders_that_cannot_be_scored(
    physics_iq: Path, runs: Path, tmp_path: Path, script: ModuleType, caplog
) -> None:
    (tmp_path / "empty").mkdir()
    for given, message in (("empty", "no mp4 videos in"), ("nothing", "no folder of generated videos")):
        assert script.main(["--generated", str(tmp_path / given), "--data", str(physics_iq)]) == 1
        assert message in caplog.text
    for parent in ("one", "two"):
        shutil.copytree(runs / "still", tmp_path / parent / "still")
    twice = [str(tmp_path / parent / "still") for parent in ("one", "two")]
    assert script.main(["--generated", *twice, "--data", str(physics_iq)]) == 1
    assert "several have the same: still, still" in caplog.text


def test_a_sampling_run(checkpoint: Path, tmp_path: Path, script: ModuleType, caplog) -> None:
    """From a configuration: verified, scored; not scored with a video too many, nor once a video was touched."""
    data = tmp_path / "data"
    for scenario in ROOT.glob("example/assets/physics_iq/**/*_trimmed-ball-falls.*"):
        target = data / scenario.relative_to(ROOT / "example" / "assets" / "physics_iq")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scenario, target)
    table = (ROOT / "example" / "assets" / "physics_iq" / "descriptions" / "descriptions.csv").read_text()
    kept = [line for line in table.splitlines() if line.startswith("scenario") or "trimmed-ball-falls" in line]
    (data / "descriptions.csv").write_text("\n".join(kept).replace("0009_", "0002_") + "\n")
    config = write_run(tmp_path, checkpoint, benchmark="physics_iq", data=str(data), mode="i2v")
    job = make_job(read_run(config))
    assert script.main([str(config)]) == 1
    assert "1 of 1 samples in" in caplog.text and "are not right, nothing is scored" in caplog.text
    make_samples(job)
    assert script.main([str(config)]) == 0
    assert read_json(tmp_path / "out" / "scores" / "tiny_details.json")["scenario_views"] == 1
    video = job.output / job.tasks[0].path
    stray = Path(shutil.copy(video, video.with_name("0002_perspective-left_trimmed-other.mp4")))
    assert script.main([str(config)]) == 1
    assert f"{stray.name} is not one of the benchmark's videos" in caplog.text
    stray.unlink()
    video.write_bytes(video.read_bytes()[:-100])
    caplog.clear()
    assert script.main([str(config)]) == 1
    assert "1 of 1 samples in" in caplog.text


@pytest.mark.parametrize("name", ["physicsiq", "vbench"])
def test_the_shell_script_hands_everything_on(tmp_path: Path, name: str) -> None:
    root = fake_checkout(tmp_path, f"score_{name}.sh")
    command = ["bash", str(root / "scripts" / f"score_{name}.sh"), "a b", "--ngpus", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [str(root / "scripts" / "score" / f"{name}.py"), "a b", "--ngpus", "2"]
    assert (root / "scripts" / "made").exists()

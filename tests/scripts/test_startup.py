"""What starts a program late: what takes seconds to import is not imported before the arguments are read.

In processes of their own, started the real way: the tests' warm Python has imported everything.
"""

import json
import subprocess
import sys

import pytest

from tests.paths import ROOT

PROMPT = "a big red ball bounces up and down in the sky"
HEAVY = ("torch", "transformers", "diffusers", "torch._dynamo", "sympy", "matplotlib", "torchvision")
# Runs programs, each with its arguments, and says after each which modules of HEAVY have been imported.
RUNNER = f"""
import contextlib, io, json, runpy, sys
found = []
for command in json.loads(sys.argv[1]):
    sys.argv = command
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
    found.append([status, said.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(found))
"""
PROGRAMS = (
    *("scripts/generate.py", "scripts/sample.py", "scripts/calibrate.py", "scripts/check_model.py"),
    *("scripts/download.py", "scripts/metric.py", "scripts/sample/verify.py"),
    *("scripts/score/vbench.py", "scripts/score/physicsiq.py"),
)


def run_all(*commands: list[str]) -> list[tuple[int, str, list[str]]]:
    """Status, what was said, and the heavy modules there after each of ``commands``, run one after another."""
    runner = [sys.executable, "-c", RUNNER, json.dumps(commands)]
    ended = subprocess.run(runner, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(ended.stdout.splitlines()[-1])


def test_help_and_refusals_import_nothing_heavy() -> None:
    wrong = [
        ["--promt", PROMPT],
        ["--prompt", PROMPT, "--method", "no_such_method"],
        ["--prompt", PROMPT, "--config_file", "no_such.json"],
        ["--prompt", PROMPT, "--num_steps", "10"],
        ["--prompt", PROMPT, "--computed_share", "0.2"],
        ["--prompt", PROMPT, "--mode", "i2v"],
        ["--prompt", PROMPT, "--output_path", "video.avi"],
        ["--prompt", PROMPT, "--target_psnr", "-1"],
    ]
    helped = [[program, "--help"] for program in PROGRAMS]
    unknown = [[program, "--no_such_flag"] for program in PROGRAMS]
    found = run_all(*helped, *unknown, *(["scripts/generate.py", *flags] for flags in wrong))
    assert [status for status, _, _ in found] == [0] * len(helped) + [2] * (len(unknown) + 1) + [1] * (len(wrong) - 1)
    assert [heavy for _, _, heavy in found] == [[]] * len(found), found


@pytest.mark.slow
def test_the_demonstration_imports_neither_the_compiler_nor_the_text_encoder(tmp_path) -> None:
    flags = ["--num_frames", "24", "--num_steps", "4", "--method", "flowcache_fast"]
    flags += ["--output_path", str(tmp_path / "video.mp4")]
    [(status, said, heavy)] = run_all(["scripts/generate.py", "--prompt", PROMPT, *flags])
    assert status == 0, said
    assert heavy == ["torch", "matplotlib"], "the picture beside the video takes matplotlib"


def test_a_typing_error_does_not_wait_for_numpy() -> None:
    code = RUNNER.replace(repr(HEAVY), repr(("numpy", *HEAVY)))
    commands = [["scripts/generate.py", "--promt", PROMPT], ["scripts/generate.py", "--help"]]
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    assert [heavy for _, _, heavy in found] == [[], []] and "numpy" in code

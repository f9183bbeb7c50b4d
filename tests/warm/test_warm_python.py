"""The Python that tests start programs with does what Python does: streams, folder, statuses, signals, limits."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.warm import start as warm

MODULES = ("colorsys",)  # any that programs do not import anyway

PYTHONS = pytest.mark.parametrize("is_warm", [False, True], ids=["python", "warm"])


@pytest.fixture
def python(is_warm: bool) -> str:
    return warm.start(MODULES)[0] if is_warm else sys.executable


def start(python: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([python, *arguments], text=True, **streams | options)


@PYTHONS
def test_arguments_streams_folder_and_environment(python: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.getcwd(), os.environ['GIVEN'], sys.stdin.read())\n"
        "print(os.getpid() == int(os.environ['PID']))\n"
        "print(__name__, sys.path[0], 'HOME' in os.environ, file=sys.stderr)\n"
    )
    (tmp_path / "in").mkdir()
    script = f'export PID=$$; exec "{python}" "$@"'
    command = ["sh", "-c", script, "sh", "../program.py", "a b", "-c"]
    options = {"cwd": tmp_path / "in", "env": {"GIVEN": "yes", "PATH": os.environ["PATH"]}}
    result = subprocess.run(command, input="typed", capture_output=True, text=True, check=True, **options)
    assert result.stdout == f"['a b', '-c'] {tmp_path / 'in'} yes typed\nTrue\n"
    assert result.stderr == f"__main__ {tmp_path} False\n"


@PYTHONS
@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("print('done', end='')", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('refused')", 1, "refused\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL); input()", -signal.SIGKILL, ""),
        ("import atexit, os; atexit.register(os.write, 2, b'last')", 0, "last"),
        ("import threading, time, os; threading.Timer(0.1, os.write, (2, b'thread')).start()", 0, "thread"),
    ],
)
def test_ends(python: str, code: str, status: int, said: str) -> None:
    process = start(python, "-c", code)
    errors = process.communicate(timeout=120)[1]
    assert (process.returncode, errors.endswith(said)) == (status, True), errors
    assert said or not errors


@PYTHONS
@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 5), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals(python: str, sent: signal.Signals, status: int) -> None:
    """The program gets them, and is gone when its streams are closed."""
    # A test run in the background of a shell may have been started with Ctrl-C ignored, and what it starts as well.
    code = """
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            print("ready", flush=True)
            sys.stdin.read()
        except KeyboardInterrupt:
            sys.exit(5)
    """
    process = start(python, "-c", textwrap.dedent(code))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    assert process.stdout.read() == "" and process.wait(timeout=120) == status
    process.communicate()


@PYTHONS
def test_a_limit_on_the_size_of_files(python: str, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    process = start(
        python,
        "-c",
        "file = open('file', 'wb', 0); file.write(bytes(5000)); file.write(b'x')",
        cwd=tmp_path,
        preexec_fn=limit,
    )
    assert "File too large" in process.communicate(timeout=120)[1] and process.returncode == 1
    assert (tmp_path / "file").stat().st_size == 1000


def test_what_a_program_starts_is_warm_as_well() -> None:
    code = "import os, sys; os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    python, _ = warm.start(MODULES)
    process = start(python, "-c", code, "import sys; print('colorsys' in sys.modules, sys.executable); sys.exit(3)")
    assert process.communicate(timeout=120)[0] == f"True {python}\n" and process.returncode == 3


def test_the_server_ends_with_who_started_it() -> None:
    code = "from tests.warm.start import start; print(start(())[0], flush=True); input()"
    process = start(sys.executable, "-c", code, cwd=Path(__file__).parents[2])
    command = process.stdout.readline().strip()
    program = subprocess.Popen([command, "-c", "print('ready', flush=True); input()"], stdin=-1, stdout=-1)
    assert program.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate()
    assert program.wait(timeout=120) != 0 and program.communicate()[0] == b""

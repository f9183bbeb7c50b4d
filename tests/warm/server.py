"""Forks the programs that ``tests/warm/client.py`` asks for, from a process that has imported what they import.

As a program: -m tests.warm.server LISTENING_SOCKET COMMAND MODULE ..., the socket by its number, COMMAND what programs
find as ``sys.executable``, and what to import. Ends, and ends what it started, when its standard input does.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# What programs handle, as Python has it when it starts.
SIGNALS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGCHLD: signal.SIG_DFL,
}
FILES = 3


class Server:
    def __init__(self, listener: socket.socket, command: str) -> None:
        self.listener = listener
        self.command = command
        self.clients: dict[int, socket.socket] = {}  # by the number of what was forked
        self.selector = selectors.DefaultSelector()
        self.ended, self.told = os.pipe()

    def serve(self) -> None:
        os.set_blocking(self.told, False)
        signal.set_wakeup_fd(self.told, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test run; this ends with it
        actions: dict[Any, Callable[[], Any]] = {self.listener: self.accept, self.ended: self.reap}
        for source, action in actions.items():
            self.selector.register(source, selectors.EVENT_READ, action)
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    for program in self.clients:
                        os.kill(program, signal.SIGKILL)
                    return
                key.data()

    def accept(self) -> None:
        client, _ = self.listener.accept()
        size, files, *_ = socket.recv_fds(client, 8, FILES)
        with client.makefile("rb") as stream:
            request = json.loads(stream.read(int.from_bytes(size, "big")))
        program = os.fork()
        if not program:
            self.become(request, files, client)
        for file in files:
            os.close(file)
        self.clients[program] = client
        self.selector.register(client, selectors.EVENT_READ, lambda: self.abandon(program))
        tell(client, program)

    def abandon(self, program: int) -> None:
        """The client is gone: so is what it stands for."""
        os.kill(program, signal.SIGKILL)
        self.selector.unregister(self.clients[program])

    def reap(self) -> None:
        os.read(self.ended, 1024)
        while self.clients:
            program, status = os.waitpid(-1, os.WNOHANG)
            if not program:
                return
            client = self.clients.pop(program)
            if client in self.selector.get_map():
                self.selector.unregister(client)
                tell(client, os.waitstatus_to_exitcode(status))
            client.close()

    def become(self, request: dict[str, Any], files: list[int], client: socket.socket) -> NoReturn:
        """Turn this process, just forked, into the program."""
        signal.set_wakeup_fd(-1)
        for sent, handler in SIGNALS.items():
            signal.signal(sent, handler)
        self.selector.close()
        for mine in (self.listener, client, *self.clients.values()):
            mine.close()
        for end in (self.ended, self.told):
            os.close(end)
        for stream, file in enumerate(files):
            os.dup2(file, stream)
            os.close(file)
        process = os.getpid()
        # Others know it under the client's number, and kill it by that.
        number, kill = request["number"], os.kill
        os.getpid = lambda: number
        os.kill = lambda other, sent: kill(process if other == number else other, sent)
        resource.setrlimit(resource.RLIMIT_FSIZE, tuple(request["largest_file"]))
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.executable = self.command
        status = ended(lambda: run(request["arguments"]))
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            kill(process, -status)
        os._exit(status)


def tell(client: socket.socket, number: int) -> None:
    """Send ``number``. A client that was killed meanwhile hears nothing; that it is gone is seen by ``abandon``."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(f"{number}\n".encode())


def ended(program: Callable[[], None]) -> int:
    """Run ``program`` as an interpreter does; gives its exit status, that of a signal negative."""
    status = 0
    try:
        program()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - whatever the program did not catch
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 120
    return status


def run(arguments: list[str]) -> None:
    """As ``python`` would."""
    while arguments[0] in ("-u", "-I"):
        arguments = arguments[1:]
        sys.stdout.reconfigure(write_through=True)
    kind, *rest = arguments
    if kind == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def threads() -> int:
    """How many this process has, where /proc tells those of libraries as well."""
    status = Path("/proc/self/status")
    if not status.exists():
        return threading.active_count()
    return int(next(line for line in status.read_text().splitlines() if line.startswith("Threads:")).split()[1])


def main(listener: str, command: str, *modules: str) -> None:
    for name in modules:
        importlib.import_module(name)
    # Locks that threads hold at a fork are never released.
    assert threads() == 1, "an import has started a thread: this is no process to fork"
    gc.collect()
    gc.freeze()  # what is collected is written to, and no longer shared
    with socket.socket(fileno=int(listener)) as server:
        try:
            Server(server, command).serve()
        finally:
            shutil.rmtree(Path(command).parent, ignore_errors=True)
            os._exit(0)  # libraries would complain of what is left at the end


if __name__ == "__main__":
    main(*sys.argv[1:])

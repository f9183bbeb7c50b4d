"""A Python that has the slow imports behind it: what tests start programs with in place of ``sys.executable``.

To import torch, transformers, diffusers and the compiler takes ten seconds of a core, most of what a program with a
tiny model would cost. `warm_python` names a command that is called as ``python`` is (a script, ``-m`` or ``-c``) and is
there at once: it is a small client (``tests/warm/client.py``) which has a server (``tests/warm/server.py``, one per
test process) fork a process that runs the program as ``__main__``. That process has the client's arguments, folder,
environment, standard streams and limit on the size of files; signals to the client reach it, it dies with the client,
and the client ends as it ends. What it starts by ``sys.executable`` is warm as well.

Not as in a real start: imports that a program forgets and others made; the order of sets, which is that of all other
programs; parents and children, which are the server's. A few tests start programs the real way for that.
"""

import functools
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.paths import ROOT

# What is missing here, programs import themselves.
MODULES = (
    *("torch._dynamo", "torch.distributed.run", "torchvision", "diffusers.models.modeling_utils"),
    *("transformers.models.t5.modeling_t5", "transformers.models.auto.tokenization_auto"),
    *("matplotlib.backends.backend_agg", "harness.launch", "harness.sidecar", "inference.pipeline", "sampling.worker"),
)


def warm_python() -> str:
    """The command. Its server ends with this process, whatever ends it."""
    return start(MODULES)[0]


@functools.cache
def start(modules: tuple[str, ...]) -> tuple[str, subprocess.Popen[bytes]]:
    """A command whose server has imported ``modules``, and that server."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    command, address = folder / "python", folder / "socket"
    client = [sys.executable, "-IS", str(Path(__file__).with_name("client.py")), str(address)]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        # Here, so that a client that comes before the imports are done waits for them.
        listener.bind(str(address))
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm.server", str(listener.fileno()), str(command), *modules],
            # Its end is the end of the server.
            stdin=subprocess.PIPE,
            cwd=ROOT,
            pass_fds=[listener.fileno()],
            # A process with threads cannot be forked.
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
    return str(command), server

#!/usr/bin/env python
"""A process of ``torchrun`` that keeps one worker of a sampling run alive: sample/worker.py CONFIG

``torchrun`` ends all of its processes when one of them dies, and each would lose what it is doing. So what it starts is
this guard, which does nothing but start the worker proper, and start another where it dies: then only its own sample
is lost. Called by scripts/sample.py; CONFIG is the resolved configuration that it saves (docs/sampling.md, "Workers").

The guard needs the standard library only: it is small, and nothing in it can fail as a worker can.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

WORK = "--work"
DIED = "--died"
# The worker's exit status: everything is made or given up; it cannot work at all; it wants a fresh process.
FINISHED, HOPELESS, AGAIN = 0, 2, 3
# A worker that dies more often has something wrong with its machine; the others go on.
MOST_DEATHS = 10
POLL = 1.0  # s, to see that the launcher is gone


def main(argv: list[str]) -> int:
    return work(argv[1:]) if argv[:1] == [WORK] else guard(argv)


def guard(argv: list[str]) -> int:
    """Keep a worker alive until it says that nothing is left to do."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent, died, deaths = os.getppid(), [], 0
    while deaths < MOST_DEATHS:
        child = subprocess.Popen([sys.executable, __file__, WORK, *argv, *died])
        try:
            status = wait(child, parent)
        except KeyboardInterrupt:
            return 128 + signal.SIGTERM
        finally:
            child.kill()
        if status == FINISHED:
            return 0
        if status == HOPELESS:
            say("gives up: the worker cannot start, see above")
            return 0
        if status != AGAIN:
            deaths += 1
            say(f"worker {child.pid} died ({describe(status)}), another one takes its place")
        died = [DIED, str(child.pid)]
    # Not an error to torchrun, which would end the others.
    say(f"gives up after {MOST_DEATHS} dead workers")
    return 0


def wait(child: subprocess.Popen[bytes], parent: int) -> int:
    """The worker's exit status; KeyboardInterrupt where the launcher is gone."""
    while True:
        try:
            return child.wait(timeout=POLL)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                raise KeyboardInterrupt from None


def describe(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def say(message: str) -> None:
    print(f"guard of worker {os.environ.get('RANK', '?')}: {message}", file=sys.stderr, flush=True)


def work(argv: list[str]) -> int:
    """The worker itself: in a process of its own, with everything that can go wrong."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from scripts.bootstrap import use_checkout

    use_checkout()
    import logging

    from harness.device import set_threads
    from inference.model.weights import WeightsError
    from sampling.config import read_run
    from sampling.job import make_job
    from sampling.worker import Place
    from sampling.worker import work as make_samples

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    # A worker has nothing to save: what it is making is made again.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    died = int(argv[argv.index(DIED) + 1]) if DIED in argv else None
    try:
        job = make_job(read_run(argv[0]))
        set_threads(job.run.threads, job.model)
        return FINISHED if make_samples(job, Place.from_environment(), died) else AGAIN
    except (OSError, ValueError, WeightsError) as error:
        logging.getLogger("sample.worker").error("error: %s", error)
        return HOPELESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

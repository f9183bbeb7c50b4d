"""What stops a program waits where it must not come between, and comes afterwards."""

import os
import signal
from collections.abc import Iterator

import pytest

from harness.signals import STOPPING, stop_like_ctrl_c, undisturbed


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_are_like_ctrl_c(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    stop_like_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_what_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    stop_like_ctrl_c()
    with undisturbed():
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_block_is_finished_first() -> None:
    stop_like_ctrl_c()
    done = []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        for number in (*STOPPING, signal.SIGINT):
            os.kill(os.getpid(), number)
        done.append("the whole block")
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with undisturbed():
        pass


def test_an_error_of_the_block_goes_on() -> None:
    with pytest.raises(ValueError, match="disk"), undisturbed():
        raise ValueError("disk")

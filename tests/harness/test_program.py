"""How programs begin and end: arguments, log, one line for an error, an exit status."""

import argparse
import logging

import pytest
import torch

from harness.arguments import parse
from harness.program import expected_errors, make_parser, run_program
from inference.model.weights import WeightsError
from inference.parallel.group import RankLostError
from sampling.evaluator.log import EvaluatorError


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--some_number", type=int, default=1)
    parser.add_argument("--quiet", action="store_true")
    return parse(parser, argv)


@pytest.mark.parametrize(("given", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_the_status_is_that_of_the_work(given: int | None, status: int) -> None:
    assert run_program(arguments, lambda args: given, []) == status


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--x 3 is too much"), "error: --x 3 is too much"),
        (OSError(28, "the disk is full"), "error: the disk is full"),
        (WeightsError("a tensor is missing"), "error: a tensor is missing"),
        (RankLostError("rank 1 is gone"), "error: rank 1 is gone"),
        (EvaluatorError("it cannot start"), "error: it cannot start"),
        (torch.OutOfMemoryError("CUDA out of memory"), "error: CUDA out of memory"),
    ],
)
def test_an_error_of_the_users_is_one_line(error: Exception, line: str, caplog: pytest.LogCaptureFixture) -> None:
    def work(args: argparse.Namespace) -> None:
        raise error

    assert run_program(arguments, work, []) == 1
    assert [record.getMessage() for record in caplog.records] == [line] and caplog.records[0].exc_info is None


def test_a_fault_of_ours_is_not_hidden() -> None:
    def work(args: argparse.Namespace) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run_program(arguments, work, [])
    assert not any(issubclass(KeyError, kind) for kind in expected_errors())


def test_ctrl_c(caplog: pytest.LogCaptureFixture) -> None:
    def work(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert run_program(arguments, work, [], stopped="stopped; go on") == 130
    assert [record.getMessage() for record in caplog.records] == ["stopped; go on"]


def test_arguments_are_read_as_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    assert run_program(arguments, lambda args: seen.append(args.some_number), ["--some-number", "4"]) == 0
    assert seen == [4]
    for wrong in ("--some-numbr=4", "--some"):  # a misspelt one, and an abbreviation
        with pytest.raises(SystemExit, match=r"^2$"):
            run_program(arguments, lambda args: None, [wrong])
        assert "did you mean --some_number?" in capsys.readouterr().err


def test_logging_is_left_to_whoever_has_set_it_up() -> None:
    before = logging.getLogger().handlers[:]
    run_program(arguments, lambda args: None, ["--quiet"])
    assert logging.getLogger().handlers == before

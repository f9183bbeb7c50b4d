"""What is refused before ranks start to work, and the back end they use."""

import copy
import json
from typing import Any

import pytest
import torch

from inference.config import MagiConfig
from inference.parallel.group import ALONE
from inference.parallel.launch import check_ranks, choose_backend, context_parallel
from inference.parallel.ulysses import token_shares
from tests.paths import GOLDEN
from tests.tiny import tiny_config

PUBLISHED = json.loads((GOLDEN / "published_configs.json").read_text(encoding="utf-8"))
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def published(name: str, **engine: Any) -> MagiConfig:
    data = copy.deepcopy(PUBLISHED[f"{name}_config.json"])
    data["engine_config"] |= engine
    return MagiConfig.from_json_dict(data)


@pytest.mark.parametrize("name", ["4.5B_base", "4.5B_distill", "4.5B_distill_quant"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_published_files_take_any_count_that_divides_their_groups(name: str, ranks: int) -> None:
    check_ranks(published(name), ranks)


@pytest.mark.parametrize("name", ["24B_base", "24B_distill", "24B_distill_quant"])
def test_the_large_model_wants_the_eight_that_its_file_states(name: str) -> None:
    check_ranks(published(name), 8)
    check_ranks(published(name), 1)
    check_ranks(published(name, cp_size=1), 4)
    with pytest.raises(ValueError, match="cp_size 8 asks for that many processes, but 4 were started; start 8, or set"):
        check_ranks(published(name), 4)


@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        (
            3,
            {},
            "3 processes cannot share the 4 key/value groups .*num_query_groups.; start 1, 2, 4$",
        ),
        (8, {}, "8 processes cannot share the 4 key/value groups"),
        (1, {"pp_size": 2}, "pp_size 2: layers cannot be spread over devices here; set pp_size to 1"),
        (2, {"cp_strategy": "cp_shuffle_overlap"}, "cp_strategy 'cp_shuffle_overlap' is not supported; cp_ulysses is"),
        (4, {"video_size_h": 16, "video_size_w": 16, "chunk_width": 3}, "4 processes cannot share the 3 tokens of a"),
        (3, {"pp_size": 2, "cp_size": 2}, "pp_size 2: .*; .*cp_size 2 asks .* 3 were started; .*; 3 processes cannot"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(ranks: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_ranks(tiny_config().with_overrides(**changes), ranks)


def test_a_process_that_torchrun_did_not_start_is_alone() -> None:
    with context_parallel(tiny_config(), CPU) as parallel:
        assert parallel is ALONE
    pipelined = tiny_config().with_overrides(pp_size=2)
    with pytest.raises(ValueError, match="pp_size 2"), context_parallel(pipelined, CPU):
        pass


def test_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("nccl", CPU) == choose_backend("gloo", CPU) == "gloo"
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert choose_backend("nccl", CUDA) == "cpu:gloo,cuda:nccl"
    with pytest.raises(ValueError, match="gloo cannot exchange what lies on GPUs: set it to nccl"):
        choose_backend("gloo", CUDA)
    with pytest.raises(ValueError, match="'mpi' is not supported"):
        choose_backend("mpi", CPU)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(ValueError, match="nccl is not part of this PyTorch"):
        choose_backend("nccl", CUDA)


def test_shares_differ_by_one_at_most() -> None:
    assert token_shares(12150, 8) == [1519] * 6 + [1518] * 2
    assert token_shares(18, 4) == [5, 5, 4, 4] and token_shares(24, 4) == [6] * 4

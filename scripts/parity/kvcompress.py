"""Family ``kvcompress_*``: scoring and selection of cached tokens on given queries and keys."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from flowcache.scoring import (
    POOL_WIDTH,
    Selection,
    attention_weight,
    importance,
    mixed_score,
    redundancy,
    select,
    select_queries,
)
from scripts.parity.common import (
    AS_RECORDED,
    RELATIVE_TOLERANCE,
    CheckResult,
    Setup,
    equal,
    guarded,
    listed_cases,
    read_tensors,
    relative_error,
)

FAMILY = "kvcompress"
INDEX = "kvcompress_index.json"


def claims(name: str) -> bool:
    return name.startswith("kvcompress_")


def check(directory: Path, setup: Setup = AS_RECORDED) -> Iterator[CheckResult]:
    for name, case in listed_cases(directory, FAMILY, INDEX, "kvcompress_"):
        if isinstance(case, CheckResult):
            yield case
            continue
        data = read_tensors(directory / f"kvcompress_{name}.safetensors", setup.device)
        yield from guarded(FAMILY, name, partial(_check_case, name, case, data))


def differing_tokens(actual: Tensor, expected: Tensor) -> float:
    """Tokens kept by one side only, summed over groups; both (keep, G), compared as sets per group."""
    if actual.shape != expected.shape:
        return float("inf")
    columns = zip(actual.T.tolist(), expected.T.tolist(), strict=True)
    return float(sum(len(set(ours) ^ set(theirs)) for ours, theirs in columns))


def _check_case(name: str, case: dict, data: dict[str, Tensor]) -> Iterator[CheckResult]:
    frames, height, width = case["latent_thw"]
    selection = Selection(
        strategy=case["compress_strategy"],
        mix_lambda=case["mix_lambda"],
        weighting=case["score_weighting_method"],
        power=case["power"],
        chunk_tokens=frames * height * width,
        frame_tokens=height * width,
    )
    key = data["in.key"]
    query = select_queries(data["in.query"], case["query_granularity"], selection.frame_tokens)
    score = mixed_score(query, key, selection.mix_lambda)
    computed = {
        "mid.importance": importance(attention_weight(query, key)),
        "mid.redundancy": redundancy(key),
        "mid.score_before_weighting": score,
    }
    for quantity, actual in computed.items():
        if quantity in data:
            yield CheckResult(FAMILY, name, quantity, relative_error(actual, data[quantity]), RELATIVE_TOLERANCE)
    sizes = {
        "clean_chunks": len(key) // selection.chunk_tokens,
        "kv_heads": key.shape[1],
        "query_heads": query.shape[1],
        "head_dim": key.shape[2],
        "pool_kernel": POOL_WIDTH,
    }
    for quantity, actual in sizes.items():
        yield equal(FAMILY, name, quantity, actual, case[quantity])
    kept = select(score, case["budget_tokens"], selection).T
    yield CheckResult(FAMILY, name, "out.kept_token_index", differing_tokens(kept, data["out.kept_token_index"]), 0)
    for quantity in sorted(set(data) - set(computed) - {"in.key", "in.query", "out.kept_token_index"}):
        yield CheckResult(FAMILY, name, quantity, float("inf"), 0, "nothing of ours to compare it with")

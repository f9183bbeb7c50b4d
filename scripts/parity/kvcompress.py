"""Family ``kvcompress_*``: scoring and selection of cached tokens on given queries and keys."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from flowcache.scoring import Selection, attention_weight, importance, mixed_score, redundancy, select, select_queries
from scripts.parity.common import RELATIVE_TOLERANCE, CheckResult, read_json, read_tensors, relative_error

FAMILY = "kvcompress"
INDEX = "kvcompress_index.json"


def claims(name: str) -> bool:
    return name.startswith("kvcompress_")


def check(directory: Path) -> Iterator[CheckResult]:
    files = {path.stem.removeprefix("kvcompress_") for path in directory.glob("kvcompress_*.safetensors")}
    index = read_json(directory / INDEX) if (directory / INDEX).exists() else {}
    for name in sorted(files | set(index)):
        if name not in index or name not in files:
            where = "the index" if name not in index else "the directory"
            yield CheckResult(FAMILY, name, "file", float("inf"), 0, f"not in {where}")
            continue
        yield from _check_case(name, index[name], read_tensors(directory / f"kvcompress_{name}.safetensors"))


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
    kept = select(score, case["budget_tokens"], selection).T
    yield CheckResult(FAMILY, name, "out.kept_token_index", differing_tokens(kept, data["out.kept_token_index"]), 0)
    for quantity in sorted(set(data) - set(computed) - {"in.key", "in.query", "out.kept_token_index"}):
        yield CheckResult(FAMILY, name, quantity, float("inf"), 0, "nothing of ours to compare it with")

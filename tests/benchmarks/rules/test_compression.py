"""The study of what the compressed cache keeps: its attention error and its summary, on made-up runs."""

from pathlib import Path

import pytest
import torch

from flowcache.config import CompressionConfig
from flowcache.kv_cache import CompressedKVCache
from inference.kv_cache import KVCache
from inference.sampler import Sampler, kv_geometry
from inference.schedule import Schedule
from tests.loading import load_benchmark
from tests.tiny import TinyCaptions, tiny_config, tiny_dit, tiny_noise

CHUNKS = 7


def make(cache: KVCache | None, window: list[int] | None = None) -> torch.Tensor:
    config = tiny_config(num_frames=24 * CHUNKS, noise2clean_kvrange=window or [])
    sampler = Sampler(tiny_dit(config), config, cache)
    return torch.cat([chunk.latents for chunk in sampler.run(tiny_noise(CHUNKS), TinyCaptions(config))])


def test_shadows_measure_without_changing_the_run() -> None:
    benchmark, geometry = load_benchmark("rules/attention_error"), kv_geometry(tiny_config(), torch.device("cpu"))
    budgets = {"none": CHUNKS, "large": CHUNKS - 1, "small": 5}
    shadows = {
        name: CompressedKVCache(geometry, CompressionConfig(compress_kv_cache=True, total_cache_chunk_nums=budget))
        for name, budget in budgets.items()
    }
    cache = benchmark.ShadowedCache(geometry, shadows)
    assert torch.allclose(make(cache), make(None), atol=1e-5)
    errors = cache.relative_errors()
    assert all(torch.tensor(errors["none"]).isnan())  # it never was compressed, so there is nothing to compare
    assert len(errors["small"]) == geometry.layers
    assert all(0 < large < small < 1.5 for large, small in zip(errors["large"], errors["small"], strict=True))
    with pytest.raises(ValueError, match="set noise2clean_kvrange to"):
        make(benchmark.ShadowedCache(geometry, {}), [5, 4, 3, 2])


def test_the_error_is_that_of_the_attention_outputs() -> None:
    """Attention of one head to one key gives its value, whatever is asked."""
    benchmark, geometry = load_benchmark("rules/attention_error"), kv_geometry(tiny_config(), torch.device("cpu"))
    settings = CompressionConfig(compress_kv_cache=True, total_cache_chunk_nums=5)
    cache = benchmark.ShadowedCache(geometry, {"off": CompressedKVCache(geometry, settings)})
    make(cache)
    cache.errors["off"].zero_()
    start, end = cache.shadows["off"].visible(CHUNKS - 1, 0)
    whole, width = cache.memory[0], geometry.head_width
    whole[..., :width], cache.shadows["off"].memory[0, start:end, :, :width] = 0, 0
    whole[..., width:], cache.shadows["off"].memory[0, start:end, :, width:] = 2.0, 2.5
    cache.keep_queries(0, torch.randn(3, 8, width))
    assert cache.relative_errors()["off"][0] == pytest.approx(0.25)


def test_the_summary_pairs_by_prompt() -> None:
    study = load_benchmark("rules/compression")
    rules = ["published", "recent", "published, merged"]
    labels = [study.label(rule, budget) for rule, budget in study.planned(rules)]
    results = {}
    for number, shift in enumerate((0.0, 4.0, 2.0)):
        videos = {name: {"psnr": 30.0 + shift + place, "all": True} for place, name in enumerate(labels)}
        results[str(number)] = {
            "videos": {study.UNCOMPRESSED: {"all": number > 0}} | videos,
            "attention_error_by_layer": {rule: [0.1, 0.3] for rule in rules},
        }
    results["3"] = {"videos": {study.UNCOMPRESSED: {"all": False}}, "attention_error_by_layer": {}}
    table = study.summary(results, rules)
    assert table["prompts"] == 3  # the fourth is not done
    assert table["videos"][study.UNCOMPRESSED]["all"]["mean"] == pytest.approx(2 / 3, abs=1e-4)
    assert table["videos"][labels[0]]["psnr"] == {"mean": 32.0, "error": pytest.approx(2 / 3**0.5, abs=1e-4)}
    assert table["attention_error"]["recent"] == {"mean": 0.2, "error": 0.0}
    merged, published = study.label("published, merged", 5), study.label("published", 5)
    expected = {"mean": float(labels.index(merged) - labels.index(published)), "error": 0.0}
    assert table["advantage_in_db"][f"{merged} over {published}"] == expected
    assert f"{published} over {published}" not in table["advantage_in_db"]
    assert study.summary({}, rules)["prompts"] == 0


def test_every_rule_of_the_study_fits_a_video_and_half_the_prompts_hide_the_object() -> None:
    study = load_benchmark("rules/compression")
    for rule, (_, budgets) in study.RULES.items():
        for budget in (5, *budgets):
            assert not list(study.settings_of(rule, budget).problems(Schedule(10, 0, 16, 4)))
    kinds = [study.prompt_of(number, "captions")[0].kind for number in study.prompts_of(8)]
    assert all((kind == "hide") == (place % 2 == 0) for place, kind in enumerate(kinds))


def test_results_of_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    study, output = load_benchmark("rules/compression"), tmp_path / "results.json"
    about = {"weights": "a", "num_steps": 16, "num_frames": 240}
    study.Study(None, about, ["recent"], output)._save()
    assert study.Study(None, about, ["recent"], output).results == {}
    with pytest.raises(ValueError, match=r"results.json was made with other num_steps"):
        study.Study(None, about | {"num_steps": 8}, ["recent"], output)

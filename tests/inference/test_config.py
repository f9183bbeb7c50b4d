import copy
import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from inference.config import (
    REPOSITORY_ROOT,
    ConfigError,
    EngineConfig,
    MagiConfig,
    load_config,
    require_path,
    resolve_path,
    runtime_support_warnings,
)
from inference.model.attention import BACKENDS
from tests.paths import GOLDEN

PUBLISHED = json.loads((GOLDEN / "published_configs.json").read_text(encoding="utf-8"))
PRESETS = sorted((REPOSITORY_ROOT / "configs" / "model").glob("*.json"))


def published(name: str = "4.5B_base") -> dict:
    return copy.deepcopy(PUBLISHED[f"{name}_config.json"])


def problems_of(data: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        MagiConfig.from_json_dict(data)
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_file_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(json.dumps(PUBLISHED[name]), encoding="utf-8")
    assert load_config(file).to_json_dict() == PUBLISHED[name]


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_preset_loads(file: Path) -> None:
    config = load_config(file)
    assert config.runtime.pad_hq and config.runtime.pad_duration
    assert config.runtime.special_token_path


def test_all_six_presets_are_here() -> None:
    expected = {f"{size}_{kind}" for size in ("4.5B", "24B") for kind in ("base", "distill", "distill_quant")}
    assert expected <= {file.stem for file in PRESETS}


def test_full_json_names_every_field_and_loads_again() -> None:
    config = MagiConfig.from_json_dict(published())
    full = config.to_json_dict(full=True)
    assert full["runtime_config"]["prefix_selection"] == "last"
    assert full["engine_config"]["attention_backend"] == "auto"
    assert MagiConfig.from_json_dict(full) == config


def test_derived_values() -> None:
    small, large = MagiConfig.from_json_dict(published()), MagiConfig.from_json_dict(published("24B_base"))
    assert (small.tokens_per_frame, small.tokens_per_chunk) == (2025, 12150)
    assert (small.runtime.steps_per_stage, large.runtime.steps_per_stage) == (16, 8)
    assert (small.model.latent_channels, large.model.latent_channels) == (16, 16)
    assert small.model.dtype is torch.bfloat16


def test_sections_are_frozen() -> None:
    config = MagiConfig.from_json_dict(published())
    with pytest.raises(ValueError, match="frozen"):
        config.runtime.seed = 1


def test_unknown_keys_get_a_suggestion() -> None:
    data = published()
    data["runtime_config"]["nun_steps"] = 8
    data["engine_config"]["num_frames"] = 8
    data["engin_config"] = {}
    assert problems_of(data) == [
        "runtime_config.nun_steps is unknown; did you mean num_steps?",
        "engine_config.num_frames is unknown; it belongs in runtime_config",
        "engin_config is unknown; did you mean engine_config?",
    ]


def test_missing_keys_are_named_with_their_section() -> None:
    data = published()
    del data["runtime_config"]["seed"], data["model_config"]["kv_channels"], data["engine_config"]["distill"]
    assert problems_of(data) == [
        "model_config.kv_channels is missing",
        "runtime_config.seed is missing",
        "engine_config.distill is missing",
    ]


def test_null_is_allowed_for_paths_only() -> None:
    data = published()
    data["runtime_config"] |= {"load": None, "t5_pretrained": None, "vae_pretrained": None}
    assert MagiConfig.from_json_dict(data).runtime.load is None
    data["runtime_config"]["seed"] = None
    assert problems_of(data)[0].startswith("runtime_config.seed is null")


@pytest.mark.parametrize("value", ["64", 64.5, True, None, 0, -4])
def test_values_of_another_type_or_sign_are_refused(value: object) -> None:
    data = published()
    data["runtime_config"]["num_steps"] = value
    (problem,) = problems_of(data)
    assert problem.startswith(f"runtime_config.num_steps is {json.dumps(value)}")


# (section, changed fields, what the one problem must say)
CONTRADICTIONS = [
    ("runtime_config", {"num_steps": 62, "noise2clean_kvrange": []}, ["62", "window_size 4", "60 and 64"]),
    ("runtime_config", {"noise2clean_kvrange": [3, 2, 1]}, ["64", "3 entries", "63 and 66"]),
    ("runtime_config", {"video_size_h": 721}, ["video_size_h 721", "16", "720 and 736"]),
    ("runtime_config", {"video_size_w": 8}, ["video_size_w 8", "nearest are 16"]),
    ("runtime_config", {"cfg_number": 1}, ["cfg_number 1", "set it to 3"]),
    ("engine_config", {"distill": True}, ["cfg_number 3", "distill true", "set it to 1"]),
    ("engine_config", {"fp8_quant": True}, ["fp8_quant true", "set it to 1"]),
    ("runtime_config", {"text_scales": [7.5]}, ["5, 5 and 1"]),
    ("runtime_config", {"cfg_t_range": [0.0, 0.3, 0.1, 0.5, 0.9]}, ["not ascending"]),
    ("runtime_config", {"cfg_t_range": [0.1, 0.2, 0.3, 0.5, 0.9]}, ["start at 0"]),
    ("runtime_config", {"clean_chunk_kvrange": 0}, ["clean_chunk_kvrange 0", "-1"]),
    ("runtime_config", {"clean_t": 1.5}, ["clean_t is 1.5"]),
    ("runtime_config", {"temporal_downsample_factor": 8}, ["8", "24 frames"]),
    ("runtime_config", {"num_frames": 0}, ["num_frames is 0"]),
    ("model_config", {"num_query_groups": 5}, ["24", "5"]),
    ("model_config", {"hidden_size": 3000, "cond_hidden_ratio": 0.5}, ["3000", "3072"]),
    ("model_config", {"kv_channels": 4, "hidden_size": 96}, ["kv_channels 4", "8"]),
    ("model_config", {"half_channel_vae": True}, ["16", "32"]),
    ("model_config", {"out_channels": 32}, ["out_channels 32", "16"]),
    ("model_config", {"caption_max_length": 49}, ["49", "50"]),
    ("model_config", {"x_rescale_factor": 0}, ["x_rescale_factor is 0"]),
    ("model_config", {"cond_hidden_ratio": 0.3}, ["0.3"]),
    ("model_config", {"t_patch_size": 2}, ["t_patch_size 2"]),
    ("model_config", {"apply_layernorm_1p": False}, ["apply_layernorm_1p"]),
    ("model_config", {"params_dtype": "float32"}, ["params_dtype", "torch.float32"]),
    ("engine_config", {"shortcut_mode": "8,8,8"}, ["shortcut_mode", "16,16,8"]),
]


@pytest.mark.parametrize(("section", "changes", "words"), CONTRADICTIONS, ids=lambda value: str(value)[:50])
def test_contradictions_are_refused_with_their_numbers(section: str, changes: dict, words: list[str]) -> None:
    data = published()
    data[section] |= changes
    (problem,) = problems_of(data)
    for word in [section.removesuffix("_config"), *words]:
        assert word in problem


def test_all_contradictions_are_reported_at_once() -> None:
    data = published()
    data["model_config"]["num_query_groups"] = 7
    data["runtime_config"] |= {"num_steps": 63, "video_size_w": 100}
    data["engine_config"]["distill"] = True
    found = problems_of(data)
    assert len(found) == 5  # groups; steps against window and against key ranges; width; cfg_number
    assert {problem.split(":")[0] for problem in found} == {"model_config", "runtime_config"}


def test_overrides_are_validated() -> None:
    config = MagiConfig.from_json_dict(published())
    changed = config.with_overrides(num_steps=8, video_size_h=64, video_size_w=64, noise2clean_kvrange=[2, 1])
    assert (changed.runtime.num_steps, config.runtime.num_steps) == (8, 64)
    assert changed.runtime.noise2clean_kvrange == (2, 1)
    assert config.with_overrides(attention_backend="sdpa").engine.attention_backend == "sdpa"
    with pytest.raises(ConfigError, match="num_steps 9 is not a multiple of window_size 4"):
        config.with_overrides(num_steps=9)
    with pytest.raises(ConfigError, match="did you mean num_steps"):
        config.with_overrides(num_stepz=8)


def test_attention_backends_are_those_that_exist() -> None:
    annotation = EngineConfig.model_fields["attention_backend"].annotation
    assert set(get_args(annotation)) == {"auto", *BACKENDS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a JSON configuration"),
        (b"\xff\xfe", "not a JSON configuration"),
        (b"[1]", "holds a JSON list"),
        (b'{"model_config": {"num_layers": 1, "num_layers": 2}}', "given twice: num_layers"),
        (b"{}", "engine_config is missing"),
    ],
)
def test_unreadable_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        load_config(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)


def test_paths_mean_the_working_directory_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("./configs/model") == REPOSITORY_ROOT / "configs" / "model"
    (tmp_path / "configs" / "model").mkdir(parents=True)
    assert resolve_path("./configs/model").resolve() == (tmp_path / "configs" / "model").resolve()
    assert resolve_path(tmp_path / "absent") == tmp_path / "absent"
    with pytest.raises(FileNotFoundError) as caught:
        require_path("./absent", "runtime_config.load")
    assert "runtime_config.load" in str(caught.value)
    assert str(tmp_path / "absent") in str(caught.value) and str(REPOSITORY_ROOT / "absent") in str(caught.value)
    with pytest.raises(FileNotFoundError, match="not set"):
        require_path(None, "runtime_config.load")


def test_ignored_options_are_told() -> None:
    large = " ".join(runtime_support_warnings(MagiConfig.from_json_dict(published("24B_base"))))
    assert "cp_size 8" in large and "ulysses_overlap_degree" not in large
    assert "cp_size" not in " ".join(runtime_support_warnings(MagiConfig.from_json_dict(published("24B_base")), 8))
    data = published()
    data["engine_config"] |= {"enable_cuda_graph": True, "ulysses_overlap_degree": 2}
    told = " ".join(runtime_support_warnings(MagiConfig.from_json_dict(data)))
    assert "enable_cuda_graph" in told and "ulysses_overlap_degree 2" in told


def test_a_mark_in_front_of_a_file_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("\ufeff" + PRESETS[0].read_text(encoding="utf-8"), encoding="utf-8")
    assert load_config(path) == load_config(PRESETS[0])
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="nested too deep"):
        load_config(path)

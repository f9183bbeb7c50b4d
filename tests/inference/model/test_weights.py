import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inference.config import MagiConfig
from inference.model.dit import VideoDiT
from inference.model.weights import WeightsError, checkpoint_directory, load_weights, weights_fingerprint
from tests.paths import GOLDEN

PUBLISHED = json.loads((GOLDEN / "published_configs.json").read_text(encoding="utf-8"))
FP8 = torch.float8_e4m3fn


class Tiny(nn.Module):
    """One parameter of each kind that checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=torch.bfloat16)
        self.quantised = nn.Parameter(torch.zeros(1, 2, 3).to(FP8), requires_grad=False)
        self.register_buffer("mean", torch.zeros(2))


def tiny_tensors() -> dict[str, Tensor]:
    return {
        "linear.weight": torch.arange(6).reshape(2, 3).to(torch.bfloat16),
        "linear.bias": torch.tensor([1.0, -1.0]).to(torch.bfloat16),
        "quantised": torch.arange(6.0).reshape(1, 2, 3).to(FP8),
        "mean": torch.tensor([0.5, 0.25]),
    }


def on_meta() -> Tiny:
    with torch.device("meta"):
        return Tiny()


def save_sharded(tensors: dict[str, Tensor], folder: Path, shards: int, base_name: str = "model") -> None:
    names, weight_map = list(tensors), {}
    for index in range(shards):
        file = f"{base_name}-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[index::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index_file = folder / f"{base_name}.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def assert_holds(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    state = module.state_dict()
    assert set(state) == set(tensors)
    for name, expected in tensors.items():
        assert state[name].dtype == expected.dtype
        assert torch.equal(state[name].float(), expected.float())


@pytest.mark.parametrize("base_name", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("shards", [0, 1, 3])
def test_loads_single_files_and_shards(shards: int, base_name: str, tmp_path: Path) -> None:
    if shards:
        save_sharded(tiny_tensors(), tmp_path, shards, base_name)
    else:
        save_file(tiny_tensors(), tmp_path / f"{base_name}.safetensors")
    module = on_meta()
    load_weights(module, tmp_path, base_name=base_name)
    assert_holds(module, tiny_tensors())
    assert module.linear.weight.requires_grad and not module.quantised.requires_grad


def test_float_kinds_are_converted_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = tiny_tensors()
    stored = tensors | {name: tensors[name].float() for name in ("linear.weight", "linear.bias")}
    save_file(stored, tmp_path / "model.safetensors")
    module = on_meta()
    with caplog.at_level(logging.INFO):
        load_weights(module, tmp_path, name="tiny")
    assert_holds(module, tensors)
    assert [line for line in caplog.messages if "converted from" in line] == [
        "tiny: 2 tensors converted from torch.float32 to torch.bfloat16"
    ]


def test_everything_wrong_is_named_before_data_is_read(tmp_path: Path) -> None:
    wrong = tiny_tensors()
    del wrong["mean"]
    wrong["linear.weight"] = wrong["linear.weight"].T.contiguous()
    wrong["quantised"] = wrong["quantised"].float()
    wrong["surplus"] = torch.zeros(7)
    save_file(wrong, tmp_path / "model.safetensors")
    module = on_meta()
    with pytest.raises(WeightsError) as caught:
        load_weights(module, tmp_path, name="tiny")
    message = str(caught.value)
    assert "1 missing:\n    mean [2]" in message
    assert "1 unexpected:\n    surplus [7]" in message
    assert "1 misshapen:\n    linear.weight: stored [3, 2], needed [2, 3]" in message
    assert "1 wrong dtype:\n    quantised: stored F32, needed torch.float8_e4m3fn" in message
    assert str(tmp_path) in message
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_fp8_is_not_taken_for_bfloat16(tmp_path: Path) -> None:
    wrong = tiny_tensors()
    wrong["linear.weight"] = wrong["linear.weight"].float().to(FP8)
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"linear\.weight: stored F8_E4M3, needed torch\.bfloat16"):
        load_weights(on_meta(), tmp_path)


def test_long_lists_are_cut_with_their_count(tmp_path: Path) -> None:
    surplus = {f"surplus.{index:02d}": torch.zeros(1) for index in range(25)}
    save_file(tiny_tensors() | surplus, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_weights(on_meta(), tmp_path)
    message = str(caught.value)
    assert "25 unexpected:" in message and "and 5 more" in message
    assert "surplus.19" in message and "surplus.20" not in message


def test_a_buffer_that_no_checkpoint_holds_is_refused(tmp_path: Path) -> None:
    save_file(tiny_tensors(), tmp_path / "model.safetensors")
    module = on_meta()
    module.register_buffer("table", torch.zeros(3, device="meta"), persistent=False)
    with pytest.raises(WeightsError, match="1 without values:\n    table"):
        load_weights(module, tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    save_sharded(tiny_tensors(), tmp_path, 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"1 of the 3 shards.*model-00002-of-00003\.safetensors"):
        load_weights(on_meta(), tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_sharded(tiny_tensors(), tmp_path, 2)
    save_file(tiny_tensors(), tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"linear\.weight is in .*00001.* and again in .*00002"):
        load_weights(on_meta(), tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_broken_index(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError, match="not a safetensors index"):
        load_weights(on_meta(), tmp_path)


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"mean": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(WeightsError, match="outside its own folder"):
        load_weights(on_meta(), tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    torch.save(tiny_tensors(), tmp_path / name)
    with pytest.raises(WeightsError, match=f"{name}.*can run any code"):
        load_weights(on_meta(), tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_under_the_name_of_safetensors_is_recognised(legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    if legacy:
        file.write_bytes(pickle.dumps({"linear.weight": [1.0]}))
    else:
        torch.save(tiny_tensors(), file)
    with pytest.raises(WeightsError, match="pickle under another name"):
        load_weights(on_meta(), tmp_path)


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_truncated_files_are_recognised(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tiny_tensors(), file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=rf"model\.safetensors \({file.stat().st_size} bytes\).*truncated"):
        load_weights(on_meta(), tmp_path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(WeightsError, match="git lfs pull"):
        load_weights(on_meta(), tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors.*notes\.txt"):
        load_weights(on_meta(), tmp_path)
    with pytest.raises(WeightsError, match="is not a folder"):
        load_weights(on_meta(), tmp_path / "absent")


def with_load(name: str, load: Path | None) -> MagiConfig:
    return MagiConfig.from_json_dict(PUBLISHED[name]).with_overrides(load=None if load is None else str(load))


@pytest.mark.parametrize(
    ("variant", "folder"),
    [
        ("4.5B_base", "inference_weight"),
        ("4.5B_distill", "inference_weight.distill"),
        ("24B_distill_quant", "inference_weight.fp8.distill"),
    ],
)
def test_the_engine_chooses_the_sub_folder(variant: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    assert checkpoint_directory(with_load(f"{variant}_config.json", tmp_path)) == tmp_path / folder


def test_an_undistilled_fp8_model_has_a_sub_folder_too(tmp_path: Path) -> None:
    (tmp_path / "inference_weight.fp8").mkdir()
    config = with_load("4.5B_distill_quant_config.json", tmp_path).with_overrides(distill=False)
    assert checkpoint_directory(config) == tmp_path / "inference_weight.fp8"


def test_the_fingerprint_tells_weights_apart_and_not_their_files(tmp_path: Path) -> None:
    config = with_load("4.5B_base_config.json", tmp_path)
    folder = tmp_path / "inference_weight"
    folder.mkdir()
    save_sharded(tiny_tensors() | {"scale": torch.tensor(1.0)}, folder, 2)
    sharded = weights_fingerprint(config)
    single = folder / "model.safetensors"
    save_file(tiny_tensors() | {"scale": torch.tensor(1.0)}, single)
    assert weights_fingerprint(config) == sharded
    others = {"linear.bias": torch.tensor([1.0, -1.5]).to(torch.bfloat16)}, {"scale": torch.tensor(2.0)}
    seen = {sharded}
    for other in others:
        save_file(tiny_tensors() | {"scale": torch.tensor(1.0)} | other, single)
        seen.add(weights_fingerprint(config))
    assert len(seen) == 3


def test_another_variant_is_named_with_its_settings(tmp_path: Path) -> None:
    (tmp_path / "inference_weight.distill").mkdir()
    with pytest.raises(WeightsError) as caught:
        checkpoint_directory(with_load("4.5B_base_config.json", tmp_path))
    message = str(caught.value)
    assert "It holds: inference_weight.distill" in message
    assert "for inference_weight.distill set fp8_quant false, distill true" in message


def test_weights_without_their_sub_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(WeightsError, match=r"sub-folder inference_weight$"):
        checkpoint_directory(with_load("4.5B_base_config.json", tmp_path))
    with pytest.raises(FileNotFoundError, match=r"runtime_config\.load is not set"):
        checkpoint_directory(with_load("4.5B_base_config.json", None))


SMALL = {
    "num_layers": 3,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "kv_channels": 8,
    "caption_channels": 32,
    "caption_max_length": 64,
}
# The published sizes that stand in the tensor list, and what they become. 4.5B: D 3072, ffn 12288, groups x head 1024.
REDUCED = {3072: 64, 12288: 128, 1024: 32, 2048: 64, 6144: 128, 768: 16, 128: 8, 4096: 32, 800: 64}


def reduced_checkpoint() -> dict[str, Tensor]:
    """Every tensor that the published 4.5B fp8 checkpoint holds, three layers of it at reduced sizes."""
    listed = json.loads((GOLDEN / "checkpoint_keys.json").read_text(encoding="utf-8"))["4.5B_distill_quant"]
    entries = dict(listed["outside_layers"])
    for index, kind in enumerate(["first_and_last_layer", "other_layers", "first_and_last_layer"]):
        entries |= {f"videodit_blocks.layers.{index}.{name}": entry for name, entry in listed[kind].items()}
    tensors = {}
    for seed, (name, entry) in enumerate(entries.items()):
        shape = [1] if name == "rope.bands" else [REDUCED.get(size, size) for size in entry["shape"]]
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        tensors[name] = values.to(getattr(torch, entry["stored"]))
    return tensors


def test_a_published_fp8_checkpoint_at_reduced_sizes_loads_strictly(tmp_path: Path) -> None:
    raw = json.loads(json.dumps(PUBLISHED["4.5B_distill_quant_config.json"]))
    raw["model_config"] |= SMALL
    raw["runtime_config"]["load"] = str(tmp_path)
    config = MagiConfig.from_json_dict(raw)
    folder = tmp_path / "inference_weight.fp8.distill"
    folder.mkdir()
    tensors = reduced_checkpoint()
    save_sharded(tensors, folder, 3)
    with torch.device("meta"):
        dit = VideoDiT(config.model, distill=True, fp8=True)
    load_weights(dit, checkpoint_directory(config), name="transformer")
    assert_holds(dit, tensors)
    assert dit.videodit_blocks.layers[1].self_attention.linear_qkv.q.weight.dtype == FP8

"""scripts/download.py against a hub of our own: only what a preset names, resumed, sizes checked; then it generates."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.download import PATH_FIELDS, REPOSITORY, Listing, fetch, list_files, models, needed_paths
from inference.config import load_config
from inference.text.t5 import T5_FOLDER
from inference.video.reading import probe_video
from tests.fake_hub import FakeHub, fake_hub
from tests.loading import load_script
from tests.paths import ROOT
from tests.tiny_checkpoint import write_special_tokens, write_t5, write_vae

pytestmark = pytest.mark.slow

MODEL = "4.5B_distill_quant"
VARIANT = "inference_weight.fp8.distill"
CAPTION_WIDTH = 4096  # of the presets; the special tokens are checked against it
SMALL = {
    **{"hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 8, "num_query_groups": 4, "kv_channels": 8},
    **{"caption_channels": 32, "caption_max_length": 64},
}
# The published sizes of the tensor list, and what they become with SMALL.
REDUCED = {3072: 64, 12288: 128, 1024: 32, 2048: 64, 6144: 128, 768: 16, 128: 8, 4096: 32, 800: 64}
LARGE = 2**20 + 2**16
KINDS = ("first_and_last_layer", "other_layers")


def published_tensors() -> dict[str, Tensor]:
    """Every tensor that the published fp8 checkpoint holds, all its layers, at reduced sizes."""
    listed = json.loads((ROOT / "tests" / "golden" / "checkpoint_keys.json").read_text(encoding="utf-8"))[MODEL]
    entries, layers = dict(listed["outside_layers"]), listed["num_layers"]
    for index in range(layers):
        kind = KINDS[0 < index < layers - 1]
        entries |= {f"videodit_blocks.layers.{index}.{name}": entry for name, entry in listed[kind].items()}
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, entry in entries.items():
        shape = [1] if name == "rope.bands" else [REDUCED.get(size, size) for size in entry["shape"]]
        values = (
            torch.rand(shape, generator=generator) + 0.5
            if "scale" in name
            else 0.1 * torch.randn(shape, generator=generator)
        )
        tensors[name] = values.to(getattr(torch, entry["stored"]))
    return tensors


def save_sharded(tensors: dict[str, Tensor], folder: Path, shards: int) -> None:
    folder.mkdir(parents=True)
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("download")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the hub, and in a folder `code` the special tokens."""
    root = tmp_path_factory.mktemp("hub")
    save_sharded(published_tensors(), root / "ckpt" / "magi" / MODEL / VARIANT, 3)
    other = root / "ckpt" / "magi" / "24B_base"
    other.mkdir(parents=True)
    (other / "small.json").write_bytes(b"x" * 1000)
    (other / "large.safetensors").write_bytes(bytes(LARGE))
    write_t5(root / "ckpt" / "t5" / T5_FOLDER, SMALL["caption_channels"])
    write_vae(root / "ckpt" / "vae")
    (root / "code").mkdir()
    write_special_tokens(root / "code" / "special_tokens.npz", CAPTION_WIDTH)
    return root


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with fake_hub(REPOSITORY, repository) as running:
        yield running


def flags(hub: FakeHub, local: Path) -> list[str]:
    tokens = (hub.root / "code" / "special_tokens.npz").as_uri()
    return [MODEL, "--local-dir", str(local), "--endpoint", hub.url, "--special_tokens", tokens]


def test_what_a_preset_names_is_fetched_checked_and_makes_a_video(
    script: ModuleType, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script.main([*flags(hub, tmp_path / "downloads"), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert f"ckpt/magi/{MODEL}/{VARIANT}/model-00002-of-00003.safetensors" in said and "24B" not in said
    assert not (tmp_path / "downloads").exists() and not hub.fetched

    assert script.main(flags(hub, tmp_path / "downloads")) == 0
    assert f"{MODEL} is complete" in capsys.readouterr().out
    target = tmp_path / "downloads" / "MAGI-1"
    for file in list_files(["ckpt/t5", "ckpt/vae", f"ckpt/magi/{MODEL}"], endpoint=hub.url).files:
        assert (target / file.path).read_bytes() == (hub.root / file.path).read_bytes()
    assert not (target / "ckpt" / "magi" / "24B_base").exists()

    # The preset with the sizes of these files; not a word of its paths is changed.
    write_special_tokens(target / "special_tokens.npz", SMALL["caption_channels"])
    preset = json.loads((ROOT / "configs" / "model" / f"{MODEL}.json").read_text(encoding="utf-8"))
    preset["model_config"] |= SMALL
    preset["runtime_config"] |= {"num_frames": 4, "video_size_h": 32, "video_size_w": 32, "num_steps": 8}
    (tmp_path / "small.json").write_text(json.dumps(preset), encoding="utf-8")
    prompt = ["--config_file", "small.json", "--prompt", "a cat", "--output_path", "video.mp4", "--quiet"]
    assert load_script("generate").main(prompt) == 0
    assert probe_video(tmp_path / "video.mp4").frames == 4
    sidecar = json.loads((tmp_path / "video.json").read_text(encoding="utf-8"))
    assert sidecar["config"]["runtime_config"]["load"] == f"./downloads/MAGI-1/ckpt/magi/{MODEL}"
    assert sidecar["config"]["model_config"]["num_layers"] == 34 and sidecar["text_from_cache"] is False
    assert len(list((target / "text_cache").glob("*.safetensors"))) == 1


def test_a_broken_download_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    listing = list_files(["ckpt/magi/24B_base"], endpoint=hub.url)
    small, large = sorted(listing.files, key=lambda file: file.size)
    hub.cut.add(large.path)
    fetch(listing, tmp_path, hub.url)
    assert sorted(hub.fetched) == sorted([(small.path, 0), (large.path, 0), (large.path, LARGE - 10)])
    assert all((tmp_path / file.path).read_bytes() == (hub.root / file.path).read_bytes() for file in listing.files)
    fetch(listing, tmp_path, hub.url)
    assert len(hub.fetched) == 3, "what is there was fetched again"

    os.truncate(tmp_path / small.path, 10)
    assert listing.missing(tmp_path) == [small]
    fetch(listing, tmp_path, hub.url)
    assert hub.fetched[3:] == [(small.path, 0)] and not listing.missing(tmp_path)


def test_what_cannot_be_had_is_said(
    script: ModuleType, hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError, match="sand-ai/MAGI-1 has no folder ckpt/nothing at revision main"):
        list_files(["ckpt/nothing"], endpoint=hub.url)
    listing = list_files(["ckpt/vae"], endpoint=hub.url)
    huge = Listing(listing.commit, (type(listing.files[0])("ckpt/vae/huge", 10**18),))
    with pytest.raises(OSError, match=r"1,000,000,000\.0 GB are still to be fetched, but .* GB too few"):
        fetch(huge, tmp_path, hub.url)
    assert script.main(["4.5B_base", *flags(hub, tmp_path)[1:]]) == 1
    assert "has no folder ckpt/magi/4.5B_base" in caplog.text
    assert script.main([*flags(hub, tmp_path)[:-1], (hub.root / "nothing.npz").as_uri()]) == 1
    assert "copy it from MAGI-1's code" in caplog.text
    assert not list(tmp_path.rglob("special_tokens.npz*"))


def test_without_a_hub_a_dry_run_says_what_and_how_much(
    script: ModuleType, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    begun = tmp_path / "MAGI-1" / "ckpt" / "t5" / "model.safetensors.0123.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(bytes(4000))
    nowhere = [*flags(hub, tmp_path)[:3], "--endpoint", "http://127.0.0.1:9"]
    assert script.main(["24B_base", *nowhere, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert f"ckpt/magi/{MODEL}" in said and "ckpt/magi/24B_base" in said
    assert "19.05 GB  ckpt/t5  (4.00 kB there)" in said and said.count("ckpt/t5") == 1
    assert "GB in all, by the presets; the hub cannot be asked" in said
    assert script.main(nowhere) == 1
    assert "the hub cannot be asked" in caplog.text and not hub.fetched


def test_special_tokens_from_a_file(
    script: ModuleType, hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, place = hub.root / "code" / "special_tokens.npz", tmp_path / "MAGI-1" / "special_tokens.npz"
    before = [*flags(hub, tmp_path)[:-1]]
    assert script.main([*before, str(hub.root / "ckpt")]) == 1
    assert script.main([*before, str(hub.root / "nothing.npz")]) == 1
    assert "nothing.npz" in caplog.text and not hub.fetched, "weights were fetched before"
    assert script.main([*before, str(given)]) == 0
    assert place.read_bytes() == given.read_bytes()
    assert script.main([*before, str(place)]) == 0
    assert place.read_bytes() == given.read_bytes()
    write_special_tokens(tmp_path / "other.npz", CAPTION_WIDTH, seed=9)
    assert script.main([*before, str(tmp_path / "other.npz")]) == 1
    assert "is there already and differs from --special_tokens" in caplog.text
    assert place.read_bytes() == given.read_bytes()


def test_what_another_client_left_unfinished_is_counted(
    script: ModuleType, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    left = tmp_path / "MAGI-1" / ".cache" / "huggingface" / "download" / "x.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(12_345))
    assert script.main([*flags(hub, tmp_path), "--dry_run"]) == 0
    assert "1 unfinished files of the hub's own client, 12.35 kB" in capsys.readouterr().out and left.exists()


@pytest.mark.parametrize("model", models())
def test_every_preset_names_the_downloaded_layout(model: str) -> None:
    names = {field: str(path) for field, path in needed_paths(model).items()}
    expected = {"t5_pretrained": "ckpt/t5", "vae_pretrained": "ckpt/vae", "special_token_path": "special_tokens.npz"}
    assert names == expected | {"load": f"ckpt/magi/{model}"} and set(names) == set(PATH_FIELDS)


def test_there_is_a_preset_for_each_published_model() -> None:
    assert len(models()) == 6 and "nano" not in models()
    assert load_config(ROOT / "configs" / "model" / f"{MODEL}.json").engine.fp8_quant

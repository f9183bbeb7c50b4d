"""Caption features on disk: exact, made anew where they are damaged, T5 loaded only for prompts that are not known."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import inference.text.features
from inference.config import load_config
from inference.pipeline import MagiPipeline, RunReport, Sample
from inference.text.cache import SAMPLE_BYTES, SAMPLES, CaptionFeatures, TextCache, cache_folder, encoder_identity
from inference.text.t5 import T5_FOLDER

CPU = torch.device("cpu")
TEXT = "a cat on a mat"


def some_features(seed: int = 0) -> CaptionFeatures:
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    return CaptionFeatures(torch.randn(1, 1, 5, 4, generator=torch.Generator().manual_seed(seed)), mask)


def same(found: CaptionFeatures | None, expected: CaptionFeatures) -> bool:
    used = expected.mask[0].bool()
    return (
        found is not None
        and torch.equal(found.mask, expected.mask)
        and found.features.shape == expected.features.shape
        and torch.equal(found.features[0, 0, used], expected.features[0, 0, used])
    )


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    cache, features = TextCache(tmp_path / "a" / "b", "T5"), some_features()
    assert cache.read(TEXT) is None
    cache.write(TEXT, features)
    found = cache.read(TEXT)
    assert same(found, features) and found.from_cache and found.mask.dtype == torch.int64
    assert cache.read("another") is None and TextCache(cache.folder, "another T5").read(TEXT) is None
    assert [file.suffix for file in cache.folder.iterdir()] == [".safetensors"]  # nothing half-written
    assert load_file(cache.path(TEXT))["rows"].shape == (3, 4)  # padding is not kept


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_entry_is_made_anew(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache, features = TextCache(tmp_path, "T5"), some_features()
    cache.write(TEXT, features)
    damage(cache.path(TEXT))
    with caplog.at_level(logging.WARNING):
        assert cache.read(TEXT) is None
    assert f"{cache.path(TEXT)} cannot be used and are made anew" in caplog.text
    cache.write(TEXT, features)
    assert same(cache.read(TEXT), features)


def test_an_entry_under_a_wrong_name_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TextCache(tmp_path, "T5")
    cache.write(TEXT, some_features())
    cache.path(TEXT).rename(cache.path("another"))
    assert cache.read("another") is None and "another prompt" in caplog.text


def test_a_folder_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"runtime_config\.text_cache: .*file"):
        TextCache(tmp_path / "file", "T5")
    cache = TextCache(tmp_path / "gone", "T5")
    cache.folder.rmdir()
    cache.write(TEXT, some_features())
    assert "caption features could not be kept" in caplog.text


def test_a_new_folder_is_made_where_its_parent_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cache_folder("text_cache").absolute() == tmp_path / "text_cache"
    assert cache_folder("example/no_such_folder").is_absolute()  # in the checkout, which has `example`


def test_the_identity_is_that_of_the_files_and_the_arithmetic(tmp_path: Path) -> None:
    size = SAMPLES * SAMPLE_BYTES + 3 * SAMPLE_BYTES
    weights, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights.write_bytes(bytes(size))
    settings.write_text("{}")

    def identity(length: int = 8, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> str:
        return encoder_identity(tmp_path, length, dtype, device)

    first = identity()
    (tmp_path / ".note").write_text("hidden")
    (tmp_path / "README.md").write_text("for people")
    assert identity() == first
    assert len({first, identity(9), identity(dtype=torch.bfloat16), identity(device=torch.device("cuda"))}) == 4
    data = bytearray(size)
    for position in (size // 2, 0, size - 1):  # in the middle, and at both ends
        data[position - SAMPLE_BYTES : position + SAMPLE_BYTES] = b"x" * SAMPLE_BYTES
        weights.write_bytes(data[:size])
        assert identity() != first
    weights.write_bytes(bytes(size))
    settings.write_text("[]")  # as many bytes, other contents
    assert identity() != first


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that a text encoder was loaded from."""
    loaded, original = [], inference.text.features.load_t5

    def load(directory: Path, **options: object) -> object:
        loaded.append(str(directory))
        return original(directory, **options)

    monkeypatch.setattr(inference.text.features, "load_t5", load)
    return loaded


def video(config_file: Path, folder: Path | None, prompt: str) -> tuple[torch.Tensor, bool | None]:
    config = load_config(config_file).with_overrides(num_frames=4, text_cache=folder and str(folder))
    report, pipeline = RunReport(), MagiPipeline.load(config, CPU)
    frames = torch.cat(list(pipeline.frames(Sample(prompt), report=report)))
    assert pipeline.placement()["t5"] == ("not loaded" if report.text_from_cache else "on cpu")
    return frames, report.text_from_cache


def test_the_encoder_is_loaded_only_for_prompts_that_are_not_known(
    checkpoint_copy: Path, tmp_path: Path, counted: list[str]
) -> None:
    file, folder = checkpoint_copy / "distill.json", tmp_path / "cache"
    plain, known = video(file, None, TEXT)
    assert len(counted) == 1 and known is False
    for prompt, known_before, loads in ((TEXT, False, 2), (TEXT, True, 2), (" A  cat ON a mat", True, 2)):
        frames, known = video(file, folder, prompt)
        assert torch.equal(frames, plain) and known is known_before and len(counted) == loads
    video(file, folder, "a dog")
    assert len(counted) == 3

    path = checkpoint_copy / "t5" / T5_FOLDER / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "another encoder"}))
    assert video(file, folder, TEXT)[1] is False and len(counted) == 4


def test_a_wrong_encoder_is_refused_though_it_is_not_loaded(checkpoint_copy: Path, tmp_path: Path) -> None:
    path = checkpoint_copy / "t5" / T5_FOLDER / "config.json"
    path.write_text(path.read_text().replace('"d_model": 24', '"d_model": 16'))
    with pytest.raises(ValueError, match="gives features of 16 numbers, but the transformer takes caption_channels 24"):
        video(checkpoint_copy / "distill.json", tmp_path / "cache", TEXT)

"""The T5 loader on tiny folders of both published formats, and what it refuses."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from inference.text.t5 import T5_FOLDER, load_t5
from tests.tiny_checkpoint import write_tokenizer_json

MAX_LENGTH = 16
CONFIG = T5Config(
    vocab_size=160, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
)
DROPPED = "encoder.block.1.layer.0.SelfAttention.q.weight"
SENTENCES = ["a cat sits on the mat", "the dog runs over a hill", "sunrise over mountains", "a bird in the tree"]


@pytest.fixture(scope="module")
def reference_model() -> T5EncoderModel:
    torch.manual_seed(0)
    return T5EncoderModel(CONFIG).eval()


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(SENTENCES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=28,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2},
    )
    return folder / "spiece.model"


def write_sharded_bin(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[:7], names[7:]), start=1):
        shard = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name].clone() for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def safetensors_directory(tmp_path, reference_model) -> Path:
    """tokenizer.json and safetensors."""
    folder = tmp_path / "with_safetensors" / T5_FOLDER
    reference_model.save_pretrained(folder)
    write_tokenizer_json(folder)
    return folder.parent


@pytest.fixture
def bin_directory(tmp_path, reference_model, sentencepiece_model) -> Path:
    """spiece.model and sharded .bin files, as MAGI-1's own download."""
    folder = tmp_path / "with_bin" / T5_FOLDER
    folder.mkdir(parents=True)
    CONFIG.save_pretrained(folder)
    shutil.copy(sentencepiece_model, folder / "spiece.model")
    write_sharded_bin(folder, reference_model.state_dict())
    return folder.parent


@pytest.mark.parametrize("directory", ["safetensors_directory", "bin_directory"])
def test_both_formats_give_the_reference_features(directory, request, reference_model):
    encoder = load_t5(request.getfixturevalue(directory), max_length=MAX_LENGTH)
    features, mask = encoder.encode("The DOG &amp; cat")
    assert features.shape == (1, 1, MAX_LENGTH, 32) and features.dtype == torch.float32
    assert mask.shape == (1, MAX_LENGTH) and mask.dtype == torch.int64
    ids = encoder.tokenizer("the dog cat", padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
    assert torch.equal(mask, ids["attention_mask"]) and 1 < mask.sum() < MAX_LENGTH
    with torch.no_grad():
        expected = reference_model(ids["input_ids"], attention_mask=mask).last_hidden_state
    assert torch.equal(features[:, 0], expected)  # padding positions too: they are kept as they come


def test_sentencepiece_ids(bin_directory, sentencepiece_model):
    encoder = load_t5(bin_directory)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    for text in [*SENTENCES, "snow-capped 4k", "ﬁ é 🐶"]:
        assert encoder.tokenizer(text)["input_ids"] == [*reference.encode(text), 1]


def test_empty_prompt_is_the_end_token_alone(safetensors_directory):
    _, mask = load_t5(safetensors_directory, max_length=MAX_LENGTH).encode("")
    assert mask.tolist() == [[1] + [0] * (MAX_LENGTH - 1)]


def test_long_prompt_is_cut_with_a_warning(safetensors_directory, caplog):
    encoder = load_t5(safetensors_directory, max_length=MAX_LENGTH)
    with caplog.at_level(logging.WARNING):
        _, fits = encoder.encode("a b c d e f g")  # 14 tokens and the end token
    assert fits.sum() == 15 and not caplog.records
    with caplog.at_level(logging.WARNING):
        features, mask = encoder.encode("a b c d e f g h i j")  # 20 tokens and the end token
    assert mask.sum() == MAX_LENGTH
    assert "20 tokens and 15 fit: the last 5 were cut" in caplog.text
    assert torch.equal(features, encoder.encode("a b c d e f g h x y")[0])


def test_ten_thousand_characters(bin_directory, caplog):
    with caplog.at_level(logging.WARNING):
        features, mask = load_t5(bin_directory).encode("the dog runs " * 800)
    assert features.shape == (1, 1, 800, 32) and mask.sum() == 800 and "were cut" in caplog.text


def test_full_model_checkpoint_serves_its_encoder(tmp_path):
    torch.manual_seed(1)
    full = T5ForConditionalGeneration(CONFIG)
    full.save_pretrained(tmp_path / T5_FOLDER)
    write_tokenizer_json(tmp_path / T5_FOLDER)
    loaded = load_t5(tmp_path).model.state_dict()
    assert torch.equal(loaded[DROPPED], full.state_dict()[DROPPED])


def test_token_beyond_the_vocabulary(safetensors_directory):
    encoder = load_t5(safetensors_directory)
    encoder.model.config.vocab_size = 20
    with pytest.raises(ValueError, match="gave token 29, but the T5 model knows 20 tokens"):
        encoder.encode("a zebra")


def test_missing_tensor_is_named(bin_directory, reference_model):
    tensors = {name: value for name, value in reference_model.state_dict().items() if name != DROPPED}
    write_sharded_bin(bin_directory / T5_FOLDER, tensors)
    with pytest.raises(ValueError, match=f"missing: {DROPPED}"):
        load_t5(bin_directory)


def test_misshapen_and_unexpected_tensors_are_named(bin_directory, reference_model):
    extra = "encoder.block.2.layer.0.SelfAttention.q.weight"
    tensors = {**reference_model.state_dict(), DROPPED: torch.zeros(3, 5), extra: torch.zeros(32, 32)}
    write_sharded_bin(bin_directory / T5_FOLDER, tensors)
    with pytest.raises(ValueError) as caught:
        load_t5(bin_directory)
    assert f"unexpected: {extra}" in str(caught.value) and f"{DROPPED}: shape (3, 5)" in str(caught.value)


class Malicious:
    """Unpickled by plain pickle, this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_malicious_pickle_is_refused_and_not_run(bin_directory, tmp_path, container, reference_model):
    target = tmp_path / "code_was_run"
    shard = bin_directory / T5_FOLDER / "pytorch_model-00002-of-00002.bin"
    payload = {**reference_model.state_dict(), DROPPED: Malicious(target)}
    if container == "torch":
        torch.save(payload, shard)
    else:
        shard.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(ValueError, match="refused to load the T5 weights") as caught:
        load_t5(bin_directory)
    assert not target.exists()
    assert "weights_only" not in str(caught.value)
    torch.load(shard, weights_only=False) if container == "torch" else pickle.loads(shard.read_bytes())
    assert target.exists()  # the payload does work where nobody refuses it


def test_a_pickle_named_safetensors_is_refused(safetensors_directory, tmp_path):
    target = tmp_path / "code_was_run"
    (safetensors_directory / T5_FOLDER / "model.safetensors").write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(ValueError, match="cannot be read"):
        load_t5(safetensors_directory)
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "no config.json"),
        ("spiece.model", "neither tokenizer.json nor spiece.model"),
        ("pytorch_model-00002-of-00002.bin", "1 of the 2 weight files .* missing: pytorch_model-00002-of-00002.bin"),
        ("pytorch_model.bin.index.json", "no weights"),
    ],
)
def test_missing_file_is_named(bin_directory, name, message):
    (bin_directory / T5_FOLDER / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_t5(bin_directory)


def test_wrong_folder_has_a_hint(bin_directory, tmp_path):
    with pytest.raises(FileNotFoundError, match="give the parent"):
        load_t5(bin_directory / T5_FOLDER)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_t5(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "bert"}', "type 'bert'"),
        ("config.json", "no json", "not a transformers configuration"),
        ("spiece.model", "no model", "tokenizer"),
        ("pytorch_model-00001-of-00002.bin", "no weights", "cannot be read|refused"),
        ("pytorch_model.bin.index.json", "[]", "not an index"),
    ],
)
def test_damaged_file_is_named(bin_directory, name, content, message):
    (bin_directory / T5_FOLDER / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_t5(bin_directory)


def test_tokenizer_without_end_token_is_refused(safetensors_directory):
    path = safetensors_directory / T5_FOLDER / "tokenizer.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**description, "post_processor": None}), encoding="utf-8")
    with pytest.raises(ValueError, match="end token"):
        load_t5(safetensors_directory)

"""The T5 text encoder, loaded strictly from a local folder (docs/conditioning.md, "T5 text encoder")."""

import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from inference.files import read_json
from inference.text.cleaning import clean_caption
from inference.text.reading import words

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

# MAGI-1's configs name the folder above this one.
T5_FOLDER = "t5-v1_1-xxl"
PUBLISHED_MAX_LENGTH = 800
DEFAULT_WIDTH = 512  # transformers' T5Config, where a file states none

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
# In the order in which transformers prefers them.
WEIGHT_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# What the readers of safetensors and of .bin files raise on bad content.
_READ_ERRORS = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError)


class T5TextEncoder:
    """Prompt to caption features. ``width`` is the size of one feature, ``max_length`` the number of positions."""

    def __init__(
        self, model: "transformers.T5EncoderModel", tokenizer: "transformers.PreTrainedTokenizerBase", max_length: int
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.width: int = model.config.d_model

    @torch.no_grad()
    def encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Features float32 (1, 1, max_length, width) and mask int64 (1, max_length), both on the model's device.

        The prompt is cleaned (``clean_caption``), closed with the end token and padded to ``max_length``. The mask is
        1 on text and end token; features at padding positions are left as the encoder computes them. A prompt that
        does not fit keeps its first ``max_length - 1`` tokens, and a warning says how many were cut. An empty prompt
        is the end token alone. Raises ValueError for text that ``clean_caption`` cannot read.
        """
        text = clean_caption(prompt)
        ids, mask = self._tokenize(text)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.float().unsqueeze(1), mask

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of ``text``, a cleaned prompt, for which the tokenizer has nothing but the token of what is unknown."""
        nothing = {self.tokenizer.unk_token_id, *self.tokenizer(" ", add_special_tokens=False)["input_ids"]}
        found = []
        for word in words(text):
            ids = set(self.tokenizer(word, add_special_tokens=False)["input_ids"])
            if ids <= nothing or self.tokenizer.unk_token_id in ids:
                found.append(word)
        return tuple(found)

    def _tokenize(self, text: str) -> tuple[Tensor, Tensor]:
        """Ids and mask, each int64 (1, max_length)."""
        length = len(self.tokenizer(text, verbose=False)["input_ids"])
        if length > self.max_length:
            logger.warning(
                "the prompt has %d tokens and %d fit: the last %d were cut",
                *(length - 1, self.max_length - 1, length - self.max_length),
            )
        tokens = self.tokenizer(
            text, max_length=self.max_length, padding="max_length", truncation=True, return_tensors="pt"
        )
        highest = int(tokens["input_ids"].max())
        if highest >= self.model.config.vocab_size:
            raise ValueError(
                f"the tokenizer gave token {highest}, but the T5 model knows {self.model.config.vocab_size} tokens: "
                "tokenizer and weights are not of the same model, or the prompt has a reserved word in it"
            )
        return tokens["input_ids"].to(self.model.device), tokens["attention_mask"].to(self.model.device)


def load_t5(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    max_length: int = PUBLISHED_MAX_LENGTH,
) -> T5TextEncoder:
    """Load the encoder from ``directory``/t5-v1_1-xxl; ``directory`` is the config's ``t5_pretrained``.

    The folder holds config.json, tokenizer.json or spiece.model, and the weights: safetensors, or .bin files, which
    only torch's weights-only unpickler ever opens. ``max_length`` is the config's ``caption_max_length``.
    Raises FileNotFoundError naming what is missing, and ValueError if a weight file is not what it should be or if
    tensors of the encoder are missing, unexpected or misshapen.
    """
    if max_length < 1:
        raise ValueError(f"caption_max_length must be at least 1, got {max_length}")
    folder, _ = check_t5(directory)  # before transformers is imported, which takes seconds
    tokenizer = _load_tokenizer(folder)
    model = _load_model(folder, dtype)
    return T5TextEncoder(model.to(device), tokenizer, max_length)


def check_t5(directory: str | Path) -> tuple[Path, int]:
    """The folder with the encoder's files and the width of its features; nothing large is read.

    Raises FileNotFoundError and ValueError, as ``load_t5`` does, for what is missing or of another model.
    """
    folder = _find_folder(Path(directory))
    width = _check_config(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(
            f"T5 folder {folder} has no tokenizer: neither {' nor '.join(TOKENIZER_FILES)} is there"
        )
    _check_weight_files(folder)
    return folder, width


def _find_folder(directory: Path) -> Path:
    folder = directory / T5_FOLDER
    if folder.is_dir():
        return folder
    hint = f"put the T5 files into {folder}"
    if (directory / "config.json").is_file():
        hint = f"t5_pretrained names the folder above: give the parent of a folder called {T5_FOLDER}"
    elif not directory.is_dir():
        hint = f"the folder {directory} does not exist; correct t5_pretrained in the config"
    raise FileNotFoundError(f"no T5 text encoder: {folder} is not a folder; {hint}")


def _check_config(folder: Path) -> int:
    """The width of the features that config.json tells of."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"T5 folder {folder} has no config.json")
    try:
        settings = read_json(path)
        model_type, width = settings["model_type"], settings.get("d_model", DEFAULT_WIDTH)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a transformers configuration: {error}") from error
    if model_type != "t5":
        raise ValueError(f"{path} describes a model of type {model_type!r}; a T5 encoder (type 't5') is needed")
    if type(width) is not int or width < 1:
        raise ValueError(f"{path}: d_model {width!r} is no width of features")
    return width


def _load_tokenizer(folder: Path) -> "transformers.PreTrainedTokenizerBase":
    """After ``check_t5``: transformers makes up an empty vocabulary where files are missing."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust reader of tokenizer.json raises plain Exception
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if tokenizer("")["input_ids"] != [tokenizer.eos_token_id] or tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer in {folder} is not a T5 tokenizer: it must close a text with its end token "
            f"(it has {tokenizer.eos_token!r}) and have a padding token (it has {tokenizer.pad_token!r})"
        )
    return tokenizer


def _check_weight_files(folder: Path) -> None:
    """Raise FileNotFoundError if there are no weights, or if shards that the index names are missing."""
    found = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"T5 folder {folder} has no weights: none of {', '.join(WEIGHT_FILES)} is there")
    if not found.endswith(".index.json"):
        return
    try:
        shards = set(read_json(folder / found)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / found} is not an index of weight files: {error}") from error
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise FileNotFoundError(
            f"T5 folder {folder}: {len(missing)} of the {len(shards)} weight files in {found} are missing: "
            f"{', '.join(missing)}"
        )


def _load_model(folder: Path, dtype: torch.dtype) -> "transformers.T5EncoderModel":
    """transformers fills missing tensors with random numbers and only logs it; its loading report is checked here."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # programs have bars of their own
    try:
        model, report = transformers.T5EncoderModel.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off.
        raise ValueError(
            f"refused to load the T5 weights in {folder}: a .bin file there holds something else than tensors, "
            "which could run code when loaded; nothing of it was run. Get the file from its publisher, or convert it "
            "to safetensors where you trust it"
        ) from error
    except _READ_ERRORS as error:
        raise ValueError(f"the T5 weights in {folder} cannot be read (incomplete download?): {error!r}") from error
    problems = [f"missing: {', '.join(sorted(report['missing_keys']))}"] if report["missing_keys"] else []
    if report["unexpected_keys"]:
        problems.append(f"unexpected: {', '.join(sorted(report['unexpected_keys']))}")
    for name, found, expected in sorted(report["mismatched_keys"]):
        problems.append(f"{name}: shape {tuple(found)} in the file, {tuple(expected)} by config.json")
    if problems:
        raise ValueError(
            f"the weights in {folder} do not fit the encoder its config.json describes; {'; '.join(problems)}"
        )
    return model

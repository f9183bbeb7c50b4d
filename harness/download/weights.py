"""Published weights from the Hugging Face hub, laid out as the presets in configs/model name them (docs/download.md).

What is needed is read off the presets, so the two cannot disagree: their paths begin with ``downloads/MAGI-1``, which
is the hub's repository, file for file. What needs torch, which takes seconds to import, is imported where it is used.
"""

import filecmp
import shutil
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from harness.download.transfer import SUFFIX, Checksum, OnBytes, Remote, receive_all
from inference.config import REPOSITORY_ROOT, MagiConfig, load_config
from inference.files import replacing

REPOSITORY = "sand-ai/MAGI-1"
FOLDER = PurePosixPath("MAGI-1")  # below the folder that is downloaded to
PRESETS = REPOSITORY_ROOT / "configs" / "model"
PRESET_ROOT = PurePosixPath("downloads") / FOLDER  # in the presets' paths
# Published with MAGI-1's code, not with its weights.
SPECIAL_TOKENS = "https://raw.githubusercontent.com/SandAI-org/MAGI-1/main/example/assets/special_tokens.npz"
SPECIAL_TOKENS_BYTES = 3_300_000  # about
TIMEOUT = 60  # s, of a connection for the special tokens

PATH_FIELDS = ("load", "t5_pretrained", "vae_pretrained", "special_token_path")


@dataclass(frozen=True)
class HubFile:
    """A file of the repository: its path there, its size in bytes, and its checksum where the hub gives one."""

    path: str
    size: int
    checksum: Checksum | None = None

    def lies_in(self, target: Path) -> bool:
        """Whether it is in ``target``, with all its bytes."""
        place = target / self.path
        return place.is_file() and place.stat().st_size == self.size


@dataclass(frozen=True)
class Listing:
    """The files of some folders at one commit of the repository."""

    commit: str
    files: tuple[HubFile, ...]

    def missing(self, target: Path) -> list[HubFile]:
        return [file for file in self.files if not file.lies_in(target)]

    def remote(self, file: HubFile, endpoint: str | None = None) -> Remote:
        """Where its bytes are to be had."""
        url = hf_hub_url(REPOSITORY, file.path, revision=self.commit, endpoint=endpoint)
        version = self.commit if file.checksum is None else file.checksum.digest
        return Remote(url, file.size, version, file.checksum)

    def received(self, file: HubFile, target: Path) -> int:
        """Bytes of it that are in ``target``."""
        return file.size if file.lies_in(target) else self.remote(file).received(target / file.path)

    def bytes_left(self, target: Path) -> int:
        """What is still to be fetched."""
        return sum(file.size - self.received(file, target) for file in self.files)


def models() -> list[str]:
    """The presets of published models, by name."""
    return sorted(file.stem for file in PRESETS.glob("*.json") if _below_root(load_config(file).runtime.load))


def preset(model: str) -> MagiConfig:
    """The preset of this name, as it stands."""
    return load_config(PRESETS / f"{model}.json")


def needed_paths(model: str) -> dict[str, PurePosixPath]:
    """What the preset ``model`` names, as paths in the repository, by field. ValueError for one that names others."""
    runtime = preset(model).runtime
    paths = {field: getattr(runtime, field) for field in PATH_FIELDS}
    astray = [f"{field} {path}" for field, path in paths.items() if not _below_root(path)]
    if astray:
        raise ValueError(f"configs/model/{model}.json names paths outside {PRESET_ROOT}: {', '.join(astray)}")
    return {field: PurePosixPath(path).relative_to(PRESET_ROOT) for field, path in paths.items()}


def list_files(folders: Sequence[str], revision: str = "main", endpoint: str | None = None) -> Listing:
    """Paths and sizes of all files below ``folders`` of the repository at ``revision``.

    Raises FileNotFoundError for a folder that the repository does not have, OSError where the hub cannot be asked.
    """
    api = HfApi(endpoint=endpoint)
    files: list[HubFile] = []
    try:
        commit = api.repo_info(REPOSITORY, revision=revision).sha
        for folder in folders:
            entries = api.list_repo_tree(REPOSITORY, folder, recursive=True, revision=commit)
            files += [_hub_file(entry) for entry in entries if isinstance(entry, RepoFile)]
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{REPOSITORY} has no folder {folder} at revision {revision}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # those of the HTTP library, which depends on the hub client's version
        raise OSError(f"the hub cannot be asked for the files of {REPOSITORY}: {error}") from error
    return Listing(str(commit), tuple(files))


def expected(model: str) -> dict[str, int]:
    """About how many bytes each folder of the preset ``model`` has, by path, without asking the hub."""
    import torch

    from inference.memory.estimate import text_encoder_bytes, transformer_size, vae_bytes, vae_config

    config, paths = preset(model), needed_paths(model)
    sizes = {
        "load": transformer_size(config).bytes,
        "t5_pretrained": text_encoder_bytes(config),
        "vae_pretrained": vae_bytes(vae_config(config), torch.float32),
        "special_token_path": SPECIAL_TOKENS_BYTES,
    }
    return {str(path): sizes[field] for field, path in paths.items()}


def fetch(listing: Listing, target: Path, endpoint: str | None = None, on_bytes: OnBytes = lambda count: None) -> None:
    """Bring every file of ``listing`` to ``target``; what is there with its full size stays, what was begun goes on.

    ``on_bytes`` hears of what was received. Raises OSError where the disk has too little room for what is missing, or a
    file cannot be had or is not what the hub says it is.
    """
    missing = listing.missing(target)
    _check_room(listing.bytes_left(target), target)
    receive_all([(listing.remote(file, endpoint), target / file.path) for file in missing], on_bytes)
    if wrong := listing.missing(target):
        sizes = [f"{file.path} ({_size(target / file.path)} of {file.size} bytes)" for file in wrong]
        raise OSError(f"{len(wrong)} files did not arrive whole; the same command fetches them: {', '.join(sizes)}")


def foreign_remains(target: Path) -> list[Path]:
    """What the hub's own client left unfinished in ``target``; it begins anew each time, and nobody goes on with it."""
    return sorted((target / ".cache" / "huggingface").rglob(f"*{SUFFIX}"))


def fetch_special_tokens(source: str, place: Path, width: int) -> None:
    """Bring special_tokens.npz from ``source``, a URL or a file, unless it is there; ``width`` is the model's caption
    width.

    Raises OSError where it cannot be had, ValueError where it is something else, or differs from what is there.
    """
    from inference.text.captions import SpecialTokens

    file = None if "://" in source else Path(source).expanduser()
    if file is not None:
        SpecialTokens.load(file, width)
        if place.is_file() and not filecmp.cmp(file, place, shallow=False):
            raise ValueError(f"{place} is there already and differs from --special_tokens {file}; remove one of them")
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(place) as part:
                if file is not None:
                    shutil.copyfile(file, part)
                else:
                    with urllib.request.urlopen(source, timeout=TIMEOUT) as response, part.open("wb") as opened:
                        shutil.copyfileobj(response, opened)
                SpecialTokens.load(part, width)
        except OSError as error:
            raise OSError(
                f"special_tokens.npz cannot be fetched from {source} ({error}); copy it from MAGI-1's code "
                f"(example/assets there) to {place}, or name the copy with --special_tokens"
            ) from error
    SpecialTokens.load(place, width)


def placed(model: str, target: Path) -> MagiConfig:
    """The preset with its paths in ``target``, after a look at what is there.

    Raises FileNotFoundError, ValueError and WeightsError where the files are not laid out as the loaders want them.
    """
    from inference.model.weights import checkpoint_directory
    from inference.text.t5 import check_t5

    config = preset(model).with_overrides(**{field: str(target / path) for field, path in needed_paths(model).items()})
    checkpoint_directory(config)
    check_t5(config.runtime.t5_pretrained)
    return config


def _below_root(path: str | None) -> bool:
    return path is not None and PurePosixPath(path).is_relative_to(PRESET_ROOT)


def amount(size: int) -> str:
    """A number of bytes in words, with three digits or more."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}" if size < 100 * unit else f"{size / unit:,.1f} {name}"
    return f"{size} bytes"


def _hub_file(entry: RepoFile) -> HubFile:
    if entry.lfs is not None:
        return HubFile(entry.path, entry.size, Checksum("sha256", entry.lfs.sha256))
    return HubFile(entry.path, entry.size, Checksum("git", entry.blob_id))


def _check_room(needed: int, target: Path) -> None:
    existing = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{amount(needed)} are still to be fetched, but {existing} has {amount(free)} free: "
            f"{amount(needed - free)} too few"
        )


def _size(place: Path) -> int:
    return place.stat().st_size if place.is_file() else 0

"""Published weights from the Hugging Face hub, laid out as the presets in configs/model name them (docs/download.md).

What is needed is read off the presets, so the two cannot disagree: their paths begin with ``downloads/MAGI-1``, which
is the hub's repository, file for file.
"""

import logging
import shutil
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from inference.config import REPOSITORY_ROOT, MagiConfig, load_config
from inference.files import replacing
from inference.model.weights import checkpoint_directory
from inference.text.captions import SpecialTokens
from inference.text.t5 import check_t5

logger = logging.getLogger(__name__)

REPOSITORY = "sand-ai/MAGI-1"
FOLDER = PurePosixPath("MAGI-1")  # below the folder that is downloaded to
PRESETS = REPOSITORY_ROOT / "configs" / "model"
PRESET_ROOT = PurePosixPath("downloads") / FOLDER  # in the presets' paths
# Published with MAGI-1's code, not with its weights.
SPECIAL_TOKENS = "https://raw.githubusercontent.com/SandAI-org/MAGI-1/main/example/assets/special_tokens.npz"
TIMEOUT = 60  # s, of a connection for the special tokens

PATH_FIELDS = ("load", "t5_pretrained", "vae_pretrained", "special_token_path")


@dataclass(frozen=True)
class HubFile:
    """A file of the repository: its path there, and its size in bytes."""

    path: str
    size: int

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


def models() -> list[str]:
    """The presets of published models, by name."""
    return sorted(file.stem for file in PRESETS.glob("*.json") if _below_root(load_config(file).runtime.load))


def needed_paths(model: str) -> dict[str, PurePosixPath]:
    """What the preset ``model`` names, as paths in the repository, by field. ValueError for one that names others."""
    runtime = load_config(PRESETS / f"{model}.json").runtime
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
            files += [HubFile(entry.path, entry.size) for entry in entries if isinstance(entry, RepoFile)]
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{REPOSITORY} has no folder {folder} at revision {revision}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # those of the HTTP library, which depends on the hub client's version
        raise OSError(f"the hub cannot be asked for the files of {REPOSITORY}: {error}") from error
    return Listing(str(commit), tuple(files))


def fetch(listing: Listing, target: Path, endpoint: str | None = None) -> None:
    """Bring every file of ``listing`` to ``target``; what is there with its full size stays, what was begun goes on.

    Raises OSError where the disk has too little room or a file does not have its size afterwards.
    """
    missing = listing.missing(target)
    _check_room(missing, target)
    for file in missing:
        # The hub's client may take a file of a wrong size for a finished one.
        (target / file.path).unlink(missing_ok=True)
    if missing:
        try:
            snapshot_download(
                REPOSITORY,
                revision=listing.commit,
                allow_patterns=[file.path for file in missing],
                local_dir=target,
                endpoint=endpoint,
            )
        except OSError:
            raise
        except Exception as error:  # as above
            raise OSError(f"the download stopped: {error}; the same command goes on with it") from error
    if wrong := listing.missing(target):
        sizes = [f"{file.path} ({_size(target / file.path)} of {file.size} bytes)" for file in wrong]
        raise OSError(f"{len(wrong)} files did not arrive whole; the same command fetches them: {', '.join(sizes)}")


def fetch_special_tokens(source: str, place: Path, width: int) -> None:
    """Bring special_tokens.npz from ``source``, a URL or a path, unless it is there; ``width`` is the model's caption
    width.

    Raises OSError where it cannot be had, ValueError where it is something else.
    """
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(place) as part:
                if "://" in source:
                    with urllib.request.urlopen(source, timeout=TIMEOUT) as response, part.open("wb") as file:
                        shutil.copyfileobj(response, file)
                else:
                    shutil.copyfile(Path(source).expanduser(), part)
                SpecialTokens.load(part, width)
        except OSError as error:
            raise OSError(
                f"special_tokens.npz cannot be fetched from {source} ({error}); copy it from MAGI-1's code "
                f"(example/assets there) to {place}"
            ) from error
    SpecialTokens.load(place, width)


def placed(model: str, target: Path) -> MagiConfig:
    """The preset with its paths in ``target``, after a look at what is there.

    Raises FileNotFoundError, ValueError and WeightsError where the files are not laid out as the loaders want them.
    """
    config = load_config(PRESETS / f"{model}.json")
    config = config.with_overrides(**{field: str(target / path) for field, path in needed_paths(model).items()})
    checkpoint_directory(config)
    check_t5(config.runtime.t5_pretrained)
    return config


def _below_root(path: str | None) -> bool:
    return path is not None and PurePosixPath(path).is_relative_to(PRESET_ROOT)


def _check_room(missing: Sequence[HubFile], target: Path) -> None:
    existing = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    needed, free = sum(file.size for file in missing), shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are to be fetched, but {existing} has {free / 1e9:.1f} GB free")


def _size(place: Path) -> int:
    return place.stat().st_size if place.is_file() else 0

"""Published weights: what there is (``weights``), and how its bytes come here (``transfer``)."""

from harness.download.weights import (
    FOLDER,
    PATH_FIELDS,
    REPOSITORY,
    SPECIAL_TOKENS,
    HubFile,
    Listing,
    amount,
    expected,
    fetch,
    fetch_special_tokens,
    foreign_remains,
    list_files,
    models,
    needed_paths,
    placed,
    preset,
)

__all__ = [
    "FOLDER",
    "PATH_FIELDS",
    "REPOSITORY",
    "SPECIAL_TOKENS",
    "HubFile",
    "Listing",
    "amount",
    "expected",
    "fetch",
    "fetch_special_tokens",
    "foreign_remains",
    "list_files",
    "models",
    "needed_paths",
    "placed",
    "preset",
]

"""Where the YAMLs are: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    checkout = PACKAGE.parent
    # In an editable install the wheel's copy would be stale: the checkout wins.
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return PACKAGE / name


def zoo_dir() -> Path:
    """Folder of the model YAMLs."""
    return _shipped("cfg")


def datasets_dir() -> Path:
    """Folder of the dataset YAMLs."""
    return _shipped("datasets")


def find_shipped(name: str) -> Path | None:
    """Return the shipped YAML with this bare file name, or None."""
    if Path(name).name != name or Path(name).suffix not in (".yaml", ".yml"):
        return None
    for folder in (zoo_dir(), zoo_dir() / "bases", datasets_dir()):
        if (folder / name).is_file():
            return folder / name
    return None


def is_shipped(file: Path | None) -> bool:
    """Whether this file is one of the zoo's."""
    return file is not None and zoo_dir() in file.resolve().parents

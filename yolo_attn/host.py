"""The Ultralytics that is here: is it the installed one or a fork's, and which names does it mean?

Standard library only: the start-up hook asks while Ultralytics is being imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from yolo_attn.errors import YoloAttnError

PACKAGE = "ultralytics"


def foreign() -> bool:
    """Whether `ultralytics` in this process is a folder that nobody installed: a fork's checkout.

    There we stay out unless a YAML names a block of ours that the fork lacks.
    """
    file = getattr(sys.modules.get(PACKAGE), "__file__", None)
    return file is not None and not is_installed(file)


@lru_cache(maxsize=8)
def is_installed(file: str) -> bool:
    """Whether a package's ``__init__.py`` belongs to an installed distribution.

    Installed beside its record (pip, conda; any distribution whose name begins with the package's,
    as ultralytics-opencv-headless does), or in place (``pip install -e``), where the record tells
    the folder. The ``ultralytics.egg-info`` that an editable install leaves in a checkout proves
    nothing: it may have been for another environment.

    Args:
        file: Path of the package's ``__init__.py``.
    """
    try:
        package = Path(file).resolve().parent
        beside = [
            *package.parent.glob(f"{PACKAGE}*.dist-info"),
            *package.parent.glob(f"{PACKAGE}-*.egg-info"),
        ]
        if any(_records(info) for info in beside):
            return True
        folders = [Path(entry) for entry in sys.path if entry]
        in_place = [info for f in folders for info in f.glob(f"{PACKAGE}*.dist-info")]
        return any(place in package.parents for place in map(_editable, in_place) if place)
    except (OSError, ValueError):
        return True  # as for every Ultralytics whose record is readable


def _records(info: Path) -> bool:
    """Whether an installed distribution holds the package (its files are listed, or no list is)."""
    record = info / "RECORD"
    if not record.is_file():
        return True
    text = record.read_text(encoding="utf-8", errors="replace")
    return f"{PACKAGE}/__init__.py" in text


def _editable(info: Path) -> Path | None:
    """The checkout that was installed in place; None for any other distribution."""
    source = info / "direct_url.json"
    if not source.is_file():
        return None
    url = json.loads(source.read_text(encoding="utf-8"))
    if not url.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(url["url"]).path)).resolve()


def refuse_taken(names: Iterable[str], cls: type) -> None:
    """Refuse a user's block with a name that a row of a model YAML already means in Ultralytics.

    Args:
        names: The block's name and aliases.
        cls: Its class, for the message.

    Raises:
        YoloAttnError: A name is taken.
    """
    for name in names:
        if name.startswith(("nn.", "torchvision.ops.")) or name in _taken():
            raise YoloAttnError(
                f"block name {name!r} is taken by Ultralytics: rows of model YAMLs that name it "
                f"mean Ultralytics' own, so {cls.__module__}.{cls.__qualname__} would never be "
                f"built; register it under another name (name='My{name.rpartition('.')[2]}')"
            )


def _taken() -> set[str]:
    """Names of modules that `parse_model` of this Ultralytics resolves, and of its other modules.

    Ultralytics takes a second to import, and a block may be registered while it is being imported:
    where its module is not there yet, the names are read from its source.
    """
    tasks = sys.modules.get("ultralytics.nn.tasks")
    if tasks is not None and not getattr(tasks.__spec__, "_initializing", False):
        return {name for name, value in list(vars(tasks).items()) if isinstance(value, type)}
    return _in_source()


def _in_source() -> set[str]:
    """Capitalised names that ``tasks.py`` imports or defines; empty without Ultralytics."""
    import ast

    package = find_spec("ultralytics")
    if package is None or not package.submodule_search_locations:
        return set()
    file = Path(next(iter(package.submodule_search_locations))) / "nn" / "tasks.py"
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return set()
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
    return {name for name in names if name[:1].isupper()}

"""File names: the zoo's model and dataset YAMLs are found by bare name from any folder."""

from __future__ import annotations

from typing import Any, Callable

from yolo_attn.paths import find_shipped


def check_file(
    original: Callable[..., Any],
    file: Any,
    suffix: Any = "",
    download: bool = True,
    download_dir: Any = ".",
    hard: bool = True,
    **kwargs: Any,
) -> Any:
    """Ultralytics' ``check_file``; what it does not find may be a YAML that we ship."""
    try:
        found = original(file, suffix, download, download_dir, hard, **kwargs)
    except FileNotFoundError:
        shipped = find_shipped(str(file).strip())
        if shipped is None:
            raise
        return str(shipped)
    if not found:
        shipped = find_shipped(str(file).strip())
        return found if shipped is None else str(shipped)
    return found

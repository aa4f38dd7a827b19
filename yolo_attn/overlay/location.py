"""Where in which file a row stands, and the checks of rows that need no channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_attn.errors import YoloAttnError

PROVENANCE = "yolo_attn"


# Rows of a model -> the checkpoint that it was read from, in this process.
_CHECKPOINTS: dict[str, str] = {}
NESTED = (list, tuple, dict, set)


def note_checkpoint(d: Any, file: str) -> None:
    """Remember for messages that a model of these rows was read from this checkpoint."""
    if isinstance(d, dict):
        _CHECKPOINTS[_key(d)] = file


def forget_checkpoint(d: Any) -> None:
    """A YAML with these rows was read: it is the file that a user has in hand."""
    if isinstance(d, dict):
        _CHECKPOINTS.pop(_key(d), None)


def _key(d: dict[str, Any]) -> str:
    """Names and plain arguments of the rows; nothing nested, which aliases may blow up."""
    said: list[Any] = [str(d.get("yaml_file"))]
    for section in (d.get("backbone"), d.get("head")):
        for row in section if isinstance(section, list) else ():
            name, args = row[2:4] if isinstance(row, list) and len(row) == 4 else (None, None)
            given = args if isinstance(args, list) else []
            plain = [a for a in given if not isinstance(a, NESTED)]
            said.append(None if isinstance(name, NESTED) else (name, plain))
    return repr(said)


def migrate_command(file: str) -> str:
    """The command that translates a file of a fork, as a message gives it.

    Args:
        file: As it was asked for: ``yolov8n-cbam.yaml`` is yolov8-cbam.yaml at scale n.
    """
    from yolo_attn.overlay.model_files import without_scale

    if not Path(file).exists() and Path(without_scale(file)).exists():
        file = without_scale(file)
    return f"`yolo-attn migrate {'FILE' if file == 'model' else file}`"


class Location:
    """Names the rows of an expanded model for error messages.

    Args:
        d: The model dictionary; overlays leave their provenance in it.

    Attributes:
        file: The YAML that the rows are from, as far as it is known.
        source: The file that a user has in hand: the checkpoint that the rows were read from, else
            `file`.
    """

    def __init__(self, d: dict[str, Any]):
        self.file = str(d.get("yaml_file") or "model")
        self.source = _CHECKPOINTS.get(_key(d)) or self.file
        provenance = d.get(PROVENANCE)
        self.inserted: dict[int, str] = {}
        labels = provenance.get("labels") if isinstance(provenance, dict) else None
        for entry in labels if isinstance(labels, (list, tuple)) else ():
            # What is wrong with a malformed one, model_checks.py says.
            if isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[0], int):
                self.inserted[entry[0]] = str(entry[1])

    def of_layer(self, i: int) -> str:
        """``file row i``, with the overlay's own count where the row comes from an overlay."""
        label = self.inserted.get(i)
        return f"{self.file} {label} (layer {i})" if label else f"{self.file} row {i}"


def check_rows(d: dict[str, Any], where: Location) -> None:
    """Check that each row reads layers that exist.

    Raises:
        YoloAttnError: A ``from`` is not an int or list of ints, or is out of range.
    """
    for i, (f, n, m, _args) in enumerate([*d["backbone"], *d["head"]]):
        sources = f if isinstance(f, (list, tuple)) else [f]
        for source in sources:
            if isinstance(source, bool) or not isinstance(source, int):
                raise YoloAttnError(
                    f"{where.of_layer(i)}: {m} has from={f!r} (accepted: a layer index, -1, or a "
                    "list of them)"
                )
            # The first row reads the image, as -1.
            if source >= i or source < -max(i, 1):
                accepted = "-1 (the image)" if i == 0 else f"-{i} to {i - 1}"
                raise YoloAttnError(
                    f"{where.of_layer(i)}: {m} reads from={source}, out of range (accepted: "
                    f"{accepted})"
                )
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise YoloAttnError(
                f"{where.of_layer(i)}: {m} has repeats={n!r} (accepted: a whole number >= 1)"
            )

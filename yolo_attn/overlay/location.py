"""Where in which file a row stands, and the checks of rows that need no channels."""

from __future__ import annotations

from typing import Any

from yolo_attn.errors import YoloAttnError

PROVENANCE = "yolo_attn"


class Location:
    """Names the rows of an expanded model for error messages.

    Args:
        d: The model dictionary; overlays leave their provenance in it.
    """

    def __init__(self, d: dict[str, Any]):
        self.file = str(d.get("yaml_file") or "model")
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

"""What a conversion kept, dropped and altered: for a person as lines, for a program as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA_YAML = "data.yaml"
EXAMPLES = 3  # places named for each reason
LONGEST = 80  # characters of a name in a report


@dataclass
class SplitReport:
    """What happened to one split: kept, dropped (by reason) and altered (by reason)."""

    images: int = 0
    boxes: int = 0
    dropped_images: Counter[str] = field(default_factory=Counter)
    dropped_boxes: Counter[str] = field(default_factory=Counter)
    altered: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, kind: str, reason: str, where: str) -> None:
        """Add one to `kind` ("dropped_images", "dropped_boxes", "altered"), with its place."""
        getattr(self, kind)[reason] += 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(_shown(where))

    def drop_image(self, reason: str, where: str, boxes: int) -> None:
        """Count an image that is left out, and the boxes that go with it."""
        self.count("dropped_images", reason, where)
        for _ in range(boxes):
            self.count("dropped_boxes", f"with their image: {reason}", where)


@dataclass
class ConversionReport:
    """What a conversion wrote, and what it dropped and why."""

    dst: Path
    classes: list[str]
    splits: dict[str, SplitReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def data_yaml(self) -> Path:
        """The dataset YAML for ``yolo train data=...``."""
        return self.dst / DATA_YAML

    def lines(self) -> list[str]:
        """The report for a person, one line a fact."""
        names = ", ".join(map(_shown, self.classes[:8]))
        names += ", ..." if len(self.classes) > 8 else ""
        out = [f"{self.data_yaml}: {_plural(len(self.classes), 'class', 'classes')} ({names})"]
        for name, split in self.splits.items():
            kept = f"{_plural(split.images, 'image')}, {_plural(split.boxes, 'box', 'boxes')}"
            out.append(f"{name}: kept {kept}")
            for verb, one, many, reasons in (
                ("dropped", "image", "images", split.dropped_images),
                ("dropped", "box", "boxes", split.dropped_boxes),
                ("altered or noticed", "case", "cases", split.altered),
            ):
                for reason, n in reasons.most_common():
                    places = ", ".join(split.examples[reason])
                    more = ", ..." if n > len(split.examples[reason]) else ""
                    out.append(f"  {verb} {_plural(n, one, many)}: {reason} ({places}{more})")
        return out + [f"note: {note}" for note in self.notes]

    def as_dict(self) -> dict[str, Any]:
        """The report for a program (JSON types only)."""
        return {
            "dst": str(self.dst),
            "data_yaml": str(self.data_yaml),
            "classes": list(self.classes),
            "splits": {
                name: {
                    "images": s.images,
                    "boxes": s.boxes,
                    "dropped_images": dict(s.dropped_images),
                    "dropped_boxes": dict(s.dropped_boxes),
                    "altered": dict(s.altered),
                    "examples": {reason: list(places) for reason, places in s.examples.items()},
                }
                for name, s in self.splits.items()
            },
            "notes": list(self.notes),
        }


def _plural(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _shown(name: str) -> str:
    """A name from the source on one short line, whatever is in it."""
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."

"""How wide each row is, followed as ``parse_model`` does, also through rows that nobody can build.

The width of what an attention row reads tells a channel count from an option; the model itself
cannot be built to ask for it, because it holds modules that only the fork has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Modules of Ultralytics, YOLOv5 and YOLOv7 whose first argument is the width of their output.
WIDTH_FIRST = frozenset(
    "Conv ConvTranspose Conv2 LightConv GhostConv DWConv DWConvTranspose2d Focus RepConv "
    "RepConv3x3 "
    "Bottleneck GhostBottleneck BottleneckCSP C1 C2 C2f C3 C3x C3TR C3Ghost C3k2 RepC3 C2fAttn "
    "C2fPSA C2PSA C2fCIB A2C2f PSA SCDown SPP SPPF SPPELAN SPPCSPC DownC RepNCSPELAN4 ELAN1 ADown "
    "AConv Classify nn.ConvTranspose2d".split()
)
LEAST_WIDTH = 24  # a whole number from here on, first in the row of an unknown module, is a width


@dataclass(frozen=True)
class Scale:
    """One scale of a model.

    Attributes:
        name: Its letter; empty where the model has no table of scales.
        width: Factor of all declared widths.
        max_channels: Declared widths are cut to it first.
    """

    name: str = ""
    width: float = 1.0
    max_channels: float = float("inf")

    def channels(self, declared: int) -> int:
        """The channels that a declared width becomes here."""
        from yolo_attn.overlay.host_rows import scaled_width

        return scaled_width(declared, self.width, self.max_channels)


def scales_of(model: Mapping[str, Any]) -> list[Scale]:
    """Every scale of a model, one unnamed where it has no table of scales.

    ``[depth, width]`` without the largest width is the older form of an entry.
    """
    table = model.get("scales")
    if isinstance(table, Mapping) and table:
        return [
            Scale(str(name), float(entry[1]), float(entry[2]) if len(entry) > 2 else float("inf"))
            for name, entry in table.items()
        ]
    return [Scale("", float(model.get("width_multiple") or 1.0))]


@dataclass
class Widths:
    """Output channels of the rows so far; ``None`` where they cannot be known.

    Attributes:
        scale: The scale that is followed.
        image: Channels of the image.
        rows: One entry a row.
    """

    scale: Scale
    image: int = 3
    rows: list[Any] = field(default_factory=list)

    def read_by(self, source: Any) -> Any:
        """Channels of what a row reads: an int, or a list for a list of sources."""
        if isinstance(source, (list, tuple)):
            return [self.read_by(s) for s in source]
        if not isinstance(source, int) or isinstance(source, bool):
            return None
        at = len(self.rows) + source if source < 0 else source
        if at == -1 and not self.rows:
            return self.image
        return self.rows[at] if 0 <= at < len(self.rows) else None

    def add(self, source: Any, module: Any, args: Any, out: Any = None) -> None:
        """Append a row.

        Args:
            source: The row's ``from``.
            module: Name of its module.
            args: Its arguments.
            out: Channels of its output where the caller knows them (a block of ours).
        """
        self.rows.append(self._out(source, module, args) if out is None else out)

    def _out(self, source: Any, module: Any, args: Any) -> Any:
        read = self.read_by(source)
        args = list(args) if isinstance(args, (list, tuple)) else []
        first = args[0] if args else None
        if module == "Concat":
            known = isinstance(read, list) and all(isinstance(c, int) for c in read)
            return sum(read) if known else None
        if module in ("HGStem", "HGBlock"):
            return args[1] if len(args) > 1 else None
        if module == "ResNetLayer":
            return args[1] * (1 if args[3] else 4) if len(args) > 3 else None
        if module == "ReOrg":
            return 4 * read if isinstance(read, int) else None
        if module in ("CBLinear", "Index", "TorchVision"):
            return first
        if isinstance(read, list):
            return read[-1] if module == "CBFuse" else read[0] if read else None
        if isinstance(first, int) and not isinstance(first, bool):
            if module in WIDTH_FIRST:
                return first if module == "Classify" else self.scale.channels(first)
            if first >= LEAST_WIDTH and not str(module).startswith("nn."):
                return self.scale.channels(first)
        return read

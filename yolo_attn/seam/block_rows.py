"""A block of ours as a row or a place of a model asks for it: options bound, scaled, wrapped."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.row_guards import point_to_migrate, scaled
from yolo_attn.registry import BlockInfo
from yolo_attn.versions import made_before


def resolve_block(
    info: BlockInfo,
    channels: int | list[int],
    args: list[Any],
    local: dict[str, Any],
    file: str,
    exact: dict[str, Any] | None = None,
) -> tuple[type[nn.Module], list[Any], nn.Module]:
    """What to call for a block, and a probe of it without data.

    Args:
        info: The block.
        channels: Channels of what it reads.
        args: Its args, the last may be a mapping; ``identity_start`` in it wraps the block.
        local: `width` and `max_channels` of the model.
        file: The model's file, for messages.
        exact: Options that are not scaled any more.

    Returns:
        Class, positional arguments, and an instance on the meta device.

    Raises:
        YoloAttnError: An option is at fault.
    """
    args, identity_start = _split_identity_start(info, args)
    cls: type[nn.Module] = info.cls
    try:
        options = scaled(info, info.bind(args), local)
        if exact:
            names = list(info.options)
            given = {**dict(zip(names, options)), **exact}
            last = max(names.index(name) for name in given)
            options = [given.get(name, info.options[name]) for name in names[: last + 1]]
        positional: list[Any] = [channels, *options]
        built = probe(cls, positional)
    except YoloAttnError as error:
        raise point_to_migrate(error, args, file) from None
    dimension = getattr(built, "map_dimension", 2)
    if dimension != 2:
        raise YoloAttnError(
            f"{info.name}: dimension={dimension} is not accepted, a row of a model is a 2-D "
            "map (accepted: 2; others by create() in Python)"
        )
    # A block that is the identity already must stay unwrapped: neither it nor g would learn.
    if identity_start and not getattr(built, "starts_as_identity", info.identity_at_start):
        from yolo_attn.blocks.identity_start import IdentityStart

        older = made_before("0.2.0")
        cls, positional = IdentityStart, [info.cls, channels, options, older]
        built = probe(cls, positional)
    return cls, positional, built


def build_block(
    info: BlockInfo,
    channels: int,
    options: dict[str, Any],
    exact: dict[str, Any],
    d: dict[str, Any],
    file: str,
) -> tuple[nn.Module, int]:
    """Build a block for a place inside a stage.

    Args:
        info: The block.
        channels: Channels of what it reads.
        options: Its options by name.
        exact: Further ones, which no width multiple scales.
        d: The model's dictionary, which has the multiple.
        file: Its file, for messages.

    Returns:
        The block and its output channels.

    Raises:
        YoloAttnError: An option is at fault, or the block takes several maps.
    """
    if info.takes_list:
        raise YoloAttnError(f"{info.name} takes several maps, this place has one")
    cls, positional, built = resolve_block(
        info, channels, [options] if options else [], _multiples(d), file, exact
    )
    return cls(*positional), int(getattr(built, "out_channels", channels))


def _multiples(d: dict[str, Any]) -> dict[str, Any]:
    """Width multiple and limit of a model, by Ultralytics' rule."""
    scales = d.get("scales")
    if isinstance(scales, dict) and scales:
        _, width, limit = scales.get(d.get("scale")) or next(iter(scales.values()))
        return {"width": width, "max_channels": limit}
    return {"width": d.get("width_multiple", 1.0), "max_channels": float("inf")}


def _split_identity_start(info: BlockInfo, args: list[Any]) -> tuple[list[Any], bool]:
    if not args or not isinstance(args[-1], dict) or "identity_start" not in args[-1]:
        return args, False
    keywords = dict(args[-1])
    identity_start = keywords.pop("identity_start")
    if not isinstance(identity_start, bool):
        raise YoloAttnError(
            f"{info.name}: identity_start={identity_start!r} is not accepted (accepted: "
            "true, false)"
        )
    return [*args[:-1], keywords], identity_start


def probe(cls: type[nn.Module], args: list[Any]) -> nn.Module:
    """Build the block to learn its output channels, leaving the random state as it is."""
    try:
        with torch.device("meta"):
            return cls(*args)
    except YoloAttnError:
        raise
    except Exception:
        # A user's block may do in its constructor what meta tensors cannot.
        with torch.random.fork_rng(devices=[]):
            return cls(*args)

"""DANet, asymmetric non-local and criss-cross attention: their maps, and refused options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_attn import create
from yolo_attn.errors import YoloAttnError


def build(name: str, channels: int | list[int], **options):
    torch.manual_seed(0)
    block = create(name, channels, **options).double().eval()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return block


def every_position(x: Tensor) -> Tensor:
    return torch.cartesian_prod(torch.arange(x.shape[2]), torch.arange(x.shape[3]))


def weighted(maps: Tensor, v: Tensor, like: Tensor) -> Tensor:
    """Sums of the values ``(B, C, H', W')`` with the maps, as a map of the size of `like`."""
    return (v.flatten(2) @ maps.flatten(2).transpose(1, 2)).unflatten(2, like.shape[2:])


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["PositionAttention", "CrissCross"])
def test_maps_of_one_pass_give_the_output(name: str, size: tuple[int, int]) -> None:
    block = build(name, 16, **({"recurrence": 1} if name == "CrissCross" else {}))
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    maps = block.attention(x, every_position(x))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones_like(maps[:, :, 0, 0]))
    expected = x + block.scale_of_branch() * weighted(maps, block.value(x), x)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_two_passes_of_criss_cross_reach_every_position() -> None:
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    query = torch.tensor([[1, 2]])
    once = build("CrissCross", 16, recurrence=1).attention(x, query)
    twice = build("CrissCross", 16, recurrence=2).attention(x, query)
    assert (once > 0).sum() == 2 * (5 + 7 - 1)
    assert (twice > 0).all()
    torch.testing.assert_close(twice.sum((2, 3)), torch.ones_like(twice[:, :, 0, 0]))


@pytest.mark.parametrize("name", ["APNB", "AFNB"])
def test_pyramid_maps_give_the_output(name: str) -> None:
    high = torch.randn(2, 16, 9, 7, dtype=torch.float64)
    low = high if name == "APNB" else torch.randn(2, 12, 13, 17, dtype=torch.float64)
    block = build(name, 16 if name == "APNB" else [16, 12])
    x = high if name == "APNB" else [high, low]
    maps = block.attention(x, every_position(high))
    assert maps.shape == (2, 9 * 7, *low.shape[2:])
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones_like(maps[:, :, 0, 0]))
    (unit,) = block.units
    context = unit.out(weighted(maps, unit.value(low), high))
    expected = block.fuse(torch.cat([context, high], dim=1))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_signs_of_the_channel_gram_rank_channels_the_other_way_round() -> None:
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    plus, minus = (build("ChannelGram", 6, sign=s).affinity(x) for s in ("plus", "minus"))
    assert torch.equal(plus.argsort(2), minus.argsort(2).flip(2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PositionAttention", {"rd_ratio": 0}),
        ("ChannelGram", {"sign": "paper"}),
        ("DANet", {"outputs": "both"}),
        ("DANet", {"sign": 1}),
        ("DANet", {"dropout": 2}),
        ("DANet", {"out_channels": 0}),
        ("APNB", {"pool_sizes": []}),
        ("APNB", {"pool_sizes": 6}),
        ("APNB", {"pool_sizes": [1, 0]}),
        ("APNB", {"units": 0}),
        ("AFNB", {"value_channels": -1}),
        ("AFNB", {"out_channels": 2.5}),
        ("CrissCross", {"recurrence": 0}),
        ("CrissCross", {"rd_channels": 0}),
    ],
    ids=str,
)
def test_wrong_options_are_refused(name: str, options: dict) -> None:
    with pytest.raises(YoloAttnError, match=f"{name}: {next(iter(options))}="):
        create(name, [16, 12] if name == "AFNB" else 16, **options)

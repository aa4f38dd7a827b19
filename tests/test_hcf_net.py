"""PPA, DASI and MDCR against their formulas written out plainly, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn import create
from yolo_attn.blocks.patch_aware_attention import LocalGlobalAttention
from yolo_attn.errors import YoloAttnError


def randomised(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in block.double().parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return block


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def assert_same(ours: Tensor, plain: Tensor, block: nn.Module, inputs: list[Tensor]) -> None:
    """Equal values and equal gradients of inputs and parameters."""
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    leaves = [*inputs, *block.parameters()]
    weights = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, plain))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def plain_lga(block: LocalGlobalAttention, x: Tensor) -> Tensor:
    """Patch by patch."""
    p, (height, width) = block.patch_size, x.shape[2:]
    if block.border == "pad":
        padded = F.pad(x, (0, -width % p, 0, -height % p))
    else:
        padded = x[:, :, : height // p * p, : width // p * p]
    rows = []
    for top in range(0, padded.shape[2], p):
        row = []
        for left in range(0, padded.shape[3], p):
            patch = padded[:, :, top : top + p, left : left + p]
            if block.patch_mean == "channels":
                t = patch.mean(1).flatten(1)
            else:
                t = patch.flatten(1).unflatten(1, (p * p, x.shape[1])).mean(2)
            v = block.mlp2(block.norm(block.mlp1(t)))
            z = v * v.softmax(1)
            s = F.cosine_similarity(z, block.prompt[None], dim=1).clamp(0, 1)
            row.append(s[:, None] * z @ block.top_down)
        rows.append(torch.stack(row, dim=2))
    size = padded.shape[2:] if block.border == "pad" else (height, width)
    y = F.interpolate(torch.stack(rows, dim=2), size=size, mode="bilinear", align_corners=False)
    return block.conv(y[:, :, :height, :width])


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (5, 4)], ids=str)
@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("border", ["pad", "drop"])
@pytest.mark.parametrize("patch_mean", ["channels", "memory"])
def test_patches_as_in_the_formula(
    patch_mean: str, border: str, patch_size: int, size: tuple[int, int]
) -> None:
    block = randomised(LocalGlobalAttention(10, patch_size, patch_mean, border))
    (x,) = maps((2, 10, *size))
    assert_same(block(x), plain_lga(block, x), block, [x])


def test_no_patch_branch_is_dead_at_the_start() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        block = LocalGlobalAttention(32, 2)
        block(torch.randn(1, 32, 8, 8)).sum().backward()
        assert block.prompt.grad.abs().sum() > 0, seed


def test_ppa_is_the_sum_of_its_branches_behind_two_gates() -> None:
    block = randomised(create("PPA", 12, 16, dropout=0.0)).eval()
    (x,) = maps((2, 12, 9, 14))
    s, x1 = block.skip(x), block.c1(x)
    x2 = block.c2(x1)
    u = x1 + x2 + block.c3(x2) + s + plain_lga(block.lga2, s) + plain_lga(block.lga4, s)
    u = u * block.channel_weights(x)[:, :, None, None]
    gate = block.spatial(torch.cat([u.mean(1, keepdim=True), u.amax(1, keepdim=True)], dim=1))
    queries = torch.tensor([[0, 0], [3, 5]])
    torch.testing.assert_close(block.attention(x, queries)[:, 1], gate.sigmoid()[:, 0])
    assert_same(block(x), F.relu(block.norm(u * gate.sigmoid())), block, [x])


def plain_dasi(block: nn.Module, x: Tensor, high: Tensor | None, low: Tensor | None) -> Tensor:
    """With the split into four, as in the paper's figure."""
    d = block.skip(x)
    parts = d.chunk(d.shape[1] // block.quarter, dim=1)
    h = block.high(high).chunk(len(parts), dim=1) if high is not None else None
    l = None  # noqa: E741
    if low is not None:
        up = F.interpolate(block.low(low), size=d.shape[2:], mode="bilinear", align_corners=True)
        l = up.chunk(len(parts), dim=1)  # noqa: E741
    out = []
    for i, part in enumerate(parts):
        if h and l:
            out.append(part.sigmoid() * l[i] + (1 - part.sigmoid()) * h[i])
        elif l:
            out.append(block.mix(torch.cat([part, l[i]], dim=1)))
        else:
            out.append(block.mix(torch.cat([parts[0] if block.first_quarter else part, h[i]], 1)))
    return F.relu(block.norm(block.tail(torch.cat(out, dim=1)) + d))


@pytest.mark.parametrize(
    ("sides", "options"),
    [
        ("high low", {}),
        ("high low", {"out_channels": 18}),
        ("low", {}),
        ("low", {"out_channels": 18}),
        ("low", {"out_channels": 7}),
        ("high", {"second": "high"}),
        ("high", {"second": "high", "first_quarter": True}),
        ("high", {"second": "high", "first_quarter": True, "out_channels": 18}),
    ],
)
def test_dasi_as_in_the_formula(sides: str, options: dict) -> None:
    shapes = {"high": (2, 5, 17, 14), "low": (2, 24, 5, 4)}
    x, *others = maps((2, 12, 9, 7), *(shapes[s] for s in sides.split()))
    block = randomised(create("DASI", [12, *(o.shape[1] for o in others)], **options)).train()
    by_side = dict(zip(sides.split(), others))
    plain = plain_dasi(block, x, by_side.get("high"), by_side.get("low"))
    assert_same(block([x, *others]), plain, block, [x, *others])


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ([(10, 10), (5, 5), (20, 20)], {}, "high is 5x5 and x is 10x10"),
        ([(10, 10), (20, 22), (5, 5)], {}, "high is 20x22"),
        ([(10, 10), (20, 20)], {}, "low is 20x20 and x is 10x10.*second"),
        ([(10, 10), (5, 5)], {"second": "high"}, "high is 5x5"),
    ],
)
def test_dasi_says_which_size_does_not_fit(sizes: list, options: dict, words: str) -> None:
    block = create("DASI", [8] * len(sizes), **options)
    with pytest.raises(YoloAttnError, match=words):
        block([torch.randn(1, 8, *size) for size in sizes])


def test_dasi_gate_weighs_low() -> None:
    block = create("DASI", [8, 4, 16]).eval()
    xs = [torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8), torch.randn(1, 16, 2, 2)]
    with torch.no_grad():
        block.skip.bias.fill_(1e4)
        assert torch.equal(block.gate_map(xs), torch.ones(1, 8, 4, 4))
    with pytest.raises(YoloAttnError, match="DASI"):
        create("DASI", [8, 16]).gate_map(xs[::2])


def plain_mdcr(block: nn.Module, x: Tensor, shared: nn.BatchNorm2d) -> Tensor:
    """Channel by channel; `shared` is an ordinary BN with the weights of `mix_norm`."""
    o = block.out_channels
    z = [
        F.conv2d(q, f.weight, padding=f.padding, dilation=f.dilation, groups=f.groups)
        for q, f in zip(x.chunk(4, dim=1), block.branches)
    ]
    z = F.relu(block.norm(torch.cat(z, dim=1))).chunk(4, dim=1)
    h = []
    for j in range(o // 4):
        four = torch.stack([z_i[:, j] for z_i in z], dim=1)
        h.append(F.relu(shared(block.mix(four))))
    # Ours has the inputs of the last convolution branch by branch.
    h = torch.stack(h, dim=2).flatten(1, 2)
    return F.relu(block.out_norm(block.out(h)))


def test_mdcr_normalises_every_channel_by_itself() -> None:
    block = randomised(create("MDCR", 24))
    (x,) = maps((2, 24, 9, 7))
    seen = {}
    block.mix_norm.register_forward_hook(lambda norm, i, out: seen.update(x=i[0], out=out))
    # Ours has the four channels of a j 24 / 4 apart.
    norms = [nn.BatchNorm2d(4).double() for _ in range(6)]
    for j, norm in enumerate(norms):
        norm.weight.data, norm.bias.data = (
            p.data[j::6].clone() for p in (block.mix_norm.weight, block.mix_norm.bias)
        )
    for training in (True, True, False):
        block.train(training)(x)
        for j, norm in enumerate(norms):
            wanted = norm.train(training)(seen["x"][:, j::6])
            torch.testing.assert_close(seen["out"][:, j::6], wanted)


@pytest.mark.parametrize("momentum", [0.1, 0.03])
@pytest.mark.parametrize("options", [{}, {"out_channels": 8}, {"groups": 2}], ids=str)
def test_mdcr_equals_the_loop_over_channels(options: dict, momentum: float) -> None:
    block = randomised(create("MDCR", 24, stats="shared", **options))
    block.mix_norm.momentum = momentum
    shared = nn.BatchNorm2d(4, momentum=momentum).double()
    shared.weight, shared.bias = block.mix_norm.weight, block.mix_norm.bias
    (x,) = maps((2, 24, 9, 7))
    for training in (True, True, False):
        block.train(training), shared.train(training)
        assert_same(block(x), plain_mdcr(block, x, shared), block, [x])
        for name, buffer in shared.named_buffers():
            torch.testing.assert_close(getattr(block.mix_norm, name), buffer)


@pytest.mark.parametrize(
    ("channels", "wanted", "groups"),
    [(24, None, 6), (512, None, 128), (1024, 128, 128), (24, 4, 3)],
)
def test_mdcr_takes_the_largest_number_of_groups(channels, wanted, groups) -> None:
    assert create("MDCR", channels, groups=wanted).branches[0].groups == groups


@pytest.mark.parametrize(
    ("name", "channels", "options"),
    [
        ("PPA", 16, {"out_channels": 0}),
        ("PPA", 16, {"dropout": 2}),
        ("PPA", 16, {"patch_mean": "paper"}),
        ("PPA", 16, {"border": 1}),
        ("DASI", [16], {}),
        ("DASI", [16, 8], {"second": "left"}),
        ("DASI", [16, 8], {"first_quarter": 1}),
        ("DASI", [16, 8], {"out_channels": "16"}),
        ("MDCR", 18, {}),
        ("MDCR", 16, {"out_channels": 6}),
        ("MDCR", 16, {"rates": [1, 2, 3]}),
        ("MDCR", 16, {"rates": [1, 2, 3, 0]}),
        ("MDCR", 16, {"groups": 0}),
        ("MDCR", 16, {"norm": "ln"}),
        ("MDCR", 16, {"activation": "relu"}),
    ],
)
def test_wrong_options_are_refused(name: str, channels: int | list[int], options: dict) -> None:
    with pytest.raises(YoloAttnError, match=name):
        create(name, channels, **options)

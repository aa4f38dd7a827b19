"""Options for the designs of forks, each against a plain torch formulation of that design."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn import create
from yolo_attn.errors import YoloAttnError

C = 48
X = torch.linspace(-2, 2, 2 * C * 9 * 7, dtype=torch.float64).sin().reshape(2, C, 9, 7) * 3


def lively(name: str, **options) -> nn.Module:
    """A block in float64 with no parameter at its start, norms with statistics of their own."""
    torch.manual_seed(0)
    block = create(name, C, **options).double().eval()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
        for name, b in block.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn_like(b))
            elif name.endswith("running_var"):
                b.copy_(torch.rand_like(b) + 0.5)
    return block


def norm(block: nn.Module, prefix: str, x: Tensor) -> Tensor:
    s = block.state_dict()
    mean, var, weight, bias = (
        s[f"{prefix}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


def count(block: nn.Module) -> int:
    return sum(p.numel() for p in block.parameters())


@pytest.mark.parametrize("k", [3, 7])
def test_ultralytics_cbam_is_the_class_that_ultralytics_ships(k: int) -> None:
    block = lively("UltralyticsCBAM", kernel_size=k)
    s = block.state_dict()
    mean = X.mean((2, 3))
    x1 = X * torch.sigmoid(mean @ s["fc.weight"].flatten(1).t() + s["fc.bias"])[:, :, None, None]
    maps = torch.cat([x1.mean(1, keepdim=True), x1.max(1, keepdim=True)[0]], 1)
    expected = x1 * torch.sigmoid(F.conv2d(maps, s["conv.weight"], padding=k // 2))
    torch.testing.assert_close(block(X), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block.gate_map(X) * X, expected, rtol=1e-9, atol=1e-9)
    assert count(create("UltralyticsCBAM", 256)) == 65_890

    conv = pytest.importorskip("ultralytics.nn.modules.conv")
    theirs = conv.CBAM(C, k).double().eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), s.values())))
    torch.testing.assert_close(block(X), theirs(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["none", "bn"])
def test_cbam_without_biases(kind: str) -> None:
    block = lively("CBAM", bias=False, norm=kind, rd_min=1)
    s = block.state_dict()
    assert not [key for key in s if key.endswith("bias") and not key.startswith("norm")]
    w1, w2 = s["fc1.weight"], s["fc2.weight"]
    assert w1.shape == (C // 16, C)

    def mlp(q: Tensor) -> Tensor:
        return (q @ w1.t()).clamp(min=0) @ w2.t()

    gate = torch.sigmoid(mlp(X.mean((2, 3))) + mlp(X.amax((2, 3))))
    x1 = X * gate[:, :, None, None]
    maps = torch.stack([x1.amax(1), x1.mean(1)], 1)
    position = F.conv2d(maps, s["conv.weight"], padding=3)
    if kind == "bn":
        position = norm(block, "norm", position)
    torch.testing.assert_close(block(X), x1 * torch.sigmoid(position), rtol=1e-9, atol=1e-9)


def test_the_parameters_of_published_cbams() -> None:
    """Without biases as in YOLOv5x-TPH, with a norm as in yolov8s-cbam-tail."""
    for c, n in ((160, 3298), (320, 12_898), (640, 51_298), (1280, 204_898)):
        assert count(create("CBAM", c, bias=False)) == n
    assert count(create("CBAM", 512, bias=False, norm="bn")) == 32_868


@pytest.mark.parametrize("act", ["hardswish", "silu", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_coordinate_attention_of_each_design(act: str, bias: bool) -> None:
    block = lively("CoordAtt", act=act, bias=bias)
    s = block.state_dict()
    pooled = torch.cat([X.mean(3, keepdim=True), X.mean(2, keepdim=True).transpose(2, 3)], 2)
    f = norm(block, "norm", F.conv2d(pooled, s["conv1.weight"]))
    f = {
        "hardswish": f * (f + 3).clamp(0, 6) / 6,
        "silu": f * torch.sigmoid(f),
        "relu": f.clamp(min=0),
    }[act]
    f_h, f_w = f[:, :, :9], f[:, :, 9:].transpose(2, 3)
    g_h = torch.sigmoid(F.conv2d(f_h, s["conv_h.weight"], s.get("conv_h.bias")))
    g_w = torch.sigmoid(F.conv2d(f_w, s["conv_w.weight"], s.get("conv_w.bias")))
    assert ("conv_h.bias" in s) == bias
    torch.testing.assert_close(block(X), X * g_h * g_w, rtol=1e-9, atol=1e-9)


def test_the_parameters_of_a_published_coordinate_attention() -> None:
    assert count(create("CoordAtt", 512, bias=False)) == 24_608  # yolov8s-coordatt-tail


def test_a_coordatt_that_was_saved_before_it_had_a_choice_still_runs() -> None:
    block = lively("CoordAtt")
    expected = block(X)
    del block.__dict__["act"]
    torch.testing.assert_close(block(X), expected)


def test_gam_with_replicate_padding_and_no_channel_sigmoid() -> None:
    block = lively("GAM", padding="replicate", channel_gate="none")
    s = block.state_dict()
    hidden = F.conv2d(X, s["fc1.weight"], s["fc1.bias"]).clamp(min=0)
    x1 = X * F.conv2d(hidden, s["fc2.weight"], s["fc2.bias"])

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), s[f"{name}.weight"])

    m = norm(block, "norm1", conv(x1, "conv1")).clamp(min=0)
    expected = x1 * torch.sigmoid(norm(block, "norm2", conv(m, "conv2")))
    torch.testing.assert_close(block(X), expected, rtol=1e-9, atol=1e-9)
    zeros = lively("GAM", channel_gate="none")
    zeros.load_state_dict(s)
    assert (zeros(X) - block(X)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "ratio", "weight"),
    [
        ("CBAM", 16, "fc1.weight"),
        ("SE", 16, "fc1.weight"),
        ("GAM", 4, "fc1.weight"),
        ("GlobalContext", 16, "add.w1.weight"),
        ("CrissCross", 8, "query.weight"),
    ],
)
def test_rd_min_is_the_smallest_hidden_width(name: str, ratio: int, weight: str) -> None:
    def hidden(c: int, **options) -> int:
        return create(name, c, **options).state_dict()[weight].shape[0]

    assert hidden(4 * ratio) == 8
    assert hidden(4 * ratio, rd_min=1) == 4
    assert hidden(32 * ratio, rd_min=1) == hidden(32 * ratio) == 32
    for wrong in (0, 9, True, "1"):
        with pytest.raises(YoloAttnError, match="rd_min"):
            create(name, 64, rd_min=wrong)

"""Layers in a convolution's, an up-sampling's or a stage's place: in rows, fused, compiled."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import initialize_weights

from tests.conftest import REPO
from tests.test_blocks import build, inputs_of, outputs
from yolo_attn import block_info, create
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import host_conv
from yolo_attn.ops.deformable import by_sampling

sys.path.insert(0, str(REPO / "scripts"))
from export_places import randomise  # noqa: E402
from layer_costs import PLACES, config_of, exported  # noqa: E402

each_layer = pytest.mark.parametrize("name", PLACES)


def model_with(name: str, folder: Path) -> DetectionModel:
    (folder / "yolov8-layer.yaml").write_text(config_of(name) + "nc: 2\n")
    torch.manual_seed(0)
    return YOLO(str(folder / "yolov8n-layer.yaml"), verbose=False).model


def with_statistics(model: nn.Module) -> nn.Module:
    """Running statistics that are not those of a new model, so that fusing has something to do."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return model


@each_layer
def test_a_yolo_with_the_layer_at_its_place_learns_and_fuses(name: str, tmp_path: Path) -> None:
    model = model_with(name, tmp_path)
    assert any(type(m) is block_info(name).cls for m in model.modules())
    image = torch.rand(2, 3, 64, 96)
    outs = model.train()(image)
    maps = outs["feats"] if isinstance(outs, dict) else outs
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (4, 6), (2, 3)]
    sum(t.square().mean() for t in (outs.values() if isinstance(outs, dict) else outs)
        if isinstance(t, Tensor)).backward()  # fmt: skip
    layer = next(m for m in model.modules() if type(m) is block_info(name).cls)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    with torch.no_grad():
        model = with_statistics(model).eval()
        before = model(image)[0]
        after = model.fuse(verbose=False)(image)[0]
    fused = [m for m in layer.modules() if isinstance(m, host_conv())]
    assert not [m for m in fused if hasattr(m, "bn")]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


@each_layer
def test_compiled_equals_eager(name: str) -> None:
    block, channels = build(name, {})
    x = inputs_of(name, channels, (12, 10), requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(block.eval(), backend="aot_eager", dynamic=False)
    want, got = outputs(block(x))[0], outputs(compiled(x))[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (want, got)]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-3)


QUICK = ("DCNv2", "RFCAConv", "CARAFE")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow, id=n) for n in PLACES],
)
@torch.no_grad()
def test_a_yolo_with_the_layer_exports(name: str, tmp_path: Path) -> None:
    model = model_with(name, tmp_path).eval()
    randomise(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = exported(model, torch.rand(1, 3, 64, 96))
    assert max(errors.values()) <= 1e-3, errors


# -- rows


def rows_of(model: nn.Module) -> list[nn.Module]:
    return list(model.model)


def small(rows: list[list[Any]], depth: float = 1.0) -> DetectionModel:
    d = {
        "nc": 2,
        "depth_multiple": depth,
        "width_multiple": 0.5,
        "backbone": [[-1, 1, "Conv", [32, 3, 2]], *rows],
        "head": [[[len(rows)], 1, "Detect", ["nc"]]],
    }
    return DetectionModel(d, ch=3, verbose=False)


@pytest.mark.parametrize("name", ["VoVGSCSP", "C2fFaster", "C2fDWR"])
@pytest.mark.parametrize(("repeats", "depth", "units"), [(1, 1.0, 1), (6, 0.34, 2), (3, 0.1, 1)])
def test_the_repeats_of_a_row_are_the_units_of_the_stage(
    name: str, repeats: int, depth: float, units: int
) -> None:
    stage = rows_of(small([[-1, repeats, name, [48]]], depth))[1]
    assert type(stage) is block_info(name).cls, "one stage, not a sequence of them"
    assert stage.out_channels == 24
    assert len(stage.units if name == "VoVGSCSP" else stage.m) == units


def test_the_repeats_stand_in_one_place() -> None:
    with pytest.raises(YoloAttnError, match="option 'n' is not accepted in a row"):
        small([[-1, 2, "C2fFaster", [48, {"n": 3}]]])


def test_a_row_of_c2f_or_conv_holds_for_its_replacement() -> None:
    assert rows_of(small([[-1, 1, "C2fFaster", [48, True]]]))[1].out_channels == 24
    layer = rows_of(small([[-1, 1, "SPDConv", [48, 3, 2]]]))[1]
    assert layer.out_channels == 24 and layer.scale == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["DySample", [2, "lp"]], r"2 is no width \(accepted: .* out_channels, scale, style"),
        (["DySample", [48]], r"keeps the width of its input \(accepted: 16, or null\).*scale"),
        (["SPDConv", [1]], r"1 is no width"),
        (["CARAFE", [48]], r"keeps the width .*out_conv"),
        (["PConv", [32, 3, 2]], r"stride=2 is not accepted"),
        (["WTConv", [64]], r"keeps the width of its input \(accepted: 16"),
        (["RFAConv", [32, 1]], r"kernel_size=1 .*odd whole number from 3 to 63"),
        (["GSConv", [{"out_channels": 32, "form": "e3"}]], r"form='e3' is not accepted"),
        (["HWD", [32, 3, 2]], r"at most 2 options"),
    ],
)
def test_a_wrong_row_is_one_line(row: list[Any], message: str) -> None:
    with pytest.raises(YoloAttnError, match=message) as error:
        small([[-1, 1, *row]])
    assert "\n" not in str(error.value)


def test_the_width_of_the_input_is_accepted_where_it_is_kept() -> None:
    for name in ("DySample", "CARAFE", "EUCB", "SimSPPF", "WTConv", "DWR", "PConv", "ScConv"):
        assert rows_of(small([[-1, 1, name, [32]]]))[1].out_channels == 16


@pytest.mark.parametrize(
    ("name", "channels", "options"),
    [
        ("RFB", 12, {}),
        ("PConv", 3, {}),
        ("GSConv", 15, {}),
        ("ScConv", 20, {}),
        ("DySample", 6, {}),
        ("DySample", 20, {"style": "pl", "scale": 3}),
        ("CARAFE", 10, {"groups": 4}),
        ("ODConv", 12, {"groups": 8}),
        ("DCNv2", 12, {"deform_groups": 5}),
        ("GSBottleneck", 16, {"e": 0.2}),
        ("VoVGSCSP", 12, {"bottleneck_e": 0.5}),
    ],
)
def test_what_the_mathematics_refuses_is_refused_when_built(
    name: str, channels: int, options: dict[str, Any]
) -> None:
    with pytest.raises(YoloAttnError, match=r"is not accepted|are not accepted"):
        create(name, channels, **options)


# -- published rows


def conv_norm(a: int, b: int, k: int = 1, g: int = 1) -> int:
    return a * b * k * k // g + 2 * b


@pytest.mark.parametrize(
    ("name", "channels", "args", "parameters"),
    [
        # yolov8n-p2-spd-bifpn
        ("SPDConv", 16, (32, 3), 18496),
        ("SPDConv", 32, (64, 3), 73856),
        ("SPDConv", 64, (128, 3), 295168),
        ("SPDConv", 128, (256, 3), 1180160),
        ("SPDConv", 32, (32, 3), 36928),
        ("SPDConv", 64, (64, 3), 147584),
        ("SPDConv", 128, (128, 3), 590080),
        # yolo11n-rfaconv, eauav-yolo-n
        ("RFAConv", 16, (32, 3, 2), 6400),
        ("RFAConv", 64, (64, 3, 2), 43904),
        ("RFAConv", 128, (128, 3, 2), 161536),
        ("RFAConv", 128, (256, 3, 2), 309248),
        ("DySample", 64, (None, 2, "lp"), 2080),
        # slimneck-yolov5s
        ("GSConv", 512, (256, 1, 1), 69248),
        ("GSConv", 256, (128, 1, 1), 18240),
        ("GSConv", 128, (128, 3, 2), 75584),
        ("GSConv", 256, (256, 3, 2), 298624),
        # convolution_and_sampling.md
        ("GSConv", 64, (64, 3), 19360),
        ("DySample", 256, (), 8224),
        ("DySample", 256, (None, 2, "pl"), 520),
        ("CARAFE", 256, (None, 2, 5, 3, 64, 1, 1, "bn", "silu"), 74312),
        ("HWD", 64, (128,), 4 * 64 * 128 + 2 * 128),
        ("WTConv", 32, (None, 5, 1, 2, False), 32 * 25 * (1 + 4 * 2) + 32 * 9),
    ],
)
def test_parameters_of_published_rows(
    name: str, channels: int, args: tuple[Any, ...], parameters: int
) -> None:
    assert sum(p.numel() for p in create(name, channels, *args).parameters()) == parameters


@pytest.mark.parametrize(
    ("channels", "width", "parameters"),
    [(512, 256, 389472), (256, 128, 98480), (256, 256, 323936), (512, 512, 1286848)],
)
def test_parameters_of_slim_necks_stages(channels: int, width: int, parameters: int) -> None:
    stage = create("VoVGSCSP", channels, width, shortcut_form="depthwise", shortcut_kernel=1)
    never_called = conv_norm(width // 2, width // 2, 3)
    assert sum(p.numel() for p in stage.parameters()) == parameters - never_called


# -- the mathematics, where another formulation exists


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("groups", "deform_groups", "dilation"), [(1, 1, 1), (2, 3, 2), (1, 2, 1)])
def test_deformable_convolution_equals_torchvisions(
    k: int, groups: int, deform_groups: int, dilation: int
) -> None:
    from torchvision.ops import deform_conv2d

    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6 // groups, k, k, dtype=torch.float64, requires_grad=True)
    at = (2, dilation * (k // 2), dilation)
    size = F.conv2d(x, weight, None, at[0], at[1], at[2], groups).shape[2:]
    offsets = torch.randn(2, 2 * deform_groups * k * k, *size, dtype=torch.float64) * 2
    mask = torch.rand(2, deform_groups * k * k, *size, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    ours = by_sampling(x, offsets, mask, weight, bias, at)
    theirs = deform_conv2d(x, offsets, weight, bias, at[0], at[1], at[2], mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (x, weight)) for y in (ours, theirs))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_deformable_convolution_starts_as_half_a_plain_one() -> None:
    layer = create("DCNv2", 6, 4, 3, 2, norm=False)
    x = torch.randn(2, 6, 9, 8)
    torch.testing.assert_close(layer(x), 0.5 * F.conv2d(x, layer.weight, None, 2, 1))


@pytest.mark.parametrize("style", ["lp", "pl"])
@pytest.mark.parametrize("scale", [2, 3])
def test_dysample_without_offsets_is_bilinear(style: str, scale: int) -> None:
    layer = create("DySample", 36, None, scale, style, dyscope=True)
    nn.init.zeros_(layer.offset.weight)
    x = torch.randn(2, 36, 5, 7)
    bilinear = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(layer(x), bilinear, rtol=1e-4, atol=1e-4)


def test_positions_are_exact_in_half_precision() -> None:
    layer = create("DySample", 8, None, 2).bfloat16()
    stripes = (torch.arange(640.0) % 2).bfloat16().expand(1, 8, 2, 640)
    want = F.interpolate(stripes.float(), scale_factor=2, mode="bilinear", align_corners=False)
    nn.init.zeros_(layer.offset.weight)
    # Half a pixel off, as bfloat16 coordinates are, would be 0.5 off.
    torch.testing.assert_close(layer(stripes).float(), want, rtol=0, atol=4e-3)


def test_carafe_with_equal_kernels_is_a_box_filter() -> None:
    layer = create("CARAFE", 4, None, 2, 3)
    nn.init.zeros_(layer.enc.weight)
    x = torch.randn(2, 4, 6, 5)
    box = F.interpolate(F.avg_pool2d(x, 3, 1, 1), scale_factor=2.0)
    torch.testing.assert_close(layer(x), box, rtol=1e-4, atol=1e-5)


def test_ldconv_of_a_centred_grid_is_a_convolution_inside_of_the_map() -> None:
    layer = create("LDConv", 5, 6, 9, 1, "none", grid="centre").eval()
    kernel = layer.conv.conv.weight.view(6, 5, 3, 3)
    x = torch.randn(2, 5, 7, 8)
    plain = F.batch_norm(F.conv2d(x, kernel), torch.zeros(6), torch.ones(6), eps=layer.conv.bn.eps)
    torch.testing.assert_close(layer(x)[:, :, 1:-1, 1:-1], plain, rtol=1e-4, atol=1e-4)


def test_ldconv_counts_the_border_once_unless_asked_for_the_published_code() -> None:
    x = torch.ones(1, 3, 6, 6)
    for border, corner in (("clamp", 1.0), ("reference", 4.0)):
        layer = create("LDConv", 3, 1, 1, 1, "none", border=border).eval()
        nn.init.constant_(layer.conv.conv.weight, 1 / 3)
        y = layer(x)[0, 0] * (1 + layer.conv.bn.eps) ** 0.5
        assert y[0, 0].item() == pytest.approx(1.0, abs=1e-4)
        assert y[-1, -1].item() == pytest.approx(corner, abs=1e-4)


def test_wavelet_levels_of_unit_kernels_give_the_map_back() -> None:
    layer = create("WTConv", 3, None, 3, 1, 3, False)
    nn.init.zeros_(layer.base.weight)
    for conv, scale in zip(layer.levels, layer.level_scales):
        nn.init.dirac_(conv.weight, groups=12)
        nn.init.ones_(scale)
    x = torch.randn(2, 3, 13, 10)
    # Every level gives back all of what it took: the means come once from each.
    levels = [x]
    for _ in range(2):
        p = F.pad(levels[-1], (0, levels[-1].shape[3] % 2, 0, levels[-1].shape[2] % 2))
        levels.append(F.avg_pool2d(p, 2) * 2)
    want = torch.zeros_like(levels[-1])
    for a in reversed(levels):
        h, w = a.shape[2:]
        if a is not levels[-1]:
            want = F.interpolate(want, scale_factor=2.0)[:, :, :h, :w] / 2
        want = want + a
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_a_strided_wavelet_convolution_keeps_pixels_of_the_whole(stride: int, levels: int) -> None:
    layer = create("WTConv", 3, None, 3, 1, levels)
    strided = create("WTConv", 3, None, 3, stride, levels)
    strided.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 13, 10)
    want = layer(x)[:, :, ::stride, ::stride]
    torch.testing.assert_close(strided(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_odconv_by_columns_is_the_grouped_convolution(groups: int) -> None:
    torch.manual_seed(0)
    layer = create("ODConv", 8, 12, 3, 2, groups=groups).double()
    x = torch.randn(3, 8, 9, 7, dtype=torch.float64)
    kernels = torch.randn(3, 12, 8 // groups, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer._by_columns(x, kernels), layer._grouped(x, kernels))


@each_layer
def test_units_in_a_convolutions_manner_follow_ultralytics(name: str) -> None:
    """eps and momentum of Conv units are the host's; norms inside a block keep their own."""
    layer = build(name, {})[0]
    units = {m.bn for m in layer.modules() if isinstance(m, host_conv())}
    initialize_weights(layer)
    for m in layer.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert (m.eps, m.momentum) == ((1e-3, 0.03) if m in units else (1e-5, 0.1))


def test_an_activation_of_the_model_reaches_the_layers() -> None:
    rows = [["GSConv", [32]], ["C2fFaster", [32]], ["DCNv2", [32]], ["SPDConv", [32]]]
    d = {
        "nc": 2,
        "activation": "torch.nn.LeakyReLU(0.1)",
        "backbone": [[-1, 1, "Conv", [32, 3, 2]], *([-1, 1, *row] for row in rows)],
        "head": [[[4], 1, "Detect", ["nc"]]],
    }
    model = DetectionModel(d, ch=3, verbose=False)
    for layer in model.model[1:5]:
        assert any(isinstance(m, nn.LeakyReLU) for m in layer.modules())
        assert not any(isinstance(m, nn.SiLU) for m in layer.modules())


def test_cards_name_the_layers_options() -> None:
    from yolo_attn.cards import as_text

    for name in PLACES:
        text = as_text(block_info(name))
        assert re.search(r"arXiv \d{4}\.\d{5}|CVPR 2023|Pattern Recognition", text)

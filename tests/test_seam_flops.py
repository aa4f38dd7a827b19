"""The GFLOPs that are printed: stock layers as Ultralytics counts, ours by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import get_flops

import yolo_attn
from yolo_attn.seam.redirect import original_of

STOCK = original_of("ultralytics.utils.torch_utils.get_flops")


def model(name: str, tmp_path=None, insert: str = ""):
    if insert:
        (tmp_path / "yolov8-flops.yaml").write_text(f"base: yolov8.yaml\ninsert:\n  - {insert}\n")
        name = str(tmp_path / f"{name}-flops.yaml")
    return tasks.DetectionModel(name, ch=3, verbose=False)


@pytest.fixture(scope="module")
def base() -> float:
    return get_flops(model("yolov8n.yaml"))


def test_a_stock_model_is_counted_by_ultralytics(base: float) -> None:
    assert base == STOCK(model("yolov8n.yaml")) > 5


@pytest.mark.parametrize(
    ("tap", "channels", "side"), [("P3", 64, 80), ("P4", 128, 40), ("P5", 256, 20)]
)
def test_non_local_is_counted_as_by_hand(
    tap: str, channels: int, side: int, base: float, tmp_path
) -> None:
    n, d = side * side, channels // 2
    by_hand = (
        2 * (4 * n * channels * d + 2 * n * n * d) / 1e9
    )  # four 1x1 convolutions, two N x N products
    assert get_flops(
        model("yolov8n", tmp_path, f"[{tap}, 1, NonLocal, []]")
    ) - base == pytest.approx(by_hand, rel=1e-6)


def test_the_dot_product_form_is_counted_as_it_is_computed(base: float, tmp_path) -> None:
    n, c, d = 6400, 64, 32
    by_hand = 2 * (4 * n * c * d + 2 * n * d * d) / 1e9
    added = get_flops(model("yolov8n", tmp_path, "[P3, 1, NonLocal, [dot_product]]")) - base
    assert added == pytest.approx(by_hand, rel=1e-6)


def test_other_image_sizes(tmp_path) -> None:
    ours, stock = model("yolov8n", tmp_path, "[P4, 1, NonLocal, []]"), model("yolov8n.yaml")
    n, c, d = 20 * 40, 128, 64
    by_hand = 2 * (4 * n * c * d + 2 * n * n * d) / 1e9
    assert get_flops(ours, [320, 640]) - get_flops(stock, [320, 640]) == pytest.approx(
        by_hand, rel=1e-6
    )


def test_blocks_that_change_channels_resolution_or_number_of_maps(tmp_path) -> None:
    @yolo_attn.register(name="TestFlopsPyramid")
    class Pyramid(nn.Module):
        """Pyramid."""

        def __init__(self, channels: int):
            super().__init__()
            self.out_channels = [channels, 2 * channels]
            self.down = nn.Conv2d(channels, 2 * channels, 2, 2)

        def forward(self, x):
            return [x, self.down(x)]

    d = {
        "nc": 3,
        "backbone": [
            [-1, 1, "Conv", [16, 3, 8]],
            [-1, 1, "TestFlopsPyramid", []],
            [1, 1, "Index", [32, 1]],
        ],
        "head": [[-1, 1, "Conv", [32, 1]], [[0, 3], 1, "Detect", ["nc"]]],
    }
    net = tasks.DetectionModel(d, ch=3, verbose=False)
    total = get_flops(net, 640)
    assert total > 2 * 40 * 40 * 32 * 16 * 4 / 1e9
    assert net.training and not any(p.is_meta for p in net.parameters()), (
        "counting changed the model"
    )


def test_counting_changes_nothing(tmp_path) -> None:
    net = model("yolov8n", tmp_path, "[P5, 1, NonLocal, []]").eval()
    x = torch.rand(1, 3, 64, 64)
    before = net(x)[0]
    get_flops(net)
    assert torch.equal(net(x)[0], before)

"""Every block is alive in a YOLO: its norms normalise, evaluation is what training is."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import initialize_weights

from tests.conftest import REPO
from tests.test_blocks import CASES, build, each_case, inputs_of
from yolo_attn import block_info, create, list_blocks
from yolo_attn.data.synthetic import make_smallshapes

sys.path.insert(0, str(REPO / "scripts"))
import block_truth  # noqa: E402

# Where YOLOv8n's backbone has which width: layer -> channels.
WIDTHS = {0: 16, 2: 32, 4: 64, 6: 128, 9: 256}
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
AGREE = 0.05  # share by which training and evaluation may differ
# Of random maps attention gives these norms one value an image, as ODConv's mean does; SPPCSPC has
# seven in a row.
SCATTER = {"FPTSelf": 0.1, "FPTGround": 0.1, "SPPCSPC": 0.1, "ODConv": 0.1}
SHARED = "the published code's statistics, of the last few channels in evaluation"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Tensor]:
    """Maps of an untrained YOLOv8n on drawn photographs, by width."""
    folder = tmp_path_factory.mktemp("truth")
    make_smallshapes(folder, image_size=192, train_images=4, val_images=2)
    files = sorted((folder / "images" / "train").iterdir())[:4]
    images = np.stack([cv2.imread(str(f)) for f in files])
    x = torch.from_numpy(images).flip(3).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(0)
    layers = DetectionModel("yolov8n.yaml", verbose=False).train().model
    maps = {}
    with torch.no_grad():
        for i in range(max(WIDTHS) + 1):
            x = layers[i](x)
            if i in WIDTHS:
                maps[WIDTHS[i]] = x
    return maps


def inputs(name: str, width: int, features: dict[int, Tensor]) -> Tensor | list[Tensor] | None:
    """Features of this width, and of the widths above and below for blocks with several inputs."""
    info = block_info(name)
    if name == "RevColumns":
        return torch.rand(2, 3, 64, 64) if width == 64 else None  # reads the image
    if not info.takes_list:
        return features[width]
    count = max(info.min_inputs, min(3, info.max_inputs))
    scales = [*info.levels, *[info.levels[-1] if info.levels else 1.0] * count][:count]
    widths = [int(width / scale) for scale in scales]
    return [features[w] for w in widths] if all(w in features for w in widths) else None


@each_case
def test_what_enters_a_norm_is_far_above_its_eps(
    name: str, options: dict, features: dict[int, Tensor]
) -> None:
    if name not in list_blocks():
        pytest.skip("a layer, whose norms are Ultralytics'")
    tried = 0
    # The cases of tests/test_blocks.py have options that fit one width.
    for width in features if not options else (64,):
        x = inputs(name, width, features)
        if x is None:
            continue
        torch.manual_seed(0)
        widths = x.shape[1] if isinstance(x, Tensor) else [t.shape[1] for t in x]
        block = create(name, widths, **options)
        initialize_weights(block)  # what Ultralytics does to every model
        with block_truth.norm_inputs(list(block.modules())) as seen, torch.no_grad():
            block.train()(x)
        has_norms = any(isinstance(m, NORMS) for m in block.modules())
        assert bool(seen) == has_norms
        worst = block_truth.worst_norm(seen)
        assert worst is None or worst > 10, f"{name} of {width} channels: {worst:.3g} times eps"
        tried += 1
    assert tried


@pytest.mark.parametrize("name", list_blocks())
def test_ultralytics_leaves_the_norms_of_a_block_alone(name: str) -> None:
    block, _ = build(name, {})
    facts = [(m.eps, getattr(m, "momentum", None)) for m in block.modules() if hasattr(m, "eps")]
    initialize_weights(block)
    now = [(m.eps, getattr(m, "momentum", None)) for m in block.modules() if hasattr(m, "eps")]
    assert now == facts
    assert not [m for m in block.modules() if type(m) is nn.BatchNorm2d]


@each_case
def test_evaluation_computes_what_training_does(name: str, options: dict) -> None:
    shared = options.get("stats") == "shared"
    block, channels = build(name, options, width=64 if shared else 16, random=False)
    difference = block_truth.train_eval(block, inputs_of(name, channels))
    if shared:
        assert difference > 2 * AGREE, SHARED
    else:
        assert difference < SCATTER.get(name, AGREE)


def test_the_cases_cover_the_shared_statistics() -> None:
    assert [o for name, o in CASES if name == "MDCR" and o.get("stats") == "shared"]


@pytest.mark.parametrize("name", ["SE", "CBAM", "SEv2", "FcaNet"])
def test_a_gate_of_few_channels_depends_on_the_image(name: str) -> None:
    # A hidden width of C / 16 = 1 gave a constant gate in 10 to 20 % of the seeds.
    constant = 0
    for seed in range(100):
        torch.manual_seed(seed)
        block = create(name, 16).eval()
        x = torch.nn.functional.silu(torch.randn(8, 16, 1, 1) + torch.randn(8, 16, 6, 6))
        with torch.no_grad():
            constant += bool((block.channel_weights(x).std(0) < 1e-6).all())
    assert constant <= 1

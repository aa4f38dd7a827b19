"""The YOLOv7 bases: the published rows, the wiring of the paper, and a life under Ultralytics."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.nn.modules.conv import Conv, RepConv

from tests.processes import python
from tests.yolov7_by_hand import ByHand, four_levels, three_levels, tiny
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml, run
from yolo_attn.overlay.taps import find_taps
from yolo_attn.registry import create, list_blocks, list_layers
from yolo_attn.zoo import blocks_of, check

FACTS = json.loads((Path(__file__).parent / "families/yolov7.json").read_text())
# Published modules that have another class here.
STANDS_FOR = {"nn.Upsample": "Upsample", "MP": "MaxPool2d", "SP": "MaxPool2d", "RepConv": "Conv"}
BY_HAND = {
    "yolov7-tiny": (tiny, {}),
    "yolov7": (three_levels, {"n": 4, "every_in_neck": 1}),
    "yolov7x": (three_levels, {"n": 6, "every_in_neck": 2}),
    "yolov7-w6": (four_levels, {"n": 4, "down_c": False, "pairs": False}),
    "yolov7-e6": (four_levels, {"n": 6, "down_c": True, "pairs": False}),
    "yolov7-d6": (four_levels, {"n": 8, "down_c": True, "pairs": False}),
    "yolov7-e6e": (four_levels, {"n": 6, "down_c": True, "pairs": True}),
}
each_model = pytest.mark.parametrize("name", FACTS)


def rows_of(d: dict) -> list:
    return [*d["backbone"], *d["head"]]


@functools.lru_cache(None)
def built(name: str) -> tuple[nn.Sequential, list]:
    """Layers and their outputs, without storage."""
    return run(load_model_yaml(f"{name}.yaml"))


def side_of(name: str) -> int:
    """A side that the coarsest stride divides, with two positions left."""
    return 2 * int(FACTS.get(name, FACTS["yolov7"])["strides"][-1])


def narrow(name: str, width: float = 0.125) -> nn.Module:
    """The model with an eighth of the channels and weights that hide nothing, in eval mode."""
    torch.manual_seed(0)
    d = {**load_model_yaml(f"{name}.yaml"), "width_multiple": width}
    model = tasks.DetectionModel(d, verbose=False).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in (
                (m.weight.data, 0.5, 1.5),
                (m.bias.data, -0.5, 0.5),
                (m.running_mean, -0.5, 0.5),
                (m.running_var, 0.5, 1.5),
            ):
                t.uniform_(low, high)
    return model


def read_by_head(model: nn.Module, x: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    hook = model.model[-1].register_forward_pre_hook(lambda _m, args: seen.extend(args[0]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen


@each_model
def test_every_row_equals_the_published_one(name: str) -> None:
    facts = FACTS[name]
    d = load_model_yaml(f"{name}.yaml")
    model, outputs = built(name)
    assert len(d["backbone"]) == facts["backbone_rows"]
    assert len(outputs) == len(facts["rows"]) == len(model) - 1
    for i, (layer, output, row) in enumerate(zip(model, outputs, facts["rows"])):
        source, module, channels, stride, parameters = row
        # The facts have a RepConv before the head of yolov7; here it is the plain convolution.
        if module == "RepConv":
            parameters = 9 * FACTS[name]["rows"][source][2] * channels + 2 * channels
        f = layer.f if isinstance(layer.f, list) else [layer.f]
        absolute = [s if s >= 0 or i == 0 else i + s for s in f]
        assert absolute == (source if isinstance(source, list) else [source]), i
        assert type(layer).__name__ == STANDS_FOR.get(module, module), i
        assert tuple(output.shape[1:]) == (channels, 256 // stride, 256 // stride), i
        assert sum(p.numel() for p in layer.parameters()) == parameters, i


@each_model
def test_totals_with_the_detection_head_of_ultralytics(name: str) -> None:
    model, _ = built(name)
    # 8.3.0 gives every model the depthwise classification branch of newer families.
    legacy = getattr(model[-1], "legacy", False)
    wanted = FACTS[name]["parameters" if legacy else "parameters_depthwise_head"]
    assert sum(p.numel() for p in model.parameters()) == wanted


@each_model
def test_the_wiring_by_hand_gives_the_same(name: str) -> None:
    model = narrow(name).double()
    wiring, options = BY_HAND[name]
    act = (lambda t: F.leaky_relu(t, 0.1)) if name == "yolov7-tiny" else F.silu
    x = torch.rand(2, 3, side_of(name), side_of(name), dtype=torch.float64)
    hand = ByHand(model.model[:-1], act)
    with torch.no_grad():
        expected = wiring(hand, x, **options)
    assert not hand.left, "the model holds more convolutions than the text"
    found = read_by_head(model, x)
    assert len(found) == len(expected) and min(t.std() for t in expected) > 1e-3
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_wrong_wiring_is_noticed() -> None:
    model = narrow("yolov7").double()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    model.model[10].forward = lambda maps: torch.cat([maps[1], maps[0], *maps[2:]], 1)
    with torch.no_grad():
        expected = three_levels(ByHand(model.model[:-1], F.silu), x, n=4, every_in_neck=1)
    assert not torch.allclose(read_by_head(model, x)[0], expected[0])


@each_model
def test_taps_are_the_ends_of_the_stages_and_the_inputs_of_the_head(name: str) -> None:
    # A down-sampling of yolov7 and yolov7x still has a 1x1 row of the stage's stride: no tap.
    assert find_taps(load_model_yaml(f"{name}.yaml")) == FACTS[name]["taps"]


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7"])
def test_full_width_forward_and_fusion(name: str) -> None:
    from ultralytics.utils.torch_utils import get_flops

    torch.manual_seed(0)
    model = tasks.DetectionModel(f"{name}.yaml", verbose=False).eval()
    legacy = getattr(model.model[-1], "legacy", False)
    if legacy:
        assert get_flops(model, 640) == pytest.approx(FACTS[name]["gflops"], rel=1e-3)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        y = model(x)[0]
        assert y.shape == (1, 84, 64 + 16 + 4) and torch.isfinite(y).all()
        torch.testing.assert_close(model.fuse(verbose=False)(x)[0], y, rtol=1e-4, atol=1e-3)
    if legacy:
        assert sum(p.numel() for p in model.parameters()) == FACTS[name]["parameters_fused"]


@pytest.mark.parametrize("name", [*FACTS, "yolov7-rep"])
def test_fusion_reaches_every_layer_and_keeps_the_outputs(name: str) -> None:
    model = narrow(name)
    x = torch.rand(1, 3, side_of(name), side_of(name))
    before = read_by_head(model, x)
    model.fuse(verbose=False)
    for a, b in zip(read_by_head(model, x), before):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, RepConv) and hasattr(m, "conv1") for m in model.modules())


def test_the_rep_variant_is_yolov7_with_two_branches_before_the_head() -> None:
    plain, rep = (load_model_yaml(f"{name}.yaml") for name in ("yolov7", "yolov7-rep"))
    different = [i for i, (a, b) in enumerate(zip(rows_of(plain), rows_of(rep))) if a[2:] != b[2:]]
    assert different == [102, 103, 104]
    model, _ = run(rep)
    for i in different:
        published = FACTS["yolov7"]["rows"][i]
        assert published[1] == "RepConv"
        assert sum(p.numel() for p in model[i].parameters()) == published[4]
    if getattr(model[-1], "legacy", False):
        assert sum(p.numel() for p in model.parameters()) == 44_281_440
    fused = narrow("yolov7-rep").fuse(verbose=False)
    count = sum(p.numel() for p in narrow("yolov7").fuse(verbose=False).parameters())
    assert sum(p.numel() for p in fused.parameters()) == count


def test_the_activation_is_leaky_in_tiny_and_nowhere_else() -> None:
    model, _ = run(load_model_yaml("yolov7-tiny.yaml"))
    convs = [m for m in model.modules() if isinstance(m, Conv)]
    assert sum(isinstance(m, Conv) for m in model[:-1].modules()) == 55
    assert {getattr(m.act, "negative_slope", None) for m in convs} == {0.1}
    assert isinstance(Conv.default_act, nn.SiLU), "it must not stay for the next model"
    model, _ = built("yolov7-e6e")
    assert all(isinstance(m.act, nn.SiLU) for m in model.modules() if isinstance(m, Conv))


def test_an_activation_reaches_our_layers() -> None:
    d = {**load_model_yaml("yolov7-rep.yaml"), "activation": "torch.nn.ReLU()"}
    model, _ = run(d)
    assert isinstance(model[51].cv1.act, nn.ReLU) and isinstance(model[102].rep.act, nn.ReLU)
    assert isinstance(Conv.default_act, nn.SiLU)


# -- names, scale letters, overlays


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder far from the repository, with overlays of three bases."""
    for base in ("yolov7", "yolov7x", "yolov7-tiny"):
        text = f"base: {base}.yaml\ninsert:\n  - [P5, 1, NonLocal, []]\n"
        (tmp_path / f"{base}-mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "channels", "after"),
    [
        ("yolov7-mine.yaml", 1024, 50),
        ("yolov7x-mine.yaml", 1280, 58),
        ("yolov7-tiny-mine.yaml", 512, 28),
    ],
)
def test_an_overlay_finds_its_own_base(folder: Path, name: str, channels: int, after: int) -> None:
    d = load_model_yaml(name)
    model, _ = run(d)
    base = name.replace("-mine", "")
    assert d["yolo_attn"]["base"] == base
    assert (
        type(model[after + 1]).__name__ == "NonLocal" and model[after + 1].out_channels == channels
    )
    assert len(model) == len(FACTS[base[:-5]]["rows"]) + 2
    assert isinstance(Conv.default_act, nn.SiLU), "looking for the tap must leave no trace"
    (line,) = check(name)
    assert f"{name}: ok" in line
    (only,) = blocks_of(d)  # SPPCSPC is a layer of the base, not a block that somebody chose
    assert only["block"] == "NonLocal"


def test_yolov7x_is_a_model_of_its_own_and_no_scale(folder: Path) -> None:
    for name in ("yolov7x.yaml", "yolov7.yaml", "yolov7-w6.yaml"):
        assert len(rows_of(load_model_yaml(name))) == len(FACTS[name[:-5]]["rows"]) + 1
    # A plain YAML of the user beside our yolov7.yaml is read, too, whatever the letter.
    (folder / "yolov7l.yaml").write_text(
        "nc: 3\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]]\nhead:\n  - [[0], 1, Detect, [nc]]\n"
    )
    assert load_model_yaml("yolov7l.yaml")["nc"] == 3


@pytest.mark.parametrize("name", ["yolov7n.yaml", "yolov7x-tiny.yaml", "yolov7s-w6.yaml"])
def test_a_scale_letter_that_would_be_ignored_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(YoloAttnError, match=f"{name}: does not exist, and yolov7.* has no scale"):
        load_model_yaml(name)
    (folder / "yolov7-bad.yaml").write_text(f"base: {name}\n")
    with pytest.raises(YoloAttnError, match=f"yolov7-bad.yaml: base {name}: does not exist"):
        load_model_yaml("yolov7-bad.yaml")


def test_identity_start_wraps_blocks_and_leaves_layers(folder: Path) -> None:
    (folder / "yolov7-mine.yaml").write_text(
        "base: yolov7.yaml\nidentity_start: true\ninsert:\n  - [P5, 1, SE, []]\n"
        "replace:\n  - [51, 1, SPPCSPC, [{out_channels: 512}]]\n"
    )
    model, _ = run(load_model_yaml("yolov7-mine.yaml"))
    assert [type(model[i]).__name__ for i in (51, 52)] == ["IdentityStart", "SPPCSPC"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[50, 1, SPPCSPC, [0]]", "SPPCSPC: out_channels=0 is not accepted"),
        ("[50, 1, SPPCSPC, [512, 5, 0.5, 1]]", "SPPCSPC takes at most 3 options"),
        ("[[50, 37], 1, Shortcut, []]", r"does not fit what it reads"),
        ("[[50, 24], 1, Shortcut, []]", r"channels=\[1024, 512\] is not accepted"),
        ("[50, 1, Shortcut, []]", r"Shortcut takes 2 inputs"),
        ("[50, 2, SPPCSPC, [512]]", "SPPCSPC cannot be repeated"),
        ("[50, 1, SPPCPSC, [512]]", "unknown block 'SPPCPSC', did you mean 'SPPCSPC'"),
    ],
)
def test_a_layer_at_fault_is_one_line(folder: Path, row: str, message: str) -> None:
    (folder / "yolov7-mine.yaml").write_text(f"base: yolov7.yaml\ninsert:\n  - {row}\n")
    with pytest.raises(YoloAttnError, match=message) as caught:
        run({**load_model_yaml("yolov7-mine.yaml"), "width_multiple": 1.0})
    assert "\n" not in str(caught.value) and "yolov7-mine.yaml insert 1" in str(caught.value)


# -- layers in the registry, in checkpoints, under the stock command


def test_layers_are_listed_apart_from_blocks() -> None:
    from typer.testing import CliRunner

    from yolo_attn.cli import app

    layers = {"SPPCSPC", "DownC", "ReOrg", "Shortcut", "RepConv3x3"}
    assert layers <= set(list_layers()) and not layers & set(list_blocks())
    printed = [
        {b["name"] for b in json.loads(CliRunner().invoke(app, ["blocks", *o, "--json"]).output)}
        for o in ((), ("--layers",), ("SPPCSPC",))
    ]
    assert "NonLocal" in printed[0] and not layers & printed[0]
    assert layers <= printed[1] and "NonLocal" not in printed[1]
    assert printed[2] == {"SPPCSPC"}


def test_the_registry_does_not_import_ultralytics() -> None:
    code = (
        "import sys, yolo_attn; yolo_attn.create('SE', 8); "
        "from yolo_attn.registry import list_layers; assert list_layers(); "
        "print([m for m in sys.modules if m.startswith('ultralytics')])"
    )
    assert python("-c", code).stdout.strip() == "[]"


def one_of_each() -> nn.Module:
    """A detector with every layer of ours."""
    torch.manual_seed(0)
    d = {
        "nc": 3,
        "backbone": [
            [-1, 1, "ReOrg", []],
            [-1, 1, "Conv", [16, 3, 1]],
            [-1, 1, "DownC", [32]],
            [-1, 1, "Conv", [32, 1, 1]],
            [[-1, -2], 1, "Shortcut", []],
            [-1, 1, "SPPCSPC", [24]],
        ],
        "head": [[-1, 1, "RepConv3x3", [32, 2]], [[4, 6], 1, "Detect", ["nc"]]],
    }
    return tasks.DetectionModel(d, verbose=False).eval()


def test_layers_survive_copies_and_checkpoints(tmp_path: Path) -> None:
    from yolo_attn.seam.checkpoint import allow_blocks

    model = one_of_each()
    x = torch.rand(1, 3, 64, 64)
    wanted = read_by_head(model, x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(read_by_head(other, x), wanted))
    torch.save({"model": model}, tmp_path / "m.pt")
    allow_blocks()
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "m.pt")
    assert not [n for n in unsafe if n.startswith("yolo_attn")]


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_layers_export(fused: bool, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    model = one_of_each()
    x = torch.rand(1, 3, 64, 64)
    model.model[-1].export, model.model[-1].format = True, "onnx"
    path = str(tmp_path / "m.onnx")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(x)
        if fused:
            model.fuse(verbose=False)
        torch.onnx.export(model, (x,), path, opset_version=17, dynamo=False)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-3)


def test_what_the_mathematics_refuses() -> None:
    with pytest.raises(YoloAttnError, match="DownC: out_channels=33 is not accepted .*even"):
        create("DownC", 16, 33)
    with pytest.raises(YoloAttnError, match="ReOrg: a map of 6x5 is not accepted .*even"):
        create("ReOrg", 3)(torch.rand(1, 3, 6, 5))


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-e6e"])
def test_gflops(name: str) -> None:
    """Of a narrow model against the convolutions counted one by one, on the whole image."""
    from torch.utils.flop_counter import FlopCounterMode
    from ultralytics.utils.torch_utils import get_flops

    model = narrow(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.train()(torch.rand(1, 3, 128, 128))
    printed = get_flops(model.eval(), 128)
    # Ultralytics counts batch norm and activations, too; with few channels they are a few percent.
    assert printed == pytest.approx(counter.get_total_flops() / 1e9, rel=0.05)


def test_tiny_trains_and_predicts_in_a_fresh_process(tmp_path: Path) -> None:
    from yolo_attn.data.synthetic import make_smallshapes

    make_smallshapes(tmp_path / "shapes", image_size=96, train_images=4, val_images=2)
    (tmp_path / "shapes.yaml").write_text(
        f"path: {tmp_path / 'shapes'}\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    code = (
        "import sys\n"
        "from ultralytics import YOLO\n"
        "m = YOLO('yolov7-tiny.yaml')\n"
        "m.train(data='shapes.yaml', epochs=1, imgsz=64, batch=2, workers=0, device='cpu',"
        " plots=False, name='tiny', project=sys.argv[1])\n"
        "again = YOLO(m.trainer.best)\n"
        "act = again.model.model[-1].cv2[0][0].act\n"
        "found = again.predict(sys.argv[2], imgsz=64, conf=0.0, max_det=5)\n"
        "print('result', len(found), len(found[0].boxes), act.negative_slope,"
        " again.model.yaml['yaml_file'])\n"
    )
    image = next((tmp_path / "shapes/images/val").iterdir())
    out = python("-c", code, str(tmp_path / "runs"), str(image), cwd=tmp_path).stdout
    assert out.strip().splitlines()[-1] == "result 1 5 0.1 yolov7-tiny.yaml"

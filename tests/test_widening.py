"""A widened control starts as the baseline does with the weights: the same function, wider."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from yolo_attn.ablation import start_weights
from yolo_attn.ablation.controls import _scaled
from yolo_attn.ablation.plan import make_plan
from yolo_attn.ablation.spec import from_dict
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.transfer.widening import Unfollowed, largest_difference, proportional, widen

SLOW = pytest.mark.slow
FEW = [("yolov8n", 1.1), ("yolov5n", 1.37), ("yolo11n", 1.37)]
MORE = [
    (name, factor)
    for name in "yolov8n yolov5n yolo11n yolov8n-p2 yolov10n yolo26n yolov3-tiny".split()
    for factor in (1.05, 1.1, 1.37, 2.0)
]  # fmt: skip


def build(name: str, factor: float = 1.0, classes: int = 7):
    from ultralytics.nn.tasks import DetectionModel

    d = load_model_yaml(f"{name}.yaml")
    return DetectionModel(_scaled(d, factor, name), nc=classes, verbose=False)


def trained(model: nn.Module, seed: int = 1) -> nn.Module:
    """With batch norms that are not the identity, as after a training."""
    generator = torch.Generator().manual_seed(seed)

    def fill(value: torch.Tensor, low: float, high: float) -> None:
        value.data.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            fill(module.running_mean, -0.2, 0.2)
            fill(module.bias, -0.2, 0.2)
            fill(module.running_var, 0.5, 1.5)
            fill(module.weight, 0.5, 1.5)
    return model


def _widened(name: str, factor: float) -> float:
    base, wide = trained(build(name)).double(), build(name, factor).double()
    before = largest_difference(base, wide)
    widen(base, wide)
    assert before > 0.01, "the comparison must be able to fail"
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in base.parameters())
    return largest_difference(base, wide)


@pytest.mark.parametrize(("name", "factor"), FEW)
def test_the_widened_model_computes_what_the_base_computes(name: str, factor: float) -> None:
    assert _widened(name, factor) < 1e-9


@SLOW
@pytest.mark.parametrize(("name", "factor"), MORE)
def test_so_do_other_families_and_widths(name: str, factor: float) -> None:
    assert _widened(name, factor) < 1e-9


class Tiny(nn.Module):
    """Two convolutions that a copy of a channel goes through."""

    def __init__(self, width: int, groups: int = 1):
        super().__init__()
        self.model = nn.ModuleList()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, 4, 1, groups=groups)
        self.how = torch.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.how(self.first(x)))


def test_copies_get_different_gradients_so_that_they_part() -> None:
    torch.manual_seed(0)
    base, wide = Tiny(4).double(), Tiny(7).double()
    widen(base, wide)
    image = torch.randn(2, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(wide(image), base(image))
    wide(image).square().sum().backward()
    which, grad = proportional(4, 7), wide.first.weight.grad
    a, b = (grad[(which == 0).nonzero().flatten()[i]].flatten() for i in (0, 1))
    assert not torch.allclose(a, b)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
    assert cosine < 0.9999, "not even in the same direction"


def test_what_cannot_be_followed_is_refused_with_its_place() -> None:
    base, wide = Tiny(4), Tiny(8)
    wide.how = lambda x: torch.relu(x).flip(1)
    with pytest.raises(Unfollowed, match="first .Conv2d.: channels cannot be followed through fl"):
        widen(base, wide)
    with pytest.raises(Unfollowed, match="2 groups, the narrow model has 1"):
        widen(Tiny(4), Tiny(8, groups=2))
    with pytest.raises(Unfollowed, match="4 channels, the narrow model has 8"):
        widen(Tiny(8), Tiny(4))
    name = "yolov8n-gc"  # a block whose channels go through matrices
    with pytest.raises(Unfollowed, match=r"model\.\d+"):
        widen(build(name), build(name, 1.5))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_smallshapes(root, image_size=64, train_images=3, val_images=2, object_size=(6, 12))
    return str(root / "data.yaml")


def checkpoint(file: Path, name: str = "yolov8n") -> str:
    model = trained(build(name, classes=80))
    model.names = {i: f"thing {i}" for i in range(80)}
    torch.save({"epoch": -1, "model": model.half(), "train_args": {}}, file)
    return str(file)


def planned(folder: Path, data: str, baseline: str = "yolov8n.yaml"):
    weights = folder / "base.pt"
    study = from_dict(
        {
            "arms": [baseline, {"name": "big", "model": "yolov8s.yaml"}],
            "data": data, "project": str(folder), "match": ["params"], "train": {"imgsz": 64},
            "weights": str(weights) if weights.is_file() else checkpoint(weights),
        }
    )  # fmt: skip
    return make_plan(study)


def test_a_control_takes_as_much_of_the_weights_as_the_baseline(tmp_path: Path, data: str) -> None:
    plan = planned(tmp_path, data)
    starts = start_weights.starts(plan.study)
    base, control = starts["yolov8n"], starts["yolov8n-match-params"]
    # All but the last convolution of each class branch, for the data set has other classes.
    assert base.tensors == control.tensors == base.of_tensors - 6
    assert control.parameters / control.of_parameters > 0.999
    said = [flag for flag in plan.flags if flag.startswith("arm yolov8n-match-params starts with")]
    assert len(said) == 1 and "349 of 355 tensors" in said[0] and "widened with it" in said[0]
    own = {job.arm: [w for w in job.train if w.startswith("pretrained=")] for job in plan.jobs}
    file = plan.study.folder / "models" / "yolov8n-match-params.pt"
    assert own["yolov8n-match-params"] == [f"pretrained={file}"]
    assert own["yolov8n"] == [f"pretrained={plan.study.weights}"]
    before = file.stat().st_mtime_ns
    planned(tmp_path, data)
    assert file.stat().st_mtime_ns == before, "the same weights are written once"
    # Ultralytics itself loads the file, and both models say the same of an image.
    from ultralytics import YOLO

    narrow, wide = YOLO(plan.study.weights).model.double(), YOLO(str(file)).model.double()
    assert largest_difference(narrow, wide) < 1e-4  # float32 in the file


def test_a_plan_never_replaces_the_control_of_another_plan(tmp_path: Path, data: str) -> None:
    first = planned(tmp_path, data)
    folder = first.study.folder / "models"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "base.pt").unlink()
    other = planned(tmp_path, data)  # other weights under the same name, in another terminal
    assert {name: (folder / name).read_bytes() for name in before} == before
    then, now = ([j for j in p.jobs if "-match-" in j.arm][0] for p in (first, other))
    assert then.arm == now.arm and then.source["weights"] != now.source["weights"]
    assert then.identity["training"]["weights"] != now.identity["training"]["weights"]
    files = sorted(folder.iterdir())
    planned(tmp_path, data)
    assert sorted(folder.iterdir()) == files, "the same plan again writes nothing"


def test_what_the_weights_do_not_fill_in_the_baseline_stays_new_in_the_control(
    tmp_path: Path, data: str
) -> None:
    plan = planned(tmp_path, data, "yolov8n-p2.yaml")
    starts = start_weights.starts(plan.study)
    base, control = starts["yolov8n-p2"], starts["yolov8n-p2-match-params"]
    assert 0 < base.tensors == control.tensors < base.of_tensors - 6


def test_weights_that_cannot_be_widened_are_refused_with_the_reason(
    tmp_path: Path, data: str
) -> None:
    with pytest.raises(YoloAttnError, match="match with weights: yolov8n-gc-match-params cannot .*"
                       "channels cannot be followed .*leave out `match` or `weights`"):  # fmt: skip
        planned(tmp_path, data, "yolov8n-gc.yaml")


@SLOW
def test_area_attention_grows_by_whole_heads() -> None:
    assert _widened("yolo12n", 2.0) < 1e-9

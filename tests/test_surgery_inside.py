"""``inside:`` puts blocks into the units of a stage; the base's tensors keep their names."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml

from .processes import python
from .test_surgery_levels import maps, need, trained


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def put(text: str, base: str = "yolov8n.yaml") -> str:
        (tmp_path / "own.yaml").write_text(f"base: {base}\n{text}\n", encoding="utf-8")
        return "own.yaml"

    return put


def build(name: str) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(name, verbose=False).eval()


# Units of the model: rows with them, as Ultralytics' stages have them at this scale.
FAMILIES = {
    "yolov5n.yaml": "[2, 4, 6, 8, 13, 17, 20, 23]",
    "yolov8n.yaml": "[2, 4, 6, 8, 12, 15, 18, 21]",
    "yolov9t.yaml": "[4, 6, 8, 12, 15, 18, 21]",
    "yolov10n.yaml": "[2, 4, 6, 8, 13, 16, 19, 22]",
    "yolo11n.yaml": "[2, 4, 6, 8, 13, 16, 19, 22]",
    "yolo12n.yaml": "[2, 4, 11, 14, 17, 20]",
    "yolo26n.yaml": "[2, 4, 6, 8, 13, 16, 19, 22]",
}
UNITS = dict(zip(FAMILIES, (11, 10, 42, 10, 11, 10, 13)))


@pytest.mark.parametrize("base", FAMILIES)
def test_an_identity_start_in_every_branch_gives_the_base(overlay, base: str) -> None:
    need(base)
    stock = trained(base)
    model = build(
        overlay(f"identity_start: true\ninside:\n  - [{FAMILIES[base]}, branch, SE, []]", base)
    )
    assert set(stock.state_dict()) <= set(model.state_dict())
    blocks = [n for n, m in model.named_modules() if type(m).__name__ == "SE"]
    assert len(blocks) == UNITS[base] and all(".after." in n for n in blocks)
    model.load(deepcopy(stock), verbose=False)
    before, after = maps(stock), maps(model)
    assert all(torch.equal(after[side], before[side]) for side in before)


@pytest.mark.parametrize("base", ["yolov8n.yaml", "yolov9t.yaml", "yolo26n.yaml"])
def test_fusing_copying_and_saving_keep_the_blocks(overlay, base: str, tmp_path: Path) -> None:
    need(base)
    name = overlay(f"inside:\n  - [{FAMILIES[base]}, branch, CBAM, []]", base)
    torch.manual_seed(0)
    model = build(name)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)[0]
        assert torch.equal(deepcopy(model)(x)[0], expected)
        fused = deepcopy(model).fuse(verbose=False)
        torch.testing.assert_close(fused(x)[0], expected, rtol=1e-3, atol=1e-2)
    assert sum(type(m).__name__ == "CBAM" for m in fused.modules()) == UNITS[base]
    torch.save({"model": model}, tmp_path / "own.pt")
    torch.save({"x": x, "y": expected}, tmp_path / "xy.pt")
    code = (
        "import torch\nfrom ultralytics import YOLO\n"
        "m = YOLO('own.pt').model.float().eval()\nd = torch.load('xy.pt')\n"
        "with torch.no_grad(): y = m(d['x'])[0]\n"
        "torch.testing.assert_close(y, d['y'])\nprint('same')\n"
    )
    assert "same" in python("-c", code, cwd=tmp_path).stdout
    done = python("-c", code, cwd=tmp_path, ULTRALYTICS_SAFE_LOAD="1")
    assert "same" in done.stdout


def test_the_other_places_take_the_unit_or_its_convolutions(overlay) -> None:
    text = """inside:
  - [P4, unit, LSK, []]
  - [P3, conv1, DWConv, [3]]
  - [N3, conv2, CoordAtt, []]"""
    model: Any = build(overlay(text)).model  # type: ignore[attr-defined]
    assert [type(m).__name__ for m in model[6].m] == ["LSK", "LSK"]
    assert all(type(u.cv1).__name__ == "DWConv" for u in model[4].m)
    assert all(type(u.cv2).__name__ == "CoordAtt" for u in model[15].m)


def test_a_tap_without_units_means_the_stage_before_it(overlay) -> None:
    d = load_model_yaml(overlay("inside:\n  - [P5, branch, EMA, []]"))
    assert d["backbone"][8][2] == "C2f+inside" and d["backbone"][9][2] == "SPPF"
    assert d["backbone"][8][3] == [1024, True, {"inside": [["branch", "EMA", []]]}]


def test_gradients_reach_every_block(overlay) -> None:
    model = build(overlay("inside:\n  - [[P3, P4, N4], branch, EMA, []]")).train()
    out = model(torch.rand(2, 3, 64, 64))
    maps_ = out["feats"] if isinstance(out, dict) else out
    sum(y.square().mean() for y in maps_).backward()
    grads = [p.grad for n, p in model.named_parameters() if ".after." in n]
    assert grads and all(g is not None for g in grads)


def test_without_the_plugin_the_row_is_an_error_and_never_the_base(overlay, tmp_path) -> None:
    from yolo_attn.zoo import to_yaml

    d = load_model_yaml(overlay("inside:\n  - [P4, branch, EMA, []]"))
    (tmp_path / "plain.yaml").write_text(to_yaml(d, "a test"), encoding="utf-8")
    code = "from ultralytics import YOLO; YOLO('plain.yaml')"
    python("-c", code, cwd=tmp_path)
    done = python("-c", code, cwd=tmp_path, ok=False, YOLO_ATTN_DISABLE="1")
    assert done.returncode and "C2f+inside" in done.stderr


WRONG = [
    ("[P4, branches, EMA, []]", "place='branches', did you mean 'branch'"),
    ("[P4, branch, EMA]", r"accepted: \[where, place, module, args\]"),
    ("[7, branch, EMA, []]", "Conv at 7 has no units inside"),
    ("[P4, branch, DASI, []]", "DASI takes several maps"),
    ("[P4, branch, SEE, []]", "unknown block 'SEE'"),
    ("[P4, branch, CBAM, [{ratio: 2}]]", "CBAM has no option 'ratio'"),
    ("[N9, branch, EMA, []]", "no tap 'N9'"),
]


@pytest.mark.parametrize(("entry", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_places_are_one_line(overlay, entry: str, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message) as error:
        load_model_yaml(overlay(f"inside:\n  - {entry}"))
    assert "own.yaml inside 1" in str(error.value)


@pytest.mark.parametrize(
    ("base", "entry", "message"),
    [
        ("yolo12n.yaml", "[6, branch, SE, []]", "A2C2f has no place branch .*it has unit"),
        ("yolov9t.yaml", "[2, branch, SE, []]", "no units inside|has no place branch"),
        ("yolov8n.yaml", "[P4, conv1, PPA, [24]]", "."),
    ],
)
def test_what_a_stage_lacks_at_this_scale_is_said_when_it_is_built(
    overlay, base: str, entry: str, message: str
) -> None:
    need(base)
    with pytest.raises(YoloAttnError, match=message):
        build(overlay(f"inside:\n  - {entry}", base))

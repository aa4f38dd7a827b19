"""`yolo-attn explain` as a user types it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests.explain_model import image_folder

SMALL = """
nc: 1
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, NonLocal, [gaussian]]
  - [-1, 1, GlobalContext, []]
  - [-1, 1, CBAM, []]
  - [-1, 1, MDCR, []]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[5, 6], 1, Detect, [1]]
"""


@pytest.fixture
def files(tmp_path):
    return image_folder(tmp_path / "images")


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def explain(monkeypatch, capsys):
    from yolo_attn import cli

    def run(*args, ok=True):
        monkeypatch.setattr(sys, "argv", ["yolo-attn", "explain", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == (0 if ok else 1)
        shown = capsys.readouterr()
        return shown.out if ok else shown.err

    return run


def test_command_draws_each_image_and_says_what_has_no_map(explain, small, files, tmp_path):
    out = tmp_path / "looks"
    text = explain(small, files, "--query", "10,20", "--imgsz", 64, "--out", out)
    assert sorted(p.name for p in out.iterdir()) == [
        *("0-gates.png", "0-query1.png", "0.npz"),
        *("1-gates.png", "1-query1.png", "1.npz"),
    ]
    assert "5 MDCR: MDCR has no attention map and no gate to show" in text
    with np.load(out / "0.npz") as saved:
        assert saved["queries"].tolist() == [[10.5, 20.5]]
        rows = [k for k in saved if "NonLocal" in k and k.endswith("values")]
        assert saved[rows[0]].sum() == pytest.approx(1, abs=1e-4)


def test_command_asks_the_middle_where_nothing_is_detected(explain, small, files, tmp_path):
    text = explain(small, files / "0.png", "--imgsz", 64, "--conf", 0.99, "--out", tmp_path / "o")
    assert "no detection above 0.99; the middle is asked instead" in text
    with np.load(tmp_path / "o" / "0.npz") as saved:
        assert saved["queries"].tolist() == [[60, 45]]


def test_command_asks_the_smallest_detections(explain, small, files, tmp_path):
    # Untrained: everything is a detection at confidence 0.
    options = ("--imgsz", 64, "--conf", 0, "--most", 2, "--layer", "NL", "--out", tmp_path / "o")
    explain(small, files / "0.png", *options)
    names = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert names == ["0-query1.png", "0-query2.png", "0.npz"]
    with np.load(tmp_path / "o" / "0.npz") as saved:
        assert [k.split("/")[0] for k in saved if "values" in k] == ["2_NonLocal"]


def test_command_measures_independence_and_fields(explain, small, files, tmp_path):
    out = tmp_path / "looks"
    options = ("--imgsz", 64, "--out", out, "--json")
    answer = json.loads(explain(small, files, "--independence", *options))
    distances = {b["layer"].split()[1]: b["distance"] for b in answer["blocks"]}
    assert distances["GlobalContext"] == distances["CBAM"] == 0
    assert (out / "independence.png").stat().st_size > 1000
    text = explain(small, files, "--receptive-field", "--baseline", small, *options)
    answer = json.loads(text)
    assert [len(levels) for levels in answer.values()] == [2, 2]
    assert (out / "receptive-field.png").stat().st_size > 1000


def test_command_says_how_much_blocks_are_used(explain, small, files, tmp_path):
    answer = json.loads(explain(small, files, "--use", "--imgsz", 64, "--json"))
    (blocks,) = answer.values()
    assert all(list(b) == ["layer", "block", "gate", "gamma", "change"] for b in blocks)
    found = {b["layer"]: (b["block"], b["gate"], b["gamma"], b["change"]) for b in blocks}
    # Random weights: two blocks start as the identity, the others do not.
    assert found[2] == ("NonLocal", None, 0, 0) and found[3] == ("GlobalContext", None, 0, 0)
    assert found[4][:3] == ("CBAM", None, None) and found[4][3] > 0.1
    lines = explain(small, files, "--use", "--imgsz", 64, "--out", tmp_path / "o").splitlines()
    assert max(map(len, lines[:6])) <= 80 and "mean of 2 images" in lines[5]
    assert json.loads((tmp_path / "o" / "use.json").read_text()) == answer


def test_only_use_needs_no_folder(monkeypatch, capsys, small, files):
    from yolo_attn import cli

    monkeypatch.setattr(sys, "argv", ["yolo-attn", "explain", str(small), str(files)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2 and "--out" in capsys.readouterr().err


def test_use_of_a_stock_model_is_refused_in_one_line(explain, files):
    line = explain("yolov8n.yaml", files, "--use", ok=False).strip()
    assert line == (
        "yolo-attn: error: yolov8n.yaml: none of its rows is a registered block "
        "(`yolo-attn blocks`)"
    )


def test_claim_writes_its_page(explain, tmp_path):
    options = ("--claim", "--imgsz", 64, "--seeds", 1, "--out", tmp_path, "--json")
    rows = json.loads(explain("yolov8n.yaml", *options))
    assert [r["place"] for r in rows] == ["P3", "P4", "P5"]
    assert [r["grid"] for r in rows] == [[8, 8], [4, 4], [2, 2]]
    page = (tmp_path / "receptive-field.md").read_text()
    for r in rows:
        assert f"{r['with']['r99']:.0f} | {r['answer']} |" in page


@pytest.mark.parametrize(
    "args,message",
    [
        (["nix.pt", "0.png"], "nix.pt: no such checkpoint"),
        (["yolov8n.yaml", "nix.png"], "nix.png: no such image"),
        (["yolov8n.yaml", "0.png"], "none of the registered blocks"),
        (["yolov8n-se.yaml", "0.png", "--layer", "NonLocl"], "--layer 'NonLocl'"),
        (["yolov8n-se.yaml", "0.png", "--query", "4;5"], "expected X,Y"),
        (["yolov8n-se.yaml", "0.png", "--query", "400,5"], "120 wide and 90 high"),
        (["yolov8n-se.yaml", "0.png", "--claim", "--independence"], "choose one"),
        (["yolov8n-se.yaml", "0.png", "--trained", "a.pt"], "goes with --claim"),
        (["yolov8n-se.yaml"], "at least one image"),
        (["yolov8n-se.yaml", "--use"], "at least one image"),
        (["yolov8n-se.yaml", "0.png", "--use", "--layer", "SE"], "--layer does not go with --use"),
    ],
)
def test_command_refuses_in_one_line(args, message, files, tmp_path, monkeypatch, explain):
    monkeypatch.chdir(files)
    line = explain(*args, "--out", tmp_path / "o", ok=False).strip().splitlines()[-1]
    assert line.startswith("yolo-attn: error: ") and message in line

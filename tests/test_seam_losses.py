"""Auxiliary losses of blocks: in the total and in results.csv, and absent from other models."""

from __future__ import annotations

import copy
import csv
import inspect
import pickle
import re
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from tests.processes import yolo
from yolo_attn import registry
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import any_own_loss, block_info
from yolo_attn.seam import losses
from yolo_attn.seam.losses import blocks_with_loss
from yolo_attn.seam.redirect import original_of

STOCK_LOSS = original_of("ultralytics.nn.tasks.BaseModel.loss")


def revcol(index_channels: object = None, **options) -> dict:
    """YOLOv8 with a backbone of reversible columns; widths scale with the model."""
    options = {"widths": [64, 128, 256, 512], "depths": [1, 1, 1, 1], **options}
    return {
        "nc": 5,
        "scales": {"n": [0.33, 0.25, 1024], "s": [0.33, 0.5, 1024]},
        "backbone": [
            [-1, 1, "RevColumns", [options]],
            [0, 1, "Index", [index_channels, 1]],
            [0, 1, "Index", [None, 2]],
            [0, 1, "Index", [None, 3]],
        ],
        "head": [
            [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
            [[-1, 2], 1, "Concat", [1]],
            [-1, 1, "C2f", [256]],
            [[1, 6, 3], 1, "Detect", ["nc"]],
        ],
    }


def model(**options) -> DetectionModel:
    torch.manual_seed(0)
    net = DetectionModel({**revcol(**options), "scale": "n"}, verbose=False)
    net.args = DEFAULT_CFG
    return net.train()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[1.0], [0.0]]),
        "bboxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.1]]),
    }


def test_the_auxiliary_loss_is_added_to_the_total() -> None:
    net, data = model(supervision="objectness"), batch()
    total, items = net.loss(data)
    preds = net(data["img"])
    (block,) = blocks_with_loss(net)
    aux = block.aux_loss(data)
    stock_total, stock_items = STOCK_LOSS(net, data, preds)
    torch.testing.assert_close(total.sum(), stock_total.sum() + 2 * aux)
    assert list(items) == [*stock_items, "aux_loss"]
    torch.testing.assert_close(items["aux_loss"], aux.detach())
    total.sum().backward()
    assert block.supervision.decoders[0].out.weight.grad.abs().sum() > 0


def test_off_unless_asked_for() -> None:
    net, data = model(), batch()
    assert blocks_with_loss(net) == []
    assert list(net.loss(data)[1]) == list(STOCK_LOSS(net, data)[1])


def test_stock_models_return_what_they_returned() -> None:
    net = DetectionModel("yolov8n.yaml", verbose=False)
    net.args = DEFAULT_CFG
    net.model[3].aux_loss = lambda batch: 1 / 0  # a name of theirs is no business of ours
    data = batch()
    net.eval()
    a, b = net.loss(data), STOCK_LOSS(net, data)
    assert torch.equal(a[0], b[0]) and list(a[1]) == list(b[1])


def test_index_rows_know_the_widths_of_our_block() -> None:
    widths = [m.out_channels for m in model().model if hasattr(m, "out_channels")]
    assert widths == [[16, 32, 64, 128]]
    DetectionModel({**revcol(32), "scale": "n"}, verbose=False)
    with pytest.raises(YoloAttnError, match=r"channels=128, but output 1 .* has 32"):
        DetectionModel({**revcol(128), "scale": "n"}, verbose=False)
    d = revcol()
    d["backbone"][2][3] = [None, 4]
    with pytest.raises(YoloAttnError, match="accepted: 0 to 3"):
        DetectionModel({**d, "scale": "n"}, verbose=False)


def test_it_stands_in_the_progress_table_and_in_results_csv(tmp_path: Path) -> None:
    make_smallshapes(tmp_path / "shapes", image_size=96, train_images=8, val_images=4)
    (tmp_path / "shapes.yaml").write_text(
        f"path: {tmp_path / 'shapes'}\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    (tmp_path / "yolov8-revcol.yaml").write_text(yaml.safe_dump(revcol(supervision="objectness")))
    done = yolo(
        "detect", "train", "model=yolov8n-revcol.yaml", "data=shapes.yaml", "epochs=1", "batch=4",
        "imgsz=96", "device=cpu", "workers=0", "plots=False", "optimizer=AdamW",
        f"project={tmp_path / 'runs'}", "name=aux", cwd=tmp_path,
    )  # fmt: skip
    assert re.search(r"dfl_loss\s+aux_loss\s+Instances", done.stdout + done.stderr)
    (results,) = tmp_path.glob("**/aux/results.csv")
    (row,) = csv.DictReader(open(results), skipinitialspace=True)
    assert float(row["train/aux_loss"]) > 1 and float(row["val/aux_loss"]) > 1


def test_without_a_block_that_has_a_loss_no_module_is_looked_at(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_WITH_LOSS", WeakSet())
    net, data = DetectionModel("yolov8n.yaml", verbose=False), batch()
    net.args = DEFAULT_CFG
    plain = model()  # ours, but without a loss: nothing to add either
    monkeypatch.setattr(losses, "blocks_with_loss", lambda model: 1 / 0)
    for stock_path in (net, plain):
        stock_path.loss(data)
    with pytest.raises(ZeroDivisionError):
        model(supervision="objectness").loss(data)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "by hand"])
def test_a_block_is_found_however_it_came_into_the_model(way: str, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_WITH_LOSS", WeakSet())
    stock = DetectionModel("yolov8n.yaml", verbose=False)
    stock.args = DEFAULT_CFG
    list(stock.loss(batch())[1])  # nothing is decided for good here
    net = model(supervision="objectness")
    assert any_own_loss()
    if way == "by hand":
        copied = stock
        copied.model[0].extra = net.model[0]
    else:
        monkeypatch.setattr(registry, "_WITH_LOSS", WeakSet())
        assert not any_own_loss()
        copied = copy.deepcopy(net) if way == "deepcopy" else pickle.loads(pickle.dumps(net))
    assert any_own_loss() and len(blocks_with_loss(copied)) == 1
    if way != "by hand":
        assert list(copied.loss(batch())[1])[-1] == "aux_loss"


def test_signatures_of_watched_classes_stay() -> None:
    cls = block_info("RevColumns").cls
    assert hasattr(cls, "aux_loss")
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    assert list(inspect.signature(cls).parameters.values()) == parameters

"""The stock `yolo` command on our models, each step in a fresh process.

No process here imports our package by itself.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from tests.processes import python, yolo
from yolo_attn.data.synthetic import make_smallshapes

SIZE = 96
QUIET = ("imgsz=96", "device=cpu", "workers=0", "plots=False")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set and no trace of us."""
    folder = tmp_path_factory.mktemp("user")
    make_smallshapes(folder / "shapes", image_size=SIZE, train_images=12, val_images=4)
    (folder / "shapes.yaml").write_text(
        f"path: {folder / 'shapes'}\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    return folder


@pytest.fixture(scope="module")
def best(place: Path) -> Path:
    """Weights of a model with two kinds of blocks, trained by the stock command."""
    (place / "yolov8-mix.yaml").write_text(
        "base: yolov8.yaml\ninsert:\n"
        "  - [P5, 1, NonLocal, []]\n  - [P4, 2, NonLocal, [{mode: concatenation}]]\n"
        "  - [P3, 1, GlobalContext, [{fusion: both}]]\n  - [N3, 1, CoordAtt, []]\n"
        "  - [N4, 1, ContextAggregation, []]\n  - [N5, 1, SE, [{identity_start: true}]]\n"
    )
    train = (
        "detect",
        "train",
        "model=yolov8n-mix.yaml",
        "data=shapes.yaml",
        "epochs=2",
        "batch=6",
        "name=mix",
    )
    done = yolo(*train, *QUIET, f"project={place / 'runs'}", cwd=place)
    assert "yolo_attn.blocks.non_local.NonLocal" in done.stdout + done.stderr
    assert "yolo_attn.blocks.identity_start.IdentityStart" in done.stdout + done.stderr
    (weights,) = place.glob("**/mix/weights/best.pt")
    rows = list(csv.DictReader(open(weights.parents[1] / "results.csv")))
    assert len(rows) == 2
    return weights


def validate(place: Path, best: Path, **how):
    """Run the stock ``yolo val`` on the weights."""
    val = ("detect", "val", f"model={best}", "data=shapes.yaml", f"project={place / 'runs'}")
    return yolo(*val, *QUIET, cwd=place, **how)


def test_val_and_predict_in_fresh_processes(place: Path, best: Path) -> None:
    done = validate(place, best)
    assert re.search(r"all\s+4\s+", done.stdout + done.stderr)
    predict = (
        "detect",
        "predict",
        f"model={best}",
        f"source={place / 'shapes/images/val'}",
        "imgsz=96",
        f"project={place / 'runs'}",
    )
    done = yolo(*predict, "save=False", cwd=place)
    assert "4/4" in done.stdout + done.stderr


def test_restricted_loading(place: Path, best: Path) -> None:
    validate(place, best, ULTRALYTICS_SAFE_LOAD="1")


def test_weights_only_loading_of_a_checkpoint_by_hand(best: Path) -> None:
    code = (
        "import sys, torch, ultralytics.nn.tasks\n"
        "from yolo_attn.seam.checkpoint import allow_blocks; allow_blocks()\n"
        "names = torch.serialization.get_unsafe_globals_in_checkpoint(sys.argv[1])\n"
        "print([n for n in names if n.startswith('yolo_attn')])\n"
    )
    assert "[]" in python("-c", code, str(best)).stdout


def test_a_disabled_plugin_explains_itself(place: Path, best: Path) -> None:
    done = validate(place, best, ok=False, YOLO_ATTN_DISABLE="1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "best.pt holds blocks of yolo_attn, which YOLO_ATTN_DISABLE=1 switches off" in done.stderr
    )


def test_training_goes_on_from_the_checkpoint_and_resumes(place: Path, best: Path) -> None:
    tune = (
        "detect",
        "train",
        f"model={best}",
        "data=shapes.yaml",
        "epochs=1",
        "batch=6",
        "name=tuned",
    )
    done = yolo(*tune, *QUIET, f"project={place / 'runs'}", cwd=place)
    found = re.search(r"Transferred (\d+)/(\d+) items", done.stdout + done.stderr)
    assert found and found[1] == found[2]

    stop = (
        "import sys\n"
        "from ultralytics import YOLO\n"
        "m = YOLO('yolov8n-nonlocal.yaml')\n"
        "def interrupt(trainer):\n"
        "    if trainer.epoch == 1: raise KeyboardInterrupt\n"
        "m.add_callback('on_train_epoch_start', interrupt)\n"
        "m.train(data='shapes.yaml', epochs=3, batch=6, name='cut', project=sys.argv[1], imgsz=96,"
        " device='cpu', workers=0, plots=False)\n"
    )
    assert python("-c", stop, str(place / "runs"), cwd=place, ok=False).returncode != 0
    (last,) = place.glob("**/cut/weights/last.pt")
    yolo("detect", "train", "resume", f"model={last}", cwd=place)
    rows = list(csv.DictReader(open(last.parents[1] / "results.csv")))
    assert [int(r[next(k for k in r if k.strip() == "epoch")]) for r in rows][-1] == 3


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_exports_equal_eager(place: Path, best: Path, form: str) -> None:
    yolo("export", f"model={best}", f"format={form}", "imgsz=96", "device=cpu", cwd=place)
    exported = best.with_suffix("." + form)
    code = (
        "import sys, numpy as np, torch\n"
        "from ultralytics import YOLO\n"
        "x = torch.from_numpy(np.random.default_rng(0).random((1, 3, 96, 96), dtype=np.float32))\n"
        "net = YOLO(sys.argv[1]).model.fuse(verbose=False).eval()\n"
        "with torch.no_grad():\n"
        "    y = net(x)[0].numpy()\n"
        "if sys.argv[2].endswith('.onnx'):\n"
        "    import onnxruntime as ort\n"
        "    s = ort.InferenceSession(sys.argv[2], providers=['CPUExecutionProvider'])\n"
        "    z = s.run(None, {s.get_inputs()[0].name: x.numpy()})[0]\n"
        "else:\n"
        "    z = torch.jit.load(sys.argv[2])(x)\n"
        "    z = (z if isinstance(z, torch.Tensor) else z[0]).numpy()\n"
        "print('difference', np.abs(y - z).max(), np.abs(y).max())\n"
    )
    out = python("-c", code, str(best), str(exported), cwd=place).stdout
    difference, largest = map(float, re.search(r"difference (\S+) (\S+)", out).groups())
    assert difference <= 1e-4 * max(1.0, largest), out


def test_two_processes_train_together(place: Path) -> None:
    worker = str(Path(__file__).with_name("ddp_worker.py"))
    done = python(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", worker,
        "yolov8n-nonlocal.yaml", "shapes.yaml", str(place / "ddp"),
        cwd=place, OMP_NUM_THREADS="1",
    )  # fmt: skip
    ranks = re.findall(
        r"rank (\d) of 2 blocks \['NonLocal', 'BlockNorm'\] md5 ([0-9a-f]{32})", done.stdout
    )
    assert sorted(r for r, _ in ranks) == ["0", "1"], done.stdout[-2000:]
    assert ranks[0][1] == ranks[1][1], "the ranks drifted apart"
    assert (done.stdout + done.stderr).count("Blocks of best.pt:") == 1, "rank 0 alone prints it"


def test_the_plain_yaml_and_other_tasks_train(place: Path) -> None:
    train = (
        "detect",
        "train",
        "data=shapes.yaml",
        "epochs=1",
        "batch=6",
        *QUIET,
        f"project={place / 'runs'}",
    )
    yolo(*train, "model=yolov8n-rows-example.yaml", "name=rows", cwd=place)
    assert list(place.glob("**/rows/weights/best.pt"))


def test_a_program_without_the_stock_command(place: Path) -> None:
    code = (
        "import sys\n"
        "from ultralytics import YOLO\n"
        "m = YOLO('yolov8n-p2-nonlocal.yaml')\n"
        "m.train(data='shapes.yaml', epochs=1, imgsz=96, batch=6, workers=0, device='cpu', "
        "plots=False,"
        " name='p2', project=sys.argv[1])\n"
        "print('map', m.val(plots=False, workers=0).box.map)\n"
    )
    out = python("-c", code, str(place / "runs"), cwd=place).stdout
    assert np.isfinite(float(re.search(r"map (\S+)", out)[1]))

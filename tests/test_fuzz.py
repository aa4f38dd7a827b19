"""Damaged YAMLs and checkpoints end in a working result or one clear error (a sample; see
scripts/fuzz.py for the thousands)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from yolo_attn.errors import LONGEST, YoloAttnError
from yolo_attn.overlay.model_checks import check_size
from yolo_attn.zoo import check

from .processes import PATIENCE, environment, python

REPO = Path(__file__).resolve().parents[1]
BLOCK = "  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 1, SE, []]\n"
HEAD = "head:\n  - [[1], 1, Detect, [nc]]\n"


def model(text: str, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "count"), [("models", 25), ("overlays", 8), ("checkpoints", 40), ("studies", 10)]
)
def test_sample_ends_well(kind: str, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/fuzz.py", "--only", kind, "--count", str(count), "--seed", "7"],
        cwd=REPO, env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert f"{count} cases" in done.stdout and " 0 FAULT" in done.stdout


@pytest.mark.parametrize("fault", ["raise KeyError('x')", "while True: pass", "open(canary, 'w')",
                                   "import os; os.abort()", "bytearray(3 << 30)"])  # fmt: skip
def test_runner_sees_each_kind_of_fault(fault: str, tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, "scripts")
import fuzz, pathlib
fuzz.SECONDS = 2
canary = pathlib.Path({str(tmp_path / "canary")!r})
def action():
    exec({fault!r}, {{"canary": canary}})
print(fuzz.in_child(lambda: fuzz.judged(action, ours=True), canary).end)
"""
    assert python("-c", code, cwd=REPO).stdout.strip() == "FAULT"


def test_activation_is_not_evaluated(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    spec = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    path = model(f'nc: 2\nactivation: "{spec}"\nbackbone:\n{BLOCK}{HEAD}', tmp_path)
    with pytest.raises(YoloAttnError, match="activation=.*accepted: a module of torch.nn"):
        check(str(path))
    assert not canary.exists()


def test_ordinary_activations_stay(tmp_path: Path) -> None:
    for spec in ("nn.LeakyReLU(0.1)", "torch.nn.ReLU(inplace=True)", "nn.SiLU()"):
        check(str(model(f"nc: 2\nactivation: {spec}\nbackbone:\n{BLOCK}{HEAD}", tmp_path)))


@pytest.mark.parametrize("name", ["torch_safe_load", "LOGGER", "nn.functional", "contextlib"])
def test_rows_name_modules_only(name: str, tmp_path: Path) -> None:
    rows = f"{BLOCK}  - [-1, 1, {name}, []]\n"
    with pytest.raises(YoloAttnError, match=f"row 2: .*{name}"):
        check(str(model(f"nc: 2\nbackbone:\n{rows}{HEAD}", tmp_path)))


def test_a_row_without_channels_is_named(tmp_path: Path) -> None:
    rows = f"{BLOCK}  - [-1, 1, Conv, [false, 3, 2]]\n"
    with pytest.raises(YoloAttnError, match=r"row 2: gives an empty map \(1, 0, "):
        check(str(model(f"nc: 2\nbackbone:\n{rows}{HEAD}", tmp_path)))


def test_a_damaged_provenance_is_one_sentence(tmp_path: Path) -> None:
    note = "yolo_attn: {base: yolov8.yaml, rows: [0, -1, 1], labels: 7}\n"
    with pytest.raises(YoloAttnError, match="does not describe these 3 rows"):
        check(str(model(f"nc: 2\nbackbone:\n{BLOCK}{HEAD}{note}", tmp_path)))


def test_aliases_do_not_explode(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    path = model(f"{bomb}nc: 2\nbackbone:\n{BLOCK.replace('[]', '[*a11]')}{HEAD}", tmp_path)
    with pytest.raises(YoloAttnError, match="aliases"):
        check(str(path))


def test_endless_alias_is_refused() -> None:
    with pytest.raises(YoloAttnError, match="levels"):
        check_size(yaml.safe_load("a: &a [*a]"), "mine.yaml")


def test_repeats_have_an_end(tmp_path: Path) -> None:
    rows = BLOCK.replace("1, SE", "1000000, SE")
    with pytest.raises(YoloAttnError, match="row 1: SE has repeats=1000000"):
        check(str(model(f"nc: 2\nbackbone:\n{rows}{HEAD}", tmp_path)))


def test_first_forward_names_the_row(tmp_path: Path) -> None:
    from ultralytics import YOLO

    rows = f"{BLOCK}  - [-1, 1, Conv, [16, 3, 2]]\n  - [[1, 2], 1, Concat, [1]]\n"
    path = model(f"nc: 2\nbackbone:\n{rows}{HEAD}", tmp_path)
    with pytest.raises(YoloAttnError, match=r"mine.yaml row 3: .*Concat does not fit"):
        YOLO(str(path), verbose=False)


def test_messages_are_one_printable_line_of_bearable_length() -> None:
    text = str(YoloAttnError("a\nb\x1b[31m\x00" + "x" * 10_000 + " the way out"))
    assert text.isprintable() and len(text) <= LONGEST and text.endswith("the way out")


def test_expanded_model_of_scalars_alone_is_yaml(tmp_path: Path) -> None:
    from yolo_attn.overlay.dry_run import load_model_yaml
    from yolo_attn.zoo import config_names, to_yaml

    for name in config_names():
        d = load_model_yaml(name)
        assert yaml.safe_load(to_yaml(d, name))["backbone"] == d["backbone"]

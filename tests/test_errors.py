"""How a person gets to read an error."""

from __future__ import annotations

from pathlib import Path

from tests.processes import python, yolo

BAD = "base: yolov8.yaml\ninsert:\n  - [P5, 1, NonLocl, []]\n"


def test_the_stock_command_prints_one_line_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "yolov8-bad.yaml").write_text(BAD)
    done = yolo(
        "detect", "train", "model=yolov8n-bad.yaml", "data=smallshapes.yaml", cwd=tmp_path, ok=False
    )
    lines = [line for line in done.stderr.splitlines() if "yolo_attn" in line]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(lines) == 1 and "yolov8n-bad.yaml insert 1: unknown block 'NonLocl'" in lines[0]


def test_a_program_can_catch_it_and_a_developer_can_see_the_stack(tmp_path: Path) -> None:
    (tmp_path / "yolov8-bad.yaml").write_text(BAD)
    code = (
        "from ultralytics import YOLO\n"
        "try:\n    YOLO('yolov8n-bad.yaml')\nexcept ValueError as e:\n    print('caught', "
        "type(e).__name__)\n"
        "YOLO('yolov8n-bad.yaml')\n"
    )
    done = python("-c", code, cwd=tmp_path, ok=False)
    assert "caught YoloAttnError" in done.stdout and done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Traceback" in python("-c", code, cwd=tmp_path, ok=False, YOLO_ATTN_TRACEBACK="1").stderr

"""Blocks learn what stands far away in a network that Ultralytics has set up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from yolo_attn.registry import create

from .processes import python

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "scripts"))

from far_sign_tasks import (  # noqa: E402
    CELL,
    FAR,
    IGNORE,
    SIDE,
    TASKS,
    Network,
    draw,
    make_block,
    train,
)

WIDTH = 32
LEARNED = 0.9


def test_without_a_block_a_cell_sees_near_cells_only() -> None:
    network = Network(make_block("none", WIDTH), WIDTH, 2).eval()
    picture = torch.randn(1, 3, SIDE * CELL, SIDE * CELL, requires_grad=True)
    row, column = 3, 4
    network(picture)[..., row, column].sum().backward()
    seen = picture.grad.abs().amax((0, 1)).unflatten(0, (SIDE, CELL)).unflatten(2, (SIDE, CELL))
    rows, columns = seen.amax((1, 3)).nonzero().T
    assert (rows - row).abs().max() < FAR and (columns - column).abs().max() < FAR
    assert len(rows) > 1


@pytest.mark.parametrize("name", TASKS)
def test_what_a_cell_answers_stands_far_away(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    glyphs, targets, tints = TASKS[name].draw(g, 500)
    for i, (image, answers) in enumerate(zip(glyphs, targets)):
        asked = (answers != IGNORE).nonzero()[:, 0].tolist()
        assert len(asked) == (4 if name in ("sign", "band") else 2)
        for cell in asked:
            if name in ("sign", "band"):
                signs = ((image == 1) | (image == 2)).nonzero()[:, 0]
                if tints is not None:
                    signs = signs[tints[i, signs] == tints[i, cell]]
            else:
                signs = torch.tensor([other for other in asked if other != cell])
            assert len(signs) == 1
            there = int(signs[0])
            down, across = abs(there // SIDE - cell // SIDE), abs(there % SIDE - cell % SIDE)
            assert max(down, across) >= FAR
            sign = int(image[there])
            right = {"copy": sign - 4, "match": sign == image[cell]}.get(name, sign - 1)
            assert answers[cell] == right


@pytest.mark.parametrize("name", TASKS)
def test_the_answers_are_balanced(name: str) -> None:
    _, targets = draw(TASKS[name], torch.Generator().manual_seed(0), 3000)
    shares = torch.bincount(targets[targets != IGNORE]) / (targets != IGNORE).sum()
    assert shares.tolist() == pytest.approx([TASKS[name].chance] * TASKS[name].classes, abs=0.03)


def test_non_local_learns_a_far_sign_with_the_host_s_sgd() -> None:
    assert train("NonLocal", "sign", "SGD", 0, WIDTH)["accuracy"] > LEARNED


def test_the_paper_s_start_with_the_host_s_eps_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 0.1.0 had: were it to learn the task, the test above would show nothing."""

    def as_before(name: str, width: int) -> torch.nn.Module:
        block = create(name, width, init_std=0.01)
        block.norm.eps, block.norm.momentum = 1e-3, 0.03
        return block

    monkeypatch.setattr("far_sign_tasks.make_block", as_before)
    assert train("NonLocal", "sign", "SGD", 0, WIDTH)["accuracy"] < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    ("mode", "task"),
    [
        ("embedded_gaussian", "sign"),
        ("embedded_gaussian", "band"),
        ("dot_product", "sign"),
        ("concatenation", "sign"),
    ],
)
def test_non_local_learns(mode: str, optimizer: str, task: str) -> None:
    known = [
        train(f"NonLocal:{mode}", task, optimizer, seed, WIDTH)["accuracy"] > LEARNED
        for seed in range(3)
    ]
    assert sum(known) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("task", TASKS)
def test_the_control_learns_nothing(task: str, optimizer: str) -> None:
    assert train("none", task, optimizer, 0, WIDTH)["accuracy"] < TASKS[task].chance + 0.15


@pytest.mark.slow
def test_script_goes_on_where_its_results_end(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    words = ["scripts/far_sign.py", "--blocks", "none", "SE", "--tasks", "sign", "--steps", "2"]
    words += ["--json", str(kept), "--optimizers", "SGD"]
    python(*words, "--seeds", "1", cwd=REPO)
    first = json.loads(kept.read_text())["records"]
    done = python(*words, "--seeds", "2", cwd=REPO)
    records = json.loads(kept.read_text())["records"]
    assert records[:2] == first and len(records) == 4
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[2:4]] == ["| none", "| SE"]
    assert done.stdout.count(" of 2 (") == 2
    other = python(*words, "--width", "16", cwd=REPO, ok=False)
    assert other.returncode and other.stderr.count("\n") == 1 and "kept.json" in other.stderr

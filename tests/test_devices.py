"""One parser for Ultralytics' device words, and what a study does with them."""

from __future__ import annotations

import inspect

import pytest
import torch

from yolo_attn import devices
from yolo_attn.ablation import costs
from yolo_attn.devices import Devices, check, parse, torch_device
from yolo_attn.errors import YoloAttnError

WORDS = {
    None: ("auto", ()),
    "": ("auto", ()),
    "None": ("auto", ()),
    "cpu": ("cpu", ()),
    torch.device("cpu"): ("cpu", ()),
    0: ("cuda", ("0",)),
    "0": ("cuda", ("0",)),
    "00": ("cuda", ("0",)),
    "cuda": ("cuda", ("0",)),
    "cuda:1": ("cuda", ("1",)),
    torch.device("cuda:1"): ("cuda", ("1",)),
    "0,1": ("cuda", ("0", "1")),
    "0, 1,": ("cuda", ("0", "1")),
    (0, 1): ("cuda", ("0", "1")),
    "[0, 1]": ("cuda", ("0", "1")),
    "cuda:0,cuda:1": ("cuda", ("0", "1")),
    "cuda:0,1": ("cuda", ("0", "1")),
    -1: ("cuda", ("-1",)),
    "-1,-1": ("cuda", ("-1", "-1")),
    "mps": ("mps", ()),
    "MPS": ("mps", ()),
    "npu": ("npu", ("0",)),
    "xpu:0,1": ("xpu", ("0", "1")),
    "intel:gpu": ("intel:gpu", ()),
}


@pytest.mark.parametrize("word", WORDS, ids=str)
def test_every_word_is_read(word: object) -> None:
    found = parse(word)
    assert (found.kind, found.numbers) == WORDS[word]
    assert parse(found.word) == found, "its own word says the same"
    assert torch_device(word)


def test_a_list_is_read() -> None:
    assert parse([0, 1]).word == "0,1"


@pytest.mark.parametrize(
    "word", ["gpu", "cuda:x", "cuda0", "0;1", "-2", "1.5", True, "0,0", "npu:-1"]
)
def test_what_is_no_device_is_said_in_one_line(word: object) -> None:
    with pytest.raises(YoloAttnError, match="device=") as error:
        parse(word)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_this_machine_lacks_is_refused_before_anything_runs(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for word in ("cpu", None, -1, *range(count)):
        check(word)
    with pytest.raises(YoloAttnError, match=f"device={count}: torch sees {count} CUDA"):
        check(count)
    assert torch_device("1,0") == "cuda:1"
    assert torch_device(-1) == torch_device(None) == ("cuda:0" if count else "cpu")


def test_a_physical_number_is_taken_as_ultralytics_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert check("3") == Devices("cuda", ("3",))


def test_latency_takes_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(costs, "_network", lambda file, place: asked.append(str(place)) or _still)
    monkeypatch.setattr(torch, "device", lambda word: asked.append(word) or torch.zeros(1).device)
    for word in ("0,1", [0, 1], "cuda:0", "mps", "-1", "cpu"):
        costs.measure({}, 32, word)
    first = torch_device("-1")
    assert asked == ["cuda:0", "cuda:0", "cuda:0", "mps", first, "cpu"]


def _still(image: torch.Tensor) -> torch.Tensor:
    return image


def test_nobody_reads_device_words_by_himself() -> None:
    assert "cuda:{" not in inspect.getsource(costs)
    assert devices.ACCEPTED

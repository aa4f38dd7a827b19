"""CBAM and its two gates alone: one code, the tensor names of CBAM's checkpoints."""

from __future__ import annotations

import pytest
import torch

from tests.golden_harness import Golden, load
from tests.golden_table import TABLE
from tests.test_revcol import GOLDEN
from yolo_attn import create
from yolo_attn.errors import YoloAttnError


def lively(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    block = create(name, 16, **options)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(torch.randn_like(p))
    return block.eval()


def part_of(block: torch.nn.Module, name: str, **options) -> torch.nn.Module:
    """The gate `name` with the tensors that it has in `block`, which must be all of its own."""
    gate = create(name, 16, **options).eval()
    state = block.state_dict()
    gate.load_state_dict({key: state[key] for key in gate.state_dict()})
    return gate


@pytest.mark.parametrize("norm", ["none", "bn"])
def test_cbam_is_its_channel_gate_and_then_its_position_gate(norm: str) -> None:
    block = lively("CBAM", norm=norm, kernel_size=5, pools=["avg", "lse"], rd_channels=4)
    channels = part_of(block, "ChannelGate", rd_channels=4, pools=["avg", "lse"])
    positions = part_of(block, "SpatialGate", norm=norm, kernel_size=5)
    x = torch.randn(2, 16, 9, 7)
    torch.testing.assert_close(block(x), positions(channels(x)))
    torch.testing.assert_close(block.channel_weights(x), channels.channel_weights(x))
    queries = torch.tensor([[0, 0], [3, 4]])
    torch.testing.assert_close(
        block.attention(x, queries), positions.attention(channels(x), queries)
    )
    assert {**channels.state_dict(), **positions.state_dict()}.keys() == block.state_dict().keys()


def test_the_tensors_of_cbam_keep_the_names_that_its_checkpoints_have() -> None:
    assert list(create("CBAM", 16).state_dict()) == [
        "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "conv.weight", "conv.bias",
    ]  # fmt: skip
    named = dict(create("CBAM", 16, norm="bn").named_parameters())
    assert {"conv.weight", "norm.weight", "norm.bias"} < named.keys()


def test_the_gates_of_the_authors_network() -> None:
    """One gate after the other gives what the golden network gives."""
    golden = Golden(GOLDEN / "cbam_jongchan.base.npz")
    case = TABLE["cbam_jongchan"]
    block = load(case.build(golden.config, golden), case, golden, torch.float64).eval()
    c = golden.arrays["x"].shape[1]
    state = block.state_dict()
    gates = [
        create("ChannelGate", c, rd_channels=len(state["fc1.bias"])).double(),
        create("SpatialGate", c, norm="bn").double(),
    ]
    y = torch.from_numpy(golden.arrays["x"]).double()
    for gate in gates:
        gate.load_state_dict({key: state[key] for key in gate.state_dict()})
        y = gate.eval()(y)
    torch.testing.assert_close(
        y, torch.from_numpy(golden.arrays["y_eval"]).double(), rtol=1e-9, atol=1e-12
    )


def test_errors_name_the_gate() -> None:
    with pytest.raises(YoloAttnError, match="SpatialGate: kernel_size=4"):
        create("SpatialGate", 16, kernel_size=4)
    with pytest.raises(YoloAttnError, match="ChannelGate: pools="):
        create("ChannelGate", 16, pools=[])
    with pytest.raises(YoloAttnError, match="ChannelGate: pools='mean'"):
        create("ChannelGate", 16, pools=["mean"])

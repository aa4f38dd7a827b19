"""Reversible columns: gradients of ordinary autograd, memory of one column, supervision."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.golden_harness import Golden, assert_close, load
from tests.golden_table.revcol import CASES, Loss
from yolo_attn import create
from yolo_attn.blocks._revcol_supervision import supervised_columns
from yolo_attn.errors import YoloAttnError

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"widths": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}


def network(columns: int = 4, dtype: torch.dtype = torch.float64, **options) -> nn.Module:
    """Small columns with weights that make every path count."""
    torch.manual_seed(0)
    net = create("RevColumns", 3, columns=columns, **SMALL, **options)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.mul_(5)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return net.to(dtype)


def gradients(
    net: nn.Module, reversible: bool, x: Tensor, also_x: bool = True
) -> dict[str, Tensor]:
    """Outputs and all gradients of a fixed random projection of the outputs."""
    net.reversible = reversible
    net.zero_grad()
    x = x.clone().requires_grad_(also_x)
    torch.manual_seed(1)
    ys = net(x)
    torch.manual_seed(2)
    sum((y * torch.randn_like(y)).sum() for y in ys).backward()
    found = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    return {
        **{f"y{i}": y.detach() for i, y in enumerate(ys)},
        **found,
        **({"x": x.grad} if also_x else {}),
    }


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], relative: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        error = (a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-6)
        assert error <= relative, f"{name}: off by {error:.2g}"


@pytest.mark.parametrize("columns", [1, 2, 5, 8])
def test_gradients_equal_those_of_autograd(columns: int) -> None:
    net = network(columns, drop_path=0.5).train()
    x = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    assert_same(gradients(net, False, x), gradients(net, True, x), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_factors_do_not_spoil_gradients(dtype: torch.dtype) -> None:
    """Where rebuilding loses precision, the step is computed again and later ones keep copies."""
    net = network(8, dtype).train()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "alphas" in name:
                p.fill_(1e-4)
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    plain = gradients(net, False, x)
    tolerance = 1e-9 if dtype is torch.float64 else 1e-4
    with pytest.warns(RuntimeWarning, match="rebuilt maps were off"):
        assert_same(plain, gradients(net, True, x), tolerance)
    for _ in range(3):  # 7 columns in a row, then 3, then 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(plain, gradients(net, True, x), tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(plain, gradients(net, True, x), tolerance)


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {p.data_ptr() for p in net.parameters()}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in own:
            seen[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ys = net(x)
    for t in getattr(ys[0].grad_fn, "states", ()):
        pack(t)
    return sum(seen.values())


def test_saved_activations_do_not_grow_with_the_number_of_columns() -> None:
    x = torch.randn(1, 3, 64, 64)
    two, eight = (saved_bytes(network(t, torch.float32), x) for t in (2, 8))
    assert eight == two
    plain = [saved_bytes(network(t, torch.float32, reversible=False), x) for t in (2, 8)]
    assert plain[1] > 3 * plain[0] and two < plain[0]


def test_a_graph_may_be_used_twice() -> None:
    net = network(4)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    loss = sum((y**2).sum() for y in net(x))
    params = list(net.parameters())
    first, second = (torch.autograd.grad(loss, params, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_frozen_parts() -> None:
    """A frozen stem must not stop the columns from learning, nor a frozen column the stem."""
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    net = network()
    net.stem.requires_grad_(False)
    assert_same(gradients(net, False, x, False), gradients(net, True, x, False), 1e-9)
    net = network()
    net.columns[2].requires_grad_(False)
    net.columns[1].alphas.requires_grad_(False)
    assert_same(gradients(net, False, x), gradients(net, True, x), 1e-9)


def test_functional_and_second_derivatives() -> None:
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    found = []
    for reversible in (False, True):
        net = network(3, reversible=reversible)
        params = [p for p in net.parameters()]
        torch.manual_seed(3)
        loss = sum((y * torch.randn_like(y)).sum() for y in net(x))
        first = torch.autograd.grad(loss, params, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), params)
        named = {n: p.detach() for n, p in net.named_parameters()}

        def objective(named, net=net):
            return sum((y**2).sum() for y in torch.func.functional_call(net, named, (x,)))

        functional = torch.func.grad(objective)(named)
        found.append(
            {
                **{f"first {i}": g.detach() for i, g in enumerate(first)},
                **{f"second {i}": g for i, g in enumerate(second)},
                **functional,
            }
        )
    assert_same(*found, 1e-9)


def test_swapped_parameters_are_those_of_the_backward_pass() -> None:
    net = network(3)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    other = {n: (p.detach() * 1.1).requires_grad_() for n, p in net.named_parameters()}
    found = []
    for reversible in (False, True):
        net.reversible = reversible
        loss = sum((y**2).sum() for y in torch.func.functional_call(net, other, (x,)))
        found.append(dict(zip(other, torch.autograd.grad(loss, list(other.values())))))
    assert_same(*found, 1e-9)


def test_autocast_is_replayed() -> None:
    """In bfloat16 rebuilt columns are as near to the truth as plain ones."""
    net = network(4, torch.float32).train()
    x = torch.randn(2, 3, 64, 64)
    true = gradients(copy.deepcopy(net).double(), False, x.double())
    errors = []
    for reversible in (False, True):
        net.reversible = reversible
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ys = net(x)
        torch.manual_seed(2)
        # Backward runs outside autocast, as in training loops.
        sum((y * torch.randn(y.shape, dtype=torch.float64)).sum() for y in ys).backward()
        named = [(n, p.grad) for n, p in net.named_parameters() if p.grad is not None]
        errors.append(torch.stack([(g - true[n]).norm() / true[n].norm() for n, g in named]))
    assert errors[0].mean() > 1e-3, "autocast was not on"
    assert errors[1].mean() < 1.2 * errors[0].mean()


def test_tracing_and_compiling_run_the_plain_form() -> None:
    net = network(3, torch.float32)
    x = torch.randn(1, 3, 64, 64)
    expected = net(x)
    traced = torch.jit.trace(net, x, check_trace=False)
    compiled = torch.compile(net, backend="eager")
    for other in (traced(x), compiled(x)):
        for a, b in zip(other, expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    sum(y.sum() for y in compiled(x)).backward()
    assert net.stem[0].weight.grad is not None


def test_data_parallel_training(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    net = network(3)
    alone = gradients(net, True, x, False)
    net.zero_grad()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(net)
        ys = parallel(x)
        torch.manual_seed(2)
        sum((y * torch.randn_like(y)).sum() for y in ys).backward()
    finally:
        torch.distributed.destroy_process_group()
    together = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    assert_same({n: alone[n] for n in together}, together, 1e-12)
    assert together.keys() == dict(net.named_parameters()).keys()


def test_reversible_gradients_of_the_golden_network() -> None:
    golden = Golden(GOLDEN / "revcol_full.cols4_sup.npz")
    case = CASES["revcol_full"]
    net = load(case.build(golden.config, golden), case, golden, torch.float64)
    x = torch.from_numpy(golden.arrays["x"]).double().requires_grad_()
    loss = Loss({**golden.config["args"], **golden.config["loss"]}, golden)(net(x))
    loss.backward()
    assert_close(loss, golden.arrays["loss"], torch.float64, "compound loss")
    for key in ("gx_loss_eval", "gx_loss_rev"):
        assert_close(x.grad, golden.arrays[key], torch.float64, key)


@pytest.mark.parametrize(
    ("columns", "expected"), [(1, ()), (2, (0,)), (3, (0, 1)), (4, (0, 1, 2)), (8, (1, 3, 5))]
)
def test_which_columns_are_supervised(columns: int, expected: tuple[int, ...]) -> None:
    assert supervised_columns(columns) == expected


def batch(size: tuple[int, int] = (64, 96)) -> dict[str, Tensor]:
    return {
        "img": torch.rand(2, 3, *size),
        "batch_idx": torch.tensor([0.0, 0.0, 1.0]),
        "cls": torch.tensor([[1.0], [0.0], [2.0]]),
        "bboxes": torch.tensor(
            [[0.1, 0.1, 0.05, 0.05], [0.9, 0.6, 0.1, 0.1], [1.0, 1.0, 0.1, 0.1]]
        ),
    }


@pytest.mark.parametrize("size", [(64, 96), (50, 90)], ids=str)
@pytest.mark.parametrize("kind", ["objectness", "classification"])
def test_supervision_is_a_loss_that_training_lowers(kind: str, size: tuple[int, int]) -> None:
    net = network(4, torch.float32, supervision=kind, num_classes=3).train()
    data = batch(size)
    assert net.aux_loss(data) is None  # nothing has run yet
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        ys = net(data["img"])
        copy.deepcopy(net)
        loss = net.aux_loss(data)
        optimizer.zero_grad()
        (loss + 0 * sum(y.sum() for y in ys)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # Three reconstructions of weights 3, 2, 1 and three terms of 0.175, 0.35, 0.525.
    assert 0.5 < losses[0] / ((3 + 2 + 1 + 1.05) * 0.7) < 2


def test_cells_that_hold_a_box_centre() -> None:
    net = network(4, torch.float32, supervision="objectness")
    target = net.supervision._target(batch(), torch.zeros(2, 2, 3, 1))[..., 0]
    expected = torch.tensor([[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 1]]]).float()
    assert torch.equal(target, expected)


def test_supervision_says_what_it_needs() -> None:
    net = network(4, torch.float32, supervision="objectness")
    data = batch()
    net(torch.rand(2, 3, 32, 32))
    with pytest.raises(YoloAttnError, match="reading the image itself"):
        net.aux_loss(data)
    net(data["img"])
    with pytest.raises(YoloAttnError, match="'bboxes'"):
        net.aux_loss({"img": data["img"], "cls": data["cls"], "batch_idx": data["batch_idx"]})
    with pytest.raises(YoloAttnError, match="num_classes=None"):
        network(4, supervision="classification")


def test_attention_fusion_starts_as_plain_fusion() -> None:
    torch.manual_seed(0)
    channels = [24, 16, 40]
    plain, attn = create("RevColFusion", channels), create("RevColAttnFusion", channels)
    attn.load_state_dict(plain.state_dict(), strict=False)
    sizes = ((8, 10), (16, 20), (4, 5))
    xs = [torch.randn(2, c, *size) for c, size in zip(channels, sizes)]
    torch.testing.assert_close(attn(xs), plain(xs))
    torch.testing.assert_close(attn.level_weights(xs), torch.ones(2, 3, 8, 10))
    nn.init.normal_(attn.score.weight)
    weights = attn.level_weights(xs)
    torch.testing.assert_close(weights.sum(1), torch.full((2, 8, 10), 3.0))
    assert not torch.allclose(attn(xs), plain(xs))


def test_fusions_finest_first_make_one_column() -> None:
    """Blocks at every level compute what a column without its blocks does."""
    from yolo_attn.blocks._revcol_parts import Column
    from yolo_attn.ops.reversible import step

    torch.manual_seed(0)
    widths = [8, 12, 16]
    column = Column(widths, [0, 0, 0])
    units = [
        create("RevColFusion", [8, 12]),
        create("RevColFusion", [12, 8, 16]),
        create("RevColFusion", [16, 12], levels=[2]),
    ]
    for i, unit in enumerate(units):
        fusion = column.levels[i].fusion
        ours = [m for m in (fusion.down, fusion.up) if m is not None]
        for mine, theirs in zip(unit.bring, ours):
            mine.load_state_dict(theirs.state_dict())
    p = [torch.randn(1, c, s, s) for c, s in zip(widths, (8, 4, 2))]
    # A column's finest level also reads the stem.
    expected = step(column, torch.zeros(1, 8, 8, 8), p, 0.05, None)
    c0 = units[0]([p[0], p[1]])
    c1 = units[1]([p[1], c0, p[2]])
    c2 = units[2]([p[2], c1])
    for a, b in zip((c0, c1, c2), expected):
        torch.testing.assert_close(a, b)


def test_sizes_that_do_not_fit_are_named() -> None:
    block = create("RevColFusion", [8, 8])
    with pytest.raises(YoloAttnError, match="input 2 is 8 x 8, the first 8 x 8"):
        block([torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8)])
    with pytest.raises(YoloAttnError, match="levels"):
        create("RevColFusion", [8, 8], levels=[3])

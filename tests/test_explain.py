from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import yolo_attn
from tests.explain_model import image_folder, image_of, looking_model
from yolo_attn.errors import YoloAttnError
from yolo_attn.explain import hooks, query_maps
from yolo_attn.explain.independence import mean_distance, query_independence

pytest.importorskip("matplotlib")

SIZES = [(320, 320), (300, 190), (131, 257), (64, 501), (640, 33)]


class Pointer(nn.Module):
    """A made-up block: every query looks at one known cell of the key grid."""

    def __init__(self, channels, key=(0, 0), grid=None):
        super().__init__()
        self.key, self.grid, self.asked = key, grid, None

    def forward(self, x):
        return x

    def attention(self, x, queries):
        first = x[0] if isinstance(x, list) else x
        self.asked = queries
        rows = first.new_zeros(1, len(queries), *(self.grid or first.shape[2:]))
        rows[..., self.key[0], self.key[1]] = 1
        return rows


def layer_of(block, inputs, name="5 Pointer"):
    info = yolo_attn.registry.BlockInfo("Pointer", type(block))
    return hooks.Layer(name, block, info, inputs, None)


@pytest.mark.parametrize("width,height", SIZES)
@pytest.mark.parametrize("stride", [4, 8, 32])
def test_affinity_to_a_known_pixel_lights_that_pixel_of_the_image(width, height, stride):
    x, view = hooks.letterbox(image_of(width, height), 320)
    grid = x.shape[2] // stride, x.shape[3] // stride
    for column, row in [(0, 0), (width - 1, height - 1), (7 * width // 10, 3 * height // 10)]:
        target = [column + 0.5, row + 0.5]
        key = query_maps.query_cells(np.array([target]), view, grid)[0]
        layer = layer_of(Pointer(3, tuple(key)), torch.zeros(1, 3, *grid))
        (look,), _ = query_maps.look_at(layer, view, np.array([target]))
        seen = query_maps.to_image(look.values[0], look.extent, view.size)
        assert seen.shape == (height, width) and not np.isnan(seen).any()
        assert seen[row, column] == 1
        # ... and only that cell: nothing lights further away than one cell.
        rows, columns = np.nonzero(seen)
        cell = np.array(stride) / view.scale
        assert np.abs(columns - column).max() <= cell[0] + 1
        assert np.abs(rows - row).max() <= cell[1] + 1


@pytest.mark.parametrize("width,height", SIZES)
def test_letterbox_knows_where_ultralytics_put_each_pixel(width, height):
    # A bright rectangle in an otherwise dark image is found where the geometry says.
    image = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = width // 4, height // 4, width - width // 4, height - height // 4
    image[top:bottom, left:right] = 255
    x, view = hooks.letterbox(image, 320)
    assert (x.shape[3], x.shape[2]) == view.input_size
    bright = x[0, 0] > 0.75
    rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
    found = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
    expected = view.to_input([[left, top], [right, bottom]])
    assert np.abs(np.array(found, float) - expected).max() <= max(1.0, *view.scale)
    corners = view.to_input([[0, 0], [width, height]])
    inside = torch.zeros(x.shape[2:], dtype=torch.bool)
    (x1, y1), (x2, y2) = corners.round().astype(int)
    inside[y1:y2, x1:x2] = True
    assert torch.allclose(x[0, 0][~inside], torch.tensor(114 / 255))
    assert np.allclose(view.to_image(corners), [[0, 0], [width, height]])


def test_queries_are_on_the_first_inputs_grid_and_keys_on_their_own():
    _, view = hooks.letterbox(image_of(320, 320), 320)
    block = Pointer([3, 3], (1, 4), grid=(5, 5))
    maps = [torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 5, 5)]
    (look,), _ = query_maps.look_at(layer_of(block, maps), view, np.array([[319.0, 100.0]]))
    assert look.grid == (40, 40) and look.cells.tolist() == [[12, 39]]
    assert block.asked[0].tolist() == [12, 39]
    seen = query_maps.to_image(look.values[0], look.extent, view.size)
    assert seen[64:128, 256:320].all() and seen.sum() == 64 * 64


def test_keys_pooled_from_an_odd_side_leave_the_last_cells_out():
    # Max pooling turns 5 cells of 32 px into 2 of 64 px; the last 32 px have no key.
    _, view = hooks.letterbox(image_of(160, 160), 160)
    assert query_maps.extent(view, (5, 5), (2, 2)) == (0.0, 128.0, 128.0, 0.0)
    # Averaging with a border keeps the whole side: 5 become 3.
    assert query_maps.extent(view, (5, 5), (3, 3)) == (0.0, 160.0, 160.0, 0.0)


def test_query_outside_of_the_image_is_refused():
    _, view = hooks.letterbox(image_of(100, 50), 320)
    for point in ([100, 10], [-1, 10], [10, 50], [float("nan"), 1]):
        with pytest.raises(YoloAttnError, match="100 wide and 50 high"):
            query_maps.check_points([point], view)


def built(name, **options):
    torch.manual_seed(0)
    info = yolo_attn.block_info(name)
    widths = {1: 32, 2: [32, 48], 3: [32, 48, 64]}
    inputs = 3 if len(info.levels) == 3 else info.min_inputs
    block = info.cls(widths[inputs] if info.takes_list else 32, **options).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.abs().max() < 1e-9:
                parameter.fill_(0.3)  # gammas and last layers that start at zero
    size = 12
    maps = []
    for i in range(inputs):
        factor = 1 if i == 0 else info.levels[min(i, len(info.levels) - 1)] if info.levels else 1
        width = widths[inputs][i] if inputs > 1 else 32
        maps.append(torch.randn(1, width, int(size * factor), int(size * factor)))
    x = maps if info.takes_list else maps[0]
    if name == "RevColumns":
        x = torch.randn(1, 32, 96, 96)
    return block, x


def run_layer(name, **options):
    block, x = built(name, **options)
    layer = hooks.Layer(f"0 {name}", block, yolo_attn.block_info(name))
    with hooks.catching([layer]), torch.no_grad():
        block(x)
    return layer


SOFTMAX_BLOCKS = [
    ("NonLocal", {}),
    ("NonLocal", {"mode": "gaussian", "sub_sample": "after"}),
    ("SimplifiedNonLocal", {}),
    ("GlobalContext", {}),
    ("ContextAggregation", {}),
    ("PositionAttention", {}),
    ("DANet", {}),
    ("CrissCross", {}),
    ("CrissCross", {"recurrence": 1}),
    ("APNB", {}),
    ("AFNB", {}),
    ("DoubleAttention", {}),
    ("EMAU", {}),
    ("BiFormer", {}),
    ("FPTSelf", {}),
    ("FPTGround", {}),
]


@pytest.mark.parametrize("name,options", SOFTMAX_BLOCKS)
def test_rows_sum_to_one_where_they_are_a_softmax(name, options):
    layer = run_layer(name, **options)
    cells = np.array([[0, 0], [5, 7], [11, 11]])
    with torch.no_grad():
        rows, _ = query_maps.attention_rows(layer, cells)
    assert rows.shape[0] == 3
    assert torch.allclose(rows.flatten(1).sum(1), torch.ones(3), atol=1e-4)


def all_rows(layer):
    h, w = layer.first.shape[2:]
    cells = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    return query_maps.attention_rows(layer, cells)[0].flatten(1)


def values_times_rows(layer):
    """The block's output, put together from its maps."""
    block, x = layer.block, layer.inputs
    rows = all_rows(layer)  # (N, M)
    name = layer.info.name

    def read(values):
        return (rows @ values.flatten(2)[0].T).T.reshape(1, -1, *layer.first.shape[2:])

    if name == "NonLocal":
        return x + block.norm(block.out(read(block._after(block.g(x)))))
    if name == "PositionAttention":
        return x + block.scale_of_branch() * read(block.value(x))
    if name == "CrissCross":
        return x + block.scale_of_branch() * read(block.value(x))
    if name == "GlobalContext":
        context = read(x)[:, :, :1, :1]
        return x + block.add(context)
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name,options",
    [
        ("NonLocal", {}),
        ("NonLocal", {"mode": "gaussian"}),
        ("NonLocal", {"mode": "dot_product"}),
        ("NonLocal", {"mode": "concatenation"}),
        ("NonLocal", {"sub_sample": "after"}),
        ("PositionAttention", {}),
        ("CrissCross", {"recurrence": 1}),
        ("GlobalContext", {}),
    ],
)
def test_rows_times_values_are_the_blocks_output(name, options):
    layer = run_layer(name, **options)
    with torch.no_grad():
        assert torch.allclose(values_times_rows(layer), layer.output, atol=2e-4, rtol=1e-3)


def test_effective_map_of_two_criss_cross_passes_reaches_every_position():
    once, twice = (run_layer("CrissCross", recurrence=n) for n in (1, 2))
    with torch.no_grad():
        first = all_rows(once)
        both = all_rows(twice)
        # A_2 A_1: the second pass asks with what the first one wrote.
        x1 = once.output
        second = hooks.Layer("0 CrissCross", once.block, once.info, x1, None)
        assert torch.allclose(all_rows(second) @ first, both, atol=1e-5)
    assert (first > 0).sum(1).unique().tolist() == [12 + 12 - 1]
    assert (both > 0).all()


@pytest.mark.parametrize("name", yolo_attn.list_blocks())
def test_every_block_draws_or_says_why_not(name, tmp_path):
    from yolo_attn.explain.pictures import draw_gates, draw_query

    layer = run_layer(name)
    image = image_of(300, 200)
    _, view = hooks.letterbox(image, 96)
    points = np.array([[20.0, 30.0], [280.0, 150.0]])
    looks, reason = query_maps.look_at(layer, view, points)
    result = query_maps.ImageLooks(view, points, looks, {layer.name: reason} if reason else {})
    drawn = [
        draw_query(tmp_path / "query.png", result, image, 0, name),
        draw_gates(tmp_path / "gates.png", result, image, name),
    ]
    assert any(drawn) == bool(looks)
    assert len(list(tmp_path.iterdir())) == sum(drawn)
    assert looks or (name in reason and "\n" not in reason)
    for look in looks:
        assert np.isfinite(look.values).all()
    query_maps.save_looks(tmp_path / "values.npz", result)
    with np.load(tmp_path / "values.npz") as saved:
        assert len([k for k in saved if k.endswith("/values")]) == len(looks)
        assert saved["queries"].tolist() == points.tolist()


def test_blocks_without_a_map_are_the_known_ones():
    without = []
    for name in yolo_attn.list_blocks():
        _, view = hooks.letterbox(image_of(96, 96), 96)
        looks, _ = query_maps.look_at(run_layer(name), view, np.array([[1.0, 1.0]]))
        if not looks:
            without.append(name)
    assert without == ["MDCR", "RevColFusion", "RevColumns"]


def test_an_option_without_a_map_is_said_in_one_line():
    layer = run_layer("GlobalContext", pooling="avg")
    _, view = hooks.letterbox(image_of(96, 96), 96)
    looks, reason = query_maps.look_at(layer, view, np.array([[1.0, 1.0]]))
    assert not looks and "pooling='avg' has no attention map" in reason


def test_one_map_for_all_queries_is_recognised_even_with_one_query():
    _, view = hooks.letterbox(image_of(96, 96), 96)
    for name, shared in [("GlobalContext", True), ("NonLocal", False), ("CBAM", True)]:
        looks, _ = query_maps.look_at(run_layer(name), view, np.array([[1.0, 1.0]]))
        assert looks[0].shared is shared, name


def test_weight_on_the_border_is_counted():
    _, view = hooks.letterbox(image_of(320, 160), 320)  # no border: 320 x 160
    place = query_maps.extent(view, (5, 10), (5, 10))
    assert query_maps.weight_inside(np.ones((5, 10)), place, view.size) == pytest.approx(1)
    _, view = hooks.letterbox(image_of(320, 144), 320)  # 8 px above and below
    place = query_maps.extent(view, (5, 10), (5, 10))
    assert query_maps.weight_inside(np.ones((5, 10)), place, view.size) == pytest.approx(0.9)


# Query independence


def test_mean_distance_of_known_rows():
    same = np.tile(np.random.default_rng(0).random(50), (7, 1))
    assert mean_distance(same) == 0.0
    assert mean_distance(np.eye(5)) == pytest.approx(1)
    assert mean_distance(np.array([[1.0, 0], [1, 1]])) == pytest.approx(1 - 0.5**0.5)
    assert mean_distance(np.eye(5) * [[1], [9], [3], [2], [7]]) == pytest.approx(1)


@pytest.fixture(scope="module")
def model():
    return looking_model()


@pytest.fixture
def files(tmp_path):
    return image_folder(tmp_path / "images")


def test_independence_is_zero_for_global_context_and_not_for_criss_cross(model, files):
    images = hooks.find_images([files])
    found, silent = query_independence(model, images, imgsz=96)
    by_name = {f.layer.split()[1]: f for f in found}
    assert by_name["GlobalContext"].mean == 0.0 and by_name["GlobalContext"].shared
    assert by_name["CrissCross"].mean > 0.01 and not by_name["CrissCross"].shared
    assert len(by_name["NonLocal"].distances) == 2
    assert silent == {"5 SE": "SE has no attention maps", "6 MDCR": "MDCR has no attention maps"}


# Class-activation maps


def test_class_activation_without_its_package_names_it(monkeypatch, model):
    from yolo_attn.explain.cam import class_activation

    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(YoloAttnError, match="pip install"):
        class_activation(model, image_of(64, 64))

"""Rows are paired by what they are and how they are wired."""

from __future__ import annotations

from yolo_attn.transfer.row_alignment import LayerRow, Rows, align, head_levels, of_a_kind


def rows(*layers: tuple[str, tuple[int, ...]]) -> Rows:
    """Rows of (module, sources); equal modules have equal tensors, X is a block of ours."""
    shapes = {"A": (3, 3), "B": (3, 4), "C": (4, 4), "Head": (9,), "X": (5,)}
    return Rows(
        [LayerRow(m, {"w": shapes[m]}, {"w": 1}, sources, ours=m == "X") for m, sources in layers]
    )


def test_identical_rows_are_told_apart_by_their_wiring() -> None:
    base = rows(("A", (-1,)), ("B", (0,)), ("C", (1,)), ("Head", (2,)))
    # X refines one B with another, a twin that stands before or behind it.
    twin_first = rows(
        ("A", (-1,)), ("B", (0,)), ("B", (0,)), ("X", (2, 1)), ("C", (3,)), ("Head", (4,))
    )
    twin_second = rows(
        ("A", (-1,)), ("B", (0,)), ("B", (0,)), ("X", (1, 2)), ("C", (3,)), ("Head", (4,))
    )
    assert align(base, twin_first).source_of == {0: 0, 2: 1, 4: 2, 5: 3}
    assert align(base, twin_second).source_of == {0: 0, 1: 1, 4: 2, 5: 3}
    assert align(twin_first, base).source_of == {0: 0, 1: 2, 2: 4, 3: 5}


def row(
    module: str, *kinds: str, after: int, ours: bool = False, **shapes: tuple[int, ...]
) -> LayerRow:
    return LayerRow(
        module, shapes, dict.fromkeys(shapes, 1), (after,), ours, frozenset({module, *kinds})
    )


def test_variants_of_one_layer_are_of_a_kind() -> None:
    base = row("C2f", after=-1)
    one, other = row("Mine", "C2f", after=-1), row("Theirs", "C2f", after=-1)
    assert of_a_kind(one, base) and of_a_kind(base, one) and of_a_kind(one, other)
    assert not of_a_kind(one, row("C3", after=-1))


def test_a_row_in_another_s_place_keeps_what_is_equal_and_a_block_keeps_its_own() -> None:
    first, last = row("A", after=-1, w=(3, 3)), row("Head", after=1, w=(9,))
    base = Rows([first, row("B", after=0, w=(4,), v=(2,)), last])
    # Of equal names and shapes in part: another module, at the place of B.
    other = Rows([first, row("C", after=0, w=(4,), v=(5,)), row("X", after=1, ours=True), last])
    assert align(base, other).source_of == {0: 0, 1: 1, 3: 2}
    # A block of ours that was put in beside it is not B, whatever its tensors are called.
    block = row("X", after=1, ours=True, w=(4,), v=(2,))
    assert align(base, Rows([first, row("C", after=0), block, last])).source_of == {0: 0, 3: 2}


def test_twins_are_told_apart_by_the_rows_that_they_read() -> None:
    twin = {"w": (3, 3)}
    base = Rows(
        [row("A", after=-1, w=(1,)), row("T", after=0, **twin), row("T", after=1, **twin),
         row("Head", after=2, w=(9,))]
    )  # fmt: skip
    # The second twin is another module now, and its reader says nothing of the first.
    model = Rows(
        [row("A", after=-1, w=(1,)), row("T", after=0, **twin), row("U", after=1, u=(1,)),
         row("X", after=2, ours=True, u=(1,)), row("Head", after=3, w=(9,))]
    )  # fmt: skip
    assert align(base, model).source_of == {0: 0, 1: 1, 4: 3}
    assert align(model, base).source_of == {0: 0, 1: 1, 3: 4}


def test_levels_of_the_head_are_those_of_equal_strides() -> None:
    def levels(*strides: float) -> Rows:
        return Rows([], strides=strides)

    assert head_levels(levels(8, 16, 32), levels(4, 8, 16, 32)) == {1: 0, 2: 1, 3: 2}
    assert head_levels(levels(8, 16, 32), levels(4, 8, 16)) == {1: 0, 2: 1}
    assert head_levels(levels(4, 4, 8), levels(4, 8, 4, 4)) == {0: 0, 1: 2, 2: 1}

"""Rows are paired by what they are and how they are wired."""

from __future__ import annotations

from yolo_attn.seam.row_alignment import LayerRow, Rows, align


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

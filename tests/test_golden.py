"""Every block computes what its paper says: replay of the golden numbers.

``pytest tests/test_golden.py --golden DIR`` runs another folder of such files (other seeds, sizes,
options).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden_harness import Golden, check
from tests.golden_table import TABLE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_block_reproduces_the_golden_file(golden_file: Path, dtype: torch.dtype) -> None:
    golden = Golden(golden_file)
    assert golden.block in TABLE, (
        f"{golden_file.name}: no row for {golden.block!r} in tests/golden_table"
    )
    check(TABLE[golden.block], golden, dtype)

"""What every block says of itself, and what it refuses when it is built."""

from __future__ import annotations

import pytest

from tests.test_blocks import channels_of, each_block
from yolo_attn import block_info, create
from yolo_attn.errors import YoloAttnError


@each_block
def test_facts_for_the_reader_are_there(name: str) -> None:
    info = block_info(name)
    assert info.paper and info.cost and info.placement and info.summary
    for option in info.options:
        assert f"\n    {option}: " in (info.cls.__doc__ or "").replace("        ", "    "), (
            f"{option} is not described"
        )


@each_block
def test_wrong_width_and_unknown_option_are_refused_when_built(name: str) -> None:
    info = block_info(name)
    for wrong in (0, -8, 2.5, "64", None, [], [0]):
        with pytest.raises(YoloAttnError, match=info.name):
            create(name, wrong)
    with pytest.raises(YoloAttnError, match="no option 'no_such_option'"):
        create(name, channels_of(name, 32), no_such_option=1)
    if info.takes_list:
        with pytest.raises(YoloAttnError, match=info.name):
            create(name, [16] * (info.max_inputs + 1))

"""Peak of the tensor memory that a function allocates."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any], device: str = "cpu") -> int:
    """Most bytes that were held at one time beyond what was held before.

    On the CPU the profiler reports every allocation and release of torch's allocator, so that
    temporaries inside a kernel and what autograd keeps count too; their running sum has the peak.
    (Resident memory would need a process of its own for each number, and shows the system
    allocator's pages, not what the block asked for.) What lives on after the call counts as well.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = function()
    del kept
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak

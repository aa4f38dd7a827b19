"""How a golden file is replayed on one of our blocks; golden_table/ says on which."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One row of the table: how a reference block is expressed by one of ours.

    Attributes:
        build: ``(config, golden) -> module`` with the constructor options that the config stands
            for.
        names: Our module or parameter prefix -> the reference's; the longest prefix wins, "" is
            everything.
        dropped: Patterns of reference parameters that ours has not, with the reason.
        fix: ``(config, params) -> params`` where the two are parametrised differently (a bias
            folded into a norm, a Linear for a 1x1 convolution); works on parameters and on
            statistics after training alike.
        call: ``(module, inputs, config) -> output or outputs``; by default one map, or a list of
            maps.
    """

    build: Callable[[dict[str, Any], Golden], nn.Module]
    names: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    dropped: Mapping[str, str] = field(default_factory=dict)
    fix: Callable[[dict[str, Any], Arrays], Arrays] | None = None
    call: Callable[[nn.Module, list[Tensor], dict[str, Any]], Any] | None = None

    def reference_name(self, ours: str) -> str:
        """Reference name of our parameter or module."""
        for prefix in sorted(self.names, key=len, reverse=True):
            if prefix == "" or ours == prefix or ours.startswith(prefix + "."):
                rest = ours[len(prefix) :].lstrip(".")
                return ".".join(filter(None, (self.names[prefix], rest)))
        return ours


class Golden:
    """The contents of one golden file."""

    def __init__(self, path: Path):
        with np.load(path) as data:
            self.arrays: Arrays = {k: data[k] for k in data.files}
        self.block, self.case = path.stem.split(".", 1)
        self.config: dict[str, Any] = json.loads(str(self.arrays["config"]))

    def group(self, prefix: str) -> Arrays:
        """Entries ``prefix/name`` by name."""
        return {
            k[len(prefix) + 1 :]: v for k, v in self.arrays.items() if k.startswith(prefix + "/")
        }

    def series(self, stem: str, suffix: str = "") -> list[np.ndarray]:
        """``[stem + suffix]`` or ``[stem0 + suffix, ...]``, whichever the file has."""
        if stem + suffix in self.arrays:
            return [self.arrays[stem + suffix]]
        found = []
        while f"{stem}{len(found)}{suffix}" in self.arrays:
            found.append(self.arrays[f"{stem}{len(found)}{suffix}"])
        return found

    @property
    def params(self) -> Arrays:
        """Parameters and buffers under the reference's names, aliases resolved."""
        params = self.group("param")
        if "param_flat" in self.arrays:
            params |= self._cut(self.arrays["param_flat"])
        for alias, owner in self.config.get("aliases", {}).items():
            if owner in params:
                params.pop(alias, None)
        return params

    def _cut(self, flat: np.ndarray) -> Arrays:
        """The parameters that lie one behind the other in a vector."""
        params, start = {}, 0
        for name, shape in self.config["param_index"]:
            end = start + int(np.prod(shape))
            params[name], start = flat[start:end].reshape(shape), end
        return params


def _shaped(stored: np.ndarray, like: Tensor) -> np.ndarray:
    """Ours are 1-D where references have ``(1, C, 1, 1)``; nothing else may differ."""
    stored = np.asarray(stored)
    if [n for n in stored.shape if n != 1] == [n for n in like.shape if n != 1]:
        return stored.reshape(tuple(like.shape))
    return stored


def load(module: nn.Module, case: Case, golden: Golden, dtype: torch.dtype) -> nn.Module:
    """Give `module` the file's parameters; every one on either side must have its counterpart."""
    module = module.to(dtype)
    params = _fixed(case, golden, golden.params)
    state = module.state_dict()
    used: set[str] = set()
    for name, target in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        reference = case.reference_name(name)
        assert reference in params, (
            f"{golden.block}: {name} wants {reference!r}, the file has {sorted(params)}"
        )
        value = torch.from_numpy(_shaped(params[reference], like=target)).to(dtype)
        assert value.shape == target.shape, (
            f"{golden.block}: {name} {tuple(target.shape)} != {reference} {tuple(value.shape)}"
        )
        target.copy_(value)
        used.add(reference)
    left = {
        name
        for name in params
        if name not in used
        and not name.endswith("num_batches_tracked")
        and not any(re.fullmatch(pattern, name) for pattern in case.dropped)
    }
    assert not left, (
        f"{golden.block}: parameters of the file that our block does not use: {sorted(left)}"
    )
    _set_norm_constants(module, case, golden.config)
    return module


def _fixed(case: Case, golden: Golden, params: Arrays) -> Arrays:
    return case.fix(golden.config, dict(params)) if case.fix else params


def _set_norm_constants(module: nn.Module, case: Case, config: dict[str, Any]) -> None:
    for name, child in module.named_modules():
        reference = case.reference_name(name)
        if hasattr(child, "eps") and reference in (config.get("bn_eps") or {}):
            child.eps = config["bn_eps"][reference]
        if hasattr(child, "momentum") and reference in (config.get("bn_momentum") or {}):
            child.momentum = config["bn_momentum"][reference]


def run(
    module: nn.Module, case: Case, golden: Golden, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Outputs, gradients by input, and gradients by parameter of ``sum_i sum(y_i * w_i)``."""
    inputs = [torch.from_numpy(x).to(dtype).requires_grad_() for x in golden.series("x")]
    copies = [x.detach().clone() for x in inputs]
    if case.call:
        out = case.call(module, inputs, golden.config)
    else:
        out = module(inputs[0] if len(inputs) == 1 else inputs)
    outs: Sequence[Tensor] = [out] if isinstance(out, Tensor) else list(out)
    weights = [torch.from_numpy(w).to(dtype) for w in golden.series("w")]
    assert len(weights) == len(outs), (
        f"{golden.block}: {len(outs)} outputs, the file has {len(weights)}"
    )
    module.zero_grad()
    sum((y * w).sum() for y, w in zip(outs, weights)).backward()
    for x, copy in zip(inputs, copies):
        assert torch.equal(x, copy), f"{golden.block}: the block wrote into its input"
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return list(outs), [x.grad for x in inputs], grads


def assert_close(ours: Tensor, stored: np.ndarray, dtype: torch.dtype, what: str) -> None:
    """Float64 to 1e-9 relative (1e-6 where stored as float32), float32 to 1e-4."""
    stored = np.asarray(stored)
    largest = float(np.abs(stored).max()) if stored.size else 0.0
    if dtype is torch.float32:
        tolerance = 1e-4 * (1 + largest)
    else:
        tolerance = (1e-6 if stored.dtype == np.float32 else 1e-9) * max(largest, 1e-3)
    ours_np = ours.detach().double().numpy()
    assert ours_np.shape == stored.shape, f"{what}: shape {ours_np.shape} != {stored.shape}"
    error = float(np.abs(ours_np - stored).max()) if stored.size else 0.0
    assert error <= tolerance, (
        f"{what}: off by {error:.3g} (allowed {tolerance:.3g}, largest {largest:.3g})"
    )


def check(case: Case, golden: Golden, dtype: torch.dtype) -> None:
    """Replay the file: outputs, gradients and running statistics in eval and train mode."""
    for mode in ("eval", "train"):
        if not golden.series("y", f"_{mode}"):
            continue
        module = load(case.build(golden.config, golden), case, golden, dtype)
        module.train(mode == "train")
        outs, grads, parameter_grads = run(module, case, golden, dtype)
        for i, (y, stored) in enumerate(zip(outs, golden.series("y", f"_{mode}"))):
            assert_close(y, stored, dtype, f"y{i}_{mode}")
        for i, (gx, stored) in enumerate(zip(grads, golden.series("gx", f"_{mode}"))):
            assert_close(gx, stored, dtype, f"gx{i}_{mode}")
        stored_grads = golden.group(f"gp_{mode}")
        for name, gp in parameter_grads.items():
            reference = case.reference_name(name)
            if not case.fix and reference in stored_grads:
                stored = _shaped(stored_grads[reference], like=gp)
                assert_close(gp, stored, dtype, f"gradient of {name} ({mode})")
        if mode == "train":
            _check_statistics(module, case, golden, dtype)


def _check_statistics(module: nn.Module, case: Case, golden: Golden, dtype: torch.dtype) -> None:
    after = _fixed(case, golden, {**golden.params, **golden.group("after_train")})
    for name, value in module.named_buffers():
        reference = case.reference_name(name)
        if reference in after and name.rsplit(".", 1)[-1] in ("running_mean", "running_var"):
            assert_close(value, after[reference], dtype, f"{name} after one training step")

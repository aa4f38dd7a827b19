"""HCF-Net: PPA with its local-global attention, DASI, MDCR."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create
from yolo_attn.blocks.patch_aware_attention import LocalGlobalAttention

# What the reference's code does with patches, whatever the paper says.
CODE = {"patch_mean": "memory", "border": "drop"}


def _bias_into_norm(params: Arrays, conv: str, norm: str) -> None:
    """A convolution bias in front of a BN only shifts its running mean."""
    bias = params.pop(f"{conv}.bias").astype(np.float64)
    params[f"{norm}.running_mean"] = params[f"{norm}.running_mean"] - bias


def _lga(config: dict[str, Any], golden: Golden):
    args = config["args"]
    return LocalGlobalAttention(args["output_dim"], args["patch_size"], **CODE)


def _ppa(config: dict[str, Any], golden: Golden):
    args = config["args"]
    return create("PPA", args["in_features"], args["filters"], dropout=0.0, **CODE)


def _ppa_params(config: dict[str, Any], params: Arrays) -> Arrays:
    for branch in ("skip", "c1", "c2", "c3"):
        _bias_into_norm(params, f"{branch}.conv", f"{branch}.norm")
    params["gate"] = params.pop("cn.conv.0.weight").reshape(-1)
    return params


def _dasi_sides(config: dict[str, Any]) -> list[str]:
    """The neighbours that the file's call had, in the reference's order."""
    call = config.get("call_inputs") or ["x", "x", "x"]
    return [side for side, given in zip(("low", "high"), [*call, None][1:3]) if given == "x"]


def _dasi(config: dict[str, Any], golden: Golden):
    sides, out = _dasi_sides(config), config["args"]["out_features"]
    c, *others = (x.shape[1] for x in golden.series("x"))
    return create(
        "DASI", [c, *reversed(others)], out, second=sides[0], first_quarter=sides == ["high"]
    )


def _dasi_call(module, inputs, config):
    x, *others = inputs
    return module([x, *reversed(others)])


def _dasi_params(config: dict[str, Any], params: Arrays) -> Arrays:
    """Fold the biases in front of the BN; leave out what the call does not use."""
    p = {k: v.astype(np.float64) for k, v in params.items()}
    sides = _dasi_sides(config)
    names = {"low": "skips_2.conv", "high": "skips_3"}
    if len(sides) == 2:
        shift = p.pop("tail_conv.0.conv.bias")
        unused = ["conv.0.conv"]
    else:
        (side,) = sides
        d, other = p.pop("skips.conv.bias"), p.pop(f"{names[side]}.bias")
        quarter = len(d) // 4
        d_quarters, o_quarters = d.reshape(4, quarter), other.reshape(4, quarter)
        if side == "high":
            d_quarters = d_quarters[:1].repeat(4, axis=0)
        pairs = np.concatenate([d_quarters, o_quarters], axis=1)
        m = pairs @ p["conv.0.conv.weight"][:, :, 0, 0].T + p.pop("conv.0.conv.bias")
        tail = p["tail_conv.0.conv.weight"][:, :, 0, 0]
        shift = tail @ m.reshape(-1) + p.pop("tail_conv.0.conv.bias") + d
        unused = [names["high" if side == "low" else "low"]]
    p["bns.running_mean"] = p["bns.running_mean"] - shift
    return {k: v for k, v in p.items() if k.rsplit(".", 1)[0] not in unused}


def _mdcr(config: dict[str, Any], golden: Golden):
    args = {"norm_type": "bn", "activation": True, "rate": [1, 6, 12, 18], **config["args"]}
    # The file's groups, from the shape of a branch's weight (the reference fixes 128).
    quarter = args["in_features"] // 4
    # A file of float32 numbers must stay one when biases are folded: its tolerance hangs on that.
    config["stored"] = golden.arrays["y_eval"].dtype.str
    groups = quarter // golden.arrays["param/block1.conv.weight"].shape[1]
    return create(
        "MDCR",
        args["in_features"],
        args["out_features"],
        rates=args["rate"],
        groups=groups,
        norm="bn" if args["norm_type"] == "bn" else "none",
        activation=args["activation"],
        stats="shared",
    )


def _mdcr_params(config: dict[str, Any], params: Arrays) -> Arrays:
    """One BN for the four branches; no bias before a BN; channels by branch, not by j."""
    blocks = [f"block{i}" for i in range(1, 5)]
    if any(k.startswith("out.norm") for k in params):
        for name in (*blocks, "out_s", "out"):
            _bias_into_norm(params, f"{name}.conv", f"{name}.norm")
        for part in ("weight", "bias", "running_mean", "running_var"):
            params[f"norm.{part}"] = np.concatenate(
                [params.pop(f"{b}.norm.{part}") for b in blocks]
            )
        for name in ("norm", "out_s.norm", "out.norm"):
            mean = f"{name}.running_mean"
            params[mean] = params[mean].astype(config["stored"])
    weight = params["out.conv.weight"]
    by_j = weight.reshape(len(weight), -1, 4)
    params["out.conv.weight"] = by_j.swapaxes(1, 2).reshape(weight.shape)
    return params


CASES = {
    "hcf_lga": Case(_lga, names={"": "", "top_down": "top_down_transform"}),
    "hcf_ppa": Case(
        _ppa,
        names={
            "": "",
            "lga2.top_down": "lga2.top_down_transform",
            "lga4.top_down": "lga4.top_down_transform",
            "spatial": "sa.conv2d",
            "norm": "bn1",
        },
        fix=_ppa_params,
    ),
    "hcf_dasi": Case(
        _dasi,
        names={
            "skip": "skips.conv",
            "low": "skips_2.conv",
            "high": "skips_3",
            "mix": "conv.0.conv",
            "tail": "tail_conv.0.conv",
            "norm": "bns",
        },
        fix=_dasi_params,
        call=_dasi_call,
    ),
    "hcf_mdcr": Case(
        _mdcr,
        names={
            "": "",
            **{f"branches.{i}": f"block{i + 1}.conv" for i in range(4)},
            "mix": "out_s.conv",
            "mix_norm": "out_s.norm",
            "out": "out.conv",
            "out_norm": "out.norm",
        },
        fix=_mdcr_params,
    ),
}

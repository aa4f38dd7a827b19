"""Layouts of forks' checkpoints: classes with their spellings, widths, kernels and biases."""

from __future__ import annotations

from typing import Any

from . import fork_attention_blocks as attention
from . import fork_blocks as fork

Case = tuple[str, str, list[Any], str]


def cbam(name: str = "CBAM", build: str = "(c)", args: Any = (256,), **keys: str) -> Case:
    keys = {
        **{"f1": "f1", "f2": "f2", "conv": "conv", "ca": "channel_attention"},
        **{"sa": "spatial_attention"},
        **keys,
    }
    return fork.CBAM_F.format(name=name, **keys), name, list(args), f"{name}{build}"


def coord(name: str, build: str = "(c)", act: str = "h_swish", **keys: str) -> Case:
    keys = {"conv1": "conv1", "h": "conv_h", "w": "conv_w", **keys}
    return fork.COORD.format(name=name, act=act, **keys), name, [256], f"{name}{build}"


def named(source: str, name: str, build: str, args: Any = (256,), **keys: str) -> Case:
    return source.format(name=name, **keys) if keys or "{name}" in source else source, *(
        name,
        list(args),
        build,
    )


def non_local(build: str) -> Case:
    return named(attention.NON_LOCAL, "NLBlockND", f"NLBlockND{build}")


SE_KEYS = {"act": "ReLU", "gate": "Sigmoid"}
EMA_KEYS = {"gn": "gn", "one": "conv1x1", "three": "conv3x3"}
# case -> (source, row, arguments, build), and the block that it becomes.
CASES: dict[str, tuple[Case, str]] = {
    "cbam": (cbam(), "CBAM"),
    "cbam-fc-biases": (
        cbam(build="(c, 6, 3, True, True)", f1="fc1", f2="fc2", conv="conv1", ca="ca", sa="sa"),
        "CBAM",
    ),
    "cbam-spatial-bias": (cbam(build="(c, 16, 5, False, True)", f1="mlp0", f2="mlp1"), "CBAM"),
    "cbam-block": (named(fork.CBAM_SE, "CBAMBlock", "CBAMBlock(c)"), "CBAM"),
    "cbam-authors": (named(fork.CBAM_AUTHORS, "CBAM", "CBAM(c, 8, 5)"), "CBAM"),
    "se": (named(fork.SE, "SEAttention", "SEAttention(c)", **SE_KEYS), "SE"),
    "se-biases": (named(fork.SE, "SEBlock", "SEBlock(c, 16, True)", **SE_KEYS), "SE"),
    "se-hard": (
        named(fork.SE, "SeNet", "SeNet(c, 8)", act="SiLU", gate="Hardsigmoid"),
        "SE",
    ),
    "se-l1-l2": (named(fork.SE_L, "SE", "SE(c)", [1024]), "SE"),
    "eca": (named(fork.ECA, "ECA", "ECA(c)", conv="conv"), "ECA"),
    "eca-attention": (named(fork.ECA, "ECAAttention", "ECAAttention(c, 7)", conv="c1d"), "ECA"),
    "coord": (coord("CoordAtt"), "CoordAtt"),
    "coord-ca-bare": (coord("CA", "(c, 4, False)"), "CoordAtt"),
    "coord-silu": (coord("CoordAtt", "(c, 16)", "nn.SiLU"), "CoordAtt"),
    "coord-cablock-relu": (
        coord("CABlock", "(c, 6, False)", "nn.ReLU", conv1="conv_1x1", h="F_h", w="F_w"),
        "CoordAtt",
    ),
    "ema": (named(fork.EMA, "EMA", "EMA(c)", **EMA_KEYS), "EMA"),
    "ema-32": (
        named(fork.EMA, "EMAttention", "EMAttention(c, 32)", gn="norm", one="cv1", three="cv2"),
        "EMA",
    ),
    "simam": (named(fork.SIMAM, "SimAM", "SimAM(c)", ["1e-4"]), "SimAM"),
    "simam-lambda": (named(fork.SIMAM, "SimAm", "SimAm(c, 0.1)"), "SimAM"),
    "gam-attention": (named(fork.GAM_GROUPED, "GAM_Attention", "GAM_Attention(c)"), "GAM"),
    "gam-full": (named(fork.GAM_GROUPED, "GAMAttention", "GAMAttention(c, 8, 1)"), "GAM"),
    "gam-replicate": (named(fork.GAM_REPLICATE, "GAM", "GAM(c)", [4]), "GAM"),
    "mlca": (named(attention.MLCA, "MLCA", "MLCA(c)"), "MLCA"),
    "mlca-other": (named(attention.MLCA, "MLCA", "MLCA(c, 4, 5, 0.3)", []), "MLCA"),
    "lsk": (named(attention.LSK, "LSKblock", "LSKblock(c)", []), "LSK"),
    "criss-cross": (
        named(attention.CRISS_CROSS, "CrissCrossAttention", "CrissCrossAttention(c)"),
        "CrissCross",
    ),
    "criss-cross-narrow": (
        named(attention.CRISS_CROSS, "CrissCrossAttention", "CrissCrossAttention(c, 3)"),
        "CrissCross",
    ),
    "non-local": (non_local("(c)"), "NonLocal"),
    "non-local-dot": (non_local("(c, 6, 'dot', False)"), "NonLocal"),
    "non-local-gaussian": (non_local("(c, 16, 'gaussian')"), "NonLocal"),
    "non-local-concatenate": (non_local("(c, 16, 'concatenate')"), "NonLocal"),
    "global-context": (
        named(attention.GLOBAL_CONTEXT, "GlobalContext", "GlobalContext(c)"),
        "GlobalContext",
    ),
    "global-context-both": (
        named(attention.GLOBAL_CONTEXT, "GlobalContext", "GlobalContext(c, 5, True)"),
        "GlobalContext",
    ),
    "context-aggregation": (
        named(attention.CONTEXT_AGGREGATION, "ContextAggregation", "ContextAggregation(c)", []),
        "ContextAggregation",
    ),
    "context-aggregation-ca": (
        named(attention.CONTEXT_AGGREGATION, "CA", "CA(c, 16)", []),
        "ContextAggregation",
    ),
    "bi-level": (
        named(attention.BI_LEVEL, "BiLevelRoutingAttention", "BiLevelRoutingAttention(c)", []),
        "BiFormer",
    ),
    "bi-level-side": (
        named(
            attention.BI_LEVEL,
            "BiLevelRoutingAttention",
            "BiLevelRoutingAttention(c, 8, 7, 4, 5)",
            [],
        ),
        "BiFormer",
    ),
    "bi-level-nchw": (
        named(
            attention.BI_LEVEL_NCHW,
            "BiLevelRoutingAttention_nchw",
            "BiLevelRoutingAttention_nchw(c, 8, 2, 3)",
            [8, 7],
        ),
        "BiFormer",
    ),
    "non-local-pooled": (
        named(attention.NON_LOCAL_POOLED, "NonLocalBlock2D", "NonLocalBlock2D(c, 24)"),
        "NonLocal",
    ),
    "context-block-both": (
        named(attention.CONTEXT_BLOCK, "GlobalContextBlock", "GlobalContextBlock(c, 6)"),
        "GlobalContext",
    ),
}

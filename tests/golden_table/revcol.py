"""RevCol: its parts, one column, the whole network with supervision, and the compound loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden_harness import Case, Golden
from yolo_attn import create
from yolo_attn.blocks._revcol_parts import Column, ConvNeXtBlock, Decoder, Fusion
from yolo_attn.blocks._revcol_supervision import Classifier, compound_loss, image_loss
from yolo_attn.ops.reversible import step

FLOOR = 1e-3  # the reference's
COLUMNS, LEVELS = range(32), range(4)


def _block(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    scale = next((v for k, v in args.items() if k.startswith("layer_scale_init")), 1e-6)
    return ConvNeXtBlock(args["in_channel"], args["hidden_dim"], args["kernel_size"], scale)


def _column(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    # The reference drops the last row and column of odd maps.
    return Column(
        args["channels"], args["layers"], args["kernel_size"], args["first_col"], border="drop"
    )


class Network(nn.Module):
    """The backbone with the classifier of its last column."""

    def __init__(self, args: dict[str, Any]):
        super().__init__()
        self.supervised = args["inter_supv"]
        self.backbone = create(
            "RevColumns",
            3,
            widths=args["channels"],
            depths=args["layers"],
            columns=args["num_subnet"],
            kernel_size=args["kernel_size"],
            drop_path=0.0,
            alpha_floor=FLOOR,
            supervision="classification" if self.supervised else "none",
            num_classes=args["num_classes"],
            # Supervised columns are several, which the reference runs on even maps only.
            border="pad" if self.supervised else "drop",
        )
        last = Classifier(args["channels"][-1], args["num_classes"])
        self.add_module("last" if self.supervised else "only", last)

    def forward(self, x: Tensor) -> list[Tensor]:
        *_, top = self.backbone(x)
        if not self.supervised:
            return [self.only.of_image(top)]
        heads, tops = self.backbone.supervision, self.backbone._tops
        logits = [head.of_image(t) for head, t in zip(heads.classifiers, tops)]
        images = [decode(t) for decode, t in zip(heads.decoders, tops)]
        return [*logits, self.last.of_image(top), *images]


class Loss(nn.Module):
    """The compound loss with the classification loss of the last column."""

    def __init__(self, args: dict[str, Any], golden: Golden):
        super().__init__()
        self.f, self.c = args.get("fcoe", 4.0), args.get("ccoe", 0.8)
        self.label_smoothing = args.get("label_smoothing", 0.0)
        self.image = torch.from_numpy(golden.arrays["image"])
        self.target = torch.from_numpy(golden.arrays["target"]).long()

    def forward(self, xs: list[Tensor]) -> Tensor:
        count = (len(xs) + 1) // 2
        terms = [
            F.cross_entropy(x, self.target, label_smoothing=self.label_smoothing)
            for x in xs[:count]
        ]
        images = [image_loss(x, self.image.to(x.dtype)) for x in xs[count:]]
        return compound_loss(images, terms[:-1], self.f, self.c) + terms[-1]


FIRST_COLUMN = "the first column has no maps before it: its factors are never used"
DECODER = {"project": "proj_layers", "blocks": "normal_layers", "out": "projback.0"}

CASES = {
    "revcol_block": Case(_block),
    "revcol_fusion": Case(
        lambda config, golden: Fusion(
            config["args"]["channels"],
            config["args"]["level"],
            not config["args"]["first_col"] and config["args"]["level"] < 3,
            border="drop",
        ),
        call=lambda module, inputs, config: module(*inputs),
    ),
    "revcol_subnet": Case(
        _column,
        names={
            **{f"levels.{i}": f"level{i}" for i in LEVELS},
            **{f"alphas.{i}": f"alpha{i}" for i in LEVELS},
        },
        dropped={r"alpha\d": FIRST_COLUMN},
        call=lambda module, inputs, config: step(module, inputs[0], inputs[1:], FLOOR, None),
    ),
    "revcol_classifier": Case(
        lambda config, golden: Classifier(
            config["args"]["in_channels"], config["args"]["num_classes"]
        ),
        names={"": "classifier"},
        call=lambda module, inputs, config: module.of_image(inputs[0]),
    ),
    "revcol_decoder": Case(
        lambda config, golden: Decoder(
            config["args"]["dim"][::-1],
            config["args"]["kernel_size"],
            depths=config["args"]["depth"][1:],
        ),
        names=DECODER,
    ),
    "revcol_full": Case(
        lambda config, golden: Network(config["args"]),
        names={
            "backbone.stem": "stem",
            **{
                f"backbone.columns.{t}.levels.{i}": f"subnet{t}.level{i}"
                for t in COLUMNS
                for i in LEVELS
            },
            **{
                f"backbone.columns.{t}.alphas.{i}": f"subnet{t}.alpha{i}"
                for t in COLUMNS
                for i in LEVELS
            },
            **{
                f"backbone.supervision.decoders.{g}.{ours}": f"decoder_blocks.{g}.{theirs}"
                for g in range(3)
                for ours, theirs in DECODER.items()
            },
            **{
                f"backbone.supervision.classifiers.{g}": f"cls_blocks.{g}.classifier"
                for g in range(3)
            },
            "last": "cls_blocks.3.classifier",
            "only": "cls.classifier",
        },
        dropped={r"subnet0\.alpha\d": FIRST_COLUMN},
    ),
    "revcol_loss": Case(lambda config, golden: Loss(config["args"], golden)),
}

"""What is known of a block, as a card on the terminal, a dictionary, or a page of Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from yolo_attn.registry import BlockInfo

ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
# A role of Sphinx, such as :mod:`yolo_attn.ops.attention` or :class:`~torch.nn.Module`.
ROLE = re.compile(r":(?:\w+:)+`(~?)([^`]+)`")


@dataclass
class Doc:
    """The parts of a block's docstring.

    Attributes:
        text: Formula and remarks, the summary line first.
        options: Meaning of ``channels`` and of each option.
    """

    text: str
    options: dict[str, str]


def docstring(info: BlockInfo) -> str:
    """The docstring of a block; neither a terminal nor Markdown knows the roles of Sphinx."""
    return ROLE.sub(_plain_name, inspect.getdoc(info.cls) or "")


def _plain_name(role: re.Match[str]) -> str:
    """``~package.module.Name`` is written ``Name``, as Sphinx does."""
    short, name = role.groups()
    return f"`{name.rsplit('.', 1)[-1] if short else name}`"


def read_doc(info: BlockInfo) -> Doc:
    """Split the docstring of a block."""
    text, _, rest = docstring(info).partition("\nArgs:\n")
    section = rest.split("\n\n", 1)[0]
    options: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name, options[start[1]] = start[1], start[2]
        elif name:
            options[name] += " " + line.strip()
    return Doc(text.strip(), options)


def facts(info: BlockInfo) -> dict[str, str]:
    """What a card says below the formula, by heading."""
    said = {
        "Inputs": inputs_of(info),
        "Cost": info.cost,
        "Place": info.placement,
        "Identity at the start": "yes" if info.identity_at_start else "no",
        "Smallest map": f"{info.min_size} x {info.min_size}" if info.min_size > 1 else "",
        "Without gradient": "; ".join(f"{k}: {v}" for k, v in info.dead_parameters.items()),
        "Export": info.no_export or "TorchScript and ONNX",
        "Paper": info.paper,
    }
    return {heading: text for heading, text in said.items() if text}


def inputs_of(info: BlockInfo) -> str:
    """Number of input maps, such as ``1`` or ``2-3``."""
    low, high = info.min_inputs, info.max_inputs
    return str(low) if low == high else f"{low}-{high}"


def as_dict(info: BlockInfo) -> dict[str, Any]:
    """Everything for programs."""
    return {
        "name": info.name,
        "aliases": list(info.aliases),
        "inputs": info.inputs,
        "identity_at_start": info.identity_at_start,
        "cost": info.cost,
        "placement": info.placement,
        "paper": info.paper,
        "options": {
            k: None if v is inspect.Parameter.empty else v for k, v in info.options.items()
        },
        "summary": info.summary,
    }


def as_text(info: BlockInfo) -> str:
    """The card for a terminal."""
    alias = f"  (also {', '.join(info.aliases)})" if info.aliases else ""
    defaults = ", ".join(f"{k}={v!r}" for k, v in info.options.items()) or "no options"
    lines = [f"{info.name}{alias}", "", docstring(info), ""]
    lines += [
        f"{heading}: {text}" for heading, text in {"Defaults": defaults, **facts(info)}.items()
    ]
    return "\n".join(lines)


def as_markdown(info: BlockInfo) -> str:
    """One section of docs/blocks.md."""
    doc = read_doc(info)
    lines = [f"## {info.name}", ""]
    if info.aliases:
        lines += [f"Also {', '.join(f'`{a}`' for a in info.aliases)}.", ""]
    lines += [doc.text.replace("``", "`"), ""]
    if info.options:
        lines += ["| option | default | meaning |", "|---|---|---|"]
        for name, default in info.options.items():
            meaning = doc.options.get(name, "").replace("``", "`").replace("|", "\\|")
            lines.append(f"| `{name}` | `{default!r}` | {meaning} |")
        lines.append("")
    link = {"Paper": ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", info.paper)}
    lines += [f"- **{heading}:** {text}" for heading, text in {**facts(info), **link}.items()]
    return "\n".join(lines)


def page(infos: Iterable[BlockInfo], layers: bool = False) -> str:
    """docs/blocks.md, or docs/layers.md: an index and the section of every block."""
    infos = list(infos)
    kind, flag = ("layers", " --layers") if layers else ("blocks", "")
    head = [
        f"# {kind.capitalize()}",
        "",
        f"Written by `yolo-attn blocks{flag} --markdown docs/{kind}.md` from what the {kind} say "
        "of themselves. N = H W positions, C channels.",
        "",
        f"| {kind[:-1]} | inputs | identity at start | cost | what it does |",
        "|---|---|---|---|---|",
    ]
    for info in infos:
        cells = [
            f"[{info.name}](#{info.name.lower()})",
            inputs_of(info),
            "yes" if info.identity_at_start else "no",
            info.cost,
            info.summary.replace("``", "`"),
        ]
        head.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n\n".join(["\n".join(head), *(as_markdown(info) for info in infos)]) + "\n"

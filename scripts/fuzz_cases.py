"""Mutations of model YAMLs, overlays, studies and checkpoints for scripts/fuzz.py; all seeded."""

from __future__ import annotations

import copy
import math
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import yaml

TINY = """\
nc: 3
scales: {n: [0.33, 0.25, 256], s: [0.5, 0.5, 256]}
backbone:
  - [-1, 1, Conv, [32, 3, 2]] # 0
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, C2f, [64, True]]
  - [-1, 1, SE, []]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 2, NonLocal, [{mode: dot_product}]] # 5
  - [-1, 1, Conv, [128, 3, 2]]
head:
  - [-1, 1, nn.Upsample, [null, 2, nearest]]
  - [[-1, 5], 1, Concat, [1]]
  - [[8, 3, 6], 1, DASI, []]
  - [[5, 9], 1, Detect, [nc]]
"""
STUDY = """\
name: fuzzed
data: {data}
arms:
  plain: yolov8n.yaml
  gc: {{model: yolov8n-gc.yaml, args: {{lr0: 0.02}}}}
  p5: {{model: yolov8n-nonlocal.yaml}}
baseline: plain
seeds: [0, 1]
train: {{epochs: 2, imgsz: 64, batch: 2, mosaic: 0.0}}
weights: null
match: [params]
protocols: [coco, tiny]
split: val
draws: 100
after_crash: restart
project: runs
"""
WORDS = [
    "", " ", "NonLocl", "nonlocal", "SE", "DASI", "RevColumns", "Detect", "Conv", "nn.Module",
    "nn.functional", "nn.Linear", "nn.Nope", "torchvision.ops.nms", "torch_safe_load", "LOGGER",
    "contextlib", "__builtins__", "os.system", "P5", "N4", "P99", "None", "True", "nc", "ch", "n",
    "embedded gaussian", "../../etc/passwd", "/dev/zero", "ünïcödé", "块",
    "\u202e\u0000x", "a" * 5000,
    "(" * 3000, "[" * 300, "yolov8.yaml", "%s%n", "{0.__class__}",
]  # fmt: skip
NUMBERS = [
    0, -1, -2, 1, 2, 3, 7, 64, 1000, 2**31, 10**9, 10**18, 10**40, -(10**9), 0.5, -0.5, 1e308,
    math.inf, -math.inf, math.nan, True, False, None,
]  # fmt: skip
BOMB = "bomb: &a0 [x, x]\n" + "".join(
    f"bomb{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n"
    for i in range(1, 14)
)
TEXT = [
    "\t", "\x00", "\ufeff", "\u2028", "---\n", "...\n", "&x ", "*x ", "<<: *x\n", "? ", "| ", "- ",
    ": ", "{", "]", "'", '"', "# ", "\r", "٣", "!!binary ",
    "!!set ", "!!float ", "!unknown ", "\n\n  ",
]  # fmt: skip


def payloads(canary: Path) -> list[str]:
    """Strings that leave a file behind if anything evaluates them."""
    touch = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    return [touch, f"nn.SiLU({touch})", f"(lambda: {touch})()", f"nn.SiLU() if {touch} else 1"]


def tags(canary: Path) -> list[str]:
    """The same as YAML tags of unsafe loaders."""
    return [
        f"!!python/object/apply:os.system ['touch {canary}']",
        f"!!python/object/new:subprocess.Popen [[touch, {canary}]]",
        "!!python/name:os.system ",
    ]


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a tree of mappings and lists."""
    found = [path] if path else []
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


def mutate_tree(rng: random.Random, tree: Any, canary: Path) -> Any:
    """Change one value, or the nesting or order around it."""
    tree = copy.deepcopy(tree)
    found = places(tree)
    if not found:
        return rng.choice([*WORDS, *NUMBERS])
    path = rng.choice(found)
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    kind = rng.choice(
        [
            "word",
            "number",
            "near",
            "drop",
            "twice",
            "wrap",
            "swap",
            "graft",
            "code",
            "rename",
            "key",
        ]
    )
    if kind == "word":
        holder[key] = rng.choice(WORDS)
    elif kind == "number":
        holder[key] = rng.choice(NUMBERS)
    elif kind == "near" and isinstance(holder[key], int):
        holder[key] += rng.choice([-3, -2, -1, 1, 2, 3, 10])
    elif kind == "near" and isinstance(holder[key], str) and holder[key]:
        at = rng.randrange(len(holder[key]))
        holder[key] = holder[key][:at] + rng.choice("xeIl_1") + holder[key][at + 1 :]
    elif kind == "drop":
        del holder[key]
    elif kind == "twice" and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == "wrap":
        holder[key] = rng.choice(
            [[holder[key]], {"x": holder[key]}, {0: holder[key]}, [[], {}], {}]
        )
    elif kind == "swap" and isinstance(holder, list):
        other = rng.randrange(len(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == "graft":
        source = tree
        for part in rng.choice(found):
            source = source[part]
        holder[key] = copy.deepcopy(source)
    elif kind == "code":
        spot = rng.choice(["here", "activation"])
        if spot == "activation" and isinstance(tree, dict):
            tree["activation"] = rng.choice(payloads(canary))
        else:
            holder[key] = rng.choice(payloads(canary))
    elif kind == "rename" and isinstance(holder, dict):
        holder[rng.choice([f"{key}s", 0, None, "", "yolo_attn", "insert"])] = holder.pop(key)
    elif isinstance(tree, dict):
        tree[rng.choice(["nc", "scales", "scale", "activation", "depth_multiple", "kpt_shape",
                         "channels", "ch", "reg_max", "end2end", "max_channels", "yolo_attn",
                         "width_multiple", "identity_start", "base", "names"])] = rng.choice(
            [*NUMBERS, *WORDS, [], {}, [[]], {"n": []}, {"rows": 1}, {"labels": [[0]]}]
        )  # fmt: skip
    return tree


def mutate_text(rng: random.Random, text: str, canary: Path) -> bytes:
    """Change the YAML's text: bytes, lines, anchors, tags, encodings."""
    kind = rng.choice(
        ["cut", "insert", "flip", "line", "indent", "bomb", "tag", "loop", "encode", "deep", "same"]
    )
    at = rng.randrange(len(text) + 1)
    lines = text.splitlines(keepends=True)
    i = rng.randrange(len(lines)) if lines else 0
    if kind == "cut":
        text = text[:at]
    elif kind == "insert":
        text = text[:at] + rng.choice(TEXT) + text[at:]
    elif kind == "flip":
        data = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    elif kind == "line":
        text = "".join(
            lines[:i] + lines[i + 1 :] if rng.random() < 0.5 else lines[: i + 1] + lines[i:]
        )
    elif kind == "indent":
        lines[i] = rng.choice(["\t", "   ", " "]) + lines[i]
        text = "".join(lines)
    elif kind == "bomb":
        text = BOMB + rng.choice(
            ["", text.replace("[]", "[*a13]", 1), text.replace("1,", "*a13,", 1)]
        )
    elif kind == "tag":
        text = text[: text.find("[") if "[" in text else at] + rng.choice(tags(canary)) + text[at:]
    elif kind == "loop":
        text = (
            text.replace("[[", "&x [*x, [", 1) if rng.random() < 0.5 else f"loop: &x [*x]\n{text}"
        )
        text = text.replace("[]", "[*x]", 1)
    elif kind == "encode":
        return text.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1"]), "replace")
    elif kind == "deep":
        text = text.replace("[]", "[" * rng.choice([50, 400]) + "]" * 400, 1)
    return text.encode(errors="surrogatepass")


def mutate_yaml(rng: random.Random, text: str, canary: Path) -> bytes:
    """One to three mutations of a YAML: of its values two times in three, else of its text."""
    if rng.random() < 1 / 3:
        return mutate_text(rng, text, canary)
    tree = yaml.safe_load(text)
    for _ in range(rng.randint(1, 3)):
        tree = mutate_tree(rng, tree, canary)
    return yaml.safe_dump(
        tree, sort_keys=False, default_flow_style=None, allow_unicode=True
    ).encode(errors="surrogatepass")


class Payload:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.canary}",)


def mutate_checkpoint(rng: random.Random, good: bytes, canary: Path) -> tuple[str, bytes]:
    """Truncate, flip, or rewrite parts of a checkpoint; the kind and the bytes.

    ``payload`` holds a pickle that runs a command: only restricted loading can refuse it.
    """
    import io

    kind = rng.choice(
        ["cut", "flip", "zeros", "member", "rename", "resize", "pickle", "payload", "text", "same"]
    )
    data = bytearray(good)
    if kind == "cut":
        return kind, bytes(data[: rng.randrange(len(data))])
    if kind == "flip":
        for _ in range(rng.choice([1, 4, 64])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return kind, bytes(data)
    if kind == "zeros":
        at, n = rng.randrange(len(data)), rng.choice([16, 256, 4096])
        data[at : at + n] = bytes(len(data[at : at + n]))
        return kind, bytes(data)
    if kind == "pickle":
        stuff = rng.choice([None, 1, [], {}, {"model": None}, {"model": 3}, {"ema": "x"}, b"x"])
        return kind, pickle.dumps(stuff)
    if kind == "text":
        return kind, rng.choice([b"", b"\x00", b"not a checkpoint", b"PK\x03\x04" + b"\x00" * 64])
    if kind == "same":
        return kind, good
    members = {}
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        for name in archive.namelist():
            members[name] = archive.read(name)
    name = rng.choice(list(members))
    main = next(n for n in members if n.endswith("data.pkl"))
    if kind == "member":
        del members[name]
    elif kind == "resize":
        members[name] = members[name][: len(members[name]) // 2]
    elif kind == "payload":
        members[main] = pickle.dumps({"model": Payload(canary)}, protocol=2)
    else:  # a class or an attribute that does not exist
        old = rng.choice(
            [b"NonLocal", b"yolo_attn.blocks", b"_modules", b"DetectionModel", b"squeeze"]
        )
        new = bytes(rng.choice(b"xyzXYZ") for _ in old)
        members[main] = members[main].replace(old, new)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for n, content in members.items():
            archive.writestr(n, content)
    return kind, buffer.getvalue()

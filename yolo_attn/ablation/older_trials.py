"""Trials of releases that recorded no identity: the checks that those releases made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolo_attn.ablation.store import MODELS
from yolo_attn.errors import YoloAttnError


def differences(
    record: Mapping[str, Any],
    command: Sequence[str],
    slices: Mapping[str, Any] | None,
    data: str,
    digest: str,
) -> list[str]:
    """How such a trial differs from what the study says now, a phrase each.

    Args:
        record: its trial.json.
        command: the `yolo` command of now.
        slices: the slices of now.
        data: the dataset YAML of now.
        digest: `dataset_digest` of it.
    """
    import ultralytics

    found = []
    then = (record.get("versions") or {}).get("ultralytics")
    if then != ultralytics.__version__:
        found.append(f"was done with ultralytics {then}, this is {ultralytics.__version__}")
    if (record.get("dataset") or {}).get("sha256") != digest:
        found.append(f"was done on another state of {data}")
    if record.get("slices") != (dict(slices) if slices else None):
        found.append(f"was done with slices {record.get('slices')}, the study now says {slices}")
    # The folder of all studies, or the one of the data set, may have been moved.
    before, now = ({_word(w) for w in c} for c in (record.get("command") or (), command))
    if changed := sorted((before ^ now) - {""}):
        found.append(f"was done with other arguments ({', '.join(changed)})")
    return found


def _word(word: str) -> str:
    key, _, value = word.partition("=")
    if key in ("project", "data"):  # the content of the data is compared by its digest
        return ""
    if key == "model" and Path(value).parent.name == MODELS:  # written by the study itself
        return f"model={MODELS}/{Path(value).name}"
    return word


def dataset_digest(data: str, split: str) -> tuple[int, str]:
    """Number of training images, and those releases' digest of image names, sizes and labels.

    Raises:
        YoloAttnError: the dataset cannot be loaded or lacks a split.
    """
    from yolo_attn.data.stats_read import label_files, list_images, load_dataset

    content = load_dataset(data)
    digest, images = hashlib.sha256(), 0
    for name in dict.fromkeys(("train", split)):
        if not content.get(name):
            raise YoloAttnError(f"{data}: has no split {name!r}")
        files = list_images(content[name], f"{data}: {name}")
        if not files:
            raise YoloAttnError(f"{data}: {name} has no images at {content[name]}")
        images = images or len(files)
        for image, label in zip(files, label_files(files)):
            digest.update(f"{name}/{Path(image).name} {Path(image).stat().st_size}\n".encode())
            if label.is_file():
                digest.update(label.read_bytes())
    digest.update(repr(sorted(dict(content["names"]).items())).encode())
    return images, digest.hexdigest()

"""Where VisDrone's splits are: official folders, zips, or a folder of either; read in place."""

from __future__ import annotations

import re
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from yolo_attn.data.layout import SPLITS, SUFFIXES
from yolo_attn.errors import YoloAttnError

OFFICIAL = re.compile(r"visdrone\d*-det-(train|val|test-dev)", re.IGNORECASE)
EXAMPLE = "VisDrone2019-DET-train, -val, -test-dev"
# Everything that zipfile raises on a damaged, encrypted or exotic archive.
ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError, OSError, ValueError)

Place = Union[Path, zipfile.Path]


@dataclass(frozen=True)
class Source:
    """One split.

    Attributes:
        split: train, val or test.
        images: its images by stem.
        annotations: its annotation files by name.
    """

    split: str
    images: dict[str, Place]
    annotations: dict[str, Place]

    @staticmethod
    def read(place: Place) -> bytes:
        """The bytes of one file."""
        try:
            return place.read_bytes()
        except ZIP_ERRORS as error:
            raise YoloAttnError(
                f"{place}: cannot be read ({type(error).__name__}: {error}); get it again"
            ) from error


def local_image(place: Place, scratch: Path) -> Path:
    """The image as a file: itself, or a copy in `scratch` if it is in a zip."""
    if isinstance(place, Path):
        return place
    target = scratch / place.name
    target.write_bytes(Source.read(place))
    return target


def find_sources(src: Path, split: str | None, notes: list[str], stack: ExitStack) -> list[Source]:
    """Find the splits below `src`, in the order train, val, test.

    Args:
        src: a folder or a zip.
        split: the split, where there is one folder whose name does not say it.
        notes: gets what was left out.
        stack: closes the zips.

    Raises:
        YoloAttnError: nothing is found, or it is not clear what is meant.
    """
    if split is not None and split not in SPLITS:
        raise YoloAttnError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    if not src.exists():
        raise YoloAttnError(f"{src}: no such file or folder; give a folder or zip with {EXAMPLE}")
    roots = _roots(src, notes, stack)
    if not roots:
        raise YoloAttnError(
            f"{src}: holds no folder with images/ and annotations/; give the folder or zip that "
            f"holds {EXAMPLE}"
        )
    if split is not None and len(roots) > 1:
        raise YoloAttnError(
            f"split={split!r}: {src} holds {len(roots)} splits; leave it out, or give one of them"
        )
    found: dict[str, tuple[str, Place]] = {}
    for name, place in roots:
        match = OFFICIAL.fullmatch(name)
        key = split or (match and match[1].lower().replace("test-dev", "test"))
        if not key:
            raise YoloAttnError(
                f"{place}: its name is none of {EXAMPLE}; say which split it is (split)"
            )
        if key in found and isinstance(found[key][1], Path) and not isinstance(place, Path):
            notes.append(f"{place}: left out, its folder is there too")
        elif key in found:
            raise YoloAttnError(f"{place}: a second {key} split beside {found[key][1]}; remove one")
        else:
            found[key] = (name, place)
    return [_source(s, found[s][1], notes) for s in SPLITS if s in found]


def _roots(src: Path, notes: list[str], stack: ExitStack) -> list[tuple[str, Place]]:
    """Places with images/ and annotations/, each with its name; folders before zips."""
    if not src.is_dir():
        return _zip_roots(src, stack)
    if _is_root(src):
        return [(src.resolve().name, src)]
    roots: list[tuple[str, Place]] = []
    children = sorted(src.iterdir())
    for child in (c for c in children if c.is_dir()):
        # Windows unpacks X.zip to X/X.
        inner = next((p for p in (child, child / child.name) if _is_root(p)), None)
        if inner is not None:
            roots.append((child.name, inner))
        elif child.name.lower().startswith("visdrone"):
            notes.append(f"{child}: left out, it has no images/ and annotations/")
    for child in (c for c in children if c.suffix.lower() == ".zip"):
        if OFFICIAL.fullmatch(child.stem):
            roots += _zip_roots(child, stack)
        else:
            notes.append(f"{child}: left out, its name is none of {EXAMPLE}")
    return roots


def _zip_roots(file: Path, stack: ExitStack) -> list[tuple[str, Place]]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
        names = archive.namelist()
    except ZIP_ERRORS as error:
        raise YoloAttnError(
            f"{file}: neither a folder nor a zip that can be read ({error}); get it again"
        ) from error
    folders: dict[str, set[str]] = {}
    for name in names:
        match = re.match(r"((?:[^/]+/)*?)(images|annotations)/", name)
        if match and not name.startswith("__MACOSX/"):  # macOS packs a shadow of every file there
            folders.setdefault(match[1], set()).add(match[2])
    roots: list[tuple[str, Place]] = []
    for prefix in sorted(p for p, kinds in folders.items() if len(kinds) == 2):
        # Of X/X/, Windows' way, or of a plain X.zip with images/ inside, the last name counts.
        name = prefix.rstrip("/").rpartition("/")[2] or file.stem
        roots.append((name, zipfile.Path(archive, prefix)))
    return roots


def _is_root(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "annotations").is_dir()


def _source(split: str, root: Place, notes: list[str]) -> Source:
    images: dict[str, Place] = {}
    annotations: dict[str, Place] = {}
    strange = 0
    for folder, wanted in (("images", SUFFIXES), ("annotations", {".txt"})):
        places = {p.name: p for p in (root / folder).iterdir() if not p.name.startswith(".")}
        for name in sorted(places):
            _check_name(name, root / folder)
            stem, suffix = Path(name).stem, Path(name).suffix
            if suffix.lower() not in wanted or places[name].is_dir():
                strange += 1
            elif folder == "annotations":
                annotations[name] = places[name]
            elif stem in images:
                raise YoloAttnError(
                    f"{places[name]}: has the same annotation as {images[stem].name}; remove one"
                )
            else:
                images[stem] = places[name]
    if strange:
        notes.append(f"{root}: files that are neither images nor annotations, left out: {strange}")
    if not annotations:
        raise YoloAttnError(f"{root / 'annotations'}: no .txt file; one for each image is needed")
    return Source(split, images, annotations)


def _check_name(name: str, folder: Place) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8, which JSON cannot hold
        raise YoloAttnError(f"{folder}: the file name {name!a} is not UTF-8; rename it") from None

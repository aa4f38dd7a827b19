"""The house's rules: dependencies point one way, files stay readable, importing is cheap."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from .processes import python

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "yolo_attn"
LONGEST = 420
# A file over LONGEST lines, and why it is one file.
LONG = {
    "yolo_attn/ops/reversible.py": "one autograd function with the state that it restores",
    "tests/test_data_convert.py": "one converter's promises, format by format",
}
# Which packages of ours each package may import (itself included in every case).
MAY_IMPORT = {
    "blocks": {"errors", "registry", "ops", "autoload", "versions"},
    "layers": {"errors", "registry", "blocks", "ops", "autoload"},
    "ops": {"errors"},
    "losses": {"errors"},
    "evaluation": {"errors", "data", "devices"},
    "data": {"errors", "paths", "evaluation"},
    # size_metrics.py shows evaluation's numbers in `yolo val`, block_use.py explain's after a
    # training.
    "host": {"errors"},
    "overlay": {"errors", "host", "registry", "paths", "versions"},
    "transfer": {"errors", "registry", "blocks", "overlay"},
    "seam": {
        *("errors", "registry", "paths", "blocks", "ops", "layers", "losses", "host", "autoload"),
        *("evaluation", "data", "explain", "versions", "overlay", "transfer"),
    },
    "explain": {"errors", "registry", "blocks"},
    "errors": set(),
    "paths": set(),
    "devices": {"errors"},
    "registry": {"errors", "host", "blocks", "layers", "versions", "yaml_numbers", "migrate"},
    "yaml_numbers": set(),
    "versions": set(),
    "autoload": {"errors", "host", "seam"},
}
# Other people's packages; everything else that is not the standard library is refused.
MAY_USE = {
    "blocks": {"torch"},
    "layers": {"torch", "ultralytics"},
    "ops": {"torch", "torchvision"},  # its deformable convolution, on a GPU
    "losses": {"torch"},
    "errors": set(),
    "paths": set(),
    "devices": {"torch"},
    "autoload": set(),
    "registry": {"torch"},
    "versions": set(),
    "yaml_numbers": set(),
    "evaluation": {
        "numpy",
        "yaml",
        "typer",
        "rich",
        "faster_coco_eval",
        "cv2",
        "PIL",
        "matplotlib",
    },
}
# Files outside of seam/ that import Ultralytics, and why.
KNOW_ULTRALYTICS = {
    "yolo_attn/cli.py": "prints its version",
    "yolo_attn/evaluation/predict.py": "runs its validator to get predictions",
    "yolo_attn/evaluation/predict_sliced.py": "reads its labels, loads its checkpoints",
    "yolo_attn/data/stats_read.py": "resolves data set YAMLs as training does",
    "yolo_attn/layers/_common.py": "YOLOv7's layers are made of its Conv, which fuse() knows",
    "yolo_attn/layers/rep_conv.py": "the same, and its RepConv",
    "yolo_attn/migrate/converted.py": "builds the model that a migrated checkpoint holds",
    "yolo_attn/zoo.py": "builds the zoo's models to count parameters and GFLOPs",
}


# Files of evaluation/ that run a model; all others are functions of arrays.
HOST_SIDE = {"predict.py", "predict_sliced.py", "slicing.py"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, only_top: bool = False) -> set[str]:
    """Modules that a file imports; type-checking imports aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    found = set()
    for node in tree.body if only_top else ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "yolo_attn" else {node.module}
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}: relative import (the house writes names out)")
    return found


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def foreign(path: Path) -> set[str]:
    import sys

    known = set(sys.stdlib_module_names) | {"yolo_attn"}
    return {name.split(".")[0] for name in imports(path)} - known


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_is_below_them(package: str) -> None:
    for path in sources():
        if package_of(path) != package:
            continue
        ours = {m.split(".")[1] for m in imports(path) if m.startswith("yolo_attn.")}
        wrong = ours - MAY_IMPORT[package] - {package, "__version__"}
        assert not wrong, f"{path.relative_to(REPO)} imports {sorted(wrong)}"


@pytest.mark.parametrize("package", MAY_USE)
def test_packages_use_only_their_libraries(package: str) -> None:
    for path in sources():
        if package_of(path) == package:
            host = {"torch", "ultralytics", "sahi"} if path.name in HOST_SIDE else set()
            wrong = foreign(path) - MAY_USE[package] - host
            assert not wrong, f"{path.relative_to(REPO)} imports {sorted(wrong)}"


def test_the_seam_alone_touches_ultralytics() -> None:
    users = {
        str(path.relative_to(REPO))
        for path in sources()
        if "ultralytics" in foreign(path)
        and package_of(path) not in ("seam", "overlay", "transfer", "ablation", "explain")
    }
    assert users == set(KNOW_ULTRALYTICS)


def test_no_cycle_between_packages() -> None:
    below = {
        package: {
            m.split(".")[1]
            for path in sources()
            if package_of(path) == package
            for m in imports(path, only_top=True)
            if m.startswith("yolo_attn.") and m.split(".")[1] != package
        }
        for package in {package_of(path) for path in sources()} - {"__init__"}
    }
    while below:
        leaves = {p for p, needs in below.items() if not needs & set(below)}
        assert leaves, f"these import each other when they are imported: {below}"
        below = {p: needs for p, needs in below.items() if p not in leaves}


def test_no_file_of_ablation_reads_anothers_private_names() -> None:
    for path in (p for p in sources() if package_of(p) == "ablation"):
        modules = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("yolo_attn"):
                private = [a.name for a in node.names if a.name.startswith("_")]
                private = [name for name in private if not name.startswith("__")]
                assert not private, f"{path.name} imports {private} of {node.module}"
                modules |= {alias.asname or alias.name for alias in node.names}
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in modules
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            ):
                pytest.fail(f"{path.name} reads {node.value.id}.{node.attr}")


def module_of(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", ["overlay", "transfer", "ablation", "data", "evaluation"])
def test_no_cycle_between_the_files_of_a_package(package: str) -> None:
    """Imports inside of functions count, too."""
    files = {module_of(path): path for path in sources() if package_of(path) == package}
    below = {name: imports(path) & set(files) - {name} for name, path in files.items()}
    while below:
        leaves = {name for name, needs in below.items() if not needs & set(below)}
        assert leaves, f"these import each other: {below}"
        below = {name: needs for name, needs in below.items() if name not in leaves}


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, yolo_attn; print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = set(python("-c", code).stdout.split())
    assert not loaded & {"torch", "numpy", "ultralytics", "cv2", "yaml", "typer"}


def test_files_are_of_bearable_length() -> None:
    folders = [PACKAGE, *(REPO / name for name in ("scripts", "benchmarks", "tests"))]
    lengths = {
        str(path.relative_to(REPO)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in folder.rglob("*.py")
    }
    long = {name for name, length in lengths.items() if length > LONGEST}
    assert long == set(LONG), "split the new ones, or say here why not; take short ones off"


def test_every_module_says_what_it_is_in_a_few_lines() -> None:
    for path in sources():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, f"{path.relative_to(REPO)} has no docstring"


def test_distribution_has_the_name_of_the_module() -> None:
    # A checkpoint names the module yolo_attn; where it is missing, Ultralytics runs
    # `pip install yolo_attn`, which must be this distribution under pip's own spelling rule.
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    name = re.search(r'^name = "(.+)"', text, re.MULTILINE)
    assert name and re.sub(r"[-_.]+", "-", "yolo_attn") == re.sub(r"[-_.]+", "-", name[1]).lower()

"""Every command in the documentation runs, or says why not.

A fence may have HTML comments before it: `slow`, `file: NAME` (save it there), `not run: REASON`.
Quick tests call `yolo-attn` in this process; the slow ones run all of it as a shell would.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from yolo_attn import registry
from yolo_attn.autoload import REDIRECTS
from yolo_attn.cli import app

from .processes import environment, python
from .test_architecture import imports, package_of, sources

REPO = Path(__file__).resolve().parents[1]
DOCS = (
    "README.md",
    *(f"docs/{name}.md" for name in ("guide", "protocols", "architecture", "evaluation")),
    *(
        f"docs/{name}.md"
        for name in ("ablation", "weights", "losses", "migrate", "migrate-checkpoints")
    ),
)
# What the documents' commands find in a checkout.
CHECKOUT = ("cfg", "scripts", "tests/protocol")
FENCE = re.compile(r"^((?:<!-- [^\n]* -->\n)*)```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Fences of these languages are what a command printed, or pictures.
SHOWN = {"text", "mermaid"}
COMMAND = re.compile(r"^(\$ )?(yolo (train|val|predict|export) |yolo-attn [a-z]|python |pip )")
# In front of the main job; tests run where the package is installed already.
INSTALL = "pip install . && "


@dataclass(frozen=True)
class Fence:
    """A fenced block of a document and the comments in front of it."""

    doc: str
    line: int
    language: str
    body: str
    marks: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.doc}:{self.line}"

    @property
    def file(self) -> str | None:
        return self._after("file: ")

    @property
    def reason(self) -> str | None:
        """Why it is not run."""
        if "test command" in self.marks:
            return ".ci/run runs it, this test included"
        return self._after("not run: ")

    @property
    def slow(self) -> bool:
        return "slow" in self.marks or "main job" in self.marks

    @property
    def runs(self) -> bool:
        return self.language in ("", "bash", "python") and not self.reason and not self.file

    def _after(self, start: str) -> str | None:
        found = [mark.removeprefix(start) for mark in self.marks if mark.startswith(start)]
        return found[0] if found else None


def fences(doc: str) -> list[Fence]:
    text = (REPO / doc).read_text(encoding="utf-8")
    return [
        Fence(
            doc,
            text.count("\n", 0, found.start()) + 1 + found[1].count("\n"),
            found[2],
            found[3],
            tuple(re.findall(r"<!-- (.*) -->", found[1])),
        )
        for found in FENCE.finditer(text)
    ]


def with_commands(slow: bool) -> list[str]:
    """Documents that have something to run; the quick tests check the files, too."""
    return [
        doc
        for doc in DOCS
        if any(f.runs if slow else f.file or (f.runs and not f.slow) for f in fences(doc))
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what a checkout offers, and settings that nobody used before."""
    place = tmp_path / "user"
    for name in CHECKOUT:
        shutil.copytree(REPO / name, place / name)
    (place / "datasets").mkdir()
    for file in (REPO / "datasets").glob("*.yaml"):
        shutil.copy(file, place / "datasets")
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("doc", DOCS)
def test_every_fence_runs_or_says_why_not(doc: str) -> None:
    found = fences(doc)
    assert len(found) == (REPO / doc).read_text(encoding="utf-8").count("\n```") // 2
    for fence in found:
        known = {"slow", "main job", "test command"}
        odd = [m for m in fence.marks if m not in known and not m.startswith(("file: ", "not run"))]
        assert not odd, f"{fence.where}: unknown markers {odd}"
        assert fence.reason is None or len(fence.reason.split()) > 3, f"{fence.where}: why not?"
        if fence.language in SHOWN:
            commands = [line for line in fence.body.splitlines() if COMMAND.match(line)]
            assert not commands, f"{fence.where}: {commands} would not be run"
        else:
            assert fence.runs or fence.reason or fence.file, f"{fence.where}: run it or say why not"


# The quick way: one process, for documents that are wrong more often than processes are.
@pytest.mark.parametrize("doc", with_commands(slow=False))
def test_quick_commands(doc: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", folder / "datasets")
    registry.list_blocks()  # all of ours first: what is restored afterwards must hold them
    for name in ("_BLOCKS", "_ALIASES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    for fence in fences(doc):
        if fence.file:
            save(fence, folder)
        elif fence.runs and not fence.slow and fence.language == "python":
            exec(compile(fence.body, fence.where, "exec"), {"__name__": "__main__"})
        elif fence.runs and not fence.slow:
            for line in fence.body.replace("\\\n", " ").splitlines():
                run_here(line, fence, folder, monkeypatch)


def save(fence: Fence, folder: Path) -> None:
    """Write a fence to its file; a model or a study must be a good one."""
    (folder / str(fence.file)).write_text(fence.body, encoding="utf-8")
    content = yaml.safe_load(fence.body) if fence.language == "yaml" else {}
    if "base" in content:
        invoke(["check", str(folder / str(fence.file))], fence)
    elif "arms" in content:
        from yolo_attn.ablation.spec import from_dict

        study = from_dict(content, fence.where)
        assert {arm.name for arm in study.arms} == set(content["arms"])
    elif "backbone" in content:  # of a fork
        invoke(["migrate", str(folder / str(fence.file))], fence)
    else:
        assert fence.language != "yaml", f"{fence.where}: neither a model nor a study"


def run_here(line: str, fence: Fence, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "cd":
        monkeypatch.chdir(words[1])
    elif words[0] == "export":
        for name, value in (word.split("=", 1) for word in words[1:]):
            value = value.replace("$PWD", str(Path.cwd()))
            monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":
                monkeypatch.syspath_prepend(value)
        # A new process would look for blocks again.
        monkeypatch.setattr(registry, "_loaded", False)
    elif words[0] == "yolo-attn":
        invoke(words[1:], fence)
    else:
        shell(line, folder, fence.where, Path.cwd())


def invoke(arguments: list[str], fence: Fence) -> None:
    result = CliRunner().invoke(app, arguments)
    said = f"{fence.where}: yolo-attn {' '.join(arguments)}\n{result.output}\n{result.exception!r}"
    assert result.exit_code == 0, said


# All of it, in order, each document as one session in a shell.
@pytest.mark.slow
@pytest.mark.parametrize("doc", with_commands(slow=True))
def test_all_commands(doc: str, folder: Path) -> None:
    for fence in fences(doc):
        if fence.file:
            (folder / fence.file).write_text(fence.body, encoding="utf-8")
        elif fence.runs and fence.language == "python":
            shell(session(f"python -c {shlex.quote(fence.body)}", folder), folder, fence.where)
        elif fence.runs:
            shell(session(fence.body, folder), folder, fence.where)


def session(commands: str, folder: Path) -> str:
    """The commands in the folder and with the variables that the ones before left."""
    state = folder.parent / "session.sh"
    kept = f'export -p > {state}\necho cd "$PWD" >> {state}'
    return f"[ ! -f {state} ] || source {state}\n{commands}\n{kept}\n"


def shell(commands: str, folder: Path, where: str, cwd: Path | None = None) -> None:
    tools, config = folder.parent / "bin", folder.parent / "config"
    if not tools.exists():
        write_tools(tools)
        config.mkdir()
    # The package is installed for users; here it may be on PYTHONPATH alone.
    commands = commands.replace("PYTHONPATH=$PWD", f"PYTHONPATH=$PWD:{REPO}").replace(INSTALL, "")
    env = environment(PYTEST_CURRENT_TEST=None, YOLO_CONFIG_DIR=str(config))
    env["PATH"] = f"{tools}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=cwd or folder, env=env, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, f"{where}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def write_tools(folder: Path) -> None:
    """The three commands that documents name, of this environment."""
    folder.mkdir()
    entries = {
        "yolo": "from ultralytics.cfg import entrypoint as main",
        "yolo-attn": "from yolo_attn.cli import main",
    }
    for name, line in entries.items():
        text = f"#!{sys.executable}\nimport sys\n{line}\nsys.exit(main())\n"
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    (folder / "python").chmod(0o755)


def test_guides_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    files = {fence.file: fence.body for fence in fences("docs/guide.md") if fence.file}
    project = files["pyproject.toml"]
    name, version = (re.search(rf'^{k} = "(.+)"$', project, re.M)[1] for k in ("name", "version"))
    group, points = re.search(
        r'^\[project.entry-points."(.+?)"\]\n((?:.+\n)+)', project, re.M
    ).groups()
    metadata = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n" + points.replace('"', ""))
    (tmp_path / "my_blocks.py").write_text(files["my_blocks.py"])
    path = {"PYTHONPATH": f"{tmp_path}:{REPO}"}
    assert (
        "LocalContrast" in python("-m", "yolo_attn.cli", "blocks", "LocalContrast", **path).stdout
    )


def test_rows_in_the_readmes_answers_build(tmp_path: Path) -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(\[[PN]\d, 1, \w+, .*?\])`", text.replace("\n", " "))
    assert len(rows) >= 5
    inserts = "".join(f"  - {row}\n" for row in rows)
    (tmp_path / "yolov8-rows.yaml").write_text(f"base: yolov8.yaml\ninsert:\n{inserts}")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "yolov8n-rows.yaml")])
    assert result.exit_code == 0, (result.output, result.exception)


def test_readme_names_every_function_that_the_hook_changes() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    section = text.split("## What the start-up hook does")[1].split("\n## ")[0]
    missing = [
        name
        for functions in REDIRECTS.values()
        for name in functions
        if f"`{name}`" not in section and f"`{name.rpartition('.')[2]}`" not in section
    ]
    assert not missing
    assert (
        f"one of the {['six', 'seven', 'eight'][len(REDIRECTS) - 6]} Ultralytics modules" in section
    )


def test_picture_of_the_architecture_is_that_of_the_source() -> None:
    (picture,) = (f.body for f in fences("docs/architecture.md") if f.language == "mermaid")
    arrows = set(re.findall(r"^ *(\w+) -[-.].*?> (\w+)$", picture, re.MULTILINE))
    leaves = {"errors", "paths", "__version__", "__init__"}
    real = {
        (package_of(path), module.split(".")[1])
        for path in sources()
        for module in imports(path)
        if module.startswith("yolo_attn.")
    }
    real = {(a, b) for a, b in real if a != b and not {a, b} & leaves}
    assert arrows == real, "correct the arrows of docs/architecture.md"


@pytest.mark.parametrize("doc", DOCS)
def test_links_lead_somewhere(doc: str) -> None:
    text = FENCE.sub("", (REPO / doc).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", text):
        name, _, anchor = target.partition("#")
        file = (REPO / doc).parent / name if name else REPO / doc
        assert file.exists(), f"{doc}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            plain = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in plain, f"{doc}: {target}"

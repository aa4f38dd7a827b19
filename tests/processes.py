"""Fresh processes for tests: what a user starts from a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# A limit for what hangs, in seconds, and no claim about speed: the machine may be slow or busy.
PATIENCE = 900


def environment(**extra: str | None) -> dict[str, str]:
    """The test's environment without network; None removes a variable."""
    env = {**os.environ, "YOLO_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    for key, value in extra.items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    return env


def python(*args: str, cwd: Path | None = None, ok: bool = True, **env: str | None):
    """Run this interpreter; fails the test on a non-zero exit unless told otherwise."""
    return _run([sys.executable, *args], cwd, ok, env)


def yolo(*args: str, cwd: Path, ok: bool = True, **env: str | None):
    """Run the stock ``yolo`` command of this environment."""
    command = shutil.which(
        "yolo", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    # With another Ultralytics on PYTHONPATH (scripts/version_matrix.py) the same entry point
    # serves.
    start = (
        [command]
        if command
        else [sys.executable, "-c", "from ultralytics.cfg import entrypoint; entrypoint()"]
    )
    return _run([*start, *args], cwd, ok, env)


def _run(command: list[str], cwd: Path | None, ok: bool, env: dict[str, str | None]):
    done = subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=PATIENCE
    )
    if ok:
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done

"""Feed damaged YAMLs, studies and checkpoints to the plugin; print how each ended; faults exit 1.

A case ends well if it works or if it gives one clear error: a one-line YoloAttnError, or, where the
file names nothing of ours, Ultralytics' own error. A fault is any other exception, more than 20 s
of the processor, more than 2 GB, a crash, or code of the file that ran. Each case runs in a forked
child. An ordinary (unrestricted) load of a checkpoint is unpickling and may run code: there, only
the rest is asked.

Example: nice python scripts/fuzz.py --only models --count 200
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import signal
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import yaml

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_VERBOSE", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="yolo-attn-fuzz-config-"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import fuzz_cases

SECONDS = 20
MEMORY = 2 << 30
COUNTS = {"models": 1000, "overlays": 300, "checkpoints": 200, "studies": 200}


@dataclass
class Outcome:
    """How one case ended: `works`, `clear error`, `host's error`, or `FAULT`."""

    end: str
    detail: str = ""
    seconds: float = 0.0
    bytes: int = 0


def judged(action: Callable[[], Any], ours: bool) -> Outcome:
    """Run an action of this process and judge how it ends."""
    from yolo_attn.errors import YoloAttnError

    try:
        action()
    except YoloAttnError as error:
        text = str(error)
        if not text.strip() or "\n" in text or len(text) > 1500:
            return Outcome("FAULT", f"not one line of 1500 characters: {text[:300]!r}")
        return Outcome("clear error", text)
    except BaseException as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Outcome("FAULT" if ours else "host's error", f"{text} at {_where(error)}")
    return Outcome("works")


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def in_child(job: Callable[[], Outcome], canary: Path | None) -> Outcome:
    """Run a job in a forked child with limits of time and memory."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        # Their default action ends the process, whatever it is busy with: time of the processor,
        # which a busy machine does not stretch, and of the clock, for one that only waits.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(12 * SECONDS)
        try:
            outcome = job()
        except BaseException as error:
            outcome = Outcome("FAULT", f"the case itself: {type(error).__name__}: {error}")
        os.write(write, f"{outcome.end}\t{outcome.detail}".encode(errors="replace")[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    end, _, detail = said.partition("\t")
    if not said:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        late = number in (signal.SIGALRM, signal.SIGPROF)
        why = f"longer than {SECONDS} s" if late else f"ended by status {status}"
        end, detail = "FAULT", why
    if canary is not None and canary.exists():
        canary.unlink()
        end, detail = "FAULT", f"code of the file ran ({end}: {detail})"
    return Outcome(end, detail, seconds, used.ru_maxrss * 1024)


def names_ours(data: bytes) -> bool:
    """Whether a YAML names a block of ours in a row, or is an overlay; else by its text."""
    from yolo_attn.registry import find_block, known_names

    text = data.decode("utf-8", errors="ignore")
    try:
        d = yaml.safe_load(text)
    except Exception:
        return bool(set(re.findall(r"\w+", text)) & set(known_names())) or "base:" in text
    if not isinstance(d, dict):
        return False
    rows = [r for k in ("backbone", "head") if isinstance(d.get(k), list) for r in d[k]]
    named = [m for r in rows if isinstance(r, list) for m in r[2:3]]
    return "base" in d or any(find_block(m) is not None for m in named)


def model_job(file: Path, data: bytes) -> Callable[[], Outcome]:
    """`yolo-attn check FILE`, then YOLO(FILE): both end well, and what passed the first builds."""

    def job() -> Outcome:
        from ultralytics import YOLO

        from yolo_attn.zoo import check

        ours = names_ours(data)
        checked = judged(lambda: check(str(file)), ours=True)
        built = judged(lambda: YOLO(str(file), verbose=False), ours)
        if checked.end == "FAULT":
            return Outcome("FAULT", f"check: {checked.detail}")
        if built.end == "FAULT":
            return Outcome("FAULT", f"YOLO: {built.detail} (check: {checked.end})")
        if (
            checked.end == "works"
            and ours
            and built.end != "works"
            and "memory" not in built.detail
        ):
            return Outcome("FAULT", f"check passed, but YOLO: {built.detail}")
        return built

    return job


def checkpoint_job(file: Path, data: bytes, restricted: bool) -> Callable[[], Outcome]:
    """Load a checkpoint and run it once; Ultralytics' TypeError for a damaged file is clear."""

    def job() -> Outcome:
        import torch
        from ultralytics.nn import tasks

        def load() -> None:
            ckpt, _ = tasks.torch_safe_load(str(file), safe_only=restricted)
            model = ckpt.get("ema") or ckpt.get("model")
            if not isinstance(model, torch.nn.Module):
                raise TypeError("ERROR no model in the checkpoint")
            model.float().eval()(torch.zeros(1, 3, 64, 64))

        outcome = judged(load, ours=b"yolo_attn" in data)
        told = re.match(r"(TypeError|ModuleNotFoundError|FileNotFoundError): ERROR", outcome.detail)
        if outcome.end == "FAULT" and told:
            return Outcome("host's error", outcome.detail)
        return outcome

    return job


def study_job(file: Path) -> Callable[[], Outcome]:
    """`yolo-attn ablate FILE --dry-run`: everything is checked, nothing is trained."""

    def job() -> Outcome:
        from yolo_attn.ablation.runner import plan_study
        from yolo_attn.ablation.spec import read_study

        # A damaged `project` may lead some folders up, but not out.
        place = file.parent / "a" / "b" / "c"
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        return judged(lambda: plan_study(read_study(file)), ours=True)

    return job


def study_texts(folder: Path) -> list[str]:
    """A study that says everything a study can say, on a data set that is there."""
    from yolo_attn.data.synthetic import make_smallshapes

    root = make_smallshapes(
        folder / "set", image_size=64, train_images=2, val_images=1, object_size=(4, 8)
    )
    return [fuzz_cases.STUDY.format(data=root / "data.yaml")]


def model_texts() -> list[str]:
    """Model YAMLs to start from: every tenth a stock one."""
    from yolo_attn.overlay.dry_run import load_model_yaml, scales_of
    from yolo_attn.zoo import config_names, to_yaml, with_scale

    ours = [fuzz_cases.TINY] * 3
    for name in config_names()[::20]:
        d = load_model_yaml(name)
        if letter := scales_of(d)[0]:
            d = load_model_yaml(with_scale(name, letter))
        ours.append(to_yaml(d, name))
    import ultralytics

    stock = Path(ultralytics.__file__).parent / "cfg" / "models"
    return [*ours, (stock / "v8" / "yolov8.yaml").read_text(encoding="utf-8")]


def overlay_texts() -> list[str]:
    """The zoo's overlays, and one for every block."""
    from export_places import after

    from yolo_attn.paths import zoo_dir
    from yolo_attn.registry import block_info, list_blocks

    texts = [p.read_text(encoding="utf-8") for p in sorted(zoo_dir().glob("*.yaml"))]
    for name in list_blocks():
        if name != "RevColumns":
            row = f"[{after(block_info(name), 'P5')}, 1, {name}, []]"
            texts.append(f"base: yolov8.yaml\nscale: n\nidentity_start: true\ninsert:\n  - {row}\n")
    return [t for t in texts if "base:" in t]


def good_checkpoint(folder: Path) -> bytes:
    """A tiny model of ours, saved as Ultralytics saves one."""
    import torch
    from ultralytics import YOLO

    (folder / "yolov8n-tiny.yaml").write_text(fuzz_cases.TINY, encoding="utf-8")
    YOLO(str(folder / "yolov8n-tiny.yaml"), verbose=False).save(folder / "good.pt")
    assert torch.load(folder / "good.pt", weights_only=False)["model"] is not None
    return (folder / "good.pt").read_bytes()


def run(kind: str, count: int, seed: int, folder: Path) -> Iterator[tuple[str, Outcome]]:
    """Run `count` cases of a kind; each is made from `seed` and its number alone."""
    canary = folder / "canary"
    sources = {"models": model_texts, "overlays": overlay_texts}
    sources["studies"] = lambda: study_texts(folder)
    texts = sources.get(kind, list)()
    good = good_checkpoint(folder) if kind == "checkpoints" else b""
    for number in range(count):
        rng = random.Random(zlib.crc32(f"{kind} {seed} {number}".encode()))
        if kind == "checkpoints":
            what, data = fuzz_cases.mutate_checkpoint(rng, good, canary)
            file = folder / f"case{number}.pt"
            restricted = rng.random() < 0.5
            job = checkpoint_job(file, data, restricted)
            what = f"{what}, {'restricted' if restricted else 'ordinary'}"
            watched = canary if restricted or "payload" not in what else None
        else:
            text = texts[number % len(texts)]
            data, what, watched = fuzz_cases.mutate_yaml(rng, text, canary), kind, canary
            file = folder / f"yolov8n-case{number}.yaml"
            if kind == "studies":
                job = study_job(file)
            else:
                job = model_job(file, data)
                # A stock model's `activation` is Ultralytics' to evaluate, and it does.
                watched = canary if names_ours(data) else None
        file.write_bytes(data)
        outcome = in_child(job, watched)
        canary.unlink(missing_ok=True)
        yield f"{kind} {number} ({what})", outcome
        if outcome.end != "FAULT":
            file.unlink()


def tally(kind: str, results: list[tuple[str, Outcome]]) -> str:
    """One line: how the cases of a kind ended."""
    ends = Counter(outcome.end for _, outcome in results)
    order = ("works", "clear error", "host's error", "FAULT")
    counts = ", ".join(f"{ends.get(end, 0)} {end}" for end in order)
    slowest = max((o.seconds for _, o in results), default=0)
    most = max((o.bytes for _, o in results), default=0)
    return f"{kind}: {len(results)} cases: {counts}; slowest {slowest:.1f} s, most {most >> 20} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(COUNTS), help="one kind of file")
    parser.add_argument(
        "--count", type=int, help="cases of each kind (default: 1000, 300, 200, 200)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of faults")
    parser.add_argument("--show", action="store_true", help="print every case")
    args = parser.parse_args()
    prepare()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="yolo-attn-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    faults = 0
    for kind in [args.only] if args.only else COUNTS:
        results = []
        try:
            for name, outcome in run(kind, args.count or COUNTS[kind], args.seed, folder):
                results.append((name, outcome))
                if args.show or outcome.end == "FAULT":
                    said = f"{outcome.end}: {outcome.detail} ({outcome.seconds:.1f} s)"
                    print(f"{name}: {said}", flush=True)
        except KeyboardInterrupt:
            print(f"stopped early, at case {len(results)}")
        faults += sum(outcome.end == "FAULT" for _, outcome in results)
        print(tally(kind, results), flush=True)
    sys.exit(1 if faults else 0)


def prepare() -> None:
    """Import everything before forking, on one thread: children must not wait for a pool's."""
    import torch

    import yolo_attn.blocks
    import yolo_attn.zoo

    torch.set_num_threads(1)
    # What torch imports at the first run on the meta device, once instead of in each child.
    yolo_attn.zoo.check("yolov8n-nonlocal.yaml")


if __name__ == "__main__":
    main()

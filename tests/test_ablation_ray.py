"""A trial on another machine: its GPU and its versions, without a cluster."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ablation_worker import jobs_in, run_study
from yolo_attn.ablation import trial_process
from yolo_attn.ablation.executors import ray as executor
from yolo_attn.ablation.executors.ray import OWN_GPU, RayExecutor
from yolo_attn.ablation.store import TRAINER, TrialFolder, read_json
from yolo_attn.devices import parse


class FakeRay(types.ModuleType):
    """One machine; its tasks are done at once, in this process."""

    def __init__(self, gpus: int, interrupt: bool = False):
        super().__init__("ray")
        self.gpus, self.interrupt = gpus, interrupt
        self.cancelled: list[Any] = []
        self.exceptions = types.SimpleNamespace(RayTaskError=OSError, RayError=EOFError)

    def init(self, **_: Any) -> None: ...

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0, "GPU": float(self.gpus)}

    def remote(self, **_: Any):
        def wrap(task):
            return types.SimpleNamespace(remote=lambda *args: _Reference(task(*args)))

        return wrap

    def wait(self, references: list[Any], num_returns: int):
        if self.interrupt:
            raise KeyboardInterrupt
        return references[:1], references[1:]

    def get(self, reference: Any):
        return reference.value

    def cancel(self, reference: Any, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


class _Reference:
    def __init__(self, value: Any):
        self.value = value


@pytest.mark.parametrize(("gpus", "told", "places"), [(2, OWN_GPU, 2), (0, "cpu", 4)])
def test_a_task_with_a_gpu_of_its_own_is_told_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, told: str, places: int
) -> None:
    seen = []
    monkeypatch.setitem(sys.modules, "ray", FakeRay(gpus))
    monkeypatch.setattr(executor, "_task", lambda job, device, *_: seen.append(device) or {})
    runs = RayExecutor()
    runs.execute(jobs_in(tmp_path, "resume"), lambda job, record: None)
    assert set(seen) == {told} and len(seen) == 4 and runs.places == places


def test_ctrl_c_ends_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(1, interrupt=True)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(executor, "_task", lambda *_: {})
    with pytest.raises(KeyboardInterrupt):
        RayExecutor().execute(jobs_in(tmp_path, "resume"), lambda job, record: None)
    assert len(fake.cancelled) == 4


def test_ultralytics_leaves_the_gpu_that_ray_gave_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils.torch_utils import select_device

    properties = types.SimpleNamespace(name="GPU", total_memory=2**34, multi_processor_count=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert str(select_device(OWN_GPU, verbose=False)) == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert parse(OWN_GPU).torch_name == "cuda:0"


def test_the_command_line_takes_the_word() -> None:
    from ultralytics.cfg import parse_key_value_pair

    assert parse_key_value_pair(f"device={OWN_GPU}") == ("device", None)


def test_trial_json_names_the_versions_of_the_process_that_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ultralytics
    import ultralytics.cfg

    job = jobs_in(tmp_path / "study", "resume")[0]
    folder = TrialFolder(Path(job.folder))
    folder.path.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(ultralytics.cfg, "entrypoint", lambda: None)
    trial_process.yolo(["yolo", "detect", "train"], folder)
    assert read_json(folder.path / TRAINER)["versions"]["ultralytics"] == ultralytics.__version__
    outcome = run_study(tmp_path / "study")
    assert len(outcome.done) == 4
    assert job.manifest["versions"]["ultralytics"] == "0", "the planner's"
    assert folder.record["versions"]["ultralytics"] == ultralytics.__version__

"""A Ray cluster: each trial is a task; the results folder is shared by all machines.

Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications" (OSDI 2018).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from yolo_attn.ablation.executors import Report
from yolo_attn.ablation.plan import Job
from yolo_attn.errors import YoloAttnError

# Ray shows a task its own GPU alone, through CUDA_VISIBLE_DEVICES. Told "0", Ultralytics up to 8.4
# overwrites that variable, and all tasks of a machine sit on its first GPU. Told nothing, every
# release takes the first GPU that it sees.
OWN_GPU = "None"


class RayExecutor:
    """Tasks of a Ray cluster, each with a GPU if the cluster has any."""

    def __init__(self, address: str | None = None):
        """Connect to a cluster.

        Args:
            address: as in ``ray.init``; None starts one on this machine.

        Raises:
            YoloAttnError: Ray is not installed, or there is no cluster at the address.
        """
        try:
            import ray
        except ImportError:
            raise YoloAttnError("--executor ray needs Ray: pip install 'yolo-attn[ray]'") from None
        self.ray = ray
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise YoloAttnError(f"--address {address}: no Ray cluster there ({text})") from error
        resources = ray.cluster_resources()
        self.gpus = float(resources.get("GPU", 0))
        self.places = max(int(self.gpus or resources.get("CPU", 1)), 1)

    def execute(self, jobs: Sequence[Job], report: Report) -> None:
        """Do all jobs; a task whose worker dies is reported as failed and the others go on."""
        remote = self.ray.remote(num_cpus=1, num_gpus=1 if self.gpus else 0, max_retries=0)(_task)
        device = OWN_GPU if self.gpus else "cpu"
        path = os.environ.get("PYTHONPATH", "")
        running = {remote.remote(job.as_dict(), device, os.getcwd(), path): job for job in jobs}
        while running:
            try:
                (reference,), _ = self.ray.wait(list(running), num_returns=1)
            except KeyboardInterrupt:
                for reference in running:
                    self.ray.cancel(reference, force=True)  # its guard ends the training
                raise
            job = running.pop(reference)
            try:
                report(job, self.ray.get(reference))
            except self.ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, YoloAttnError) else error) from None
            except self.ray.exceptions.RayError as error:
                lost = {"what": f"the Ray worker was lost ({type(error).__name__})", "tail": []}
                report(job, {"status": "failed", "error": lost})


def _task(job: dict[str, Any], device: str, cwd: str, path: str) -> dict[str, Any]:
    from yolo_attn.ablation.trial import run_job

    # Relative paths of models and data mean the folder that the study was started in.
    os.chdir(cwd)
    if path:
        os.environ["PYTHONPATH"] = path
    return run_job(Job(**job), device)

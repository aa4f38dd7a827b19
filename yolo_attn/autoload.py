"""The start-up hook: the seam reaches into Ultralytics when, and only when, it is imported.

PyTorch (2.5 and newer) calls :func:`install` at the end of ``import torch``, because the package's
metadata names it in the entry-point group ``torch.backends``. It puts one finder in front of
``sys.meta_path``. When one of the few Ultralytics modules below is imported, the finder lets
Python's own loader run it and then redirects the functions named here to handlers of ours (which
are imported at their first call, not before).

Standard library only, idempotent, and never raises: an exception here would break ``import torch``.
``YOLO_ATTN_DISABLE=1`` switches it off.
"""

from __future__ import annotations

import os
import sys
from typing import Any

DISABLE_ENV = "YOLO_ATTN_DISABLE"
_taking_part = False

# Ultralytics module -> function or Class.method -> handler "module:function", called as
# handler(original, *arguments).
REDIRECTS = {
    "ultralytics.utils.checks": {"check_file": "yolo_attn.seam.files:check_file"},
    "ultralytics.utils.torch_utils": {"get_flops": "yolo_attn.seam.flops:get_flops"},
    # Every criterion for upright boxes is a v8DetectionLoss or made of some.
    "ultralytics.utils.loss": {
        "v8DetectionLoss.__init__": "yolo_attn.seam.box_losses:init",
        "BboxLoss.forward": "yolo_attn.seam.box_losses:forward",
    },
    "ultralytics.nn.tasks": {
        "parse_model": "yolo_attn.seam.parser:parse_model",
        "yaml_model_load": "yolo_attn.seam.overlay_loader:yaml_model_load",
        "torch_safe_load": "yolo_attn.seam.checkpoint:torch_safe_load",
        # Every class that has a `loss` of its own; YOLOESegModel's calls YOLOEModel's.
        "BaseModel.loss": "yolo_attn.seam.losses:loss",
        "RTDETRDetectionModel.loss": "yolo_attn.seam.losses:loss",
        "WorldModel.loss": "yolo_attn.seam.losses:loss",
        "YOLOEModel.loss": "yolo_attn.seam.losses:loss",
        "BaseModel.load": "yolo_attn.transfer.load:load",
    },
    "ultralytics.engine.model": {"Model._new": "yolo_attn.seam.build_errors:new_model"},
    "ultralytics.engine.trainer": {
        "BaseTrainer._setup_train": "yolo_attn.seam.losses:setup_train",
        "BaseTrainer.setup_model": "yolo_attn.seam.freeze:setup_model",
        "BaseTrainer.save_metrics": "yolo_attn.seam.size_metrics:save_metrics",
    },
    # Trainers call it by name from the list of default callbacks; a subclass cannot hide it.
    "ultralytics.utils.callbacks.base": {
        "on_train_end": "yolo_attn.seam.block_use:on_train_end",
        "on_train_epoch_end": "yolo_attn.seam.loss_state:on_train_epoch_end",
    },
    "ultralytics.models.yolo.detect.val": {
        "DetectionValidator.init_metrics": "yolo_attn.seam.size_metrics:init_metrics",
        "DetectionValidator.update_metrics": "yolo_attn.seam.size_metrics:update_metrics",
        "DetectionValidator.gather_stats": "yolo_attn.seam.size_metrics:gather_stats",
        "DetectionValidator.get_stats": "yolo_attn.seam.size_metrics:get_stats",
        "DetectionValidator.print_results": "yolo_attn.seam.size_metrics:print_results",
    },
}
# In a fork's checkout, until a model with a block of ours is there (see seam/fork.py).
IN_A_FORK = {
    "ultralytics.nn.tasks": {
        "parse_model": "yolo_attn.seam.fork:parse_model",
        "yaml_model_load": "yolo_attn.seam.fork:yaml_model_load",
        "torch_safe_load": "yolo_attn.seam.fork:torch_safe_load",
    },
    "ultralytics.utils.checks": {"check_file": "yolo_attn.seam.fork:check_file"},
}
# Methods that old versions do without: there, only rank 0 validates.
SINCE = {"DetectionValidator.gather_stats"}


def disabled() -> bool:
    """Whether ``YOLO_ATTN_DISABLE`` is set to anything but an empty string, 0 or false."""
    return os.environ.get(DISABLE_ENV, "").strip().lower() not in ("", "0", "false", "no")


def install() -> None:
    """Activate the seam for Ultralytics modules to come and for those that are loaded already."""
    try:
        if disabled() or any(isinstance(f, _Finder) for f in sys.meta_path):
            return
        sys.meta_path.insert(0, _Finder())
        for name in REDIRECTS:
            module = sys.modules.get(name)
            spec = getattr(module, "__spec__", None)
            if module is not None and not getattr(spec, "_initializing", False):
                _redirect(module)
    except Exception as error:
        _warn(f"could not install its start-up hook ({type(error).__name__}: {error})")


def take_part() -> None:
    """In a fork: a model with a block of ours has come, put the whole seam in place."""
    global _taking_part
    if not _taking_part:
        _taking_part = True
        for name in REDIRECTS:
            if name in sys.modules:
                _redirect(sys.modules[name])


def refuse_when_disabled() -> None:
    """Say what is wrong when Ultralytics opens a checkpoint of ours with the seam switched off.

    Raises:
        YoloAttnError: ``YOLO_ATTN_DISABLE`` is set and Ultralytics' checkpoint loader is asking for
            blocks.
    """
    if not disabled():
        return
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "torch_safe_load":
        frame = frame.f_back
    if frame is not None:
        from yolo_attn.errors import YoloAttnError

        raise YoloAttnError(
            f"{frame.f_locals.get('weight', 'the checkpoint')} holds blocks of yolo_attn, which "
            f"{DISABLE_ENV}={os.environ[DISABLE_ENV]} switches off: unset {DISABLE_ENV} to load it"
        )


class _Finder:
    """Finds the modules of ``REDIRECTS`` through the other finders; redirects once loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in REDIRECTS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                self._run_then_redirect(spec.loader)
                return spec
        return None

    @staticmethod
    def _run_then_redirect(loader: Any) -> None:
        """Extend ``exec_module`` of this one loader; its class stays, so inspection works."""
        run = getattr(loader, "exec_module", None)
        if run is None:
            return

        def exec_module(module: Any) -> None:
            run(module)
            try:
                _redirect(module)
            except Exception as error:
                _warn(f"could not reach into {module.__name__} ({type(error).__name__}: {error})")

        loader.exec_module = exec_module


def _redirect(module: Any) -> None:
    """Redirect the functions of one Ultralytics module."""
    from yolo_attn.host import foreign
    from yolo_attn.seam.redirect import fits, redirect

    fork = foreign()
    table = IN_A_FORK if fork and not _taking_part else REDIRECTS
    for name, handler in table.get(module.__name__, {}).items():
        owner, _, function = name.rpartition(".")
        if owner and not hasattr(module, owner):
            continue  # a model class that this version does not have yet
        holder = getattr(module, owner) if owner else module
        if name in SINCE and function not in vars(holder):
            continue
        found = getattr(holder, function, None)
        if fork and _taking_part and not fits(found, handler):
            continue
        if not redirect(found, handler) and not fork:
            _warn(
                f"found no plain function {name}() in {module.__name__} of this Ultralytics "
                "version: models "
                "with its blocks will not build or train, stock models are not affected; please "
                "report the version"
            )


def _warn(message: str) -> None:
    import warnings

    warnings.warn(f"yolo_attn {message}", RuntimeWarning, stacklevel=2)

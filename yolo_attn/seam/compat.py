"""Facts about versions of Ultralytics, in one place.

| what | versions | what we do |
|---|---|---|
| ``check_yaml`` of the scale-less name first | up to 8.4.120 | the exact name wins in our zoo |
| ``activation`` stays for later models | up to 8.4.150 | parse_model restores it for ours |
| ``yaml_load``; ``YAML.load`` | up to 8.3.1xx; later | call the original ``yaml_model_load`` |
| ``ULTRALYTICS_SAFE_LOAD`` | from 8.4.61 on | allow-list our classes |
| no ``Index`` row | 8.3.0 | our own stands in (seam/host_modules.py) |
| loss items: a vector with fixed names; a dict | up to 8.4.103; later | seam/losses.py does both |
| ``get_flops`` sees no attention products | up to 8.4.60 | count our blocks (seam/flops.py) |
"""

from __future__ import annotations

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.modules import host_version

OLDEST = "8.3.0"
REPORT = "the issue tracker of yolo-attn"


class UnexpectedHostError(YoloAttnError):
    """A function of the installed Ultralytics has not the shape that the seam is made for."""

    def __init__(self, function: str, expected: str):
        super().__init__(
            f"Ultralytics {host_version()}: {function} has not the shape that yolo_attn knows "
            f"({expected}); "
            "stock models are not affected, models with yolo_attn blocks cannot be built with "
            "this version: "
            f"install another one (tested: {OLDEST} and newer, see docs/compatibility.md) and "
            "please report "
            f"it to {REPORT}"
        )
        self.about = (function, expected)

    def __reduce__(self) -> tuple[type[UnexpectedHostError], tuple[str, str]]:
        """Another process (a data loader's worker, a Ray task) hands it on."""
        return type(self), self.about

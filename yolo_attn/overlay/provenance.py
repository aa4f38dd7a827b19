"""Which version of ours a model's YAML is of: its defaults are meant when it is built again."""

from __future__ import annotations

from typing import Any

from yolo_attn import __version__
from yolo_attn.overlay.location import PROVENANCE
from yolo_attn.overlay.meaning import note_built
from yolo_attn.overlay.model_checks import names_ours
from yolo_attn.overlay.older_rows import spell_out
from yolo_attn.versions import FIRST, parse

# Attribute of a built model's ``Sequential``, where a program's own dictionary has no place for it.
STAMP = "yolo_attn_version"


def stamp_checkpoint(model: Any) -> None:
    """Write into the YAML of a model from a checkpoint which version built it.

    Models that were built from a file say it there already; those built from a dictionary only in
    their module, and those of before 0.2.0 nowhere. Rows of ours are written as today's rules want.
    """
    d = getattr(model, "yaml", None)
    if not isinstance(d, dict):
        return
    from ultralytics.nn import tasks

    spell_out(d, model)
    note_built(d, model, vars(tasks))
    if not names_ours(d):
        return
    provenance = d.setdefault(PROVENANCE, {})
    if isinstance(provenance, dict):
        built_by = getattr(getattr(model, "model", None), STAMP, FIRST)
        provenance.setdefault("version", str(built_by))


def version_of(d: dict[str, Any]) -> str:
    """The version of ours that a model's rows were read by first: its defaults are meant."""
    provenance = d.get(PROVENANCE)
    if isinstance(provenance, dict) and "version" in provenance:
        version = provenance["version"]
        if parse(version) > parse(__version__):
            from ultralytics.utils import LOGGER

            LOGGER.warning(
                f"{d.get('yaml_file') or 'this model'} was made by yolo_attn {version}, this is "
                f"{__version__}: defaults of its blocks may differ (`pip install -U yolo-attn`)"
            )
        return version
    # Whatever comes from a file or a checkpoint says its version by now (see above); a dictionary
    # that a program wrote has no file.
    return FIRST if PROVENANCE in d or d.get("yaml_file") else __version__

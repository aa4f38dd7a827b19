"""What PyTorch calls at the end of ``import torch``: starts yolo_attn, or does nothing at all.

A file of its own beside the package, copied even by ``pip install -e``: PyTorch fails to be
imported where it finds the metadata of yolo-attn and not the function that they name. The package
itself is not there when a checkout that was installed in place has moved, or when another Python's
site-packages stand on PYTHONPATH.
"""


def install():
    """Install the start-up hook of yolo_attn (yolo_attn/autoload.py); never raises."""
    try:
        from yolo_attn.autoload import install as start

        start()
    except Exception:
        pass  # without the package there is nothing to start, and nobody who asked for it

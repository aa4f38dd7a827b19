"""Where `transfer` was before 0.2.0; it lives in :mod:`yolo_attn.transfer.load`."""

from yolo_attn.transfer.load import transfer as transfer

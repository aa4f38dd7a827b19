"""Everything that touches Ultralytics, one concern a file. See yolo_attn/autoload.py for what is redirected."""

"""Data sets: converters to the YOLO layout and the synthetic small-object set."""

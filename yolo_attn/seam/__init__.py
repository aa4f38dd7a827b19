"""Everything that touches Ultralytics, one concern a file; autoload.py lists what is redirected."""

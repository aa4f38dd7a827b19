"""Overlays: YAMLs that say how they differ from a base, expanded to plain model YAMLs."""

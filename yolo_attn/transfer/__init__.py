"""Pretrained weights into the layers that they belong to."""

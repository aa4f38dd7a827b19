"""Ablation studies: several models and seeds, one verdict, and everything needed to repeat it."""

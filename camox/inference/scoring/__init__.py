"""Scores of checkpoints and maps against ground truth, and what changes them."""

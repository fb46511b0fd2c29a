"""Logits and masks become numbers to minimise."""

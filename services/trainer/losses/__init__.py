"""Losses that verl lacks: pure functions of tensors, one file each."""

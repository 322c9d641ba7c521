"""Proof that a checkpoint is what was trained, and that a resume takes everything up."""

"""The process that verifies, samples and measures checkpoints while training goes on. transformers without verl."""

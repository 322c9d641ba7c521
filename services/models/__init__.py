"""Model folders in Hugging Face form: made from scratch, inspected, sampled and hashed. transformers without verl.

These modules import torch and transformers; a service runs them as `python -m services.models …`.
"""

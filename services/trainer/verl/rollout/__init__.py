"""Answers to a step's prompts, and their rewards."""

"""Interactions to samples: readers and splits, prompts, tokenised samples."""

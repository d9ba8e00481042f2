"""Merging an adapter into its base, tensor by tensor, whatever the model's size; torch without
transformers, memory is for tensors."""

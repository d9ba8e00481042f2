"""Training: the HF Trainer's seams, ZeRO-3 hand-over, complete checkpoints."""

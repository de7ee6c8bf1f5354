"""Train: weighted LoRA, merged checkpoints."""

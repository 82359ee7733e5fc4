"""Training: one run, from a configuration to its record, with transformers' or TRL's Trainer."""

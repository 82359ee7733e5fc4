"""LoRA layers: the two factors of one matrix, all matrices of one adapter, and how both change rank under a live optimizer."""

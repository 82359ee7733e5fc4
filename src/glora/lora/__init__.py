"""LoRA: one adapted matrix, all matrices of an adapter, and their change of rank. For every other room of the core."""

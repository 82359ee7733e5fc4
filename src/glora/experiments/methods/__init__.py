"""Methods: LoRA, AdaLoRA, GLoRA and the others, each applied to a model through one interface (`base`)."""

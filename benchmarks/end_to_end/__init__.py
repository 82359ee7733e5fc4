"""One idea: the seconds until uniform LoRA's final held-out loss is reached, method beside method."""

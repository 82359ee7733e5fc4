"""accelerate_lora: plain LoRA's forward and backward pass as one fused step. Imports `lora` only."""

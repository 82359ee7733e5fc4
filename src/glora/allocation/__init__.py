"""Allocation: scores and a budget become one integer rank per matrix. Pure of any training loop; imports `lora` only."""

"""Allocation: from scores and a budget to integer ranks. For the allocator and `suggest`; uses `lora`."""

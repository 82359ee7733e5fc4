"""Allocation: from scores, or spectra, and a budget to integer ranks.

For the allocator, `suggest`, `compress` and the experiments' methods; imports `lora`.
"""

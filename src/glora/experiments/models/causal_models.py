"""Causal language models that are known by name: where they lie on the hub, and what they are."""

from __future__ import annotations

CAUSAL_MODELS: tuple[tuple[str, str, str], ...] = (
    ("Llama-4-Scout-17B-16E", "meta-llama/Llama-4-Scout-17B-16E", "Llama 4 Scout, 109 B parameters, 17 B active"),
    ("Llama-4-Maverick-17B-128E", "meta-llama/Llama-4-Maverick-17B-128E", "Llama 4 Maverick, 400 B, 17 B active"),
    ("Qwen3-0.6B", "Qwen/Qwen3-0.6B", "Qwen3, 0.6 B parameters"),
    ("Qwen3-1.7B", "Qwen/Qwen3-1.7B", "Qwen3, 1.7 B parameters"),
    ("Qwen3-4B", "Qwen/Qwen3-4B", "Qwen3, 4 B parameters"),
    ("Qwen3-8B", "Qwen/Qwen3-8B", "Qwen3, 8 B parameters"),
    ("Qwen3-14B", "Qwen/Qwen3-14B", "Qwen3, 14 B parameters"),
    ("Qwen3-32B", "Qwen/Qwen3-32B", "Qwen3, 32 B parameters"),
    ("DeepSeek-V3", "deepseek-ai/DeepSeek-V3", "DeepSeek V3, 671 B parameters, 37 B active"),
    ("DeepSeek-V3.1", "deepseek-ai/DeepSeek-V3.1", "DeepSeek V3.1, 671 B parameters, 37 B active"),
    ("DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3.2-Exp", "DeepSeek V3.2 Exp, 671 B parameters, 37 B active"),
    ("gpt-oss-20b", "openai/gpt-oss-20b", "gpt-oss, 21 B parameters, 3.6 B active"),
    ("gemma-3-1b-it", "google/gemma-3-1b-it", "Gemma 3, 1 B parameters, instruction-tuned"),
    ("gemma-3-4b-it", "google/gemma-3-4b-it", "Gemma 3, 4 B parameters, instruction-tuned"),
    ("gemma-3-27b-it", "google/gemma-3-27b-it", "Gemma 3, 27 B parameters, instruction-tuned"),
)
"""Name, hub id, summary."""

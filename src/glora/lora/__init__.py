"""LoRA: one adapted matrix, all matrices of an adapter, and their change of rank.

For every part of glora; imports no other room.
"""

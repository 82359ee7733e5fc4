"""Models: loading one by name, its head and its linear layers, and texts as tokens. Imports only `data` of the experiments.

`registry` imports nothing heavy, so that `glora list models` starts at once.
"""

"""Training: make one run with Trainer or TRL, measure it and return its record.

Used by `runs`, `plan`, `calibration`, `search` and the command line; reads `data`, `models`, `methods` and `records`.
"""

"""Training: make one run with Trainer or TRL, measure it and return its record.

For plans and runs, `calibration`, `compression`, `search` and the command line; imports `data`, `models`, `methods` and
`records`.
"""

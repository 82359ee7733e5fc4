"""Experiments: one run, many runs, their records and their report. For the command line and the benchmarks."""

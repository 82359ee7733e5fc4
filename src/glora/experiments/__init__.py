"""Experiments: one run, many runs, their records and their report. Imported by the command line only."""

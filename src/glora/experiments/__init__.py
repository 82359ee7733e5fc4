"""The experiments: one run, many runs, their records and their report."""

"""Data: tasks by name or from files, as examples with labels or written answers.

Only `loading` imports `datasets`. The other modules describe and find tasks and read files; they import the standard library
alone, so that `glora list tasks` and `--plan` start at once. Imports no other room of experiments.
"""

"""Data: tasks by name or from files, as examples with labels or answers. Imports no other room of experiments."""

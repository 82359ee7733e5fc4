"""A compressed adapter judged: its score on a task, the energy against its size, tables and a picture.

The command line alone imports it.
"""

"""Report: tables, charts and a page from records. Reads records and never trains.

The command line and the benchmarks import it; `compression` imports the charts' style.
"""

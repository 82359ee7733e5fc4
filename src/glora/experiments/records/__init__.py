"""Records: the schema of what one run leaves behind, its provenance, and writing it so that nothing is lost.

Used by every room of the experiments and by the benchmarks; reads only the run's configuration.
"""

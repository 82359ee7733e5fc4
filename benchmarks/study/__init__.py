"""One idea: how good an adapter of a given size is, and what it costs. docs/study-design.md says how it is decided."""

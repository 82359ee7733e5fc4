"""Models: loading one by name, finding its head and its linear layers, and turning texts into tokens."""

"""Benchmarks: one module per bench, results as JSON with the facts of the machine that made them."""

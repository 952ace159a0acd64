"""Floor 7: what works on runs from outside: benchmarks."""

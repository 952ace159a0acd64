"""Floor 7: what works on runs from outside: tables and pictures, evaluation, export, tuning, clusters, benchmarks."""

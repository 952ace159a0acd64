"""Runs: the run directory, metrics and where they go, checkpoints, signals, evaluation."""

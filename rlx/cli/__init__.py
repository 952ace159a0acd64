"""Floor 8: the command line. Typer in front, Hydra behind `rlx train`; it composes, checks and starts."""

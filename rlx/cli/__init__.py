"""Floor 8: the command line. Typer in front, Hydra behind `rlx train`, and no logic of its own."""

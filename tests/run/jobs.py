"""Configurations composed as `rlx train` composes them, for runs inside the tests' own process."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parent.parent.parent / "conf"
SMALL = [
    "logger.console=false",
    "batcher=local",
    "batcher.envs_per_worker=4",
    "algo.num_steps=16",
    "algo.batch_size=32",
    "algo.num_epochs=2",
]


def composed(*overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved configuration and each group's choice."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    choices = {key: str(value) for key, value in config.hydra.runtime.choices.items() if not key.startswith("hydra/")}
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return values, choices


def train(directory: Path, *overrides: str) -> Path:
    """Train as `rlx train` would, and return the run directory."""
    from rlx.run.launch import launch

    launch(*composed(*overrides, f"run_dir='{directory}'"))
    return directory

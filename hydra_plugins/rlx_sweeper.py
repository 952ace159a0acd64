"""What `rlx train -m` sweeps with. Hydra finds its plugins in this package, to which others add their own."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override


class DirectorySweeper(BasicSweeper):
    """Hydra's own sweeper, on those combinations that the sweep's directory does not hold finished already."""

    def split_arguments(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Return the overrides of each job that is left, in batches."""
        from rlx.cli.sweep import left_to_do  # Hydra imports each of its plugins, also where there is no sweep

        jobs: list[Any] = BasicSweeper.split_arguments(overrides, None)[0]
        left = left_to_do(self.config, jobs)
        return list(BasicSweeper.split_overrides_to_chunks(left, max_batch_size)) if left else []

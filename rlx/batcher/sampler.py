"""`agent_info` and `env_info` that are drawn anew for each episode, where the episode is played."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from rlx.batcher.wire import pack
from rlx.data import DictTensor, Spec
from rlx.errors import SpecError, UserError
from rlx.seeding import derive

Sampler = Callable[[int, torch.Generator], Mapping[str, Tensor]]
"""`sampler(row, generator)` returns the fields of one row for its next episode, without the batch dimension.

`row` is the environment's index among all workers', `generator` the row's own: what is drawn does not depend on the
number of workers, nor on which episode ends first. It must be able to reach a worker process: no locks or open files.
"""

Info = DictTensor | Sampler
"""`[B]` rows that stay as they are, or what draws a row for each episode."""


def columns_of(info: Info, columns: slice) -> Info:
    """Return a worker's part: its rows, or the sampler."""
    return info[columns] if isinstance(info, DictTensor) else info


def sample_specs(name: str, sampler: Sampler, *, travels: bool) -> tuple[dict[str, Spec], DictTensor]:
    """Return what a sampler draws, without the batch dimension, and one draw, `[1]`.

    Args:
        name: `agent_info` or `env_info`, for messages.
        sampler: it is called once, with a generator of its own.
        travels: whether it has to reach another process.

    Raises:
        UserError: it cannot travel, or does not return tensors.
    """
    if travels:
        try:
            pack(sampler)
        except Exception as error:
            raise UserError(
                f"{name}: the sampler must be picklable to reach a worker process ({error}): it may hold no locks, "
                "open files and the like; or use local workers"
            ) from error
    answer = cast(object, sampler(0, torch.Generator().manual_seed(0)))  # whatever a user's function returns
    if not isinstance(answer, Mapping):
        raise UserError(f"{name}: the sampler is expected to return tensors by name, got {type(answer).__name__}")
    drawn = cast("dict[str, Tensor]", dict(answer))  # pyright: ignore[reportUnknownArgumentType]
    wrong = [key for key, value in drawn.items() if not isinstance(value, Tensor)]  # pyright: ignore[reportUnnecessaryIsInstance]
    if wrong or not drawn:
        got = f"{wrong[0]!r} is a {type(drawn[wrong[0]]).__name__}" if wrong else "nothing"
        raise UserError(f"{name}: the sampler is expected to return tensors by name, got {got}")
    one = DictTensor({key: value.unsqueeze(0) for key, value in drawn.items()})
    return one.specs(), one


def draw_once(
    given: Mapping[str, Info], num_envs: int, *, travels: bool
) -> tuple[dict[str, Spec], dict[str, DictTensor]]:
    """Return what samplers draw, as `name/key`, and rows `[num_envs]` of every kind of information to try things on.

    Args:
        given: by name, `agent_info` and `env_info`.
        num_envs: over all workers.
        travels: see `sample_specs`.
    """
    sampled: dict[str, Spec] = {}
    rows: dict[str, DictTensor] = {}
    for name, info in given.items():
        if isinstance(info, DictTensor):
            rows[name] = info
            continue
        specs, one = sample_specs(name, info, travels=travels)
        sampled |= {f"{name}/{key}": spec for key, spec in specs.items()}
        rows[name] = DictTensor.cat([one] * num_envs)
    return sampled, rows


def fitting(
    name: str,
    info: Info | None,
    standing: Info | None,
    num_envs: int,
    planned: Mapping[str, Spec] | None,
    *,
    travels: bool,
    device: torch.device,
) -> Info:
    """Return what a batcher was given, None for what stands, where it fits the batcher: rows are copied.

    Args:
        name: `agent_info` or `env_info`.
        info: as the user gave it.
        standing: what the batcher was made with; None for no information.
        num_envs: the rows it needs.
        planned: what the memory, once it is laid out, has a place for each step for: what samplers draw.
        travels: see `sample_specs`.
        device: where rows are wanted.

    Raises:
        SpecError: rows are missing, or a sampler draws other fields than the one before.
        UserError: a sampler comes, or goes, after the memory was laid out; or both are given from the start.
    """
    if planned is None and info is not None and standing is not None:
        raise UserError(f"batcher.{name}: got one, and reset({name}=...) gives another from the start; expected null")
    info = standing if info is None else info
    if info is None:
        info = DictTensor.empty(num_envs)
    if planned is not None:
        drawn = {key: spec for key, spec in planned.items() if key.startswith(f"{name}/")}
        if isinstance(info, DictTensor) == bool(drawn):
            raise UserError(
                f"{name}: whether it is drawn by a sampler is settled by the first reset(), before publish() and "
                f"execute(): it {'is' if drawn else 'is not'}"
            )
        if not isinstance(info, DictTensor):
            specs, _ = sample_specs(name, info, travels=travels)
            if {f"{name}/{key}": spec for key, spec in specs.items()} != drawn:
                raise SpecError(f"{name}: the new sampler draws {specs}, the first one {drawn}")
    if isinstance(info, DictTensor) and info.batch_size != num_envs:
        raise SpecError(f"{name}: got {info.batch_size} rows, expected one an environment, {num_envs}")
    return info.to(device).clone() if isinstance(info, DictTensor) else info


def first_draw(name: str, sampler: Sampler, row: int, seed: int) -> DictTensor:
    """Return what `Drawn` draws for the first episode of a row, `[1]`.

    Args:
        name: `agent_info` or `env_info`.
        sampler: what draws.
        row: index of the environment among all workers'.
        seed: where the rows' generators grow from.
    """
    drawn = sampler(row, _generator(seed, name, row))
    return DictTensor({key: value.unsqueeze(0) for key, value in drawn.items()}, 1)


def _generator(seed: int, name: str, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, name, row))


class Drawn:
    """The rows of one worker's environments, each drawn at its episode's beginning.

    Attributes:
        sampler: what draws; another one may take its place.
        rows: `[B]`, of the episodes that go on; changed in place.
    """

    def __init__(
        self,
        name: str,
        sampler: Sampler,
        specs: Mapping[str, Spec],
        *,
        first_row: int,
        num_rows: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare; nothing is drawn yet.

        Args:
            name: `agent_info` or `env_info`.
            sampler: what draws.
            specs: what it draws, without the batch dimension.
            first_row: index of the first environment among all workers'.
            num_rows: B.
            seed: where the rows' generators grow from.
            device: where the rows are wanted.
        """
        self.sampler = sampler
        self._name, self._specs, self._first_row = name, dict(specs), first_row
        self._fields = {key: spec.zeros(num_rows, device=device) for key, spec in specs.items()}
        self.rows = DictTensor.trusted(self._fields, num_rows)
        self._generators = [_generator(seed, name, first_row + row) for row in range(num_rows)]

    def seed_again(self, seed: int) -> None:
        """Let the rows' generators grow from this seed."""
        self._generators = [_generator(seed, self._name, self._first_row + row) for row in range(len(self._generators))]

    def draw(self, rows: Iterable[int]) -> None:
        """Draw these rows anew.

        Raises:
            SpecError: the sampler returned other fields than at first.
        """
        for row in rows:
            drawn = self.sampler(self._first_row + row, self._generators[row])
            if drawn.keys() != self._fields.keys():
                raise SpecError(f"{self._name}: the sampler returned {sorted(drawn)}, before {sorted(self._fields)}")
            for key, value in drawn.items():
                spec = self._specs[key]
                if value.shape != spec.shape or value.dtype != spec.dtype:
                    raise SpecError(
                        f"{self._name}: the sampler returned {key!r} as {value.dtype} {list(value.shape)}, "
                        f"before {spec.dtype} {list(spec.shape)}"
                    )
                self._fields[key][row] = value

    def get_state(self) -> dict[str, Any]:
        """Return the rows of now and their generators."""
        return {"rows": dict(self._fields), "generators": [generator.get_state() for generator in self._generators]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what another one held."""
        for key, value in self._fields.items():
            value.copy_(state["rows"][key])
        for generator, own in zip(self._generators, state["generators"], strict=True):
            generator.set_state(own)

    def write(self, memory: Mapping[str, Tensor], start: int, rows: list[int] | None = None) -> None:
        """Write the rows into `[T, B, ...]` memory, from step `start` of a piece to its end.

        Args:
            memory: by `agent_info/...` or `env_info/...`.
            start: the first step that they belong to.
            rows: which of them; None for all.
        """
        for key, value in self._fields.items():
            target = memory[f"{self._name}/{key}"][start:]
            if rows is None:
                target.copy_(value.expand_as(target))
            else:
                target[:, rows] = value[rows]


def rows_like(rows: DictTensor, state: Mapping[str, Tensor]) -> DictTensor:
    """Return rows of the same fields as `rows`, with the values of a state."""
    return DictTensor({key: state[key].to(value.device) for key, value in rows.items()}, rows.batch_size)

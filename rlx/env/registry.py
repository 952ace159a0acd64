"""Environment ids: which there are, and what to say of one that is not there."""

import importlib
from collections.abc import Iterable

import gymnasium
from gymnasium.envs.registration import EnvSpec

from rlx.env.fault import environment_fault, raised
from rlx.errors import ConfigError, did_you_mean

# Which extra of rlx brings what an environment family needs, by the package that holds the family.
_EXTRAS = {
    "gymnasium.envs.box2d": "rlx[box2d]",
    "gymnasium.envs.mujoco": "rlx[mujoco]",
    "gymnasium.envs.phys2d": "gymnasium[jax]",
    "gymnasium.envs.tabular": "gymnasium[jax]",
    "gymnasium.envs.toy_text": "gymnasium[toy-text]",
    "gymnasium.envs.classic_control": "gymnasium[classic-control]",
}


def list_ids() -> list[str]:
    """Return the ids of all environments that Gymnasium knows, sorted."""
    return sorted(gymnasium.registry)


def find(env_id: str) -> EnvSpec:
    """Return Gymnasium's entry for an id.

    Args:
        env_id: `Name-v0`, `namespace/Name-v0`, or `package.module:Name-v0`, which imports the module that registers it.

    Raises:
        ConfigError: the module or the id does not exist; names the nearest id.
        EnvironmentFault: the module raised while it was imported.
    """
    module, colon, name = env_id.rpartition(":")
    if colon and not all(module.split(".")):  # nothing before the colon, or a dot at an end
        raise ConfigError(f"env.id: got {env_id!r}, expected Name-v0 or package.module:Name-v0")
    if colon:
        _import(module, env_id)
    entry = gymnasium.registry.get(name)
    if entry is not None:
        return entry
    raise ConfigError(f"env.id: there is no environment '{env_id}'.{_hint(name, module if colon else '')}")


def typed_in() -> list[EnvSpec]:
    """Return Gymnasium's entries for classes and functions of the program itself, not of a module."""
    creators = [(entry, entry.entry_point or entry.vector_entry_point) for entry in gymnasium.registry.values()]
    return [entry for entry, creator in creators if getattr(creator, "__module__", None) == "__main__"]


def register(entries: Iterable[EnvSpec]) -> None:
    """Add entries of another process, where there are none by their ids."""
    for entry in entries:
        gymnasium.registry.setdefault(entry.id, entry)


def user_modules(env_id: str, wrappers: list[str]) -> list[str]:
    """Return the modules that building an environment would import and that are neither Gymnasium's nor rlx's.

    Args:
        env_id: as for `find`.
        wrappers: names of wrappers, as for `make`.
    """
    modules = [env_id.rpartition(":")[0], *(name.rpartition(".")[0] for name in wrappers)]
    return sorted({module for module in modules if module and module.split(".")[0] not in ("gymnasium", "rlx")})


def missing_dependency(env_id: str, entry: EnvSpec, error: Exception) -> ConfigError:
    """Return the error for an environment of Gymnasium's own whose package is not installed."""
    creators = (entry.entry_point, entry.vector_entry_point)
    families = [creator.split(":")[0] for creator in creators if isinstance(creator, str)]
    extras = [extra for family, extra in _EXTRAS.items() if any(name.startswith(family) for name in families)]
    advice = f"install it with: pip install '{extras[0]}'" if extras else f"Gymnasium says: {error}"
    root = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    what = f"the package '{root.name}'" if isinstance(root, ImportError) and root.name else "a package"
    return ConfigError(f"env.id: '{env_id}' needs {what}, which is not installed; {advice}")


def _import(module: str, env_id: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module == missing or module.startswith(f"{missing}."):
            raise ConfigError(
                f"env.id: '{env_id}' asks for the module '{module}', and there is no module '{missing}'; "
                "expected one that can be imported from here (is it installed, or on PYTHONPATH?)"
            ) from None
        raise environment_fault(env_id, raised(f"importing '{module}'", error)) from error
    except Exception as error:
        raise environment_fault(env_id, raised(f"importing '{module}'", error)) from error


def _hint(name: str, module: str) -> str:
    """Return what may have been meant: the newest version of a bare name, or the id most like it."""
    if module:
        name, package = f"{module}:{name}", module.split(".")[0]
        known = [f"{module}:{own}" for own, entry in gymnasium.registry.items() if _package(entry) == package]
        none = " The module was imported, and registers no such id with gymnasium.register."
    else:
        if name.startswith("ALE/") or "NoFrameskip-v" in name:
            game = name.rpartition("/")[2].partition("-v")[0].removesuffix("NoFrameskip")
            return (
                f" Atari's games are env=atari env.game={game}, stepped together, or env.id=ale_py:ALE/{game}-v5; both "
                "need: pip install 'rlx[atari]'"
            )
        known = list(gymnasium.registry)
        none = " `rlx list envs` shows those there are; one of your own is named package.module:Name-v0."
    versions = [known_id for known_id in known if known_id.rpartition("-v")[0] == name]
    if versions:
        newest = max(versions, key=lambda known_id: int(known_id.rpartition("-v")[2]))
        return f" Did you mean '{newest}'?"
    return did_you_mean(name, known) or none


def _package(entry: EnvSpec) -> str:
    creator = entry.entry_point or entry.vector_entry_point
    return (creator if isinstance(creator, str) else getattr(creator, "__module__", "")).split(".")[0].split(":")[0]

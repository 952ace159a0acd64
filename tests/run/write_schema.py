"""Write fixtures/schema_N.json: every shipped group member, as this rlx's configurations have it.

Run it once where `SCHEMA` was raised: python -m tests.run.write_schema. What a release has written stays as it is.
"""

import json
from pathlib import Path

from rlx.run.migrate import SCHEMA
from tests.run.jobs import CONF, composed

FIXTURES = Path(__file__).parent / "fixtures"
GROUPS = ("env", "agent", "batcher", "algo", "learner", "logger")
NEEDED = {"atari": ["env.game=Pong"], "gym": ["env.id=A-v0"], "legacy_gym": ["env.id=A-v0"], "envpool": ["env.id=A-v0"]}
"""Members that leave a value open."""


def written_now() -> dict[str, dict[str, object]]:
    """Return all that a configuration of today may consist of: the default one, and each group's members by name."""
    found: dict[str, dict[str, object]] = {"": composed()[0]}
    for group in GROUPS:
        names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        for name in names:
            found[f"{group}={name}"] = composed(f"{group}={name}", *NEEDED.get(name, []))[0][group]
    return found


if __name__ == "__main__":
    (FIXTURES / f"schema_{SCHEMA}.json").write_text(json.dumps(written_now(), indent=1) + "\n")

"""What policies learn, kept on this machine for later runs of the same pair and settings.

A file in the user's cache folder under a name made of everything that speeds and acceptance depend on but the texts:
those are why what is recalled is doubted. One that is missing, unreadable or of another kind is as good as none.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmasd.config.tree import Config
from cmasd.drafters import Drafter
from cmasd.engine.measured_costs import keep_whole, machine_parts
from cmasd.kernels import cache_folder
from cmasd.policies import Policy
from cmasd.runner.base import Runner


class Experience:
    """Of one engine's policy."""

    def __init__(self, policy: Policy, path: Path | None) -> None:
        """`path`: None where nothing is worth keeping."""
        self._policy = policy
        self._path = path

    def recall(self) -> bool:
        """Before the first iteration; whether there was anything."""
        if self._path is None:
            return False
        try:
            self._policy.begin_with(json.loads(self._path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def keep(self) -> None:
        """In place of what was there; a folder that cannot be written to costs the next run its looks."""
        if self._path is not None and (learned := self._policy.learned()):
            keep_whole(self._path, json.dumps(learned))


def experience_of(
    policy: Policy, config: Config, verifier: Runner, drafter: Drafter | None, about: list[Any]
) -> Experience:
    """Nothing is kept where nothing is learned, or where it would mislead: how alike an earlier run's outputs are, no
    other rerun can know. `about`: see `measured_costs.depends_on`. How many slots there are does not matter.
    """
    if not policy.wants_costs or "previous" in config.drafter.kinds:
        return Experience(policy, None)
    drafting = replace(config.drafter, memory=None)
    sections = [asdict(one) for one in (drafting, config.policy, config.verification, config.confidence)]
    parts = [*machine_parts(verifier, drafter, about), json.dumps(sections)]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return Experience(policy, cache_folder() / "experience" / f"{name}.json")

"""A configuration and its run folder, looked at together: what is planned, what is done. Writes nothing."""

from dataclasses import dataclass
from typing import Any

from cmasd.config.tree import Config
from cmasd.io.outputs import Finished
from cmasd.io.plan import Plan, Shard, make_plan, stored_plan
from cmasd.io.run_folder import RunFolder
from cmasd.telemetry.totals import Totals


@dataclass(frozen=True)
class Run:
    """The state of a run before its next start."""

    folder: RunFolder
    plan: Plan
    finished: Finished
    is_new: bool
    """Whether the plan is still to be stored."""

    @property
    def todo(self) -> list[Shard]:
        """Unfinished shards in input order."""
        return [shard for shard in self.plan.shards() if shard not in self.finished.shards]

    @property
    def done(self) -> Totals:
        """Totals over finished shards."""
        return self.finished.totals


def look_at(config: Config) -> Run:
    """Raises `RunFolderError` when the folder holds another run, `InputError` when the input cannot be planned.

    As long as no shard is finished, a run may be planned anew: nothing would be mixed.
    """
    folder = RunFolder(config.output.path)
    folder.check_place()
    manifest = folder.manifest()
    if manifest is None or not folder.output_files():
        return Run(folder, make_plan(config), Finished(frozenset(), Totals()), is_new=True)
    folder.check_manifest(manifest, config)
    plan = stored_plan(_plan_of(manifest), config, folder.address)
    return Run(folder, plan, folder.finished(plan), is_new=False)


def _plan_of(manifest: dict[str, Any]) -> dict[str, Any]:
    plan: dict[str, Any] = manifest["plan"]
    return plan

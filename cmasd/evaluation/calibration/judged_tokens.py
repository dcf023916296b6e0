"""Judged draft tokens with all that was known of each when it was drafted, from the telemetry of a run.

As in `judged.py` the accepted tokens of an iteration count and the first rejected one. Here they are kept one by one,
in the order of their rows, for estimators that learn while running look at several signals at once and at what came
before; of a large run the first `MOST_TOKENS`. Telemetry does not tell how long the text was that a free draft agreed
with: its confidence, which is made of that, stands for it.

Shapes: N tokens, I iterations.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cmasd.config.tree import Config
from cmasd.errors import RunFolderError
from cmasd.evaluation.calibration.judged import COLUMNS, RECORDED, Array, Places, flat, largest_probability, lengths
from cmasd.evaluation.calibration.judged import places as count_up
from cmasd.io.run_folder import RunFolder
from cmasd.signals import COMPONENTS, FROM_SMALL, FROM_VERIFIER

MOST_TOKENS = 400_000
"""That are kept."""
LEAST_TOKENS = 500
"""Under which no figure means anything."""
SOURCE = "iteration_rejected_source"


@dataclass(frozen=True)
class JudgedTokens:
    """Tokens of one run."""

    config: Config
    """Of the run."""
    row_N: Places
    """The row of the output, counted from 0."""
    draft_N: Places
    """The iteration of a row, counted over all rows; ascending."""
    position_N: Places
    """In its draft, from 0."""
    accepted_N: Array
    """1 or 0."""
    confidence_N: Array
    """As recorded."""
    components_N3: Array
    """`COMPONENTS`; NaN of free drafts."""
    source_N: Places
    """As in `TokenTrace.source`."""
    sent_I: Places
    """Tokens that were sent to the verifier, of each iteration that `draft_N` counts."""

    @property
    def rows(self) -> int:
        """Of the output, as far as tokens were kept."""
        return int(self.row_N.max()) + 1 if len(self.row_N) else 0

    @property
    def accepted_I(self) -> Places:
        """Of what was sent."""
        return np.bincount(self.draft_N, self.accepted_N, len(self.sent_I)).astype(np.int64)

    @property
    def max_prob_N(self) -> Array:
        """p1, from the margins."""
        return largest_probability(
            self.components_N3[:, COMPONENTS.index("margin")],
            self.components_N3[:, COMPONENTS.index("softmax")],
            self.config.confidence.margin_form,
        )

    @property
    def rate_N(self) -> Array:
        """Share accepted of what was judged of the row's earlier drafts, with one token of each verdict beforehand."""
        judged_I, accepted_I = np.bincount(self.draft_N, minlength=len(self.sent_I)), self.accepted_I
        row_I = np.zeros(len(self.sent_I), dtype=np.int64)
        row_I[self.draft_N] = self.row_N
        judged, accepted = _before(judged_I, row_I), _before(accepted_I, row_I)
        rate_I: Array = (accepted + 1) / (judged + 2)
        return rate_I[self.draft_N]


def _before(count_I: Places, row_I: Places) -> Places:
    """(I,) sums over the earlier iterations of the same row; rows stand one after the other."""
    sum_I = np.cumsum(count_I) - count_I
    first_I = np.searchsorted(row_I, row_I)
    return sum_I - sum_I[first_I]


def read_evidence(folder: RunFolder) -> JudgedTokens:
    """Of every finished shard; raises `RunFolderError` where the run recorded too little."""
    from cmasd.config import from_dict  # needs omegaconf, which the rest of this room does without

    manifest = folder.manifest()
    if manifest is None:
        raise RunFolderError(f"{folder.address}: is not a run folder, it has no manifest.json.")
    config = from_dict(manifest["config"])
    if config.telemetry.level != "token":
        raise RunFolderError(
            f"{folder.address}: holds no confidences, got telemetry.level {config.telemetry.level}; expected token. "
            "Run with telemetry.level=token into a new folder."
        )
    parts, tokens = [], 0
    for _, batch in folder.read_outputs((*COLUMNS, SOURCE, "iteration_draft_length")):
        parts.append(evidence_of(config, batch))
        tokens += len(parts[-1].row_N)
        if tokens >= MOST_TOKENS:
            break
    if tokens < LEAST_TOKENS:
        raise RunFolderError(
            f"{folder.address}: holds too few judged draft tokens, got {tokens}; expected at least {LEAST_TOKENS}. "
            "Decode more rows, with policy.kind=fixed so that every iteration drafts."
        )
    return joined(parts)


def evidence_of(config: Config, batch: pa.RecordBatch) -> JudgedTokens:
    """Of some rows of an output."""
    columns = {name: flat(batch, name) for name in (*COLUMNS, SOURCE, "iteration_draft_length")}
    row_I = np.repeat(np.arange(batch.num_rows), lengths(batch, "iteration_accepted"))
    kept_I, sent_I = (columns[f"iteration_{name}"].astype(np.int64) for name in ("accepted", "draft_length"))
    source_T = columns["token_source"].astype(np.int64)
    is_accepted_T = ~np.isin(source_T, (FROM_VERIFIER, FROM_SMALL))
    is_rejected_I = ~np.isnan(columns["iteration_rejected_confidence"])
    rejected_I = np.flatnonzero(is_rejected_I)
    accepted = int(kept_I.sum())
    assert accepted == is_accepted_T.sum(), "each accepted draft token is in the output"
    draft_N = np.concatenate([np.repeat(np.arange(len(kept_I)), kept_I), rejected_I])
    position_N = np.concatenate([count_up(kept_I), kept_I[rejected_I]])
    order_N = np.lexsort((position_N, draft_N))
    values_N4 = np.stack(
        [
            np.concatenate([columns[f"token_{name}"][is_accepted_T], columns[f"iteration_rejected_{name}"][rejected_I]])
            for name in RECORDED
        ],
        axis=1,
    )[order_N]
    draft_N, position_N = draft_N[order_N], position_N[order_N]
    accepted_N = np.repeat([1.0, 0.0], [accepted, len(rejected_I)])[order_N]
    source_N = np.concatenate([source_T[is_accepted_T], columns[SOURCE][rejected_I].astype(np.int64)])[order_N]
    used_I, draft_N = np.unique(draft_N, return_inverse=True)
    return JudgedTokens(
        config,
        row_I[used_I][draft_N],
        draft_N.astype(np.int64),
        position_N,
        accepted_N,
        values_N4[:, 0],
        values_N4[:, 1:],
        source_N,
        sent_I[used_I],
    )


def joined(parts: list[JudgedTokens]) -> JudgedTokens:
    """Parts of one run, one after the other."""
    rows = np.cumsum([0, *(part.rows for part in parts)])
    drafts = np.cumsum([0, *(len(part.sent_I) for part in parts)])
    numbered = list(zip(parts, rows.tolist(), drafts.tolist(), strict=False))
    return JudgedTokens(
        parts[0].config,
        np.concatenate([part.row_N + first for part, first, _ in numbered]),
        np.concatenate([part.draft_N + first for part, _, first in numbered]),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("position_N", "accepted_N", "confidence_N", "components_N3", "source_N", "sent_I")
        ),
    )

"""What a set of output rows adds up to; kept in each output file's footer, so totals cost no column reads."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from cmasd.telemetry.acceptance import Acceptance
from cmasd.telemetry.schema import COUNTS

METADATA_KEY = "cmasd.totals"


@dataclass(frozen=True)
class Totals:
    """Sums over rows; `a + b` is over both."""

    rows: int = 0
    errors: int = 0
    stopped: int = 0
    """Rows that ended with an end-of-sequence token."""
    cut: int = 0
    """Rows that reached the token limit."""
    input_tokens: int = 0
    output_tokens: int = 0
    iterations: int = 0
    """Verifier forwards summed over rows."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    small_tokens: int = 0
    """Output tokens that the small model of policy `stitch` said by itself."""
    switches: int = 0
    """Times that rows went from one of the two models to the other."""
    acceptance: Acceptance = field(default_factory=Acceptance)

    def __add__(self, other: Self) -> "Totals":
        return Totals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def tokens_per_iteration(self) -> float:
        """Output tokens per row and verifier forward; 1 is plain decoding."""
        return self.output_tokens / self.iterations if self.iterations else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_metadata(self) -> dict[str, str]:
        """Key and value for a Parquet footer."""
        return {METADATA_KEY: json.dumps(self.to_dict())}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Totals":
        """The inverse of `to_dict`; counts that an earlier version did not keep are empty."""
        return Totals(**{**values, "acceptance": Acceptance.from_dict(values.get("acceptance", {}))})

    @staticmethod
    def of(table: pa.Table) -> "Totals":
        """Totals of a table in the output schema."""
        reasons = table["finish_reason"].to_pylist()

        def add(column: str) -> int:
            return int(pc.sum(table[column]).as_py() or 0)

        return Totals(
            rows=table.num_rows,
            errors=reasons.count("error"),
            stopped=reasons.count("stop"),
            cut=reasons.count("length"),
            **{name.removeprefix("num_"): add(name) for name in COUNTS},
            acceptance=Acceptance.of(table),
        )

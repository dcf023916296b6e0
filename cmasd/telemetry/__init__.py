"""What a run records: the versioned output schema and mergeable statistics."""

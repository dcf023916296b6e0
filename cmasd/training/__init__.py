"""Training of verifiers and drafters from Parquet, the project's own outputs included."""

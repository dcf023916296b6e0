"""Inputs to rows, rows to Parquet, and the folder of a run; the only door to storage, local or `s3://`.

Imports neither torch nor ray.
"""

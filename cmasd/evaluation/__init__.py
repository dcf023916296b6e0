"""Measurements: speed side by side, agreement with AR decoding, quality against references."""

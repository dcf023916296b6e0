"""A run as one page that a person reads."""

"""How fast ways of decoding are, side by side on the same rows."""

"""What outputs and drafters are worth on texts with references, and what speed buys with quality."""

"""What a checkpoint's generation config says of greedy output: its settings, and its rules on logits."""

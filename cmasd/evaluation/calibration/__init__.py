"""From judged draft tokens to maps of confidence, and how good scores are with them."""

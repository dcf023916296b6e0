"""What rows hold, to what models take, and back: texts, conversations, recordings."""

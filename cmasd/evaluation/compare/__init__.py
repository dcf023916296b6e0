"""What each way of decoding would cost on a corpus, and which to use."""

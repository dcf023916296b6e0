"""The Ray job: read, decode, write; the only door to ray."""

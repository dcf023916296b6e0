"""Checkpoints to models: by name, from folders and the hub, tensor by tensor where a model is large."""

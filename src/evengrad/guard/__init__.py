"""The guard: measure, decide, apply, record, from one line in a training loop."""

"""Norms of gradients, packed, in float32; the only part that calls private torch functions."""

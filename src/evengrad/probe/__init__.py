"""Readings of a model without changing it."""

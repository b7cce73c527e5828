"""Paired trials and the verdict that they lead to."""

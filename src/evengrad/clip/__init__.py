"""Policies: from the vector of gradient norms to how much of each gradient is let through."""

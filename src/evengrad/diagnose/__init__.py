"""Rules: from readings to findings; never needs torch."""

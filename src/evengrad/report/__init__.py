"""Stories as a page and in the terminal; never needs torch."""

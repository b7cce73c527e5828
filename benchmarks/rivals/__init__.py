"""Other ways to repair a training, side by side: AUTOTRAINER rebuilt, and random search."""

"""Three short stories on real images and one recurrent task, each sick in its own way."""

from evengrad.cli.stories._digits import exploding_digits, vanishing_digits
from evengrad.cli.stories._memory import forgetful_network

__all__ = ["exploding_digits", "forgetful_network", "vanishing_digits"]

"""Three short stories on real images and one recurrent task, each sick in its own way."""

from evengrad.cli.demo._digits import exploding_digits, vanishing_digits
from evengrad.cli.demo._memory import forgetful_network

__all__ = ["exploding_digits", "forgetful_network", "vanishing_digits"]

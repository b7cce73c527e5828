"""Every transform."""

from evengrad.clip.transforms._transform import AbstractTransform

ALL: tuple[type[AbstractTransform], ...] = ()

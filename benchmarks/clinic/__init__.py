"""A clinic of trainings: faulty programs from published collections with their fixes, and healthy ones."""

from ._architectures import ARCHITECTURES
from ._circle_blob import PROGRAMS as _CIRCLE_BLOB
from ._digits import PROGRAMS as _DIGITS
from ._faults_network import PROGRAMS as _NETWORK
from ._faults_training import PROGRAMS as _TRAINING
from ._healthy import HEALTHY
from ._loops_faulty import FAULTY as _FAULTY_LOOPS
from ._loops_healthy import HEALTHY_LOOPS as _HEALTHY_LOOPS
from ._program import Architecture, Healthy, Loop, Program
from ._sequences import PROGRAMS as _SEQUENCES
from ._small import PROGRAMS as _SMALL

PROGRAMS = tuple(sorted((*_CIRCLE_BLOB, *_DIGITS, *_SMALL, *_SEQUENCES), key=lambda program: program.number))
"""The forty of the collections, by number."""

EXTRA = (*_NETWORK, *_TRAINING)
"""Faults that the forty do not have, from 101."""

LOOPS = (*_FAULTY_LOOPS, *_HEALTHY_LOOPS)
"""Loops with a mistake, from 201, and loops that are fine, from 251."""


__all__ = ["ARCHITECTURES", "EXTRA", "HEALTHY", "LOOPS", "PROGRAMS", "Architecture", "Healthy", "Loop", "Program"]

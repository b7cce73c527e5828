"""The story of a run directory, whoever wrote it; torch is not needed."""

from __future__ import annotations

import warnings
from pathlib import Path

from evengrad import report
from evengrad.diagnose import findings_of
from evengrad.nouns import Story, TornLogWarning
from evengrad.runlog import read, read_story


def story_of(directory: Path) -> Story:
    """Take the story that a repair left there, or tell the one of a plain run from its readings.

    Raises:
        NotARunError: The directory is something else.
        NewerRunError: It was written by a newer evengrad.
        RunLogError: What is there cannot be read.
    """
    told = read_story(directory)
    if told is not None:
        return told
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLogWarning)  # the story's note says it
        record = read(directory)
    return report.story_of_record(record, findings_of(record), title=f"Run {directory.name}")

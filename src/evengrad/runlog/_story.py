"""The story of a run, as JSON beside its log."""

import os
from pathlib import Path

from evengrad.nouns import RunLogError, Story, from_json, to_json
from evengrad.runlog._directory import Meta, load_meta, open_or_create, replace_whole

LARGEST_STORY_BYTES = 256 * 1024 * 1024

_STORY = "story.json"


def write_story(directory: str | os.PathLike[str], story: Story) -> None:
    """Keep a story beside the log of its run; an earlier one is replaced, whole or not at all.

    Args:
        directory: A run. One that does not exist or is empty becomes a run without parameters.
        story: What to keep.

    Raises:
        NotARunError: The directory holds something else; nothing was written.
        NewerRunError: The run was written by a newer evengrad.
        RunLogError: It cannot be written, or the story is too large to be read back.

    Example:
        >>> import tempfile
        >>> from evengrad.nouns import Story
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_story(directory, Story(title="digits", headline="no findings"))
        ...     read_story(directory).headline
        'no findings'
    """
    path = Path(directory) / _STORY
    text = to_json(story)
    from_json(Story, text, where=str(path))  # what could not be read back is not written
    try:
        data = text.encode()
        if len(data) > LARGEST_STORY_BYTES:
            raise ValueError(f"{len(data)} bytes, more than {LARGEST_STORY_BYTES}")
        open_or_create(Path(directory), Meta(facts={}))
        replace_whole(path, data)
    except (OSError, ValueError) as err:
        raise RunLogError(str(path), came=str(err), wanted="a story that can be written") from err


def read_story(directory: str | os.PathLike[str]) -> Story | None:
    """Read the story beside a log; None when nobody has written one.

    Args:
        directory: A run.

    Raises:
        NotARunError: The directory is not a run.
        NewerRunError: The run was written by a newer evengrad.
        RunLogError: The story cannot be read.
    """
    load_meta(Path(directory))
    path = Path(directory) / _STORY
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > LARGEST_STORY_BYTES:
            raise ValueError(f"more than {LARGEST_STORY_BYTES} bytes")
        text = path.read_bytes().decode()
    except (OSError, ValueError) as err:
        raise RunLogError(str(path), came=str(err), wanted="a story as JSON") from err
    return from_json(Story, text, where=str(path))

"""The cure as a file: a diff as it is, a snippet with where it goes."""

from __future__ import annotations

from evengrad.trial import Repair

WHERE = (
    "# The cure as code to paste, not a diff: what is about `model` goes after the line that makes the model,",
    "# what is about `optimizer` after the line that makes the optimizer.",
)


def as_file(result: Repair) -> str:
    """Write the patch of a repair for a file.

    Args:
        result: One that has a patch.
    """
    if result.story.patch:
        return result.story.patch
    why = [f"# {note}" for note in result.story.notes if note.startswith("The cure is code to paste")]
    return "\n".join([*WHERE, *why, "", result.patch]).rstrip("\n") + "\n"

"""Stories as a page and in the terminal; never needs torch."""

from evengrad.report._blocks import bar
from evengrad.report._from_record import story_of_record
from evengrad.report._page import page, write
from evengrad.report._target import check_target
from evengrad.report._text import text

__all__ = ["bar", "check_target", "page", "story_of_record", "text", "write"]

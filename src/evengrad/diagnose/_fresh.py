"""An untrained model whose loss on its first batch is far above that of guessing: sick before the first step."""

from math import isfinite

from evengrad.diagnose._ends import form_of
from evengrad.nouns import Record

# A classifier as initialised gives logits of about one, and loses about what guessing does, up to a factor of two; an
# error of outputs near zero against a target far from zero can be somewhat more. Ten times is neither.
FAR_ABOVE = 10.0


def starts_far_above_guessing(record: Record) -> bool:
    """Tell whether a record of one reading, at step 0, has a loss of ten times that of the best constant or more."""
    if len(record.readings) != 1 or record.readings[0].step != 0:
        return False
    reading = record.readings[0]
    form = form_of(reading.ends) if reading.ends is not None else None
    constant = None if reading.ends is None else reading.ends.constant_loss
    if form is None or not form.alone or constant is None or reading.loss is None:
        return False
    return isfinite(reading.loss) and isfinite(constant) and 0.0 < FAR_ABOVE * constant <= reading.loss

"""The low end of figures whose mean hides it: most videos are alike, and a user remembers the one that is not."""

from collections.abc import Sequence

PERCENT = 5


def low_end(values: Sequence[float]) -> float:
    """The 5th percentile: what 19 of 20 reach, linear between the two values next to it. ValueError without values."""
    if not values:
        raise ValueError("the 5th percentile of no values")
    import numpy as np  # here: who only asks for help would wait for it

    return float(np.percentile(values, PERCENT))

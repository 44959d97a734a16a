"""Small logs to score: what the tests of all metrics draw from."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

quick = settings(max_examples=80, deadline=None)


@st.composite
def impressions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, labels and group ids of one length, groups interleaved."""
    rows = draw(st.integers(0, 40))
    integers = [hnp.arrays(np.int64, rows, elements=st.integers(0, top)) for top in (5, 1, 4)]
    scores, labels, groups = (draw(part) for part in integers)
    return scores / 5 - 0.3, labels, groups

"""What the tests of the synthetic world measure with."""

from adrec.data.synthetic import World
from adrec.data.synthetic.config import DAY_MS

# A fair statistic exceeds 4 standard errors once in 16,000 seeds; the seeds here are fixed.
MAX_Z = 4.0


def last_day_ms(world: World) -> int:
    return world.config.start_ms + (world.config.days - 1) * DAY_MS

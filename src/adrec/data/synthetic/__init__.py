"""A synthetic advertising world: users, ads and an impression log whose probabilities are known.

A user has one hidden taste at a time; it shows in the history and drifts. An ad has a hidden
quality. A logging policy that sees neither fills slates with known propensities, campaigns run out
of budget, users click, engage and spend. Beside the log stands `truth`: for each impression the
true probabilities and the best forecast that the observables allow (`oracle`).

Read `world` first: its `generate` is the table of contents. `config` says what may be set, `laws`
how a taste and a quality become probabilities; `tastes`, `ads`, `users`, `history` and `requests`
draw a world, `policy` fills its slates, `simulation` plays the log, and `truth` tells what any ad
would have earned in any request.

What seed 0 gives. AUC on the last day, as true / best (the ideal observer's); popularity: AUC of
the ad's mean click rate before that day; recall@500: ads that 1,000 users click on the last day and
`WorldTruth.rank` has among its first 500; time on 2 cores, written tables included:

| preset    | users  | ads    | rows      | click       | engagement  | popularity | recall | s   |
|-----------|--------|--------|-----------|-------------|-------------|------------|--------|-----|
| tiny      | 500    | 400    | 8,000     | .848 / .816 | .844 / .820 | .615       | -      | 0.1 |
| demo      | 8,000  | 20,000 | 200,000   | .872 / .838 | .882 / .841 | .571       | .886   | 0.8 |
| standard  | 20,000 | 20,000 | 1,000,000 | .875 / .848 | .886 / .854 | .615       | .900   | 3.0 |
| clear     | 20,000 | 20,000 | 1,000,000 | .764 / .752 | .784 / .775 | .562       | .474   | 2.5 |
| published | 20,000 | 20,000 | 1,000,000 | .862 / .850 | .865 / .851 | .610       | .948   | 3.0 |

Shapes: U users, N ads, K tastes, T topics, C categories, R segments, M campaigns, V advertisers,
A ages, F formats, P places, D devices, L targets, S slate positions, Q requests, B impressions.
"""

from adrec.data.synthetic.config import PRESETS, WorldConfig
from adrec.data.synthetic.truth import WorldTruth
from adrec.data.synthetic.world import World, generate
from adrec.data.synthetic.write import read_truth, write_world

__all__ = ["PRESETS", "World", "WorldConfig", "WorldTruth", "generate", "read_truth", "write_world"]

"""Seed: the process that those which answer are forked from. It imports this, and with it all that
they need, which takes over a second, and does nothing else.

Never import this elsewhere: the process that does ignores SIGTERM and Ctrl-C from then on, and its
garbage collector never looks again at what it has imported.
"""

import gc
import signal

for _number in (signal.SIGTERM, signal.SIGINT):  # sent to all: the server ends us in time
    signal.signal(_number, signal.SIG_IGN)

import adrec.serving.answerers  # noqa: E402, F401

gc.collect()
gc.freeze()  # so that no fork looks through what was imported, or copies it

"""Seed: the process that those which answer are forked from. It has imported all that they need,
which takes over a second, and does nothing else; it imports this to become so."""

import gc
import signal

import adrec.serving.answerers  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all: the server ends us in time
gc.collect()
gc.freeze()  # so that no fork looks through what was imported, or copies it

"""What a test has a process do that begins aside. The process imports it from here."""

import gc
import os
import sys
import threading
from functools import partial


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def prepare():
    assert not gc.isenabled()
    return partial(say, niceness())


def say(prepared_at, connection):
    connection.send((prepared_at, niceness(), gc.isenabled()))


def prepare_to_tell(module):
    return partial(tell, module in sys.modules)


def tell(found, connection):
    connection.send(found)

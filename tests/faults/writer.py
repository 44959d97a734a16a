"""A process that writes events as a server does, and prints the ids of those acknowledged.

python writer.py FILE PREFIX [MOST_BYTES]
"""

import resource
import signal
import sys
import threading
from pathlib import Path

from adrec.data.event_log import EventLog
from adrec.data.group_commit import GroupCommit
from adrec.data.log_entries import IMPRESSION, Event, LoggedSlate, Shown
from adrec.errors import EventLogError

_THREADS = 4


def main() -> None:
    """Write until killed, or until the log can be written no more."""
    file, prefix = Path(sys.argv[1]), sys.argv[2]
    log = EventLog.in_file(file)
    if len(sys.argv) > 3:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    group = GroupCommit(log)
    saying = threading.Lock()

    def write(thread: int) -> None:
        number = 0
        while True:
            key = f"{prefix}-{thread}-{number}"
            number += 1
            slate = LoggedSlate(
                request_id=key, at_ms=1, user_id="u", version="v", ads=(Shown(ad_id="a"),),
                context={"padding": "x" * 200},
            )  # fmt: skip
            event = Event(event_id=key, kind=IMPRESSION, request_id=key, ad_id="a", at_ms=1)
            try:
                group.append([slate], [event]).result()
            except EventLogError as error:
                with saying:
                    print(f"error {error}", flush=True)
                return
            with saying:
                print(key, flush=True)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    group.close()


if __name__ == "__main__":
    main()

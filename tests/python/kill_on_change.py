"""Kills a process while it changes its files: `python kill_on_change.py [--stop] PID COUNT FOLDER...`

Prints "watching", then sends SIGKILL at the COUNT-th change (a file made, moved, written to its end or
removed) in any of the folders; with --stop, it sends SIGSTOP and prints "stopped". It is a separate process, because a thread beside eight uploading ones would
wake up too late, and it imports only the standard library, so that it starts at once. Linux only: inotify(7).
"""

import ctypes
import os
import signal
import struct
import sys

IN_CLOSE_WRITE = 0x008
IN_MOVED_FROM = 0x040
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
CHANGES = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
READ_BYTES = 4096


def changes(folders):
    """Yields once for each change."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init()
    for folder in folders:
        if libc.inotify_add_watch(queue, os.fsencode(folder), CHANGES) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    print("watching", flush=True)
    while True:
        events = os.read(queue, READ_BYTES)
        start = 0
        while start < len(events):
            yield
            start += EVENT.size + EVENT.unpack_from(events, start)[3]


def main() -> None:
    stops = sys.argv[1] == "--stop"
    pid, count, *folders = sys.argv[1 + stops :]
    for number, _ in enumerate(changes(folders), 1):
        if number == int(count):
            os.kill(int(pid), signal.SIGSTOP if stops else signal.SIGKILL)
            if stops:
                print("stopped", flush=True)
            return


if __name__ == "__main__":
    main()

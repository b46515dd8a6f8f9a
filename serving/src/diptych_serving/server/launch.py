"""Asks the kernel to end this process when its parent dies, then becomes tritonserver.

A separate program, run by path: subprocess's preexec_fn is unsafe in a process with threads.
Usage: python launch.py PARENT_PID COMMAND...
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); survives exec


def main() -> None:
    parent_pid, *command = sys.argv[1:]
    # SIGTERM, not SIGKILL, so that the server ends its stubs and removes its shared memory.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent_pid):
        sys.exit("the process that started this one is already gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

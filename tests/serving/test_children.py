"""What a program has started ends with it, whatever ends the program."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from diptych_serving.server import children

PROGRAM = """
import sys
from diptych_serving.server import children
from diptych_serving.server.signals import end_in_order
end_in_order()
try:
    with children.running([sys.executable, "-c", sys.argv[1]]) as child:
        print(child.pid, flush=True)
        child.wait()
finally:
    print("cleaned up", flush=True)
"""
SLEEP = "import time; time.sleep(600)"
SLEEP_THROUGH_SIGTERM = f"""
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
{SLEEP}
"""
WAIT_S = 60


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_child_ends_with_the_program_that_started_it(signum):
    command = [sys.executable, "-c", PROGRAM, SLEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        child = psutil.Process(int(program.stdout.readline()))
        program.send_signal(signum)
        said, _ = program.communicate(timeout=WAIT_S)
        child.wait(WAIT_S)  # raises where it is still there
    assert said == ("" if signum == signal.SIGKILL else "cleaned up\n")
    assert program.returncode in (-signum, 128 + signum)


def test_a_second_signal_does_not_interrupt_the_end():
    slow_end = PROGRAM.replace("finally:", "finally:\n    print('ending', flush=True); input()")
    command = [sys.executable, "-c", slow_end, SLEEP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.terminate()
        assert program.stdout.readline() == "ending\n"
        program.terminate()
        said, _ = program.communicate("go\n", timeout=WAIT_S)
    assert said == "cleaned up\n"
    assert program.returncode == 128 + signal.SIGTERM


def test_a_child_that_ignores_the_request_is_killed(monkeypatch):
    monkeypatch.setattr(children, "EXIT_TIMEOUT_S", 0.2)
    command = [sys.executable, "-c", SLEEP_THROUGH_SIGTERM]
    with children.running(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "up\n"
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL

"""Calls a server without pause until it stops: run by images.sh in the client's image.

Exits with 0 where every call was answered, or refused so that a client goes elsewhere or tries again.
"""

import functools
import sys

from diptych_serving.traffic import NO_RETRIES, ClosedLoop, classifying, outcomes

NUM_CALLERS = 8
EXPECTED = {"Answer", "ConnectionFailed", "ModelNotReady"}

callers = [functools.partial(classifying, "grpc://127.0.0.1:8001", retries=NO_RETRIES)] * NUM_CALLERS
items = [(b"", f"apple number {number}") for number in range(NUM_CALLERS)]
with ClosedLoop(callers, items, stops_at=lambda call: not call.is_answered) as loop:
    loop.wait_for_answers(100)
    sys.stdout.write("answering\n")
    sys.stdout.flush()
    loop.join()
found = outcomes(loop.calls)
sys.stdout.write("".join(f"{count} {outcome}\n" for outcome, count in found.items()))
sys.exit(not found["Answer"] or bool(found.keys() - EXPECTED))

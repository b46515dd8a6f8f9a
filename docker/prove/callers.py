"""Calls a server without pause until it stops: run by images.sh in the client's image.

Exits with 0 where every call was answered, or refused so that a client goes elsewhere or tries again.
"""

import sys
import threading
from collections import Counter

from diptych_client import Client, ConnectionFailed, DiptychError, ModelNotReady, Retries

NUM_CALLERS = 8
RETRYABLE = (ConnectionFailed, ModelNotReady)
outcomes: Counter[str] = Counter()
lock = threading.Lock()


def call(number: int) -> None:
    """Ask until refused."""
    with Client("grpc://127.0.0.1:8001", timeout_s=60, retries=Retries(max_attempts=1)) as client:
        while True:
            try:
                client.classify(text=f"apple number {number}")
                outcome = "answered"
            except RETRYABLE as error:
                outcome = f"refused: {type(error).__name__}"
            except DiptychError as error:
                outcome = f"broken: {type(error).__name__}: {error}"
            with lock:
                outcomes[outcome] += 1
                if outcomes.total() == 100:
                    sys.stdout.write("answering\n")
                    sys.stdout.flush()
            if outcome != "answered":
                return


threads = [threading.Thread(target=call, args=(number,)) for number in range(NUM_CALLERS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stdout.write("".join(f"{count} {outcome}\n" for outcome, count in outcomes.items()))
sys.exit(any(outcome.startswith("broken") for outcome in outcomes) or not outcomes["answered"])

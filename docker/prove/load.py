"""Starts a short load on Locust's page and looks on: run by compose.sh beside the published ports."""

import json
import sys
import time
import urllib.parse
import urllib.request

LOCUST, DEMO = "http://127.0.0.1:8089", "http://127.0.0.1:7860"
NUM_USERS = 4
NUM_CALLS = 40
TIMEOUT_S = 120


def get(url: str, **fields: object) -> bytes:
    """The body of the answer; a POST where there are fields."""
    data = urllib.parse.urlencode(fields).encode() if fields else None
    with urllib.request.urlopen(url, data, timeout=20) as response:
        return bytes(response.read())


sys.stdout.write(f"the demo page has {len(get(DEMO))} bytes\n")
get(f"{LOCUST}/swarm", user_count=NUM_USERS, spawn_rate=NUM_USERS, host="grpc://triton:8001", run_time="60s")
deadline_s = time.monotonic() + TIMEOUT_S
while time.monotonic() < deadline_s:
    stats = json.loads(get(f"{LOCUST}/stats/requests"))
    total = next(row for row in stats["stats"] if row["name"] == "Aggregated")
    if total["num_requests"] >= NUM_CALLS:
        break
    time.sleep(1)
num_workers = len(stats["workers"])
sys.stdout.write(f"{num_workers} workers, {total['num_requests']} calls, {total['num_failures']} failed\n")
sys.exit(not (num_workers == 2 and total["num_requests"] >= NUM_CALLS and total["num_failures"] == 0))

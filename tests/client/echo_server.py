"""A fake server in a process of its own, whose answers depend on the item: text "7" gets label 7 modulo 4.

python -m tests.client.echo_server     prints its two URLs as JSON, and ends with its standard input
"""

from __future__ import annotations

import json
import sys

from tests.client.fake_triton import FakeTriton

if __name__ == "__main__":
    triton = FakeTriton()
    triton.echoes = True
    with triton.running():
        print(json.dumps(triton.urls), flush=True)
        sys.stdin.read()

"""Looks at sockets that are open already: is there something to read, or room to write."""

from __future__ import annotations

import select
import socket


def wait_for(connected: socket.socket, timeout_s: float, *, to_write: bool = False) -> bool:
    """Wait for something to read, or also for room to write. Returns whether there is something to read, be
    it the end of the stream; False too where time runs out."""
    if not hasattr(select, "poll"):  # Windows
        written = [connected] if to_write else []
        return bool(select.select([connected], written, [], timeout_s)[0])
    poll = select.poll()  # unlike select, for descriptors above 1,023 too
    poll.register(connected, select.POLLIN | (select.POLLOUT if to_write else 0))
    return any(event & ~select.POLLOUT for _, event in poll.poll(1000 * timeout_s))

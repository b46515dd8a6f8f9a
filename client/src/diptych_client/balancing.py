"""Chooses among servers: in turn, past those that are down, which are tried again now and then.

No I/O: it is told the addresses and the outcomes, and asked for the next address. Safe to share between
threads.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Sequence

from diptych_client.endpoint import Address, Endpoint

# A name's addresses are looked up again after this: pods come and go, and gRPC's own resolver waits as long.
RESOLVE_EVERY_S = 30.0
# How long a server that failed is left alone, doubling from the first to the last.
FIRST_REST_S = 0.5
LAST_REST_S = 10.0
# A server that accepts calls and answers none is down too; a single late answer is not proof of it.
TIMEOUTS_UNTIL_DOWN = 3


@dataclasses.dataclass
class _Health:
    num_failures: int = 0
    num_timeouts: int = 0
    rests_until_s: float = 0.0


class Balancer:
    def __init__(self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0
        self._health: collections.defaultdict[Address, _Health] = collections.defaultdict(_Health)
        self._addresses: dict[Endpoint, tuple[Address, ...]] = {
            endpoint: () if endpoint.has_name else (Address(endpoint, endpoint.host),)
            for endpoint in endpoints
        }
        self._stale_at_s = {endpoint: float("-inf") for endpoint in endpoints if endpoint.has_name}

    def stale(self) -> list[Endpoint]:
        """The endpoints whose addresses the caller is to look up now; while it does, others use the old."""
        if not self._stale_at_s:
            return []
        now_s = self._clock()
        with self._lock:
            stale = [endpoint for endpoint, at_s in self._stale_at_s.items() if at_s <= now_s]
            for endpoint in stale:
                if self._addresses[endpoint]:
                    self._stale_at_s[endpoint] = now_s + RESOLVE_EVERY_S
        return stale

    def update(self, endpoint: Endpoint, addresses: tuple[Address, ...]) -> None:
        with self._lock:
            self._addresses[endpoint] = addresses
            self._stale_at_s[endpoint] = self._clock() + RESOLVE_EVERY_S
            for gone in set(self._health).difference(*self._addresses.values()):
                del self._health[gone]

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(address for addresses in self._addresses.values() for address in addresses)

    def pick(self, tried: Collection[Address] = ()) -> Address:
        """The next in turn that is up, rather one that this call has not tried. Never none at all: where
        all seem down, the one that has rested longest."""
        with self._lock:
            addresses = self.addresses
            self._turn += 1
            in_turn = [addresses[(self._turn + offset) % len(addresses)] for offset in range(len(addresses))]
            now_s = self._clock()
            candidates = [address for address in in_turn if address not in tried] or in_turn
            for address in candidates:
                if address not in self._health or not self._health[address].rests_until_s:
                    return address
                if self._health[address].rests_until_s <= now_s:
                    self._rest(address)  # this call finds out, and the others wait for its news
                    return address
            return min(candidates, key=lambda address: self._health[address].rests_until_s)

    def has_other(self, tried: Collection[Address]) -> bool:
        """Whether an address that is not known to be down is left to try."""
        with self._lock:
            return any(
                address not in tried and not self._health[address].rests_until_s for address in self.addresses
            )

    def report_answer(self, address: Address) -> None:
        """It speaks, be it to refuse."""
        with self._lock:
            self._health.pop(address, None)

    def report_failure(self, address: Address) -> None:
        """No connection, or no model behind it."""
        with self._lock:
            self._health[address].num_failures += 1
            self._rest(address)

    def report_timeout(self, address: Address) -> None:
        with self._lock:
            health = self._health[address]
            health.num_timeouts += 1
            if health.num_timeouts >= TIMEOUTS_UNTIL_DOWN:
                health.num_failures += 1
                self._rest(address)

    def _rest(self, address: Address) -> None:
        health = self._health[address]
        rest_s = min(LAST_REST_S, FIRST_REST_S * 2 ** max(0, min(health.num_failures, 10) - 1))
        health.rests_until_s = self._clock() + rest_s

"""Whose turn it is: a pure decision, on a clock of the test's own."""

from __future__ import annotations

import pytest

from diptych_client._servers import FIRST_REST_S, LAST_REST_S, RESOLVE_EVERY_S, Address, Balancer, Endpoint

URLS = ("grpc://127.0.0.1:1", "grpc://127.0.0.2:2", "http://127.0.0.3:3")
ENDPOINTS = [Endpoint.parse(url) for url in URLS]
FIRST, SECOND, THIRD = (Address(endpoint, endpoint.host) for endpoint in ENDPOINTS)
NAMED = Endpoint.parse("grpc://triton.test")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def balancer(clock: Clock) -> Balancer:
    return Balancer(ENDPOINTS, clock=clock)


def picks(balancer: Balancer, num: int) -> list[Address]:
    return [balancer.pick() for _ in range(num)]


def test_servers_take_turns(balancer: Balancer):
    first_round = picks(balancer, 3)
    assert set(first_round) == {FIRST, SECOND, THIRD}
    assert picks(balancer, 3) == first_round


def test_a_server_that_failed_is_skipped_until_it_has_rested(balancer: Balancer, clock: Clock):
    balancer.report_failure(SECOND)
    assert SECOND not in picks(balancer, 9)
    clock.now_s += FIRST_REST_S
    assert picks(balancer, 3).count(SECOND) == 1  # one call finds out
    assert SECOND not in picks(balancer, 9)
    balancer.report_answer(SECOND)
    assert picks(balancer, 3).count(SECOND) == 1


def test_rests_grow_up_to_a_limit(balancer: Balancer, clock: Clock):
    for _ in range(20):
        balancer.report_failure(SECOND)
    clock.now_s += LAST_REST_S - 0.01
    assert SECOND not in picks(balancer, 6)
    clock.now_s += 0.01
    assert SECOND in picks(balancer, 3)


def test_a_call_tries_another_server_each_time(balancer: Balancer):
    tried: list[Address] = []
    for _ in range(3):
        tried.append(balancer.pick(tried))
    assert set(tried) == {FIRST, SECOND, THIRD}
    assert not balancer.has_other(tried)
    assert balancer.pick(tried)


def test_where_all_have_failed_the_one_that_has_rested_longest_is_tried(balancer: Balancer, clock: Clock):
    for address in (THIRD, FIRST, SECOND):
        balancer.report_failure(address)
        clock.now_s += 0.01
    assert balancer.pick() == THIRD
    assert not balancer.has_other([])


def test_three_late_answers_in_a_row_are_a_failure_and_two_are_not(balancer: Balancer):
    balancer.report_timeout(FIRST)
    balancer.report_timeout(FIRST)
    balancer.report_answer(FIRST)
    balancer.report_timeout(FIRST)
    balancer.report_timeout(FIRST)
    assert FIRST in picks(balancer, 3)
    balancer.report_timeout(FIRST)
    assert FIRST not in picks(balancer, 6)


def test_a_name_is_looked_up_at_first_and_then_now_and_again(clock: Clock):
    balancer = Balancer([NAMED], clock=clock)
    assert balancer.stale() == [NAMED]
    assert balancer.stale() == [NAMED]  # there are no old addresses to use meanwhile
    balancer.update(NAMED, (Address(NAMED, "10.0.0.1"), Address(NAMED, "10.0.0.2")))
    assert balancer.stale() == []
    clock.now_s += RESOLVE_EVERY_S
    assert balancer.stale() == [NAMED]
    assert balancer.stale() == []  # the first caller is at it
    balancer.update(NAMED, (Address(NAMED, "10.0.0.2"),))
    assert {address.ip for address in picks(balancer, 4)} == {"10.0.0.2"}


def test_an_ip_address_is_never_looked_up(balancer: Balancer):
    assert balancer.stale() == []

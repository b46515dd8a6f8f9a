"""tritonserver's log as a container passes it on: whole, short where it repeats itself, small on the disk."""

from __future__ import annotations

import re
from pathlib import Path

from bench.served import wait_for
from diptych_serving.server.log_follower import MAX_KINDS, NUM_SHOWN, WINDOW_S, LogFollower, Repeats


def refusal(number: int) -> str:
    """As 26.02 and later warn of each request that a full queue refuses."""
    return (
        f'W1125 16:53:0{number % 10}.{number:06d} {number} infer_handler.cc:{700}] "[request id: r-{number}] '
        'Exceeds maximum queue size"'
    )


def test_an_hour_of_refusals_is_a_few_lines_and_a_count() -> None:
    now_s = 0.0
    repeats = Repeats(clock=lambda: now_s)
    shown = [line for number in range(1000) for line in repeats.pass_on(refusal(number))]
    assert shown == [refusal(number) for number in range(NUM_SHOWN)]
    now_s = WINDOW_S
    assert list(repeats.due()) == [
        f"{refusal(999)}  [this and {1000 - NUM_SHOWN - 1} more like it, not shown]"
    ]
    assert list(repeats.pass_on(refusal(1000))) == [refusal(1000)]


def test_another_line_is_shown_among_a_thousand_equal_ones() -> None:
    repeats = Repeats()
    for number in range(1000):
        list(repeats.pass_on(refusal(number)))
    assert list(repeats.pass_on("E1125 16:53:00.1 7 server.cc:1] out of memory")) == [
        "E1125 16:53:00.1 7 server.cc:1] out of memory"
    ]


def test_lines_that_never_repeat_are_bounded_too() -> None:
    repeats = Repeats(clock=lambda: 0.0)
    lines = [f"unknown model '{chr(0x4E00 + number)}'" for number in range(10 * MAX_KINDS)]
    shown = [each for line in lines for each in repeats.pass_on(line)]
    assert len(shown) == MAX_KINDS + NUM_SHOWN
    (rest,) = repeats.flush()
    assert rest.endswith(f"[this and {9 * MAX_KINDS - NUM_SHOWN - 1} more of other kinds, not shown]")


def test_a_log_is_passed_on_whole_and_emptied_while_the_server_goes_on_writing(tmp_path: Path) -> None:
    path = tmp_path / "tritonserver.log"
    shown: list[str] = []
    with path.open("ab", buffering=0) as log:
        log.write(b"the first line\n")
        with LogFollower(path, say=shown.append, is_shown=bool, from_start=True, max_bytes=1000):
            log.write(b"half of ")
            assert wait_for(lambda: shown == ["the first line"])
            log.write(b"a line\n\n")
            log.write(b"".join(b"%s of a long text\n" % bytes([97 + index % 26]) for index in range(100)))
            assert wait_for(lambda: path.stat().st_size == 0)
            log.write(b"after it was emptied\n")
            assert wait_for(lambda: "after it was emptied" in shown)
            log.write(b"the last, without an end")
    assert shown[1] == "half of a line"
    assert "the last, without an end" in shown
    assert path.stat().st_size < 1000


def test_a_file_that_somebody_named_is_not_emptied(tmp_path: Path) -> None:
    path = tmp_path / "mine.log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    shown: list[str] = []
    with LogFollower(path, say=shown.append, is_shown=bool, from_start=True, max_bytes=None):
        assert wait_for(lambda: len(shown) == NUM_SHOWN)
    assert path.read_text().count("\n") == 1000
    assert re.search(r"line 999  \[this and 994 more like it, not shown\]", shown[-1])

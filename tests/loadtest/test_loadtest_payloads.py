"""What is sent: real rows, unique, in the stated mix; and when."""

import collections
import itertools
import random
from pathlib import Path

import pytest

from diptych_serving.errors import UserError
from loadtest.arrivals import POISSON, UNIFORM, Schedule
from loadtest.payloads import KINDS, PayloadSource, Row, parse_mix, read_rows
from tests.helpers.catalogues import make_catalogue, write_catalogue


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return read_rows(make_catalogue(tmp_path_factory.mktemp("load"), 40))


def test_the_calls_follow_the_mix(rows):
    source = PayloadSource(rows, parse_mix("both=50, image=20 text=20 corrupt=10"), seed=0)
    payloads = [source.draw() for _ in range(2000)]
    counts = collections.Counter(payload.kind for payload in payloads)
    assert counts == {
        "both": pytest.approx(1000, abs=100),
        "image": pytest.approx(400, abs=80),
        "text": pytest.approx(400, abs=80),
        "corrupt": pytest.approx(200, abs=60),
    }
    for payload in payloads:
        if payload.kind != "corrupt":
            assert bool(payload.request.image) == (payload.kind in ("both", "image"))
            assert bool(payload.request.text) == (payload.kind in ("both", "text"))
        assert payload.must_be_refused == (payload.kind == "corrupt")


def test_no_two_calls_have_the_same_image_or_the_same_words(rows):
    source = PayloadSource(rows, parse_mix("both=1"), seed=0)
    requests = [source.draw().request for _ in range(500)]
    for values in (
        [request.image for request in requests],
        [request.text for request in requests],
        [request.request_id for request in requests],
    ):
        assert len(set(values)) == 500


def test_what_is_sent_begins_with_a_real_image_and_real_words(rows):
    request = PayloadSource(rows, parse_mix("both=1"), seed=0).draw().request
    assert any(request.image.startswith(row.image) and request.text.startswith(row.words) for row in rows)


def test_the_same_seed_sends_the_same_rows_in_the_same_order(rows):
    def kinds(seed):
        source = PayloadSource(rows, dict.fromkeys(KINDS, 1.0), seed=seed)
        return [source.draw().kind for _ in range(50)]

    assert kinds(3) == kinds(3) != kinds(4)


@pytest.mark.parametrize("text", ["both", "both=x", "bothh=3", "both=-1", ""])
def test_a_mix_that_cannot_be_read_is_refused_with_what_is_accepted(text):
    with pytest.raises(UserError, match=r"--mix: found .*; accepted: KIND=WEIGHT, KIND one of both, image"):
        parse_mix(text)


def test_a_mix_of_nothing_is_refused():
    with pytest.raises(UserError, match="at least one weight must be above 0"):
        parse_mix("both=0 text=0")


def test_a_catalogue_without_images_is_refused_where_the_mix_asks_for_them(tmp_path):
    rows = read_rows(write_catalogue(tmp_path / "words.csv", [("", "a leaf", "green")]))
    with pytest.raises(UserError, match="--mix: both is asked for, but the catalogue has no such row"):
        PayloadSource(rows, parse_mix("both=1"), seed=0)


def test_a_catalogue_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing\.csv: No such file or directory"):
        read_rows(tmp_path / "missing.csv")
    path = tmp_path / "table.csv"
    path.write_text("image_path,category\n")
    with pytest.raises(UserError, match="column description is missing"):
        read_rows(path)


def test_a_image_that_the_catalogue_names_must_be_there(tmp_path: Path):
    catalogue = write_catalogue(tmp_path / "items.csv", [("gone.png", "a leaf", "green")])
    with pytest.raises(UserError, match=r"gone\.png: No such file"):
        read_rows(catalogue)


def intended_starts(arrivals: str, num_calls: int) -> list[float]:
    schedule = Schedule(arrivals, now_s=100.0, source=random.Random(0))
    starts = []
    for _ in range(num_calls):
        starts.append(schedule.next_start_s)
        schedule.advance()
    return starts


def test_poisson_arrivals_come_once_a_second_on_average_with_gaps_that_vary_as_much():
    starts = intended_starts(POISSON, 4000)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1, abs=0.1)
    assert deviation == pytest.approx(1, abs=0.1)  # of an exponential distribution, the mean


def test_uniform_arrivals_come_every_second_from_an_offset_on():
    starts = intended_starts(UNIFORM, 5)
    assert 100 <= starts[0] < 101
    assert starts == pytest.approx([starts[0] + number for number in range(5)])

"""A process's handlers of Locust's events."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from diptych_serving.errors import UserError
from loadtest.caller import Caller
from loadtest.charts import draw_latency_against_load, draw_over_time
from loadtest.objectives import load_objectives
from loadtest.outcome import measure
from loadtest.payloads import PayloadSource, parse_mix, read_rows
from loadtest.plan import STEP
from loadtest.recording import Recording
from loadtest.report import print_report, save_summary
from loadtest.shape import PlannedShape
from loadtest.users import USER_CLASSES, ClassifierUser
from loadtest.verdict import judge
from loadtest.wires import access_of, parse_host

# The arguments that summary.json repeats.
SUMMARISED = (
    *("shape", "arrivals", "num_users", "run_time", "processes"),
    *("catalogue", "mix", "timeout_s", "settle_s", "seed"),
)


class Session:
    """A worker makes calls, a master judges; a single process does both."""

    def __init__(self, environment: Environment) -> None:
        assert isinstance(environment.parsed_options, argparse.Namespace)  # Locust has read the command line
        assert isinstance(environment.shape_class, PlannedShape)  # the one that the locustfile names
        self._environment = environment
        self._options = environment.parsed_options
        self._shape = environment.shape_class
        self._recording = Recording(environment)
        environment.stop_timeout = environment.stop_timeout or self._options.timeout_s  # calls may end
        if not isinstance(environment.runner, MasterRunner):
            gevent.spawn(self._recording.watch_generator)
            environment.events.test_start.add_listener(self._prepare_users)
        if not isinstance(environment.runner, WorkerRunner):
            # During a shape Locust has no handler, and would leave its workers running.
            signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            self._choose_users()
            self._shape.is_idle = self._recording.is_idle
            environment.events.quitting.add_listener(self._conclude)

    def _choose_users(self) -> None:
        """Check address and protocol before the run."""
        try:
            host = parse_host(self._environment.host)
            access_of(host, os.environ)
            load_objectives(Path(self._options.slo))
        except UserError as error:
            sys.exit(f"error: {error}")
        self._environment.user_classes = [USER_CLASSES[host.protocol]]

    def _prepare_users(self, **_: Any) -> None:
        """All slow work, before the first user starts."""
        options, runner = self._options, self._environment.runner
        assert isinstance(runner, (LocalRunner, WorkerRunner))
        seed = options.seed + runner.worker_index
        try:
            host = parse_host(self._environment.host)
            access = access_of(host, os.environ)
            rows = read_rows(Path(options.catalogue))
            ClassifierUser.source = PayloadSource(rows, parse_mix(options.mix), seed=seed)
        except UserError as error:
            sys.exit(f"error: {error}")
        wire = USER_CLASSES[host.protocol].wire_type(
            host.authority,
            timeout_s=options.timeout_s,
            num_connections=options.max_in_flight,
            access=access,
        )
        events, timeline = self._environment.events, self._recording.timeline
        caller = Caller(wire, timeline, events.request, max_in_flight=options.max_in_flight)
        self._recording.caller = ClassifierUser.caller = caller
        ClassifierUser.arrivals = options.arrivals
        ClassifierUser.randomness = random.Random(seed)

    def _conclude(self, **_: Any) -> None:
        """Measure, judge, report; the verdict sets Locust's exit status."""
        if not hasattr(self._shape, "plan"):
            return  # ended before it started
        options, plan, timeline = self._options, self._shape.plan, self._recording.timeline
        objectives = load_objectives(Path(options.slo))
        start_s, end_s = self._shape.started_at_s, time.time()
        outcomes = measure(plan, timeline, start_s=start_s, end_s=end_s, settle_s=options.settle_s)
        verdict = judge(options.shape, outcomes, objectives)

        results = Path(options.results)
        results.mkdir(parents=True, exist_ok=True)
        asked = {name: getattr(options, name) for name in SUMMARISED}
        save_summary(
            results / "summary.json",
            run={"host": self._environment.host, **asked},
            objectives=objectives,
            outcomes=outcomes,
            verdict=verdict,
        )
        seconds = timeline.between(start_s, end_s)
        draw_over_time(plan, seconds, objectives, results / "over_time.png")
        if options.shape == STEP:
            draw_latency_against_load(
                outcomes, verdict.knee, objectives, results / "latency_against_load.png"
            )
        self._environment.process_exit_code = verdict.exit_code
        # After Locust's own tables.
        self._environment.events.quit.add_listener(lambda **_: print_report(options.shape, outcomes, verdict))

"""Load on a served Diptych, from the repository's root:

    locust -f loadtest/locustfile.py --host grpc://127.0.0.1:8001 --headless --users 50 --run-time 1m

Only what Locust looks for: users, shape and arguments. README.md explains them.
"""

from __future__ import annotations

from typing import Any

from locust import events
from locust.env import Environment

from loadtest.options import add_options
from loadtest.session import Session
from loadtest.shape import PlannedShape
from loadtest.users import GrpcUser, HttpUser

__all__ = ["GrpcUser", "HttpUser", "PlannedShape"]

events.init_command_line_parser.add_listener(add_options)


@events.init.add_listener
def _start_session(environment: Environment, **_: Any) -> None:
    Session(environment)

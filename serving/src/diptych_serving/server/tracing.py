"""The collector of tritonserver's OpenTelemetry spans: one span for each step of each traced request."""

from __future__ import annotations

import dataclasses
import urllib.parse

from diptych_serving.errors import UserError

SERVICE = "diptych"
# Spans are sent in the background, at least this often.
SCHEDULE_DELAY_MS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracing:
    """url     of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces
    one_in  trace one in this number of the requests without a caller's trace
    """

    url: str
    one_in: int = 1000

    @classmethod
    def from_options(cls, url: str | None, one_in: int) -> Tracing | None:
        """From the command line; None: no tracing. Raises UserError."""
        if url is None:
            return None
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "," in url:
            raise UserError(
                f"--trace-url {url}: expected a collector that takes OTLP over HTTP, "
                "such as http://127.0.0.1:4318/v1/traces"
            )
        return cls(url=url, one_in=one_in)

    @property
    def options(self) -> list[str]:
        """tritonserver's."""
        return [
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            f"--trace-config=rate={self.one_in}",
            f"--trace-config=opentelemetry,url={self.url}",
            f"--trace-config=opentelemetry,resource=service.name={SERVICE}",
            f"--trace-config=opentelemetry,bsp_schedule_delay={SCHEDULE_DELAY_MS}",
        ]

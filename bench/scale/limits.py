"""Where a thing that all pods share becomes the limit. Each limit states its source."""

from __future__ import annotations

import dataclasses

from bench.scale.autoscaler import SCRAPE_S
from bench.scale.costs import Costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """at_pods: from how many pods on it is too small. source: whose figure it is."""

    what: str
    at_pods: float
    figure: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Figures of other people's documentation. Replace them by yours.

    prometheus_samples_per_s  of one large server
    dns_message_bytes         the most that a DNS answer can hold, and what one address takes of it
    proxy_calls_per_s         of one Envoy with four cores
    proxy_gbit_per_s          of its network, in each direction
    store_gets_per_s          of one prefix of a bucket
    cluster_nodes             of one Kubernetes cluster
    node_cores                of one of its machines
    """

    prometheus_samples_per_s: float = 1_000_000
    dns_message_bytes: int = 65_535
    dns_address_bytes: int = 16
    proxy_calls_per_s: float = 9_000
    proxy_gbit_per_s: float = 10
    store_gets_per_s: float = 5_500
    cluster_nodes: int = 5_000
    node_cores: int = 32


def limits(costs: Costs, knee_per_s: float, num_cores: int, given: Assumptions) -> list[Limit]:
    """The first to give way first."""
    samples_per_s = costs.num_series / SCRAPE_S
    bytes_per_s = given.proxy_gbit_per_s * 1e9 / 8
    found = [
        Limit(
            what="one Envoy of components/proxy, four cores: calls",
            at_pods=given.proxy_calls_per_s / knee_per_s,
            figure=f"{given.proxy_calls_per_s:,.0f} calls/s",
            source="a public capacity test of Envoy 1.30: github.com/agent-substrate/substrate/pull/808",
        ),
        Limit(
            what="the same, its network",
            at_pods=bytes_per_s / costs.item_bytes / knee_per_s,
            figure=f"{given.proxy_gbit_per_s:g} Gbit/s over {costs.item_bytes / 1000:.0f} kB an item",
            source="assumed; the item is measured",
        ),
        Limit(
            what="one Prometheus",
            at_pods=given.prometheus_samples_per_s / samples_per_s,
            figure=f"{given.prometheus_samples_per_s:,.0f} samples/s over {costs.num_series} series a pod, "
            f"every {SCRAPE_S:g} s",
            source='training.promlabs.com, "Efficient Implementation"; the series are measured',
        ),
        Limit(
            what="the name diptych-pods: one DNS answer",
            at_pods=given.dns_message_bytes / given.dns_address_bytes,
            figure=f"{given.dns_message_bytes:,} bytes over {given.dns_address_bytes} an address",
            source="RFC 1035: a length of 16 bits over TCP; a compressed A record",
        ),
        Limit(
            what="one prefix of an object store, if all pods start within a minute",
            at_pods=60 * given.store_gets_per_s / costs.release_files,
            figure=f"{given.store_gets_per_s:,.0f} GET/s over {costs.release_files} files a release",
            source='Amazon S3, "Optimizing performance"; the files are measured',
        ),
        Limit(
            what="one Kubernetes cluster",
            at_pods=given.cluster_nodes * (given.node_cores // num_cores),
            figure=f"{given.cluster_nodes:,} machines of {given.node_cores} cores (assumed)",
            source='kubernetes.io, "Considerations for large clusters"',
        ),
    ]
    return sorted(found, key=lambda limit: limit.at_pods)


def price_of_million(num_pods: int, num_cores: int, rate_per_s: float, core_hour: float) -> float:
    """In the currency of `core_hour`: cores paid for an hour over the items answered in it."""
    return core_hour * num_pods * num_cores / (rate_per_s * 3600) * 1e6

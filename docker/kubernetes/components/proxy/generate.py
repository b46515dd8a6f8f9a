"""Writes envoy.yaml: docker/proxy/envoy.yaml with TLS towards callers and the pods' own names.

Kustomize reads no file outside of its directory, and a proxy kept twice by hand would soon differ.
`make kubernetes-rules` runs this; tests/docker/test_kubernetes_proxy.py knows when it was forgotten.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SOURCE = HERE.parents[2] / "proxy/envoy.yaml"
RENDERED = HERE / "envoy.yaml"
HEADER = "# Made of docker/proxy/envoy.yaml by `make kubernetes-rules`. Change it there.\n"
# Headless: every pod that is ready. Envoy asks again every five seconds and takes turns.
PODS = "diptych-pods"
TLS = "/tls"


def proxy_config() -> dict[str, Any]:
    """Envoy's whole configuration."""
    config: dict[str, Any] = yaml.safe_load(SOURCE.read_text("utf-8"))
    for listener in config["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            chain["transport_socket"] = transport_socket(listener["name"])
    for cluster in config["static_resources"]["clusters"]:
        for endpoints in cluster["load_assignment"]["endpoints"]:
            for each in endpoints["lb_endpoints"]:
                each["endpoint"]["address"]["socket_address"]["address"] = PODS
    return config


def transport_socket(listener: str) -> dict[str, Any]:
    """TLS, for callers with a certificate by the authority in ca.crt and for no other."""
    type_url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{type_url}.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "alpn_protocols": ["h2"] if listener == "grpc" else ["http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": f"{TLS}/tls.crt"},
                        "private_key": {"filename": f"{TLS}/tls.key"},
                    }
                ],
                "validation_context": {"trusted_ca": {"filename": f"{TLS}/ca.crt"}},
            },
        },
    }


class _Plain(yaml.SafeDumper):
    """Without YAML's anchors: what was shared is written out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    text = yaml.dump(proxy_config(), Dumper=_Plain, sort_keys=False, width=110)
    RENDERED.write_text(HEADER + text, "utf-8")

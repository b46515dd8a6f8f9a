#!/usr/bin/env bash
# Runs compose.yaml itself, with podman-compose, over what images.sh has built: the CPU profile and Locust, in a
# network of their own. Not Prometheus and Grafana: their images cannot be had here.
#
#   docker/prove/compose.sh [MODEL_REPOSITORY [CATALOGUE]]
set -euo pipefail
namespaces=(--net)
tools=(podman runc netavark aardvark-dns iptables iproute2 catatonit) # the last is the first process of `init: true`
# shellcheck source=docker/prove/engine.sh
source "$(dirname "$0")/engine.sh"
ip link set lo up

DIPTYCH_REPOSITORY=$(realpath "${1:-build/model_repository}")
DIPTYCH_CATALOGUE=$(realpath "${2:-data/openclipart}")
export DIPTYCH_REPOSITORY DIPTYCH_CATALOGUE DIPTYCH_TAG=proof
services=(serving-cpu demo locust-master locust-worker)
standin=$store/standin.compose.yaml

# podman's name for logs that rotate, and PyTorch for the stand-in's backend.
{
    printf 'services:\n'
    for service in "${services[@]:1}"; do printf '  %s:\n    logging: {driver: k8s-file}\n' "$service"; done
    printf '  serving-cpu:\n    logging: {driver: k8s-file}\n    volumes:\n'
    for part in "${torch_parts[@]}"; do printf '      - %s:/opt/torch/%s:ro\n' "$packages/$part" "$part"; done
} > "$standin"

compose() {
    .venv/bin/podman-compose --file docker/compose.yaml --file "$standin" \
        --profile cpu --profile load "$@"
}

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    compose logs 2>&1 | tail -n 40 >&2 || true
    exit 1
}

clean_up() {
    [ -z "${timers:-}" ] || kill "$timers" 2>/dev/null || true
    compose down --timeout 5 >/dev/null 2>&1 || true
}
trap clean_up EXIT


say "Up: ${services[*]}"
# podman leaves the timers of health checks to systemd, and podman-compose knows no replicas.
while sleep 5; do
    for container in $(engine ps --quiet); do engine healthcheck run "$container" >/dev/null 2>&1 || true; done
done &
timers=$!
compose up --detach --no-build --scale locust-worker=2 "${services[@]}" >/dev/null
for _ in $(seq 150); do
    unhealthy=$(engine ps --all --format '{{.Names}} {{.Status}}' | grep -v worker | grep -vc '(healthy)' || true)
    [ "$unhealthy" != 0 ] || break
    sleep 2
done
engine ps --all --format '{{.Names}}  {{.Status}}  {{.Ports}}'
[ "$unhealthy" = 0 ] || fail "not all are healthy"

say "Through the published ports"
.venv/bin/diptych-client classify --url grpc://127.0.0.1:8001 --text "a ripe banana" | sed -n 1p
.venv/bin/python docker/prove/load.py || fail "the load test"

say "Down"
compose down --timeout 120 > "$store/down.log" 2>&1 || fail "down: $(cat "$store/down.log")"
if grep SIGKILL "$store/down.log"; then fail "a container did not take SIGTERM"; fi
left=$(engine ps --all --format '{{.Names}}' | grep ^diptych_ || true)
[ -z "$left" ] || fail "left: $left"
say "All held"

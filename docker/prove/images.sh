#!/usr/bin/env bash
# Builds the serving and the client image and runs them in a real engine, on a machine that has neither Docker nor
# NVIDIA's image: on a stand-in for the base (standin.Dockerfile). Root, Debian 12, an .venv.
# Exits with 0 where everything holds; ../README.md lists what that proves.
#
#   docker/prove/images.sh [MODEL_REPOSITORY]
set -euo pipefail
namespaces=()
tools=(podman buildah runc netavark mmdebstrap)
# shellcheck source=docker/prove/engine.sh
source "$(dirname "$0")/engine.sh"

repository=$(realpath "${1:-build/model_repository}")
here=$PWD
server=prove-serving
probe=prove-probe

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    engine logs "$server" 2>&1 | tail -n 30 >&2 || true
    exit 1
}

clean_up() { engine rm --force --ignore --time 5 "$probe" "$server" >/dev/null 2>&1 || true; }
trap clean_up EXIT

build_serving() {
    build --build-arg "TRITON_IMAGE=$triton" --build-arg "RCLONE_IMAGE=$rclone" --build-arg "PYTHON_IMAGE=$debian" \
        --tag diptych-serving:proof --file docker/Dockerfile "$@" .
}

build_images() {
    make_debian
    say "The stand-in for NVIDIA's image"
    build --build-context "site-packages=$packages" --build-arg "DEBIAN_IMAGE=$debian" \
        --tag "$triton" --file docker/prove/standin.Dockerfile docker/prove
    build --build-arg "DEBIAN_IMAGE=$debian" --tag "$rclone" --file docker/prove/rclone.Dockerfile docker/prove
    say "docker/Dockerfile on it"
    build_serving
    say "docker/client.Dockerfile"
    build --build-arg "PYTHON_IMAGE=$debian" --tag diptych-client:proof --file docker/client.Dockerfile .
    engine images --format '{{.Repository}}:{{.Tag}}  {{.Size}}' | grep proof
}

# As in compose.yaml, less the network: the two containers share one that has nothing but its own loopback.
locked=(--read-only --cap-drop all --security-opt no-new-privileges --memory 4g --pids-limit 4096)

start_server() {
    local torch=()
    for part in "${torch_parts[@]}"; do torch+=(--volume "$packages/$part:/opt/torch/$part:ro"); done
    engine run --detach --name "$server" "${locked[@]}" --network none --shm-size 1g \
        --tmpfs /tmp:exec,mode=1777,size=1g --volume "$repository:/models:ro" "${torch[@]}" diptych-serving:proof
    for _ in $(seq 300); do
        if engine healthcheck run "$server" >/dev/null 2>&1; then return; fi
        [ "$(engine inspect --format '{{.State.Running}}' "$server")" = true ] || fail "the server ended"
        sleep 1
    done
    fail "not healthy within 300 s"
}

client() { engine run --rm "${locked[@]}" --network "container:$server" "$@"; }

check_confinement() {
    engine exec "$server" grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status
    # shellcheck disable=SC2016 # the container's shell is meant to expand them
    engine exec "$server" sh -euc '
        [ "$(awk "/^Uid:/ {print \$2 \$3}" /proc/1/status)" = 1000110001 ]
        grep -q "^CapBnd:.*0000000000000000$" /proc/1/status
        grep -q "^NoNewPrivs:.1$" /proc/1/status
        grep -q "^Seccomp:.2$" /proc/1/status
        grep -qz "^STANDIN_ENTRYPOINT=1$" /proc/1/environ
        [ "$(tr "\\0" " " < /proc/1/cmdline | cut -d " " -f 1-3)" = "python3 -m diptych_serving.container" ]
        ! touch /opt/diptych/x 2>/dev/null
        ! touch /models/x 2>/dev/null
        ! command -v gcc cc c++ make' || fail "not as confined as it should be"
    client --entrypoint python3 diptych-serving:proof -c '
import importlib.util as u, numpy, PIL, tokenizers
assert not any(map(u.find_spec, ("torch", "typer", "diptych")))
print("numpy", numpy.__version__, "pillow", PIL.__version__, "tokenizers", tokenizers.__version__)' || fail "packages"
}

check_answers() {
    client diptych-client:proof classify --url grpc://127.0.0.1:8001 --text "a ripe banana"
    client diptych-client:proof health --url http://127.0.0.1:8000
    client --entrypoint python3 diptych-client:proof -c '
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:8002/metrics").read().decode()
print(next(line for line in text.splitlines() if line.startswith("nv_inference_request_success{model=\"classifier\"")))'
}

# What a pod does first: out of a directory, and through rclone, into an empty directory.
check_fetch() {
    for source in /releases :local:/releases; do
        engine run --rm "${locked[@]}" --network none --tmpfs /models:mode=1777,size=1g \
            --volume "$repository:/releases:ro" --entrypoint python3 diptych-serving:proof \
            -m diptych_serving.fetch "$source" --wait-s 0 || fail "fetch $source"
    done
}

# Calls are under way when SIGTERM comes; each must be answered, or refused in a way that a client retries.
check_stop() {
    engine run --detach --name "$probe" "${locked[@]}" --network "container:$server" \
        --volume "$here/docker/prove/callers.py:/callers.py:ro" \
        --volume "$here/serving/src/diptych_serving:/diptych_serving:ro" --entrypoint python3 diptych-client:proof /callers.py
    for _ in $(seq 300); do
        if engine logs "$probe" 2>&1 | grep -q answering; then break; fi
        sleep 0.2
    done
    engine stop --time 120 "$server" >/dev/null
    status=$(engine inspect --format '{{.State.ExitCode}}' "$server")
    engine wait "$probe" >/dev/null
    engine logs "$probe"
    engine logs "$server" 2>&1 | tail -n 3
    [ "$(engine inspect --format '{{.State.ExitCode}}' "$probe")" = 0 ] || fail "calls were broken by the stop"
    [ "$status" = 0 ] || fail "the server ended with status $status"
}

# A model's process is killed: nobody else would notice, so the container must end, and not with 0.
check_dead_model() {
    engine start "$server" >/dev/null
    for _ in $(seq 300); do
        if engine healthcheck run "$server" >/dev/null 2>&1; then break; fi
        sleep 1
    done
    engine exec "$server" python3 -c '
import os, pathlib, signal
stubs = [int(path.parent.name) for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if b"triton_python_backend_stub" in path.read_bytes().split(b"\0")[0]]
os.kill(max(stubs), signal.SIGKILL)'
    status=$(timeout 120 podman --log-level fatal wait "$server") || fail "it did not end"
    engine logs "$server" 2>&1 | tail -n 2
    [ "$status" != 0 ] || fail "it ended with status 0"
}

# Layers, not the image's id: its history names the builder's own containers.
check_reproducible() {
    local first second
    first=$(engine inspect --format '{{.RootFS.Layers}}' "$(build_serving --no-cache)")
    second=$(engine inspect --format '{{.RootFS.Layers}}' "$(build_serving --no-cache)")
    echo "${first##* }"
    [ "$first" = "$second" ] || fail "two builds of the same files have other layers"
}

build_images
say "Start, as compose.yaml does: no rights, a read-only root, no capabilities, seccomp, 4 GiB"
start_server
check_confinement
say "Ask it, from another container, over gRPC and HTTP"
check_answers
say "Fetch a release, as a pod does"
check_fetch
say "Stop it under load"
check_stop
say "Start it again, and kill a model's process"
check_dead_model
say "Build it twice without a cache: the same layers to the bit"
check_reproducible
say "All held"

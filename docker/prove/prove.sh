#!/usr/bin/env bash
# Builds the serving and the client image and runs them in a real engine, on a machine that has neither Docker nor
# NVIDIA's image: Debian's podman, and a stand-in for the base (standin.Dockerfile). Root, Debian 12, an .venv.
# Exits with 0 where everything holds; ../README.md lists what that proves. Kept in build/images: what it built.
#
#   docker/prove/prove.sh [MODEL_REPOSITORY]
set -euo pipefail
cd "$(dirname "$0")/../.."

# Runtimes of 2022 refuse a cgroup v1 machine on which a v2 hierarchy is mounted too. Only this script's own view
# of the mounts is changed.
if [ -z "${PROVE_HAS_OWN_MOUNTS:-}" ]; then
    PROVE_HAS_OWN_MOUNTS=1 exec unshare --mount "$0" "$@"
fi
if mountpoint --quiet /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi

repository=$(realpath "${1:-build/model_repository}")
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
here=$PWD
store=$here/build/images
triton=localhost/diptych-standin/tritonserver:debian-12
debian=localhost/diptych-standin/debian:12
server=prove-serving
probe=prove-probe

engine() {
    podman --root "$store/storage" --runroot "$store/run" --storage-driver overlay --cgroup-manager cgroupfs \
        --log-level fatal "$@"
}

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    engine logs "$server" 2>&1 | tail -n 30 >&2 || true
    exit 1
}

clean_up() { engine rm --force --time 5 "$server" "$probe" >/dev/null 2>&1 || true; }
trap clean_up EXIT

install_tools() {
    local missing=()
    for tool in podman:podman buildah:buildah runc:runc mmdebstrap:mmdebstrap; do
        command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
    done
    [ ${#missing[@]} -eq 0 ] || { apt-get update -qq && apt-get install -qq --no-install-recommends "${missing[@]}"; }
}

# RUN steps see this machine's certificates: it may reach the package index through a proxy of its own.
build() {
    engine build --quiet --isolation chroot --format docker --timestamp 0 \
        --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro "$@"
}

build_images() {
    mkdir -p "$store"
    if ! engine image exists "$debian"; then
        say "A Debian with Python, for the stand-ins"
        mmdebstrap --quiet --variant=minbase \
            --include=ca-certificates,libpython3.11,python3,python3-pip,python3-venv bookworm - |
            engine import --quiet - "$debian"
    fi
    say "The stand-in for NVIDIA's image"
    build --build-context "site-packages=$packages" --build-context "backends=training/src/diptych/serving/backends" \
        --build-arg "DEBIAN_IMAGE=$debian" --tag "$triton" --file docker/prove/standin.Dockerfile docker/prove
    say "docker/Dockerfile on it, twice: the same image to the bit"
    first=$(build --build-arg "TRITON_IMAGE=$triton" --tag diptych-serving:proof --file docker/Dockerfile .)
    second=$(build --no-cache --build-arg "TRITON_IMAGE=$triton" --tag diptych-serving:proof --file docker/Dockerfile .)
    printf '%s\n%s\n' "$first" "$second"
    [ "$first" = "$second" ] || fail "two builds of the same files differ"
    say "docker/client.Dockerfile"
    build --build-arg "PYTHON_IMAGE=$debian" --tag diptych-client:proof --file docker/client.Dockerfile .
    engine images --format '{{.Repository}}:{{.Tag}}  {{.Size}}' | grep proof
}

# As in compose.yaml, less the network: the two containers share one that has nothing but its own loopback.
locked=(--runtime runc --log-driver k8s-file --ulimit nofile=4096:4096 --ulimit nproc=4096:4096
    --read-only --cap-drop all --security-opt no-new-privileges --memory 4g --pids-limit 4096)

start_server() {
    local torch=()
    # What `import torch` needs, and nothing that could stand in for the image's own numpy, pillow or tokenizers.
    for name in torch torchgen nvidia triton sympy mpmath filelock fsspec networkx jinja2 markupsafe \
        typing_extensions.py; do
        torch+=(--volume "$packages/$name:/opt/torch/$name:ro")
    done
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
    engine exec "$server" sh -c 'grep -E "^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):" /proc/1/status; tr "\0" " " < /proc/1/cmdline'
    echo
    # shellcheck disable=SC2016 # the container's shell is meant to expand them
    engine exec "$server" sh -euc '
        [ "$(awk "/^Uid:/ {print \$2 \$3}" /proc/1/status)" = 1000110001 ]
        grep -q "^CapBnd:.*0000000000000000$" /proc/1/status
        grep -q "^NoNewPrivs:.1$" /proc/1/status
        grep -q "^Seccomp:.2$" /proc/1/status
        ! touch /opt/diptych/x 2>/dev/null
        ! touch /models/x 2>/dev/null
        ! command -v gcc cc c++ make' || fail "not as confined as it should be"
    client --entrypoint python3 diptych-serving:proof -c '
import importlib.util as u, pathlib, numpy, PIL, tokenizers
assert not u.find_spec("torch") and not u.find_spec("typer") and not u.find_spec("diptych.train")
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

check_stop() {
    # Calls are under way when SIGTERM comes; each must be answered, or refused in a way that a client retries.
    engine run --detach --name "$probe" "${locked[@]}" --network "container:$server" \
        --volume "$here/docker/prove/callers.py:/callers.py:ro" --entrypoint python3 diptych-client:proof /callers.py
    for _ in $(seq 100); do
        if engine logs "$probe" 2>&1 | grep -q answering; then break; fi
        sleep 0.2
    done
    engine stop --time 120 "$server" >/dev/null
    [ "$(engine wait "$probe")" = 0 ] || { engine logs "$probe"; fail "calls were broken by the stop"; }
    engine logs "$probe"
    local status
    status=$(engine inspect --format '{{.State.ExitCode}}' "$server")
    echo "exit status $status"
    [ "$status" = 0 ] || fail "the server ended with status $status"
}

install_tools
build_images
say "Start, as compose.yaml does: no rights, a read-only root, no capabilities, seccomp, 4 GiB"
start_server
check_confinement
say "Ask it, from another container, over gRPC and HTTP"
check_answers
say "Stop it under load"
check_stop
say "All held"

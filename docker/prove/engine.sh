# Sourced by the other scripts: an engine on a machine that has none. Debian's podman with runc, in namespaces of
# the script's own, its images under build/images. `namespaces` says which, besides the mounts; `tools` names the
# Debian packages that the script needs. They are installed first, because a namespace may have no network.
# shellcheck shell=bash disable=SC2034,SC2154

if [ -z "${PROVE_HAS_NAMESPACES:-}" ]; then
    missing=()
    for package in "${tools[@]}"; do
        dpkg-query --show --showformat '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || { apt-get update -qq && apt-get install -qq --no-install-recommends "${missing[@]}"; }
    PROVE_HAS_NAMESPACES=1 exec unshare --mount "${namespaces[@]}" "$0" "$@"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
# Runtimes of 2022 refuse a cgroup v1 machine on which a v2 hierarchy is mounted too.
if mountpoint --quiet /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi

store=$PWD/build/images
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
triton=localhost/diptych-standin/tritonserver:debian-12
debian=localhost/diptych-standin/debian:12-rclone
rclone=localhost/diptych-standin/rclone:debian-12
# What `import torch` needs, and nothing that could stand in for the image's own numpy, pillow or tokenizers.
torch_parts=(torch torchgen nvidia triton sympy mpmath filelock fsspec networkx jinja2 markupsafe
    typing_extensions.py)

mkdir -p "$store"
export CONTAINERS_CONF=$store/containers.conf CONTAINERS_STORAGE_CONF=$store/storage.conf
# Where nobody may raise limits, an engine's usual ones cannot be set.
cat > "$CONTAINERS_CONF" <<'CONF'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
CONF
cat > "$CONTAINERS_STORAGE_CONF" <<CONF
[storage]
driver = "overlay"
graphroot = "$store/storage"
runroot = "$store/run"
CONF

engine() { podman --log-level fatal "$@"; }

say() { printf '\n== %s\n' "$*"; }

# RUN steps see this machine's certificates: it may reach the package index through a proxy of its own.
build() {
    engine build --quiet --isolation chroot --format docker --timestamp 0 \
        --volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro "$@"
}

# A Debian with Python and rclone, for the stand-ins.
make_debian() {
    if engine image exists "$debian"; then return; fi
    say "A Debian with Python and rclone"
    mmdebstrap --quiet --variant=minbase \
        --include=ca-certificates,libpython3.11,python3,python3-pip,python3-venv,rclone bookworm - |
        engine import --quiet - "$debian"
}

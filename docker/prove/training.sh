#!/usr/bin/env bash
# Builds training.Dockerfile on a stand-in for Python's image (Debian 12, Python 3.11), then trains, evaluates and
# exports in it as its user, without rights or a network. PyTorch is downloaded whole: 15 GB of disk.
#
#   docker/prove/training.sh [CATALOGUES]
set -euo pipefail
namespaces=()
tools=(podman buildah runc netavark mmdebstrap)
# shellcheck source=docker/prove/engine.sh
source "$(dirname "$0")/engine.sh"

catalogues=$(realpath "${1:-data/openclipart}")
image=diptych-training:proof
work=$store/work

diptych() {
    engine run --rm --read-only --cap-drop all --security-opt no-new-privileges --network none --memory 6g \
        --pids-limit 4096 --tmpfs /tmp:exec,mode=1777,size=1g --shm-size 1g \
        --volume "$work:/work" --volume "$catalogues:/data:ro" "$image" "$@"
}

clean_up() { rm -rf "$work"; }
trap clean_up EXIT

make_debian
say "docker/training.Dockerfile on it"
build --build-arg "PYTHON_IMAGE=$debian" --tag "$image" --file docker/training.Dockerfile .
engine images --format '{{.Repository}}:{{.Tag}}  {{.Size}}' "$image"

say "Train, evaluate, export"
install --directory --owner 10001 --group 10001 "$work"
diptych train quickstart --out run --set train.epochs=5 \
    --set data.train_csv=/data/article/train.csv --set data.val_csv=/data/article/val.csv \
    --set data.test_csv=/data/article/test.csv
diptych export run --to model_repository
diptych release list model_repository
[ "$(stat --format %u "$work/model_repository/fusion_head/1/model.pt")" = 10001 ]
say "All held"

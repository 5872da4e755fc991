#!/usr/bin/env bash
# Builds the images with docker, podman or buildah, whichever is there, and checks that each does its job.
#
#   docker/check.sh                        all three: cpu, gpu, test
#   docker/check.sh cpu gpu                some of them
#   PYTHON_IMAGE=NAME docker/check.sh      on another Python image than the Dockerfile names
#   PYTHON_IMAGE=debian docker/check.sh    on an image that debootstrap makes here (as root), where no registry is in reach
#
# The builds use this machine's settings of pip and TLS (/etc/pip.conf, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, certificates).
# The images do not keep them.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=("${@:-cpu}")
[ $# -gt 0 ] || targets=(cpu gpu test)
base=${PYTHON_IMAGE:-}

engine=
for candidate in docker podman buildah; do
    if command -v $candidate >/dev/null && { [ $candidate != docker ] || docker info >/dev/null 2>&1; }; then
        engine=$candidate
        break
    fi
done
if [ -z "$engine" ]; then
    echo "none of docker, podman and buildah works here; for one without a daemon: apt-get install buildah crun" >&2
    exit 1
fi
echo "== with $engine"

work=$(mktemp -d)
containers=()
finish() {
    for container in "${containers[@]}"; do buildah rm "$container" >/dev/null; done
    rm -rf "$work"
}
trap finish EXIT
if [ "$engine" = buildah ]; then
    export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
fi

# --- A Python image from Debian's packages ---

debian_image() {
    command -v debootstrap >/dev/null || { echo "apt-get install debootstrap" >&2; exit 1; }
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv,python-is-python3 \
        bookworm "$work/rootfs" >"$work/debootstrap.log" || { tail -5 "$work/debootstrap.log" >&2; exit 1; }
    rm -f "$work"/rootfs/usr/lib/python3*/EXTERNALLY-MANAGED
    rm -rf "$work"/rootfs/var/cache/apt/archives/*.deb "$work"/rootfs/var/lib/apt/lists/*
    case $engine in
        buildah)
            container=$(buildah from scratch)
            buildah add --quiet "$container" "$work/rootfs" / >/dev/null
            buildah commit --quiet --rm "$container" localhost/softmax-xp-debian >/dev/null
            ;;
        *) tar -C "$work/rootfs" -c . | $engine import - localhost/softmax-xp-debian >/dev/null ;;
    esac
    rm -rf "$work/rootfs"
}
if [ "$base" = debian ]; then
    echo "== a Python image from Debian's packages"
    debian_image
    base=localhost/softmax-xp-debian
fi

# --- Builds ---

torch=  # a CPU wheel, where PIP_FIND_LINKS is a folder that has one
for wheel in "${PIP_FIND_LINKS:-/nowhere}"/torch-*+cpu-*.whl; do
    [ ! -e "$wheel" ] || torch="torch==$(basename "$wheel" | cut -d - -f 2)"
done

build() {
    local options=(--file docker/Dockerfile --target "$1" --tag "softmax-xp:$1")
    [ -z "$base" ] || options+=(--build-arg "PYTHON_IMAGE=$base")
    [ -z "${PIP_EXTRA_INDEX_URL:-}" ] || options+=(--build-arg PIP_EXTRA_INDEX_URL)
    [ -z "${PIP_FIND_LINKS:-}" ] || options+=(--build-arg PIP_FIND_LINKS)
    [ -z "$torch" ] || options+=(--build-arg "TORCH=$torch")
    if [ "$engine" != docker ]; then
        local file
        for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt ${PIP_FIND_LINKS:-}; do
            [ ! -e "$file" ] || options+=(--volume "$file:$file:ro")
        done
        [ -z "$base" ] || options+=(--pull=never)
    fi
    $engine build "${options[@]}" . >"$work/build.log" 2>&1 || { tail -30 "$work/build.log" >&2; exit 1; }
}

size() {
    case $engine in
        buildah) buildah images --format '{{.Size}}' "softmax-xp:$1" ;;
        *) $engine image inspect --format '{{.Size}}' "softmax-xp:$1" | awk '{printf "%.0f MB\n", $1 / 1e6}' ;;
    esac
}

# Run an image with arguments in a container that is thrown away. Exit status and output are those of its command.
# Options for the engine (a volume, a user) stand in the array run_options.
run_options=()
run() {
    local image=softmax-xp:$1 container
    shift
    if [ "$engine" != buildah ]; then
        $engine run --rm "${run_options[@]}" "$image" "$@"
        return
    fi
    container=$(buildah from --pull=never "$image")
    containers+=("$container")
    local entrypoint
    mapfile -t entrypoint < <(buildah inspect --format '{{range .OCIv1.Config.Entrypoint}}{{println .}}{{end}}' "$container" | grep .)
    buildah run "${run_options[@]}" "$container" -- "${entrypoint[@]}" "$@"
}

failed() {
    echo "FAILED: $*" >&2
    exit 1
}

for target in "${targets[@]}"; do
    echo "== $target: build"
    build "$target"
    echo "== $target: $(size "$target")"
    case $target in
        cpu)
            mkdir "$work/data"
            run_options=(--volume "$work/data:/data" --user "$(id -u):$(id -g)")
            run cpu train
            run_options=()
            [ -s "$work/data/model.safetensors" ] || failed "the folder that was mounted holds no model"
            [ -O "$work/data/model.safetensors" ] || failed "the model belongs to another user"
            ;;
        gpu)
            status=0
            run gpu devices >"$work/out" 2>"$work/err" || status=$?
            cat "$work/out" "$work/err"
            if [ $status = 2 ]; then
                grep -q "driver" "$work/err" || failed "it does not say what is missing"
                grep -q -- "--gpus all" "$work/err" || failed "it does not name the flag"
            else
                [ $status = 0 ] || failed "devices exited with $status: 0 with a GPU and 2 without were expected"
            fi
            of_train=0
            run gpu train >"$work/out" 2>"$work/err" || of_train=$?
            tail -1 "$work/out"
            [ $of_train = $status ] || failed "train exited with $of_train, devices with $status"
            ;;
        test) run test ;;
        *) failed "no such target: $target (cpu, gpu, test)" ;;
    esac
done
echo "== all checks passed: ${targets[*]}"

#!/usr/bin/env bash
# What to run where there is a GPU: the most valuable first, each step under a time limit, all of it in nine minutes.
#
#   benchmarks/gpu.sh [FOLDER]                # FOLDER is benchmarks/results/gpu by default
#   benchmarks/gpu.sh --simulated [FOLDER]    # the same steps in small, on the device that tests/simulated makes of NumPy
#
# FOLDER gets the output of each step as soon as the step ends, the results of the benchmarks, and steps.txt, the table.
# It also keeps the compiled kernels, so that a second run does not compile them again. The exit status is 2 without a
# GPU, 1 if a step failed, and 0 otherwise; a step that reached its limit, or whose tool is missing, is no failure.
#
# It needs `pip install -e '.[test,bench,cuda13]'`; torch with CUDA for the competitors; and, to look for errors of
# memory and for races, `pip install 'cuda-toolkit[sanitizer]==13.*'`. On a machine without a network, with Python 3.12
# and CuPy, bring what is missing as wheels, which another machine downloads. Most often that is
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 --dest wheels \
#       array-api-compat array-api-strict threadpoolctl typer rich safetensors pytest pytest-xdist hypothesis ml-dtypes \
#       nvidia-cuda-sanitizer-api
#
# and then, on the machine without a network,
#
#   pip install --no-index --no-deps --target site wheels/*.whl
#   PYTHONPATH=$PWD:$PWD/site benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python} simulated=
if [ "${1:-}" = --simulated ]; then
    simulated=yes
    shift
fi
folder=${1:-benchmarks/results/gpu}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SCIPY_ARRAY_API=1
export CUPY_CACHE_DIR="$folder/kernels"
export PATH="$PATH:$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13/bin"
if [ -n "$simulated" ]; then
    export PYTHONPATH="$PWD/tests/simulated:$PWD/tests:$PYTHONPATH"
    cuda=(--cuda=simulated) few=(-k "cupy and (graph or few_problems)") processes=2 small=(--quick)
    shapes=() classes=(--classes 10) data=(--data iris)
else
    cuda=(--require=cupy) few=(-k cupy) processes=8 small=()
    shapes=(--shape 320000,1024,1000 --shape 60000,784,10)
    classes=(--classes 100 --classes 1000 --classes 131072) data=(--data fashion-mnist)
fi
if ! missing=$("$python" -c 'import softmax_xp; softmax_xp.select_backend("cuda")' 2>&1); then
    printf '%s\n' "${missing##*$'\n'}" >&2
    exit 2
fi

table=$folder/steps.txt
failed=0
printf '%-22s %7s %6s  %-10s %s\n' step seconds limit result 'last line' >"$table"

step() { # NAME LIMIT COMMAND...: run a command for so many seconds at most, and keep its output and its last line
    local name=$1 limit=$2 log=$folder/$1.txt start=$SECONDS result
    shift 2
    echo "== $name"
    if [ "$1" = compute-sanitizer ] && ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer is not installed: pip install 'cuda-toolkit[sanitizer]==13.*'" >"$log"
        result='not run'
    else
        timeout --kill-after=5 "$limit" "$@" >"$log" 2>&1
        case $? in
        0) result=ok ;;
        124 | 137) result='time limit' ;;
        *) result=FAILED failed=1 ;;
        esac
    fi
    printf '%-22s %7s %6s  %-10s %s\n' "$name" $((SECONDS - start)) "$limit" "$result" \
        "$(LC_ALL=C tr -cd '\n -~' <"$log" | grep '[[:alnum:]]' | tail -n 1 | cut -c 1-70)" >>"$table"
}
benchmark() { # NAME LIMIT COMMAND OPTION...: one of the benchmarks, its results in FOLDER
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$python" -m benchmarks "$@" "${small[@]}" --device cuda --output "$folder"
}
tests=("$python" -m pytest -q "${cuda[@]}")

step devices 20 "$python" -m softmax_xp devices
step graphs-and-kernels 70 "${tests[@]}" tests/test_graphs.py tests/test_cuda.py "${few[@]}"
step suite 110 "${tests[@]}" -n "$processes" --dist loadfile tests "${few[@]}"
benchmark bandwidth 50 kernel --no-compile
benchmark probe 60 probe --rows 320000 --no-path --limit 5
benchmark evaluation 50 eval "${shapes[@]}" --no-growth --repeats 3 \
    --block-mib 16 --block-mib 32 --block-mib 256
step memory-errors 45 compute-sanitizer --tool memcheck --error-exitcode 1 "${tests[@]}" tests/test_cuda.py \
    -k "few_problems and cupy"
step races 35 compute-sanitizer --tool racecheck --error-exitcode 1 "${tests[@]}" tests/test_cuda.py \
    -k "few_problems and cupy"
benchmark boundaries 40 kernel --boundaries "${classes[@]}"
benchmark fits 25 fit "${data[@]}" --limit 5 --no-growth

echo
cat "$table"
exit "$failed"

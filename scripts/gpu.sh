#!/usr/bin/env bash
# Everything worth running where there is a GPU: a subset of the tests, ceilings, tune, baselines and peers against
# what was found, a whole model, the sanitizer, all GPU tests, report. Results go to $OUT, in six files at most.
# Usage: [OUT=folder] [STEPS="subset tune"] [LIMIT=seconds] scripts/gpu.sh [options of `griffin tune`]
# STEPS: which of "subset ceilings tune peers forward sanitizer tests report", in their order; by default all.
# LIMIT: seconds for all of them; where a machine ends a run by force after 600, give 480. What is running when they are
#   over is interrupted, the rest is not begun, the report is still made and the results are packed.
#   Tuning begins with the ops that models spend most time in, and publishes what is decided before the time is over.
# WHEELS: a folder of wheels from which missing packages are installed, for this run only and without a network:
#   a bare CUDA image has torch and Triton, but no msgspec or plotly. All wheels in its folder peers are installed too:
#   accelerated-scan, causal-conv1d, flash-linear-attention and what they need are raced as baselines where they are.
# RESUME_FROM: a journal.jsonl of an earlier run, or a folder with one: its measurements are kept and not repeated.
# TRITON_CACHE: a folder or .tar.gz of compiled kernels, filled by a machine without a GPU and with the same Triton:
#   TRITON_CACHE_DIR=cache python -m tuning.static --target sm_90
# Constants of the static model are fitted later, on any machine: griffin tune calibrate $OUT/journal.jsonl
# PYTHON names the interpreter whose torch sees the GPU (default: .venv/bin/python if it is there, else python3).
set -uo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
OUT=${OUT:-out/gpu}
STEPS=${STEPS:-subset ceilings tune peers forward sanitizer tests report}
LIMIT=${LIMIT:-86400}

if ! name=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")'); then
    echo "gpu.sh: $PYTHON cannot import torch; set PYTHON to one that can" >&2
    exit 2
fi
if [ -z "$name" ]; then
    echo "gpu.sh: torch sees no GPU here, so there is nothing to do; \`make tune\` tunes the CPU" >&2
    exit 2
fi

scratch=$(mktemp -d) || exit 2
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$PWD:$scratch/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

missing=$("$PYTHON" scripts/dependencies.py)
needed=$missing
for name_of_test_tool in pytest pytest-xdist; do
    if "$PYTHON" scripts/dependencies.py dev | grep -qx "$name_of_test_tool"; then
        needed="$needed
$name_of_test_tool"
    fi
done
if [ -n "${WHEELS:-}" ] && [ -n "$(echo $needed)" ]; then
    for package in $needed; do  # one that is not in the folder does not keep the others from being installed
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$WHEELS" \
            --target "$scratch/site" --upgrade --no-deps "$package" || echo "gpu.sh: no usable wheel of $package in $WHEELS"
    done
    missing=$("$PYTHON" scripts/dependencies.py)
fi
if [ -n "${WHEELS:-}" ] && compgen -G "$WHEELS/peers/*.whl" >/dev/null; then
    for wheel in "$WHEELS"/peers/*.whl; do
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --target "$scratch/site" --upgrade \
            --no-deps "$wheel" || echo "gpu.sh: $wheel cannot be installed"
    done
fi
if [ -n "$missing" ]; then
    echo "gpu.sh: these packages are missing:" $missing >&2
    echo "gpu.sh: install them, or give a folder that holds their wheels: WHEELS=folder scripts/gpu.sh" >&2
    exit 2
fi

mkdir -p "$OUT" || exit 2
if [ -n "${RESUME_FROM:-}" ]; then
    earlier=$RESUME_FROM
    [ -d "$earlier" ] && earlier=$earlier/journal.jsonl
    if ! cp "$earlier" "$OUT/journal.jsonl"; then
        echo "gpu.sh: RESUME_FROM=$RESUME_FROM is no journal and no folder with one" >&2
        exit 2
    fi
fi
if [ -n "${TRITON_CACHE:-}" ]; then
    mkdir -p "$scratch/triton"
    if [ -d "$TRITON_CACHE" ]; then cp -r "$TRITON_CACHE/." "$scratch/triton"; else tar -xzf "$TRITON_CACHE" -C "$scratch/triton"; fi || {
        echo "gpu.sh: TRITON_CACHE=$TRITON_CACHE is no folder and no .tar.gz" >&2
        exit 2
    }
    export TRITON_CACHE_DIR="$scratch/triton"
fi
cores=$(nproc)
parallel=()
if "$PYTHON" -c 'import xdist' 2>/dev/null; then parallel=(-n "$((cores > 2 ? cores - 2 : cores))"); fi
failed=()

step() {  # step NAME SHARE COMMAND...: run for at most SHARE percent of the time that is left, keep the output, go on
    local name=$1 left=$(((LIMIT - SECONDS) * $2 / 100)) status
    shift 2
    if [ "$left" -le 0 ]; then
        echo "== $name: not begun, ${LIMIT} s are over"
        failed+=("$name")
        return
    fi
    echo "== $name: $*"
    timeout --signal=INT --kill-after=30 "$left" "$@" 2>&1 | tee -a "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: $SECONDS s since the beginning"
    [ "$status" = 0 ] || failed+=("$name")
}

wanted() {
    [[ " $STEPS " == *" $1 "* ]]
}

echo "$name, results into $OUT"
if wanted subset; then
    step subset 30 "$PYTHON" -m pytest -q "${parallel[@]}" tests/griffin_kernels/test_gpu_subset.py
fi
if wanted ceilings; then
    step ceilings 50 "$PYTHON" -m reports roofline measure --device cuda --repeat 3 --out "$OUT/ceilings.json"
fi
if wanted tune; then
    left=$((LIMIT - SECONDS - 30))  # for the candidate that is in work then
    wanted forward && left=$((left * 8 / 10))
    wanted peers && left=$((left * 8 / 10))
    step tune 100 "$PYTHON" -m reports tune --device cuda --minutes "$((left > 60 ? left / 60 : 1))" --resume \
        --out "$OUT" "$@"
fi
if wanted peers; then
    left=$((LIMIT - SECONDS - 30))
    wanted forward && left=$((left * 7 / 10))
    step peers 100 "$PYTHON" -m reports tune --device cuda --baselines --no-study \
        --minutes "$((left > 60 ? left / 60 : 1))" --out "$OUT"
fi
if wanted forward; then
    step forward 100 env GRIFFIN_KERNELS_CEILINGS="$OUT/ceilings.json" GRIFFIN_KERNELS_REGISTRY="$OUT" \
        "$PYTHON" -m reports roofline forward \
        --model griffin-1b3 --phase decode --batch 16 --seq 4096 --device cuda --measure
fi
if wanted sanitizer; then
    if command -v compute-sanitizer >/dev/null; then
        step sanitizer 50 compute-sanitizer --error-exitcode 1 \
            "$PYTHON" -m pytest -q tests/griffin_kernels/ops/test_variants.py -k "triton and T67"
    else
        echo "compute-sanitizer is not installed: memory errors were not looked for" | tee "$OUT/sanitizer.log"
    fi
fi
if wanted tests; then
    kernels=tests/griffin_kernels/ops
    step tests 100 "$PYTHON" -m pytest -q "${parallel[@]}" tests/test_gpu.py tests/griffin_kernels/test_{public,models}.py \
        $kernels/test_variants.py $kernels/test_triton_{scan,rg_lru,rg_lru_bwd,attention}.py $kernels/test_{planted,steps}.py
fi
if wanted report; then
    LIMIT=$((SECONDS + 120))
    step report 100 "$PYTHON" -m reports report "$OUT"
fi

# logs in one file, locks away: what a machine gives back is often a handful of files
find "$OUT" -name '*.lock' -delete
if compgen -G "$OUT/*.log" >/dev/null; then
    tar -czf "$OUT/logs.tar.gz" -C "$OUT" $(cd "$OUT" && ls *.log) && rm -f "$OUT"/*.log
fi
echo "in $OUT:" $(ls "$OUT")
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]} (their output is in $OUT/logs.tar.gz)" >&2
    exit 1
fi
echo "all steps passed; registry and report are in $OUT"

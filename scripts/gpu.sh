#!/usr/bin/env bash
# Everything worth running where there is a GPU: tests, the sanitizer, ceilings, tune, a whole model, report.
# Results go to $OUT.
# Usage: [OUT=folder] [STEPS="tests tune"] [LIMIT=seconds] scripts/gpu.sh [options of `griffin tune`]
# STEPS: which of "tests sanitizer static ceilings tune forward report", in their order; by default all.
# LIMIT: seconds for all of them. What is running then is interrupted, the rest is not begun, the report is still made.
# Tuning begins with the ops that models spend most time in, and publishes what is decided before the time is over.
# Constants of the static model are fitted later, on any machine: griffin tune calibrate $OUT/journal.jsonl
# PYTHON names the interpreter whose torch sees the GPU (default: .venv/bin/python if it is there, else python3).
set -uo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
OUT=${OUT:-out/gpu}
STEPS=${STEPS:-tests sanitizer static ceilings tune forward report}
LIMIT=${LIMIT:-86400}

if ! name=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")'); then
    echo "gpu.sh: $PYTHON cannot import torch; set PYTHON to one that can" >&2
    exit 2
fi
if [ -z "$name" ]; then
    echo "gpu.sh: torch sees no GPU here, so there is nothing to do; \`make tune\` tunes the CPU" >&2
    exit 2
fi

mkdir -p "$OUT" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=()

step() {  # step NAME COMMAND...: run for the time that is left, keep the output, go on whatever happens
    local name=$1 left=$((LIMIT - SECONDS)) status
    shift
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

ops_by_weight() {  # the ops that models run most come first
    "$PYTHON" - <<'END'
from tuning.plan import ops_by_weight

print(*ops_by_weight(), sep=",")
END
}

echo "$name, results into $OUT"
if wanted tests; then
    step tests "$PYTHON" -m pytest -q tests/test_gpu.py tests/test_variants.py tests/test_triton_*.py \
        tests/test_linear_scan.py tests/test_steps.py tests/test_models.py
fi
if wanted sanitizer; then
    if command -v compute-sanitizer >/dev/null; then
        step sanitizer compute-sanitizer --error-exitcode 1 \
            "$PYTHON" -m pytest -q tests/test_variants.py -k "triton and T67"
    else
        echo "compute-sanitizer is not installed: memory errors were not looked for" | tee "$OUT/sanitizer.log"
    fi
fi
if wanted static; then
    step static env -u TRITON_INTERPRET "$PYTHON" -m tuning.static
fi
if wanted ceilings; then
    step ceilings "$PYTHON" -m reports roofline measure --device cuda --repeat 3 --out "$OUT/ceilings.json"
fi
if wanted tune; then
    left=$((LIMIT - SECONDS - 90))  # for the case that is in work then
    step tune "$PYTHON" -m reports tune --device cuda --ops "$(ops_by_weight)" \
        --minutes "$((left > 60 ? left / 60 : 1))" --resume --out "$OUT" "$@"
fi
if wanted forward; then
    step forward env GRIFFIN_KERNELS_CEILINGS="$OUT/ceilings.json" GRIFFIN_KERNELS_REGISTRY="$OUT" \
        "$PYTHON" -m reports roofline forward \
        --model griffin-1b3 --phase decode --batch 16 --seq 4096 --device cuda --measure
fi
if wanted report; then
    LIMIT=$((SECONDS + 120))
    step report "$PYTHON" -m reports report "$OUT"
fi

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]} (see $OUT/<step>.log)" >&2
    exit 1
fi
echo "all steps passed; registry and report are in $OUT"

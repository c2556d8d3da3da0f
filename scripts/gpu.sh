#!/usr/bin/env bash
# Everything worth running where there is a GPU: tests, the static table, ceilings, tune, whole models, report. Results
# go to $OUT.
# Usage: OUT=results scripts/gpu.sh [options of `griffin tune`]
# PYTHON names the interpreter whose torch sees the GPU (default: .venv/bin/python if it is there, else python3).
set -uo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
OUT=${OUT:-out/gpu}

if ! name=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "")'); then
    echo "gpu.sh: $PYTHON cannot import torch; set PYTHON to one that can" >&2
    exit 2
fi
if [ -z "$name" ]; then
    echo "gpu.sh: torch sees no GPU here, so there is nothing to do; \`make tune\` tunes the CPU" >&2
    exit 2
fi

mkdir -p "$OUT" || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=()

step() {  # step NAME COMMAND...: run, keep the output, go on whatever happens
    local name=$1
    shift
    echo "== $name: $*"
    "$@" 2>&1 | tee "$OUT/$name.log"
    [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$name")
}

echo "$name, results into $OUT"
step tests "$PYTHON" -m pytest -q tests/test_gpu.py tests/test_variants.py tests/test_triton_*.py \
    tests/test_linear_scan.py tests/test_steps.py tests/test_models.py
if command -v compute-sanitizer >/dev/null; then
    step sanitizer compute-sanitizer --error-exitcode 1 "$PYTHON" -m pytest -q tests/test_variants.py -k "triton and T67"
else
    echo "compute-sanitizer is not installed: memory errors were not looked for" | tee "$OUT/sanitizer.log"
fi
step static env -u TRITON_INTERPRET "$PYTHON" -m tuning.static
step ceilings "$PYTHON" -m reports roofline measure --device cuda --repeat 3 --out "$OUT/ceilings.json"
step tune "$PYTHON" -m reports tune --device cuda --resume --out "$OUT" "$@"
step forward env GRIFFIN_KERNELS_CEILINGS="$OUT/ceilings.json" GRIFFIN_KERNELS_REGISTRY="$OUT" \
    "$PYTHON" -m reports roofline forward --model griffin-1b3 --phase decode --batch 16 --seq 4096 --device cuda --measure
step report "$PYTHON" -m reports report "$OUT"

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]} (see $OUT/<step>.log)" >&2
    exit 1
fi
echo "all steps passed; registry and report are in $OUT"

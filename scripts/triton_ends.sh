#!/usr/bin/env sh
# Triton kernels under the oldest and the newest Triton that pyproject.toml allows: the IR of every launch, the cache keys
# of compiling ahead, and under the oldest the table of variants in the interpreter.
# Usage: scripts/triton_ends.sh [python of an environment with the test tools]
# Each Triton is installed into a folder of its own, in front of the environment's. The oldest gets NumPy below 2.4, which
# its interpreter needs ("only 0-dimensional arrays can be converted").
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bounds=$("$python" -c '
import tomllib
from packaging.requirements import Requirement
listed = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
bounds = next(r for r in map(Requirement, listed) if r.name == "triton").specifier
print(*(s.version for s in sorted(bounds, key=lambda s: s.operator, reverse=True)))')
oldest=${bounds% *}
above=${bounds#* }
check() { # folder, tests, then what is installed there
    into=$folder/$1
    tests=$2
    shift 2
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$into" "$@"
    PYTHONPATH="$into:$PWD" "$python" -c 'import numpy, triton; print("Triton", triton.__version__, "NumPy", numpy.__version__)'
    PYTHONPATH="$into:$PWD" "$python" -m tests.kernel_ir sm_90 gfx942
    PYTHONPATH="$into:$PWD" "$python" -m pytest -q -p no:cacheprovider $tests -k "triton or tritons_cache"
}
kernels=tests/griffin_kernels/ops
check oldest "$kernels/test_indices.py $kernels/test_variants.py tests/tuning/test_ahead.py" "triton==$oldest.*" "numpy<2.4"
# the interpreter of Triton 3.9 takes the conjunction of a scalar and a block of booleans for int32, and refuses it as a
# mask; compiled code is not concerned
check newest tests/tuning/test_ahead.py "triton>=$oldest,<$above"

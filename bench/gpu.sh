#!/usr/bin/env bash
# All that a machine with a GPU is asked, without a network, in under nine minutes:
#
#     bench/gpu.sh                      every part
#     bench/gpu.sh tests layers         some: env, tests, layers, launch, nets
#     bench/gpu.sh env                  what works here; needs no GPU
#
# Run it from anywhere in a checkout; nothing is installed. Each part has its own time and can be
# run alone; layers and nets go on where they were stopped (FRESH=1 begins anew). Compiled kernels
# come from $GPUCONV_KERNELS, made beforehand where there is a compiler, for a Hopper GPU with
#     gpuconv kernels build --arch sm_90 --out build/kernels
# and are compiled here where that folder lacks them and numba-cuda is installed.
# Also taken: PYTHON (python3), RESULTS (bench/results), BENCH_COMMIT (where there is no .git).
set -uo pipefail
known="env tests layers launch nets"
for part in "$@"; do
  case $part in
    -h | --help)
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
  esac
done
for part in "$@"; do
  case " $known " in
    *" $part "*) ;;
    *)
      echo "gpu.sh: error: no part $part; use some of ${known// /, }" >&2
      exit 2
      ;;
  esac
done
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-bench/results}
export GPUCONV_KERNELS=${GPUCONV_KERNELS:-$PWD/build/kernels}
parts=${*:-$known}
status=0
mkdir -p "$RESULTS"

run() { # SECONDS COMMAND...: at most so long, and its failure does not stop the other parts
  local seconds=$1 begin=$SECONDS code=0
  shift
  timeout -k 10 "$seconds" "$@" || code=$?
  [ "$code" = 0 ] || status=1
  [ "$code" != 124 ] || echo "gpu.sh: stopped after $seconds s: $*"
  echo "-- $((SECONDS - begin)) s"
  return "$code"
}
again=--resume
[ -z "${FRESH:-}" ] || again=--overwrite

needs_gpu() {
  "$PYTHON" - <<'PY'
import sys
from gpuconv.backends import get_backend
from gpuconv.errors import Error

try:
    device = get_backend("cuda").device
    print(f"GPU: {device.arch}, {device.sms} multiprocessors")
except Error as error:
    sys.exit(f"gpu.sh: error: {error}")
PY
}
for part in $parts; do
  if [ "$part" != env ]; then
    needs_gpu || exit 1
    break
  fi
done
[ -d "$GPUCONV_KERNELS" ] || echo "gap: no compiled kernels in $GPUCONV_KERNELS; they are compiled here"

for part in $parts; do
  echo "== $part"
  case $part in
    env)
      run 40 "$PYTHON" -m gpuconv doctor
      ;;
    tests)
      workers=$("$PYTHON" -c 'import xdist; print("-n 4")' 2>/dev/null) || workers=
      # shellcheck disable=SC2086
      run 150 "$PYTHON" -m pytest -q --require-gpu -k "cuda and not emulated" $workers \
        -p no:cacheprovider tests/kernels 2>&1 | tee "$RESULTS/gpu-tests.txt"
      [ "${PIPESTATUS[0]}" = 0 ] || status=1
      ;;
    layers)
      run 260 "$PYTHON" -m bench.run --set gpu --device cuda --rounds 5 --block 0.005 --row 5 \
        --budget 230 --out "$RESULTS/gpu-layers.json" $again
      ;;
    launch)
      run 30 "$PYTHON" -m bench.launch --driver real --out "$RESULTS/gpu-launch.json"
      ;;
    nets)
      run 50 "$PYTHON" -m bench.run --set nets --device cuda --rounds 7 --l2 warm --budget 40 \
        --out "$RESULTS/gpu-nets.json" $again
      ;;
  esac
done
exit $status

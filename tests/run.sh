#!/usr/bin/env bash
# The suite of every commit: bash tests/run.sh            (minutes on 2 cores)
# The campaigns:             bash tests/run.sh campaign   (longer; SHUFFLESTORE_SCALE multiplies their sizes)
# One step or more by name:  bash tests/run.sh lint native pytest
#
# Makes .venv if it is not there. Every step runs even if one before it failed; the exit code is not 0 if any did.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
source .ci/environment.sh

failed=()
logs="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$logs"' EXIT

# step NAME COMMAND...: run it, time it, remember if it failed.
step() {
  local name="$1" started=$SECONDS
  shift
  echo "-- $name"
  if "$@"; then
    echo "-- $name: good, $((SECONDS - started)) s"
  else
    echo "-- $name: FAILED, $((SECONDS - started)) s"
    failed+=("$name")
  fi
}

native_files() { find native/bind native/include native/src native/tests -name '*.?pp'; }

golden_stub() {
  .venv/bin/python -m nanobind.stubgen -q -m shufflestore._native -o "$logs/_native.pyi" &&
    diff -u shufflestore/_native.pyi "$logs/_native.pyi" ||
    { echo "the extension and its stub differ; if meant: python -m nanobind.stubgen -m shufflestore._native -o shufflestore/_native.pyi"; return 1; }
}

do_lint() {
  step "ruff check" .venv/bin/ruff check .
  step "ruff format" .venv/bin/ruff format --check --quiet .
  step "mypy" .venv/bin/mypy
  step "import-linter" .venv/bin/lint-imports --config pyproject.toml
  step "clang-format" bash -c 'xargs .venv/bin/clang-format --style=file:native/.clang-format --dry-run -Werror' < <(native_files)
  step "golden stub" golden_stub
}

native_tests() {
  local cmake="$PWD/.venv/bin/cmake" build=build/sanitized
  "$cmake" -S native -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DSHUFFLESTORE_TESTS=ON -DSHUFFLESTORE_PYTHON=OFF -DSHUFFLESTORE_SANITIZE=address,undefined >"$logs/cmake" 2>&1 &&
    "$cmake" --build "$build" >"$logs/build" 2>&1 || { tail -n 40 "$logs/cmake" "$logs/build"; return 1; }
  .venv/bin/ctest --test-dir "$build" --output-on-failure
}

# ended PID LOG: wait for what was started before, show what it said, and return its exit code.
ended() {
  local code
  wait "$1"
  code=$?
  cat "$2"
  return "$code"
}

# run_pytest NAME ARGUMENT...: its last line is kept for the end. No test at all (5) is no failure.
run_pytest() {
  local name="$1" code
  shift
  # A test that hangs is killed by its timeout with all stacks shown; should that hang too, the whole run ends here.
  timeout --kill-after=60 "${SHUFFLESTORE_SUITE_SECONDS:-2400}" .venv/bin/python -X faulthandler -m pytest -q "$@" |
    tee "$logs/pytest-$name"
  code=$?
  [ "$code" -eq 0 ] || [ "$code" -eq 5 ]
}

summaries() {
  local log
  for log in "$logs"/pytest-*; do
    [ -f "$log" ] && grep -E '(passed|failed|error|no tests ran|deselected).* in [0-9.]+s' "$log" | tail -n 1
  done
}

do_pytest() {
  local all=(tests shufflestore benchmarks)
  step "tests, one at a time" run_pytest 1-serial -n 0 -m "serial and not campaign" "${all[@]}"
  step "tests" run_pytest 2-parallel -n 2 --dist worksteal --durations 25 --durations-min 5 -m "not serial and not campaign" "${all[@]}"
}

do_native() { step "native tests, ASan and UBSan" native_tests; }

do_campaign() {
  step "campaigns" run_pytest campaign -n 0 -m campaign --timeout 3600 -o faulthandler_timeout=3500 tests
}

do_all() {
  native_tests >"$logs/native" 2>&1 &  # each takes one core
  local native=$!
  do_lint
  step "native tests, ASan and UBSan" ended "$native" "$logs/native"
  do_pytest
}

for wanted in "$@"; do
  declare -F "do_$wanted" >/dev/null ||
    { echo "no step '$wanted'; there are:" $(declare -F | sed -n 's/.* do_//p') >&2; exit 2; }
done
make_environment test,lint cmake ninja nanobind clang-format || exit 1

for wanted in "${@:-all}"; do "do_$wanted"; done

echo "-- $SECONDS s in all"
if [ ${#failed[@]} -gt 0 ]; then
  printf -- '-- failed: %s\n' "${failed[@]}"
fi
summaries
[ ${#failed[@]} -eq 0 ]

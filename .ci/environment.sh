# The environment that examples/quickstart.sh and tests/run.sh work in: .venv in the repository's root.
# To be sourced, from that folder. Nothing outside the repository is written to, but by pip and apt.
# shellcheck shell=bash

CONSTRAINTS="$PWD/tests/requirements.txt"
# Both names: pip 25.3 stopped to apply the first to what builds the package.
export PIP_CONSTRAINT="$CONSTRAINTS" PIP_BUILD_CONSTRAINT="$CONSTRAINTS" PIP_DISABLE_PIP_VERSION_CHECK=1

# need_system_packages: a Python with venv and headers, and a C++20 compiler.
need_system_packages() {
  local python="$1" missing=()
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "needs Python 3.10 or newer as '$python'; name another with PYTHON=/path/to/python3" >&2
    return 1
  fi
  "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' ||
    missing+=(python3-dev)
  command -v "${CXX:-g++}" >/dev/null || missing+=(g++)
  if [ ${#missing[@]} -eq 0 ]; then
    return 0
  fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "-- apt-get install ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  else
    echo "missing system packages; run: sudo apt-get install ${missing[*]}" >&2
    return 1
  fi
}

# install_torch: before everything else, and without CUDA where there is such a build.
install_torch() {
  local wanted
  wanted="$(sed -n 's/^torch==//p' "$CONSTRAINTS")"
  if .venv/bin/python -c "import sys, importlib.metadata as m; sys.exit(m.version('torch').split('+')[0] != '$wanted')" \
    2>/dev/null; then
    return 0
  fi
  echo "-- torch $wanted, without CUDA"
  .venv/bin/pip install -q "torch==$wanted+cpu" 2>/dev/null ||
    .venv/bin/pip install -q "torch==$wanted" --extra-index-url https://download.pytorch.org/whl/cpu
}

# source_digest WORD...: what an installation of these extras was made from.
source_digest() {
  {
    echo "$PWD $*"
    .venv/bin/python --version
    cat pyproject.toml "$CONSTRAINTS"
    find shufflestore -name '*.py' | sort # an editable installation knows the files that were there
    find native -type f \( -name '*.?pp' -o -name CMakeLists.txt \) -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum
}

# make_environment EXTRAS [PACKAGE...]: .venv with this package, editable, and what else is named. Fast when done before.
make_environment() {
  local extras="$1" python="${PYTHON:-python3}" digest stamp
  shift
  if [ ! -x .venv/bin/pip ]; then
    need_system_packages "$python" || return 1
    echo "-- environment .venv with $("$python" --version)"
    "$python" -m venv .venv || return 1
  fi
  stamp=".venv/made-${extras//[^a-z]/-}"
  digest="$(source_digest "$extras" "$@")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ]; then
    return 0
  fi
  install_torch || return 1
  echo "-- building and installing shufflestore[$extras]"
  .venv/bin/pip install -q -e ".[$extras]" "$@" || return 1
  echo "$digest" >"$stamp"
}

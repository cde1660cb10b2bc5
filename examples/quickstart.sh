#!/usr/bin/env bash
# Make an environment, build, convert a real data set, iterate it in true random order beside the Hugging Face loader.
#
#   bash examples/quickstart.sh                   Python's own sources; needs no download but the packages
#   bash examples/quickstart.sh --linux-source    the sources of Linux, from Debian's package: ten times as much
#
# Further options go to examples/quickstart.py; --help lists them. Needs: apt-get install python3 python3-venv python3-dev g++
set -eu -o pipefail
cd "$(dirname "$0")/.."
source .ci/environment.sh

# linux_source: the path of Debian's archive of the kernel's sources, taken from apt if it is not installed.
linux_source() {
  local found package
  found="$(find /usr/src data -maxdepth 1 -name 'linux-source-*.tar.xz' 2>/dev/null | sort -V | tail -n 1)"
  if [ -z "$found" ]; then
    package="$(apt-cache depends linux-source | sed -n 's/.*Depends: //p' | head -n 1)"
    if [ -z "$package" ]; then
      echo "apt knows no package linux-source; run: sudo apt-get update" >&2
      return 1
    fi
    mkdir -p data/apt
    (cd data/apt && apt-get download "$package" >&2 && dpkg-deb -x ./*.deb .)
    found="$(find data/apt/usr/src -name 'linux-source-*.tar.xz')"
    mv "$found" data/
    rm -r data/apt
    found="data/${found##*/}"
  fi
  echo "$found"
}

options=()
for option in "$@"; do
  if [ "$option" = --linux-source ]; then
    options+=(--archive "$(linux_source)" --megabytes 1000)
  else
    options+=("$option")
  fi
done

make_environment all tokenizers
exec .venv/bin/python examples/quickstart.py ${options[@]+"${options[@]}"}

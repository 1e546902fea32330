# shellcheck shell=bash
# Set-up shared by scripts/demo, scripts/test, scripts/bench and scripts/format: Debian packages, .venv, the installed
# package. Each part looks first whether its work is done already and then says and does nothing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
logs=$root/build/logs

# "package  what it is for", one per line.
# shellcheck disable=SC2034  # used by those who source this file
{
packages_build='g++  compiles the core
cmake  configures the build
ninja-build  runs the build
libfmt-dev  formats messages
libspdlog-dev  logs
nlohmann-json3-dev  reads and writes JSON
libsqlitecpp-dev  the store, on SQLite
libarchive-dev  reads and writes archives of snapshots
zlib1g-dev  gzip, of ledgers and snapshots
libzstd-dev  zstd, of ledgers and snapshots'
packages_python='python3  runs the package
python3-dev  headers of Python, for the extension module
python3-venv  makes .venv, so that nothing is installed outside this folder'
packages_qemu='qemu-system-x86  the hypervisor'
packages_test='libgtest-dev  the C++ tests
strace  kills the engine at a chosen system call'
}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# A python3 that can make a virtual environment and has its headers.
usable_python() {
  "$1" - 2>/dev/null <<'PY'
import ensurepip, os, sys, sysconfig
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
sys.exit(sys.version_info < (3, 11) or not os.path.exists(header))
PY
}

# Sets $python, or leaves it empty if packages_python are needed.
find_python() {
  local candidate
  python=
  for candidate in python3 /usr/bin/python3; do
    if usable_python "$candidate"; then
      python=$(command -v "$candidate")
      return
    fi
  done
}

# ensure_packages LIST...: installs those of the "package  what for" lists that dpkg does not have.
ensure_packages() {
  local wanted='' missing=() line list command=()
  find_python
  for list in "$@"; do wanted+=$list$'\n'; done
  [[ -n $python ]] || wanted+=$packages_python$'\n'
  if ! command -v dpkg-query >/dev/null; then
    say 'This is not Debian: nothing is installed. What Debian calls these must be here:'
    say "$wanted"
    [[ -n $python ]] || die 'no python3 of at least 3.11 with venv and headers'
    return
  fi
  while read -r line; do
    [[ -n $line ]] || continue
    local name=${line%%  *}
    # A QEMU that somebody put in PATH will do.
    if [[ $name == qemu-system-x86 ]] && command -v qemu-system-x86_64 >/dev/null; then continue; fi
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$line")
  done <<<"$wanted"
  ((${#missing[@]})) || return 0

  say 'Debian packages to install (with what they depend on, without what they recommend):'
  for line in "${missing[@]}"; do say "  $(printf '%-20s %s' "${line%%  *}" "${line#*  }")"; done
  command=(apt-get install -y --no-install-recommends "${missing[@]%%  *}")
  local as_root=()
  if ((EUID != 0)); then
    as_root=(sudo)
    command -v sudo >/dev/null || die "not root, and there is no sudo. Run as root: apt-get update && ${command[*]}"
  fi
  mkdir -p "$logs"
  local log=$logs/apt.log
  if ! "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1; then
    say 'warning: apt-get update failed; going on with the package lists that are here'
  fi
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "${command[@]:1}" \
      >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "could not install them (all of the output: $log). By hand: ${command[*]}"
  fi
  hash -r
  find_python
  [[ -n $python ]] || die 'still no python3 of at least 3.11 with venv and headers'
}

# run_logged NAME COMMAND...: quiet; on failure the last lines of its output.
run_logged() {
  local name=$1 log=$logs/$1.log
  shift
  mkdir -p "$logs"
  if ! "$@" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    die "$name failed; all of its output: $log"
  fi
}

# ensure_venv run|EXTRA...: .venv with what building and running need ("run"), and these extras of pyproject.toml.
ensure_venv() {
  [[ -n ${python:-} ]] || find_python
  [[ -n $python ]] || die 'no python3 of at least 3.11 with venv and headers'
  # The folder's own place is part of it: the programs in .venv/bin name their interpreter by its full path.
  local extra want have base
  base=$("$python" -c 'import sys; print(sys.base_prefix, sys.version)')
  base=$root$'\n'$base
  if [[ ! -x $venv/bin/python || $(cat "$venv/.cocoon-base" 2>/dev/null) != "$base" ]]; then
    say "making .venv with $python"
    rm -rf "$venv"
    run_logged venv "$python" -m venv "$venv"
    printf '%s' "$base" >"$venv/.cocoon-base"
  fi
  want=$(sha256sum <"$root/pyproject.toml")
  for extra in "$@"; do
    have=$(cat "$venv/.cocoon-$extra" 2>/dev/null) || true
    [[ $have != "$want" ]] || continue
    say "installing Python packages into .venv: $extra"
    local requirements=()
    mapfile -t requirements < <("$venv/bin/python" - "$root/pyproject.toml" "$extra" <<'PY'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    data = tomllib.load(file)
project = data["project"]
own = data["build-system"]["requires"] + project["dependencies"]
print(*(own if sys.argv[2] == "run" else project["optional-dependencies"][sys.argv[2]]), sep="\n")
PY
    )
    run_logged "pip-$extra" "$venv/bin/pip" install --disable-pip-version-check "${requirements[@]}"
    printf '%s' "$want" >"$venv/.cocoon-$extra"
  done
}

# As many compilers as there are processors, but no more than memory holds (1.5 GB each).
build_jobs() {
  local processors memory
  processors=$(nproc)
  memory=$(awk '/^MemAvailable:/ {print int($2 / 1500000)}' /proc/meminfo)
  ((memory >= 1)) || memory=1
  echo $((processors < memory ? processors : memory))
}

# What the installed package is made of.
package_hash() {
  (cd "$root" && find cpp python CMakeLists.txt pyproject.toml README.md LICENSE -type f ! -path '*/__pycache__/*' \
    -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; g++ --version; cat "$venv/.cocoon-base") | sha256sum
}

# The package, built from this checkout, in .venv. Compiles again only what changed.
install_package() {
  local want
  want=$(package_hash)
  [[ $(cat "$venv/.cocoon-package" 2>/dev/null) != "$want" ]] || return 0
  say 'building cocoon and installing it into .venv'
  rm -f "$venv/.cocoon-package"
  # --no-build-isolation: the build folder stays the same, so that the next build is a quick one.
  run_logged install "$venv/bin/pip" install --disable-pip-version-check --no-deps --no-build-isolation \
    --force-reinstall "$root"
  printf '%s' "$want" >"$venv/.cocoon-package"
}

export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(build_jobs)}
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
fi

# Two scripts at once would build in the same folders: the second one waits here.
lock_checkout() {
  mkdir -p "$root/build"
  exec 9>"$root/build/lock"
  if ! flock -n 9; then
    say 'another script works in this checkout; waiting for it'
    flock 9
  fi
}
unlock_checkout() { exec 9>&-; }

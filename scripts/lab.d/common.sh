# shellcheck shell=bash
# Shared by scripts/lab and images/build: progress lines, the cache, host packages.
# Sourced, never run. The caller has set -euo pipefail.

shopt -s inherit_errexit

CACHE=$(realpath -m "${KILN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kiln}")
# One fixed date for everything that is built, so that equal inputs give equal bytes.
export SOURCE_DATE_EPOCH=1735689600
export LC_ALL=C TZ=UTC

say() { printf '%s: %s\n' "${PROGRAM:-lab}" "$*" >&2; }
die() {
  say "$*"
  exit 125
}

# step WHAT COMMAND...: runs a command, saying what it is and how long it took.
# The output of the command is shown only when it fails.
step() {
  local what=$1 log status=0 start=$EPOCHREALTIME
  shift
  log=$(mktemp)
  say "$what ..."
  # A subshell outside of any condition, because a condition would switch errexit off in it.
  set +e
  (
    set -e
    "$@"
  ) >"$log" 2>&1 </dev/null
  status=$?
  set -e
  if ((status)); then
    tail -n 40 "$log" >&2
    rm -f "$log"
    die "failed: $what (status $status)"
  fi
  rm -f "$log"
  say "$what: $(elapsed "$start") s"
}

elapsed() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

# key_of TEXT-OR-FILE...: a short hash over the arguments; a file counts by its content.
key_of() {
  local item
  for item; do
    if [[ -f $item ]]; then
      printf 'file %s\n' "$(stat -c %a "$item")"
      cat "$item"
    else
      printf 'text %s\n' "$item"
    fi
  done | sha256sum | cut -c1-16
}

# cached WHAT PATH BUILDER...: makes sure that PATH is there. BUILDER gets a temporary name as
# its last argument and may keep its work beside that, under a longer name. The result is
# renamed to PATH only when BUILDER succeeded, under a lock.
cached() {
  local what=$1 path=$2 lock fd
  shift 2
  [[ -e $path ]] && return
  lock=$CACHE/locks/$(basename "$path")
  mkdir -p "$CACHE/locks" "$(dirname "$path")"
  exec {fd}>"$lock"
  if ! flock -n "$fd"; then
    say "waiting for another run that builds $(basename "$path")"
    flock "$fd"
  fi
  if [[ ! -e $path ]]; then
    rm -rf "$path.partial"*
    step "$what" "$@" "$path.partial"
    mv -T "$path.partial" "$path"
  fi
  exec {fd}>&-
}

# need_packages PACKAGE...: installs those host packages that are missing.
need_packages() {
  local package missing=()
  for package; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>&1) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  ((EUID == 0)) || die "these host packages are missing: ${missing[*]}"
  step "installing host packages: ${missing[*]}" install_packages "${missing[@]}"
}

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  local options=(-y -q --no-install-recommends -o DPkg::Lock::Timeout=300)
  apt-get install "${options[@]}" "$@" || {
    apt-get update -q
    apt-get install "${options[@]}" "$@"
  }
}

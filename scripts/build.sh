# shellcheck shell=bash
# Shared by scripts/quickstart, scripts/test and scripts/bench: the toolchain, the product, and where
# real guests run. Sourced after lab.d/common.sh.

# Where cargo puts what it builds.
export TARGET=${CARGO_TARGET_DIR:-$TOP/target}

need_toolchain() {
  need_packages gcc libc6-dev pkg-config
  # The usual place of a toolchain that rustup installed but this shell does not know of yet.
  # shellcheck source=/dev/null
  [[ ! -e $HOME/.cargo/env ]] || source "$HOME/.cargo/env"
  command -v cargo >/dev/null ||
    die "cargo is missing: install a Rust toolchain of at least $(msrv) (see https://rustup.rs), then run this again"
  local have
  have=$(rustc --version | cut -d' ' -f2)
  [[ $(printf '%s\n' "$(msrv)" "$have" | sort -V | head -n 1) == "$(msrv)" ]] ||
    die "rustc $have is too old: Kiln needs $(msrv) (rustup update)"
}

msrv() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$TOP/Cargo.toml" | head -n 1; }

# Builds kiln and kiln-vmm, with cargo's own progress on a terminal.
build_release() {
  say "building kiln and kiln-vmm"
  cargo build --release --locked --bins
}

# Runs scripts/lab with these arguments: on the host's own KVM where it is hardware-backed.
lab_or_host() {
  local where=()
  if host_kvm_is_hardware && ((EUID == 0)); then
    where=(--host)
  fi
  scripts/lab "${where[@]}" "$@"
}

host_kvm_is_hardware() { [[ -e /dev/kvm ]] && { [[ -e /sys/module/kvm_intel ]] || [[ -e /sys/module/kvm_amd ]]; }; }

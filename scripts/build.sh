# shellcheck shell=bash
# Shared by scripts/quickstart, scripts/test and scripts/bench: the toolchain, the product, and where
# real guests run. Sourced after lab.d/common.sh.

# Where cargo puts what it builds. Build scripts of C libraries build anew when a variable that they know
# changes, such as TARGET and the epoch of images: none of these is exported here.
export -n SOURCE_DATE_EPOCH
BUILT=${CARGO_TARGET_DIR:-$TOP/target}

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

# Runs scripts/lab with these arguments: on the host's own KVM where it is hardware-backed. Status 125 means
# that the lab itself failed: its Linux died, or the emulator lost a guest, for which no program in it can be to
# blame. Such a run tells nothing of Kiln and is repeated; its logs are kept. A long boot of two processors has
# met that three times in a row, so there are as many tries as make it rare enough.
lab_or_host() {
  local where=() status try
  if host_kvm_is_hardware && ((EUID == 0)); then
    where=(--host)
  fi
  for try in {1..8}; do
    status=0
    scripts/lab "${where[@]}" "$@" || status=$?
    ((status == 125 && try < 8)) || return "$status"
    say "THE LAB FAILED (see above); once more"
  done
}

host_kvm_is_hardware() { [[ -e /dev/kvm ]] && { [[ -e /sys/module/kvm_intel ]] || [[ -e /sys/module/kvm_amd ]]; }; }

# The AWS CLI as a folder of Python modules, which the lab gets too.
AWS_CLI=awscli==1.46.3

aws_cli() {
  AWS_CLI_DIR=$CACHE/clients/${AWS_CLI//=/-}
  [[ ! -e $AWS_CLI_DIR/done ]] || return 0
  say "the AWS CLI"
  need_packages python3-venv
  rm -rf "$AWS_CLI_DIR"
  mkdir -p "$AWS_CLI_DIR/modules"
  python3 -m venv "$AWS_CLI_DIR/venv"
  "$AWS_CLI_DIR/venv/bin/pip" install --quiet --target "$AWS_CLI_DIR/modules" "$AWS_CLI"
  # shellcheck disable=SC2016 # for the program
  printf '#!/bin/sh\nPYTHONPATH=%s exec /usr/bin/python3 -m awscli "$@"\n' '$(dirname "$(dirname "$(readlink -f "$0")")")/modules' >"$AWS_CLI_DIR/aws"
  chmod +x "$AWS_CLI_DIR/aws"
  rm -r "$AWS_CLI_DIR/venv"
  touch "$AWS_CLI_DIR/done"
}

# What scripts/tour.d/session needs beside images, as options of `scripts/lab run`.
tour_files() {
  local name
  for name in kiln kilnd kiln-vmm; do
    printf '%s\n' --put "$BUILT/release/$name:/lab/tour/bin/$name"
  done
  printf '%s\n' --put "$AWS_CLI_DIR/aws:/lab/tour/bin/aws" --put "$AWS_CLI_DIR/modules:/lab/tour/modules" \
    --put scripts/tour.d/session:/lab/tour/session
}

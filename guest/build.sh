#!/usr/bin/env bash
# Builds the test guest and prints where it is: target/guest/kiln-guest.
# Safe to run at the same time from several tests: cargo locks, and the copy is put in place whole.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
out=../target/guest
# Flags and target folder of the caller's own build must not reach this one.
env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_TARGET_DIR -u CARGO_BUILD_TARGET \
  cargo build --quiet --release --locked >&2
install -D "$out/x86_64-unknown-linux-gnu/release/kiln-guest" "$out/kiln-guest.$$"
mv "$out/kiln-guest.$$" "$out/kiln-guest"
readlink -f "$out/kiln-guest"

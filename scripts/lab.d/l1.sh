# shellcheck shell=bash
# What L1 is made of: QEMU, the root file system, the kernel and its initramfs.
# L1 is the Debian machine that QEMU emulates; its kvm-amd is the KVM that the tests see.
# Sourced after common.sh and debian.sh.

HERE_L1=$(dirname "${BASH_SOURCE[0]}")

HOST_PACKAGES=(mmdebstrap squashfs-tools busybox-static e2fsprogs zstd lz4 xz-utils kmod cpio python3 debian-archive-keyring)

L1_PACKAGES=(
  kmod iproute2 nftables conntrack procps psmisc util-linux mount python3-minimal python3 openssh-client curl ca-certificates
  e2fsprogs btrfs-progs fdisk dosfstools qemu-utils qemu-system-x86 fio iperf3 tcpdump strace socat netcat-openbsd iputils-ping dnsmasq-base
  dmidecode pciutils cpuid jq
)

L1_MODULES=(virtio_pci virtio_blk virtio_console squashfs overlay)

l1() {
  need_packages "${HOST_PACKAGES[@]}"
  qemu
  kernel
  L1_ROOT=$CACHE/l1/root-$(key_of "$RELEASE" "${L1_PACKAGES[*]}" "$(declare -f build_l1_root)" "${KERNEL##*/}").squashfs
  L1_INITRAMFS=$CACHE/l1/initramfs-$(key_of "${L1_MODULES[*]}" "$(declare -f build_l1_initramfs make_initramfs)" "$HERE_L1"/{l1-initramfs,l1-init} "${KERNEL##*/}").cpio
  cached "building the L1 root (once; some minutes)" "$L1_ROOT" build_l1_root
  cached "building the L1 initramfs" "$L1_INITRAMFS" build_l1_initramfs
}

build_l1_root() {
  local out=$1 root
  find_mirrors
  root=$out.d
  # Nothing in L1 reads documentation, and no initramfs is made there.
  debian_sources | mmdebstrap --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(join_by , "${L1_PACKAGES[@]}")" "$RELEASE" "$root" -
  mkdir -p "$root/lib/modules"
  cp -a "$KERNEL/lib/modules/." "$root/lib/modules/"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
  mksquashfs "$root" "$out" -comp lz4 -noappend -no-progress -quiet
  rm -r "$root"
}

build_l1_initramfs() {
  local init
  init=$(mktemp)
  sed -e "/^@L1_INIT@\$/{r $HERE_L1/l1-init" -e 'd}' "$HERE_L1/l1-initramfs" >"$init"
  make_initramfs "$1" "$init" "${L1_MODULES[@]}"
  rm "$init"
}

join_by() {
  local IFS=$1
  shift
  echo "$*"
}

# QEMU 10 or newer runs nested guests reliably and faster than Debian 12's 7.2. Where the host's
# release has no such version, it is taken from backports and unpacked into the cache.
qemu() {
  local version tools depends
  version=$(apt-cache policy qemu-system-x86 | awk '$1 == "Candidate:" { print $2 }')
  if dpkg --compare-versions "$version" ge 1:10; then
    use_host_qemu
    return
  fi
  tools=$CACHE/tools/qemu-$(key_of "$RELEASE" "$(declare -f build_qemu)")
  if [[ ! -e $tools ]]; then
    step "reading package lists" refresh_lists
    version=$(private_apt apt-cache madison qemu-system-x86 | awk -v suite="$RELEASE-backports/" 'index($0, suite) { print $3; exit }')
    if [[ -z $version ]]; then
      say "WARNING: the mirror has no $RELEASE-backports; using the release's own QEMU, with which L2 guests were seen to vanish"
      use_host_qemu
      return
    fi
    cached "unpacking QEMU $version" "$tools" build_qemu
  fi
  # The libraries that it needs are ordinary packages of the host.
  mapfile -t depends <"$tools/depends"
  need_packages "${depends[@]}"
  QEMU=("$tools/usr/bin/qemu-system-x86_64" -L "$tools/usr/share/qemu" -L "$tools/usr/share/seabios")
}

# shellcheck disable=SC2034 # QEMU is for scripts/lab
use_host_qemu() {
  need_packages qemu-system-x86
  QEMU=(qemu-system-x86_64)
}

build_qemu() {
  local out=$1 deb
  fetch_packages "$out/deb" {qemu-system-x86,qemu-system-common,qemu-system-data,seabios}"/$RELEASE-backports"
  for deb in "$out"/deb/*.deb; do
    unpack_package "$deb" "$out"
    dpkg-deb -f "$deb" Depends
  done | tr ',' '\n' | sed -n 's/^ *\(lib[^ |:]*\).*/\1/p' | sort -u >"$out/depends"
  rm -r "$out/deb"
}

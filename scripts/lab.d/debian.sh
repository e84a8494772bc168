# shellcheck shell=bash
# Debian as a source of parts: mirrors as the host has them, single packages, the cloud kernel.
# Sourced after common.sh.

RELEASE=bookworm
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
HERE_DEBIAN=$(dirname "${BASH_SOURCE[0]}")

# Mirror addresses come from the host's own apt sources, so nothing is fetched from elsewhere.
# KILN_DEBIAN_MIRROR and KILN_DEBIAN_SECURITY_MIRROR override them.
find_mirrors() {
  [[ -n ${MIRROR:-} ]] && return
  MIRROR=${KILN_DEBIAN_MIRROR:-$(host_mirror Debian)}
  SECURITY_MIRROR=${KILN_DEBIAN_SECURITY_MIRROR:-$(host_mirror Debian-Security)}
  [[ -n $MIRROR ]] || die "the host's apt sources name no Debian archive; set KILN_DEBIAN_MIRROR"
}

host_mirror() {
  # shellcheck disable=SC2016 # apt-get's own placeholders
  apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | awk -v label="$1" '$1 == label { print $2; exit }'
}

# The sources.list lines of the Debian release that L1 and the images are made of.
debian_sources() {
  local suite
  for suite in "$RELEASE" "$RELEASE-updates" "$@"; do
    echo "deb [signed-by=$KEYRING] $MIRROR $suite main"
  done
  [[ -z $SECURITY_MIRROR ]] || echo "deb [signed-by=$KEYRING] $SECURITY_MIRROR $RELEASE-security main"
}

# private_apt TOOL ARGUMENT...: apt-get or apt-cache with lists of its own. The configuration,
# the lists and the package state of the host are neither used nor changed.
private_apt() {
  local tool=$1 dir=$CACHE/apt
  shift
  "$tool" -q -o Dir::State="$dir/state" -o Dir::State::status=/dev/null -o Dir::Cache="$dir/cache" \
    -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=false "$@"
}

# Refreshes the private lists when they are older than an hour, with backports where the mirror
# has them.
refresh_lists() {
  local dir=$CACHE/apt
  find_mirrors
  mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
  if [[ -e $dir/fresh && -n $(find "$dir/fresh" -mmin -60) ]]; then
    return 0
  fi
  debian_sources "$RELEASE-backports" >"$dir/sources.list"
  private_apt apt-get update -o APT::Update::Error-Mode=any || {
    debian_sources >"$dir/sources.list"
    private_apt apt-get update -o APT::Update::Error-Mode=any
  }
  touch "$dir/fresh"
}

# fetch_packages DIR PACKAGE...: downloads .deb files into DIR.
fetch_packages() {
  local dir=$1
  shift
  mkdir -p "$dir"
  (cd "$dir" && private_apt apt-get download "$@")
}

# unpack_package DEB DIR: without replacing the merged-/usr links of an existing root.
unpack_package() {
  mkdir -p "$2"
  dpkg-deb --fsys-tarfile "$1" | tar -C "$2" --keep-directory-symlink -xf -
}

# The cloud kernel, unpacked: vmlinuz, vmlinux (the same uncompressed), release, lib/modules.
kernel() {
  KERNEL=$CACHE/kernel/$(key_of "$RELEASE" "$(declare -f build_kernel)" "$HERE_DEBIAN/vmlinux.py")
  cached "unpacking the Debian cloud kernel" "$KERNEL" build_kernel
  KERNEL_RELEASE=$(cat "$KERNEL/release")
}

build_kernel() {
  local out=$1 package release
  refresh_lists
  package=$(private_apt apt-cache depends --important linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
  release=${package#linux-image-}
  fetch_packages "$out/deb" "$package"
  unpack_package "$out"/deb/*.deb "$out"
  rm -r "${out:?}"/{deb,usr}
  mv "$out/boot/vmlinuz-$release" "$out/vmlinuz"
  mv "$out/boot/config-$release" "$out/config"
  rm -r "${out:?}/boot"
  python3 "$HERE_DEBIAN/vmlinux.py" "$out/vmlinuz" "$out/vmlinux"
  depmod -b "$out" "$release"
  echo "$release" >"$out/release"
}

# make_initramfs OUT INIT MODULE...: an uncompressed initramfs with static busybox, the script
# INIT, and the modules with all that they need, listed in load order in /modules/order.
make_initramfs() {
  local out=$1 init=$2 dir module file
  shift 2
  dir=$(mktemp -d)
  mkdir -p "$dir"/{bin,dev,proc,sys,modules,root}
  install -m 755 /bin/busybox "$dir/bin/busybox"
  install -m 755 "$init" "$dir/init"
  for module; do
    modprobe --dirname "$KERNEL" --set-version "$KERNEL_RELEASE" --show-depends --ignore-install "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$dir/files"
  while read -r file; do
    cp "$file" "$dir/modules/"
    basename "$file" >>"$dir/modules/order"
  done <"$dir/files"
  rm "$dir/files"
  find "$dir" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  (cd "$dir" && find . -mindepth 1 | sort | cpio --quiet -o -H newc --reproducible --owner=0:0) >"$out"
  rm -r "$dir"
}

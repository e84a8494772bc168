# shellcheck shell=bash disable=SC2034 # some variables are for images/build
# tiny: the smallest guest that behaves like an instance. Debian's cloud kernel, static busybox
# and dropbear; /boot/extlinux/extlinux.conf as the boot entry; no boot loader.

RECIPE_PACKAGES=()

TINY_PACKAGES=(
  busybox-static dropbear-bin libc6 libcrypt1 libgmp10 libtomcrypt1 libtommath1 zlib1g
  util-linux e2fsprogs libext2fs2 libcom-err2 libblkid1 libuuid1 fdisk libfdisk1 libsmartcols1 libreadline8 libtinfo6
)
# In the initramfs: all that is needed to find the root file system, and the network with it.
TINY_BOOT_MODULES=(virtio_pci virtio_blk virtio_net virtio_rng)
# In the image: the power button.
TINY_MODULES=(button evdev)
TINY_ROOT_MEBIBYTES=32

build_image() {
  local out=$1 work root deb
  work=$out.d
  root=$work/root
  refresh_lists
  fetch_packages "$work/deb" "${TINY_PACKAGES[@]}"
  mkdir -p "$work/debian/usr"/{bin,sbin,lib,lib64}
  ln -s usr/{bin,sbin,lib,lib64} "$work/debian/"
  for deb in "$work"/deb/*.deb; do
    unpack_package "$deb" "$work/debian"
  done

  mkdir -p "$root"/{bin,sbin,boot/extlinux,dev,proc,sys,run,tmp,mnt,etc/dropbear,var/log,var/lib/tiny,lib,lib64}
  ln -s ../run "$root/var/run"
  install -d -m 700 "$root/root" "$root/root/.ssh"
  chmod 1777 "$root/tmp"
  install_busybox "$work/debian/bin/busybox" "$root"
  local binary
  for binary in usr/sbin/dropbear usr/bin/dropbearkey sbin/resize2fs sbin/sfdisk usr/bin/partx; do
    install_binary "$work/debian" "$binary" "$root"
  done
  cp -r "$RECIPE/root/." "$root/"
  install_modules "$root/lib/modules"

  install -m 644 "$KERNEL/vmlinuz" "$root/boot/vmlinuz-$KERNEL_RELEASE"
  make_initramfs "$root/boot/initrd.img-$KERNEL_RELEASE" "$RECIPE/initramfs-init" "${TINY_BOOT_MODULES[@]}"
  sed -i "s/@RELEASE@/$KERNEL_RELEASE/" "$root/boot/extlinux/extlinux.conf"

  chown -R 0:0 "$root"
  find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  make_ext4 "$root" "$work/root.ext4" "$TINY_ROOT_MEBIBYTES" tiny -J size=4
  python3 "$HERE/lib/gpt.py" "$out" "$(stable_uuid disk)" "1,linux,$(stable_uuid 'partition 1'),root,$work/root.ext4"
  rm -r "$work"
}

install_busybox() {
  local binary=$1 root=$2 applet
  install -m 755 "$binary" "$root/bin/busybox"
  while read -r applet; do
    [[ $applet == busybox ]] || ln -s /bin/busybox "$root/bin/$applet"
  done < <("$binary" --list)
  ln -s /bin/busybox "$root/sbin/init"
}

# install_binary DEBIAN PATH ROOT: a program with the libraries that its loader asks for.
install_binary() {
  local debian=$1 path=$2 root=$3 library
  install -m 755 "$debian/$path" "$root/sbin/"
  chroot "$debian" /lib64/ld-linux-x86-64.so.2 --list "/$path" | grep -o '/[^ ]*' | sort -u | while read -r library; do
    install -D -m 755 "$(realpath "$debian$library")" "$root$library"
  done
}

# install_modules DIR: modules and the order to load them in, without those of the initramfs.
install_modules() {
  local dir=$1 module file
  mkdir -p "$dir"
  for module in "${TINY_MODULES[@]}"; do
    modprobe --dirname "$KERNEL" --set-version "$KERNEL_RELEASE" --show-depends --ignore-install "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    install -m 644 "$file" "$dir/"
    basename "$file" >>"$dir/order"
  done
}

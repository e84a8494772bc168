# shellcheck shell=bash disable=SC2034 # some variables are for images/build
# debian-12: the parts and the disk layout of Debian's own cloud images (p1 root, p14 BIOS boot,
# p15 ESP, GRUB for both), with cloud-init as packaged and nothing added to its configuration.

RECIPE_PACKAGES=(dosfstools mtools)

DEBIAN_PACKAGES=(
  systemd-sysv dbus udev kmod libpam-systemd locales tzdata less vim-tiny sudo procps ca-certificates curl python3
  linux-image-cloud-amd64 initramfs-tools zstd grub-cloud-amd64
  cloud-init cloud-guest-utils e2fsprogs fdisk gdisk openssh-server
  iproute2 iputils-ping netbase isc-dhcp-client netplan.io nftables systemd-resolved systemd-timesyncd libnss-resolve libnss-myhostname
  # For tests in the guest.
  fio iperf3 ethtool
)
# Services that cost processor time at boot, which is dear under two layers of emulation, and
# that neither cloud-init nor a test needs.
DEBIAN_MASKED=(e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer)
DEBIAN_FREE_MEBIBYTES=300
DEBIAN_ESP_MEBIBYTES=16

build_image() {
  local out=$1 work root
  work=$out.d
  root=$work/root
  mkdir -p "$work"
  BUILD_START=$EPOCHSECONDS
  find_mirrors
  ROOT_UUID=$(stable_uuid 'ext4 cloudimg-root')
  ROOT_PARTUUID=$(stable_uuid 'partition 1')
  ESP_PARTUUID=$(stable_uuid 'partition 15')

  debian_sources | mmdebstrap --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(printf '%s,' "${DEBIAN_PACKAGES[@]}")" "$RELEASE" "$root" -
  configure "$root"
  install_grub "$root" "$work"
  make_esp "$work"
  remove_traces "$root"

  local used
  used=$(du -sm --apparent-size "$root" | cut -f1)
  make_ext4 "$root" "$work/root.ext4" $((used * 106 / 100 + DEBIAN_FREE_MEBIBYTES)) cloudimg-root
  python3 "$HERE/lib/gpt.py" "$out" "$(stable_uuid disk)" \
    "14,bios,$(stable_uuid 'partition 14'),bios,$work/core.img,3" \
    "15,esp,$ESP_PARTUUID,esp,$work/esp.fat" \
    "1,linux,$ROOT_PARTUUID,root,$work/root.ext4" \
    --grub "$root/usr/lib/grub/i386-pc/boot.img" 14
  rm -r "$work"
}

configure() {
  local root=$1 service
  cp -r "$RECIPE/root/." "$root/"
  mkdir -p "$root/boot/efi"
  cat >"$root/etc/fstab" <<FSTAB
PARTUUID=$ROOT_PARTUUID / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1
PARTUUID=$ESP_PARTUUID /boot/efi vfat defaults 0 0
FSTAB
  for service in "${DEBIAN_MASKED[@]}"; do
    ln -s /dev/null "$root/etc/systemd/system/$service"
  done
  # A fixed build date makes the packages compile Python to files whose source is hashed at each
  # import. Ordinary installations have the ones that are checked by time.
  chroot "$root" python3 -m compileall -q -f --invalidation-mode timestamp /usr/lib/python3 /usr/lib/python3.11
}

# What grub-install and update-grub do on a running machine. Both ask grub-probe about the
# disk, which does not exist yet, so for one run of grub-mkconfig a stand-in answers.
install_grub() {
  local root=$1 work=$2 probe=$1/usr/sbin/grub-probe platform
  for platform in i386-pc x86_64-efi; do
    mkdir -p "$root/boot/grub/$platform"
    cp "$root/usr/lib/grub/$platform"/*.{mod,lst} "$root/boot/grub/$platform/"
  done
  mkdir -p "$root/boot/grub/fonts"
  cp "$root/usr/share/grub/unicode.pf2" "$root/boot/grub/fonts/"
  chroot "$root" grub-editenv /boot/grub/grubenv create

  # shellcheck disable=SC2016 # GRUB's own variable
  printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$ROOT_UUID" >"$root/early.cfg"
  local modules=(part_gpt ext2 search_fs_uuid normal)
  chroot "$root" grub-mkimage -O i386-pc -c /early.cfg -p /boot/grub -o /core.img biosdisk "${modules[@]}"
  chroot "$root" grub-mkimage -O x86_64-efi -c /early.cfg -p /boot/grub -o /bootx64.efi fat "${modules[@]}"
  mv "$root/core.img" "$root/bootx64.efi" "$work/"
  rm "$root/early.cfg"

  mv "$probe" "$work/grub-probe"
  cat >"$probe" <<PROBE
#!/bin/sh
for word; do case \$word in --target=*) target=\${word#--target=} ;; esac; done
case \$target in
device) echo /dev/vda1 ;;
drive) echo '(hd0,gpt1)' ;;
fs) echo ext2 ;;
fs_uuid) echo $ROOT_UUID ;;
partuuid) echo $ROOT_PARTUUID ;;
partmap) echo gpt ;;
compatibility_hint) echo hd0,gpt1 ;;
hints_string) echo "--hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1 --hint-baremetal=ahci0,gpt1" ;;
esac
PROBE
  chmod 755 "$probe"
  mkdir -p "$root/dev/disk/by-partuuid"
  touch "$root/dev/disk/by-partuuid/$ROOT_PARTUUID"
  chroot "$root" grub-mkconfig -o /boot/grub/grub.cfg
  rm -r "$root/dev/disk"
  mv "$work/grub-probe" "$probe"
}

make_esp() {
  local work=$1 id
  id=$(stable_uuid 'ESP volume')
  truncate -s "${DEBIAN_ESP_MEBIBYTES}M" "$work/esp.fat"
  mkfs.fat --invariant -F 16 -i "${id:0:8}" -n UEFI "$work/esp.fat"
  touch -d "@$SOURCE_DATE_EPOCH" "$work/bootx64.efi"
  mmd -i "$work/esp.fat" ::/EFI ::/EFI/BOOT
  mcopy -m -i "$work/esp.fat" "$work/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
}

# What differs from build to build or belongs to one machine only.
remove_traces() {
  local root=$1 newest
  echo localhost >"$root/etc/hostname"
  : >"$root/etc/machine-id"
  rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/dbus/machine-id "$root"/etc/*- "$root"/var/cache/ldconfig/aux-cache
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/{apt,*.log} "$root"/tmp/* "$root"/run/* "$root"/var/cache/debconf/*-old
  # Times that packages brought stay, because compiled Python depends on them; what this build
  # made gets the newest of those.
  newest=$(cd "$root" && sed 's,^/,,' var/lib/dpkg/info/*.list | sort -u | while read -r file; do
    if [[ -f $file && ! -L $file ]]; then printf '%s\0' "$file"; fi
  done | xargs -0 stat -c %Y | awk -v limit="$BUILD_START" '$1 < limit && $1 > newest { newest = $1 } END { print newest }')
  find "$root" -newermt "@$newest" -exec touch -h -d "@$newest" {} +
}

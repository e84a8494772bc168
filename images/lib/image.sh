# shellcheck shell=bash disable=SC2034 # some variables are for images/build
# Pieces that the recipes share: stable identifiers, file systems and disks without loop
# devices or mounts. Sourced by images/build, which sets HERE, RECIPE and KEY.

IMAGE_PACKAGES=(mmdebstrap busybox-static e2fsprogs kmod cpio lz4 python3 debian-archive-keyring)

# Everything that a recipe's result depends on, except for the versions that the mirror has.
recipe_key() {
  local files
  mapfile -t files < <(find "$RECIPE" "$HERE/lib" -type f ! -path '*/__pycache__/*' | sort)
  key_of "$RELEASE" "$SOURCE_DATE_EPOCH" "$(declare -f make_initramfs unpack_package)" "${KERNEL##*/}" "${files[@]}"
}

# stable_uuid WHAT: the same for every build of a recipe, different between recipes.
stable_uuid() {
  python3 -c 'import sys, uuid; print(uuid.uuid5(uuid.NAMESPACE_URL, "kiln:" + ":".join(sys.argv[1:])))' "$KEY" "$1"
}

# make_ext4 DIR OUT MEBIBYTES LABEL [MKE2FS-OPTION...]: a file system with the content of DIR.
# mke2fs takes the change times from DIR, which nobody can set there, so they are set afterwards.
make_ext4() {
  local dir=$1 out=$2 size=$3 label=$4 used inode
  shift 4
  truncate -s "${size}M" "$out"
  E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -b 4096 -m 1 -L "$label" -U "$(stable_uuid "ext4 $label")" \
    -E "lazy_itable_init=0,lazy_journal_init=0,hash_seed=$(stable_uuid "hash $label")" "$@" -d "$dir" "$out"
  # A fresh file system uses the first inodes without a gap: 2 is the root, 11 lost+found.
  used=$(dumpe2fs -h "$out" 2>/dev/null | awk -F': *' '/^Inode count/ { all = $2 } /^Free inodes/ { free = $2 } END { print all - free }')
  for inode in 2 $(seq 11 "$used"); do
    printf 'set_inode_field <%d> %s @%d\n' "$inode" ctime "$SOURCE_DATE_EPOCH" "$inode" atime "$SOURCE_DATE_EPOCH"
  done | E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH debugfs -w -f - "$out" >/dev/null 2>&1
  e2fsck -fn "$out"
}

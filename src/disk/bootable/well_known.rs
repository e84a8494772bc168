//! Kernels without a boot configuration: usual paths, and a command line made up for them.

use super::candidate::{Candidate, FileRef};
use super::filesystem::FileSystem;
use super::version;
use super::volumes::{Volume, VolumeId, Volumes};
use crate::partition::TableKind;

/// Directories with kernels, as seen from a root file system and from a `/boot` partition.
const DIRECTORIES: [&str; 2] = ["/boot", "/"];

/// The newest kernel on `volume`, if there is one.
pub(crate) fn candidate(volumes: &Volumes, volume: VolumeId) -> Option<Candidate> {
    let fs = volumes.fs(volume)?;
    let (kernel, initrd) = DIRECTORIES.iter().find_map(|directory| newest_kernel(fs, directory))?;
    let name = kernel.rsplit('/').next().unwrap_or(&kernel);
    Some(Candidate {
        title: name.to_owned(),
        origin: format!("{kernel} on {}", volumes.describe(volume)),
        initrds: initrd.iter().map(|path| FileRef::whole(volume, path)).collect(),
        cmdline: command_line(volumes, volume),
        kernel: FileRef::whole(volume, &kernel),
    })
}

/// Kernel and initrd in a directory. A link without version is what the distribution made to be
/// booted; otherwise the newest version counts, with an initrd of the same version.
fn newest_kernel(fs: &dyn FileSystem, directory: &str) -> Option<(String, Option<String>)> {
    let names = fs.list_dir(directory).ok()?;
    let at = |name: &str| format!("{}/{name}", directory.trim_end_matches('/'));
    let readable = |name: &str| fs.open(&at(name)).is_ok_and(|file| !file.is_empty());
    let first = |wanted: &[&str]| {
        let found = wanted.iter().find(|name| names.iter().any(|present| present == *name) && readable(name));
        found.map(|name| at(name))
    };
    if let Some(kernel) = first(&["vmlinuz", "bzImage", "vmlinux"]) {
        let initrd = first(&["initrd.img", "initramfs.img", "initrd", "initramfs"]);
        return Some((kernel, initrd));
    }
    let mut versions: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"))
        .filter(|version| !version.contains("rescue"))
        .collect();
    versions.sort_by(|a, b| version::compare(b, a));
    let version = versions.into_iter().find(|version| readable(&format!("vmlinuz-{version}")))?;
    let initrd = first(&[
        &format!("initrd.img-{version}"),
        &format!("initramfs-{version}.img"),
        &format!("initramfs-{version}"),
        &format!("initrd-{version}"),
    ]);
    Some((at(&format!("vmlinuz-{version}")), initrd))
}

/// `root=` by whatever names the root file system best, and a console that Kiln shows.
pub(crate) fn command_line(volumes: &Volumes, kernel_volume: VolumeId) -> String {
    let root = root_volume(volumes).unwrap_or(kernel_volume);
    let device = match volumes.get(root).map(|volume| &volume.partition) {
        Some(partition) => match (&partition.partuuid, volumes.kind) {
            (Some(partuuid), _) => format!("PARTUUID={partuuid}"),
            (None, TableKind::None) => "/dev/vda".to_owned(),
            (None, _) => format!("/dev/vda{}", partition.number),
        },
        None => "/dev/vda".to_owned(),
    };
    format!("root={device} ro console=ttyS0")
}

/// The volume that looks like a root file system.
pub(crate) fn root_volume(volumes: &Volumes) -> Option<VolumeId> {
    let has = |path: &'static str| volumes.mounted().find(|(_, _, fs)| fs.exists(path)).map(|(id, ..)| id);
    ["/etc/os-release", "/usr/lib/os-release", "/sbin/init", "/init"].into_iter().find_map(has)
}

/// `PRETTY_NAME` of the root file system.
pub(crate) fn os_name(volumes: &Volumes, limit: u64) -> Option<String> {
    let fs = volumes.get(root_volume(volumes)?).and_then(Volume::fs)?;
    ["/etc/os-release", "/usr/lib/os-release"].into_iter().find_map(|path| {
        let text = fs.read_file(path, limit).ok()?;
        let text = String::from_utf8_lossy(&text);
        pretty_name(&text)
    })
}

/// `PRETTY_NAME="…"`, with shell quoting.
pub(crate) fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?;
    let inner = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    let name = inner.unwrap_or(value).replace('\\', "");
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pretty_name_is_unquoted() {
        let name = |text| pretty_name(text);
        assert_eq!(
            name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n").as_deref(),
            Some("Debian GNU/Linux 12")
        );
        assert_eq!(name("PRETTY_NAME=Alpine").as_deref(), Some("Alpine"));
        assert_eq!(name("NAME=x"), None);
        assert_eq!(name("PRETTY_NAME=\""), Some("\"".to_owned()));
    }
}

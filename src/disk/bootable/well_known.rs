//! Kernels without a boot configuration: usual paths, and a command line made up for them.

use super::candidate::{Candidate, FileRef};
use super::filesystem::FileSystem;
use super::version;
use super::volumes::{Volume, VolumeId, Volumes};
use crate::partition::PartitionType;

/// Directories with kernels, as seen from a root file system and from a `/boot` partition.
const DIRECTORIES: [&str; 2] = ["/boot", "/"];

/// Kernel and initrd.
type Pair = (String, Option<String>);

/// The kernel to boot on `volume`, if there is one. A name without version is what the distribution
/// made to be booted, if it comes with an initrd; otherwise the newest version counts.
pub(crate) fn candidate(volumes: &Volumes, volume: VolumeId) -> Option<Candidate> {
    let fs = volumes.fs(volume)?;
    let listings = DIRECTORIES.map(|directory| Listing::read(fs, directory));
    let listings = || listings.iter().flatten();
    let plain = || listings().find_map(Listing::plain);
    let (kernel, initrd) = plain()
        .filter(|(_, initrd)| initrd.is_some())
        .or_else(|| listings().find_map(Listing::newest))
        .or_else(plain)?;
    let name = kernel.rsplit('/').next().unwrap_or(&kernel);
    let file = |path: &String| FileRef::whole(volume, path);
    Some(Candidate {
        title: name.to_owned(),
        origin: format!("{kernel} on {}", volumes.describe(volume)),
        initrds: initrd.iter().map(file).collect(),
        cmdline: command_line(volumes, Some(volume)),
        kernel: file(&kernel),
    })
}

/// A directory that may have kernels.
struct Listing<'a> {
    fs: &'a dyn FileSystem,
    directory: &'static str,
    names: Vec<String>,
}

impl<'a> Listing<'a> {
    fn read(fs: &'a dyn FileSystem, directory: &'static str) -> Option<Self> {
        let names = fs.list_dir(directory).ok()?;
        Some(Self { fs, directory, names })
    }

    /// Path of the first of the names that is a file with something in it.
    fn first(&self, wanted: &[&str]) -> Option<String> {
        let present = wanted.iter().filter(|name| self.names.iter().any(|present| present == *name));
        let mut paths = present.map(|name| format!("{}/{name}", self.directory.trim_end_matches('/')));
        paths.find(|path| self.fs.open(path).is_ok_and(|file| !file.is_empty()))
    }

    /// A kernel without a version in its name.
    fn plain(&self) -> Option<Pair> {
        let kernel = self.first(&["vmlinuz", "bzImage", "vmlinux"])?;
        let initrd = self.first(&["initrd.img", "initramfs.img", "initrd", "initramfs"]);
        Some((kernel, initrd))
    }

    /// The kernel with the newest version, and the initrd of the same.
    fn newest(&self) -> Option<Pair> {
        let mut versions: Vec<&str> = self
            .names
            .iter()
            .filter_map(|name| name.strip_prefix("vmlinuz-"))
            .filter(|version| !version.contains("rescue"))
            .collect();
        versions.sort_by(|a, b| version::compare(b, a));
        versions.into_iter().find_map(|version| {
            let kernel = self.first(&[&format!("vmlinuz-{version}")])?;
            let initrd = self.first(&[
                &format!("initrd.img-{version}"),
                &format!("initramfs-{version}.img"),
                &format!("initramfs-{version}"),
                &format!("initrd-{version}"),
            ]);
            Some((kernel, initrd))
        })
    }
}

/// `root=` by whatever names the root file system best, and a console that Kiln shows. Without a
/// recognisable root, that of `otherwise` or of the partition whose type says that it is one.
pub(crate) fn command_line(volumes: &Volumes, otherwise: Option<VolumeId>) -> String {
    let by_type = || {
        volumes
            .iter()
            .find(|(_, volume)| volume.partition.kind == PartitionType::Gpt(PartitionType::ROOT_X86_64))
            .map(|(id, _)| id)
    };
    let first = || volumes.iter().next().map(|(id, _)| id);
    let root = root_volume(volumes).or(otherwise).or_else(by_type).or_else(first);
    let device = match root.and_then(|root| volumes.get(root)) {
        Some(volume) => match (&volume.partition.partuuid, volume.partition.number) {
            (Some(partuuid), _) => format!("PARTUUID={partuuid}"),
            (None, 0) => "/dev/vda".to_owned(),
            (None, number) => format!("/dev/vda{number}"),
        },
        None => "/dev/vda1".to_owned(),
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

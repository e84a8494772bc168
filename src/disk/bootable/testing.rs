//! File system images for tests, made by the usual tools where they are installed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::filesystem::{self, FileSystem, MountError};
use super::limits::{Budget, Limits};
use super::source::Source;
use crate::Disk;
use crate::partition::testing::{Gpt, MemoryDisk};
use crate::partition::{Guid, Partition, PartitionType, PartitionView};

/// What is put into an image.
pub(crate) enum Node<'a> {
    File(&'a str, &'a [u8]),
    Link(&'a str, &'a str),
}

pub(crate) use Node::{File, Link};

/// Runs a tool. `None`, with a note, when it is not installed.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> Option<()> {
    let output = Command::new(program)
        // mtools go by the locale when they turn names into UTF-16.
        .env("LC_ALL", "C.UTF-8")
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program}: {complaint}");
            Some(())
        }
        Err(error) => {
            println!("SKIPPED: {program}: {error}");
            None
        }
    }
}

fn lay_out(directory: &Path, nodes: &[Node<'_>]) {
    for node in nodes {
        let (File(path, _) | Link(path, _)) = node;
        let place = directory.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        match node {
            File(_, contents) => std::fs::write(place, contents).unwrap(),
            Link(_, target) => std::os::unix::fs::symlink(target, place).unwrap(),
        }
    }
}

/// An ext file system of `mib` MiB. `options` go to `mke2fs`.
pub(crate) fn ext(mib: u32, options: &[&str], nodes: &[Node<'_>]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    lay_out(&tree, nodes);
    let image = directory.path().join("image");
    let mut arguments = vec!["-q", "-F", "-d", tree.to_str()?];
    arguments.extend(options);
    let size = format!("{mib}m");
    arguments.extend([image.to_str()?, &size]);
    tool("mke2fs", &arguments)?;
    Some(std::fs::read(image).unwrap())
}

/// An ext4 file system with the UUID and label that the tests' configurations name.
pub(crate) fn ext4(nodes: &[Node<'_>]) -> Option<Vec<u8>> {
    let options = ["-t", "ext4", "-U", UUID, "-L", "cloudimg-rootfs"];
    ext(8, &options, nodes)
}

/// A FAT file system of `kib` KiB. `options` go to `mkfs.fat`.
pub(crate) fn fat(kib: u32, options: &[&str], nodes: &[Node<'_>]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    lay_out(&tree, nodes);
    let image = directory.path().join("image");
    let image_path = image.to_str()?;
    let size = kib.to_string();
    let mut arguments = vec!["-C", image_path];
    arguments.extend(options);
    arguments.push(&size);
    tool("mkfs.fat", &arguments)?;
    for entry in std::fs::read_dir(&tree).unwrap() {
        let path = entry.unwrap().path();
        tool("mcopy", &["-s", "-i", image_path, path.to_str()?, "::"])?;
    }
    Some(std::fs::read(image).unwrap())
}

/// A Btrfs as small as it can be. `options` go to `mkfs.btrfs`.
pub(crate) fn btrfs(options: &[&str], nodes: &[Node<'_>]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    lay_out(&tree, nodes);
    let image = directory.path().join("image");
    std::fs::File::create(&image).unwrap();
    let mut arguments = vec!["-q", "--shrink", "--rootdir", tree.to_str()?];
    arguments.extend(options);
    arguments.push(image.to_str()?);
    tool("mkfs.btrfs", &arguments)?;
    Some(std::fs::read(image).unwrap())
}

/// An XFS of 16 MiB. `options` go to `mkfs.xfs`. Names must not have blanks.
pub(crate) fn xfs(options: &[&str], nodes: &[Node<'_>]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = Tree::default();
    for (index, node) in nodes.iter().enumerate() {
        let source = directory.path().join(index.to_string());
        let (path, line) = match node {
            File(path, contents) => {
                std::fs::write(&source, contents).unwrap();
                (path, format!("---644 0 0 {}", source.display()))
            }
            Link(path, target) => (path, format!("l--777 0 0 {target}")),
        };
        tree.add(path.trim_start_matches('/'), line);
    }
    let prototype = directory.path().join("prototype");
    let mut text = "/dev/null\n0 0\nd--755 0 0\n".to_owned();
    tree.write(&mut text);
    std::fs::write(&prototype, text).unwrap();
    let image = directory.path().join("image");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(16 << 20).unwrap();
    let mut arguments = vec!["-q", "--unsupported", "-p", prototype.to_str()?];
    arguments.extend(options);
    arguments.push(image.to_str()?);
    tool("mkfs.xfs", &arguments)?;
    Some(std::fs::read(image).unwrap())
}

/// Files by directory, as `mkfs.xfs` wants them described.
#[derive(Default)]
struct Tree(BTreeMap<String, (Option<String>, Tree)>);

impl Tree {
    fn add(&mut self, path: &str, line: String) {
        match path.split_once('/') {
            Some((directory, rest)) => {
                let entry = self.0.entry(directory.to_owned()).or_default();
                entry.1.add(rest, line);
            }
            None => self.0.entry(path.to_owned()).or_default().0 = Some(line),
        }
    }

    fn write(&self, text: &mut String) {
        for (name, (line, inner)) in &self.0 {
            match line {
                Some(line) => text.push_str(&format!("{name} {line}\n")),
                None => {
                    text.push_str(&format!("{name} d--755 0 0\n"));
                    inner.write(text);
                }
            }
        }
        text.push_str("$\n");
    }
}

/// Mounts the contents of a partition.
pub(crate) fn mount_bytes(contents: Vec<u8>) -> Result<Option<Box<dyn FileSystem>>, MountError> {
    let partition = Partition {
        number: 1,
        start: 0,
        len: contents.len() as u64,
        kind: PartitionType::WholeDisk,
        name: String::new(),
        partuuid: None,
    };
    let view = PartitionView::new(MemoryDisk::new(contents), &partition);
    let budget = Budget::new(&Limits { metadata: 1 << 40, ..Limits::default() });
    filesystem::mount(&Source::new(view, budget))
}

pub(crate) const UUID: &str = "6b1d2ad5-9c5e-4f5a-b7f3-0a1b2c3d4e5f";

/// A disk with the contents as partition 1, of the given type.
pub(crate) fn one_partition(kind: Guid, contents: &[u8]) -> Arc<dyn Disk> {
    let image = Gpt::new(contents.len() + (2 << 20)).contents(1, kind, 2048, contents).build();
    MemoryDisk::new(image)
}

/// A disk with a root file system as partition 1.
pub(crate) fn root_disk(contents: &[u8]) -> Arc<dyn Disk> {
    one_partition(PartitionType::ROOT_X86_64, contents)
}

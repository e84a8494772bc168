//! Boot loader entries of type #1: `loader/entries/*.conf` (UAPI.1 Boot Loader Specification).
//!
//! Two loaders use these files in two ways, and the directory does not tell which. Where the disk
//! has a GRUB environment, `$variables` in options come from there and `saved_entry` is the default
//! (Fedora and its descendants); else `loader.conf` names the default (systemd-boot).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::candidate::{Candidate, FileRef};
use super::filesystem::FileSystem;
use super::limits::Limits;
use super::version;
use super::volumes::{VolumeId, Volumes};

/// Entries read from one directory; more are ignored.
const MAX_ENTRIES: usize = 256;
const MAX_INITRDS: usize = 32;
/// Largest entry file in bytes.
const MAX_ENTRY: u64 = 64 << 10;

/// Where entries lie, seen from the root of a file system: `$BOOT` itself, or the root's `/boot`.
const PLACES: [(&str, &str); 2] = [("/loader", ""), ("/boot/loader", "/boot")];

/// One entry file, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoaderEntry {
    /// File name without `.conf` and boot counter.
    pub id: String,
    /// `title`; the id where there is none.
    pub title: String,
    /// `version`.
    pub version: String,
    /// `machine-id`.
    pub machine_id: String,
    /// `sort-key`.
    pub sort_key: String,
    /// `linux`: path of the kernel. Empty for entries that start an EFI program.
    pub linux: String,
    /// `initrd`, one per line.
    pub initrds: Vec<String>,
    /// `options` lines, joined.
    pub options: String,
    /// `architecture`.
    pub architecture: String,
    /// The boot counter in the file name says that all tries have failed.
    pub exhausted: bool,
}

impl LoaderEntry {
    /// Parses the file `name` (with `.conf`). Unknown keys and nonsense are skipped, as the
    /// specification wants.
    pub fn parse(name: &str, text: &str) -> Self {
        let mut entry = Self::default();
        let stem = name.strip_suffix(".conf").unwrap_or(name);
        (entry.id, entry.exhausted) = split_boot_counter(stem);
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with('#') {
                continue;
            }
            let Some((key, value)) = line.split_once([' ', '\t']) else {
                continue;
            };
            let value = value.trim();
            match key {
                "title" => value.clone_into(&mut entry.title),
                "version" => value.clone_into(&mut entry.version),
                "machine-id" => value.clone_into(&mut entry.machine_id),
                "sort-key" => value.clone_into(&mut entry.sort_key),
                "architecture" => value.clone_into(&mut entry.architecture),
                "linux" => value.clone_into(&mut entry.linux),
                "initrd" if entry.initrds.len() < MAX_INITRDS => {
                    entry.initrds.push(value.to_owned());
                }
                "options" => {
                    if !entry.options.is_empty() {
                        entry.options.push(' ');
                    }
                    entry.options.push_str(value);
                }
                _ => {}
            }
        }
        if entry.title.is_empty() {
            entry.title.clone_from(&entry.id);
        }
        entry
    }

    fn is_bootable(&self) -> bool {
        let fits = self.architecture.is_empty() || self.architecture.eq_ignore_ascii_case("x64");
        fits && !self.linux.is_empty()
    }
}

/// `name+3-1` has three tries left, `name+0-3` none.
pub(crate) fn split_boot_counter(stem: &str) -> (String, bool) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if let Some((id, counter)) = stem.rsplit_once('+') {
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        if is_number(left) && is_number(done) {
            return (id.to_owned(), left.bytes().all(|c| c == b'0'));
        }
    }
    (stem.to_owned(), false)
}

/// The order of the menu, best first ("Sorting" in the specification).
fn order(a: &LoaderEntry, b: &LoaderEntry) -> Ordering {
    let by_key = || match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
        (false, false) => a
            .sort_key
            .cmp(&b.sort_key)
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| version::compare(&b.version, &a.version)),
        (a, b) => a.cmp(&b),
    };
    a.exhausted.cmp(&b.exhausted).then_with(by_key).then_with(|| version::compare(&b.id, &a.id))
}

/// Entries of one file system, in the order of the menu.
pub(crate) struct LoaderEntries {
    volume: VolumeId,
    origin: String,
    /// Directory on this file system that paths in entries may be relative to.
    mounted_at: &'static str,
    entries: Vec<LoaderEntry>,
    /// `default` of `loader.conf`.
    default: Option<DefaultPattern>,
}

/// `default` of `loader.conf`: a shell pattern for ids.
pub(crate) struct DefaultPattern(String);

impl DefaultPattern {
    /// Whether it names the entry `id`, with or without the ending of its file.
    pub(crate) fn matches(&self, id: &str) -> bool {
        let matches = |pattern: &str| glob(pattern.as_bytes(), id.as_bytes());
        let without_ending = [".conf", ".efi"].into_iter().find_map(|ending| self.0.strip_suffix(ending));
        matches(without_ending.unwrap_or(&self.0))
    }
}

impl LoaderEntries {
    /// Reads the entries on `volume`, if it has any that can boot.
    pub(crate) fn read(volumes: &Volumes, volume: VolumeId, limits: &Limits) -> Option<Self> {
        let fs = volumes.fs(volume)?;
        PLACES.iter().find_map(|(directory, mounted_at)| {
            let entries = read_directory(fs, directory, limits);
            let found = Self {
                volume,
                origin: format!("loader entry on {}", volumes.describe(volume)),
                mounted_at,
                entries,
                default: default_pattern(fs, directory, limits),
            };
            (!found.entries.is_empty()).then_some(found)
        })
    }

    /// The entries, each with its id. `variables` are those of GRUB, where it is used.
    pub(crate) fn candidates(
        &self,
        volumes: &Volumes,
        variables: Option<&BTreeMap<String, String>>,
    ) -> Vec<(String, Candidate)> {
        let candidate = |entry| (entry_id(entry), self.candidate(entry, volumes, variables));
        self.entries.iter().map(candidate).collect()
    }

    /// Index of the entry to boot.
    pub(crate) fn default_index(&self, variables: Option<&BTreeMap<String, String>>) -> usize {
        let by_grub = variables.and_then(|variables| {
            ["default", "saved_entry"].iter().find_map(|name| {
                let wanted = variables.get(*name)?;
                self.position(wanted)
            })
        });
        let by_loader_conf = || {
            let pattern = self.default.as_ref()?;
            let wanted = |entry: &LoaderEntry| pattern.matches(&entry.id);
            self.entries.iter().position(wanted)
        };
        by_grub.or_else(by_loader_conf).unwrap_or(0)
    }

    fn position(&self, wanted: &str) -> Option<usize> {
        if let Ok(index) = wanted.parse::<usize>() {
            return (index < self.entries.len()).then_some(index);
        }
        let wanted = wanted.strip_suffix(".conf").unwrap_or(wanted);
        let is_wanted = |entry: &LoaderEntry| entry.id == wanted || entry.title == wanted;
        self.entries.iter().position(is_wanted)
    }

    fn candidate(
        &self,
        entry: &LoaderEntry,
        volumes: &Volumes,
        variables: Option<&BTreeMap<String, String>>,
    ) -> Candidate {
        let expanded = |text: &str| match variables {
            Some(variables) => expand(text, variables),
            None => text.to_owned(),
        };
        let mut options = entry.options.as_str();
        if options.is_empty()
            && let Some(default) = variables.and_then(|v| v.get("default_kernelopts"))
        {
            options = default;
        }
        let initrds = entry.initrds.iter().map(|line| expanded(line));
        let initrds: Vec<String> = initrds
            .flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .take(MAX_INITRDS)
            .collect();
        Candidate {
            title: entry.title.clone(),
            origin: self.origin.clone(),
            kernel: self.file(volumes, &entry.linux),
            initrds: initrds.iter().map(|path| self.file(volumes, path)).collect(),
            cmdline: expanded(options),
        }
    }

    /// Paths count from the root of the file system with the entries. Where that is the root file
    /// system itself, some tools leave out the `/boot` and some do not.
    fn file(&self, volumes: &Volumes, path: &str) -> FileRef {
        let plain = FileRef::whole(self.volume, path);
        let prefixed = FileRef::whole(self.volume, &format!("{}{}", self.mounted_at, plain.path));
        let exists = |file: &FileRef| {
            let fs = volumes.fs(self.volume);
            fs.is_some_and(|fs| fs.exists(&file.path))
        };
        if !self.mounted_at.is_empty() && !exists(&plain) && exists(&prefixed) {
            return prefixed;
        }
        plain
    }
}

fn entry_id(entry: &LoaderEntry) -> String {
    entry.id.clone()
}

fn read_directory(fs: &dyn FileSystem, directory: &str, limits: &Limits) -> Vec<LoaderEntry> {
    let directory = format!("{directory}/entries");
    let mut names = fs.list_dir(&directory).unwrap_or_default();
    names.retain(|name| name.ends_with(".conf") && !name.starts_with('.'));
    names.truncate(MAX_ENTRIES);
    let read = |name: &String| {
        let bytes = fs.read_file(&format!("{directory}/{name}"), limits.config.min(MAX_ENTRY));
        Some(LoaderEntry::parse(name, &String::from_utf8_lossy(&bytes.ok()?)))
    };
    let mut entries: Vec<_> = names.iter().filter_map(read).filter(LoaderEntry::is_bootable).collect();
    entries.sort_by(order);
    entries
}

/// Reads `default` of `loader.conf` in `directory`.
pub(crate) fn default_pattern(
    fs: &dyn FileSystem,
    directory: &str,
    limits: &Limits,
) -> Option<DefaultPattern> {
    let bytes = fs.read_file(&format!("{directory}/loader.conf"), limits.config);
    let text = String::from_utf8_lossy(&bytes.ok()?).into_owned();
    text.lines().find_map(|line| {
        let (key, value) = line.trim().split_once([' ', '\t'])?;
        (key == "default").then(|| DefaultPattern(value.trim().to_owned()))
    })
}

/// Replaces `$name` and `${name}`.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    /// A line has at most this many bytes after expansion.
    const MAX_EXPANDED: usize = 64 << 10;
    let mut expanded = String::new();
    let mut pieces = text.split('$');
    expanded.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let (name, rest) = match piece.strip_prefix('{').and_then(|p| p.split_once('}')) {
            Some(braced) => braced,
            None => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                piece.split_at(piece.find(|c| !is_name(c)).unwrap_or(piece.len()))
            }
        };
        let value = variables.get(name).map_or("", String::as_str);
        if expanded.len() + value.len() > MAX_EXPANDED {
            break;
        }
        expanded.push_str(value);
        expanded.push_str(rest);
    }
    expanded.trim().to_owned()
}

/// Whether `text` matches a pattern of `*`, `?` and plain characters. Time is at most the product
/// of both lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and what it has eaten so far.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&c) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&expected) if expected == b'?' || expected == c => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, eaten)) => {
                    star = Some((at, eaten + 1));
                    (p, t) = (at + 1, eaten + 1);
                }
                None => return false,
            },
        }
    }
    let rest = pattern.get(p..).unwrap_or_default();
    rest.iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_its_fields() {
        let entry = LoaderEntry::parse(
            "debian-6.1+2-1.conf",
            "# made by hand\ntitle  Debian\nversion\t6.1\nlinux /k\ninitrd /a\ninitrd /b\n\
             options root=x\noptions  quiet \nbroken\nfuture-key 1\n",
        );
        assert_eq!((entry.id.as_str(), entry.exhausted), ("debian-6.1", false));
        assert_eq!((entry.title.as_str(), entry.linux.as_str()), ("Debian", "/k"));
        assert_eq!(entry.initrds, ["/a", "/b"]);
        assert_eq!(entry.options, "root=x quiet");
    }

    #[test]
    fn menu_order_follows_the_specification() {
        let entry = |name: &str, text: &str| LoaderEntry::parse(name, text);
        let mut entries = [
            entry("b-0-rescue.conf", ""),
            entry("b-6.9.conf", ""),
            entry("b-6.10.conf", ""),
            entry("z+0-3.conf", "sort-key a"),
            entry("x.conf", "sort-key b\nversion 1"),
            entry("y.conf", "sort-key a\nmachine-id 1\nversion 1"),
            entry("w.conf", "sort-key a\nmachine-id 1\nversion 2"),
        ];
        entries.sort_by(order);
        assert_eq!(entries.map(|entry| entry.id), ["w", "y", "x", "b-6.10", "b-6.9", "b-0-rescue", "z"]);
    }

    #[test]
    fn variables_are_replaced_and_unset_ones_vanish() {
        let variables = [("kernelopts".to_owned(), "root=LABEL=/ ro".to_owned())].into();
        assert_eq!(
            expand("$kernelopts $tuned_params quiet ${kernelopts}x", &variables),
            "root=LABEL=/ ro  quiet root=LABEL=/ rox"
        );
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, text) in [("a*", "abc"), ("*c", "abc"), ("a?c", "abc"), ("*", ""), ("a*b*c", "aXbYbc")]
        {
            assert!(glob(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("?", ""), ("a*c", "abd")] {
            assert!(!glob(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }
}

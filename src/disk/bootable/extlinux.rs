//! `extlinux.conf` and `syslinux.cfg` (SYSLINUX wiki, "Config"; Alpine, U-Boot style images).

use super::candidate::{Candidate, FileRef};
use super::filesystem::FileSystem;
use super::limits::Limits;
use super::volumes::{VolumeId, Volumes};

/// Places where the loaders look, in their order.
const PLACES: [&str; 9] = [
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/boot/syslinux/extlinux.conf",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
    "/EFI/syslinux/syslinux.cfg",
];
const MAX_LABELS: usize = 256;
const MAX_INITRDS: usize = 32;
/// Files that include each other, altogether.
const MAX_INCLUDES: usize = 16;

/// One `LABEL`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Label {
    /// After `LABEL`.
    pub name: String,
    /// `MENU LABEL`, without the mark of its hot key.
    pub title: Option<String>,
    /// `KERNEL` or `LINUX`.
    pub kernel: Option<String>,
    /// `INITRD`, and `initrd=` in `APPEND`.
    pub initrds: Vec<String>,
    /// `APPEND` without `initrd=`; `None` where the global one counts.
    pub append: Option<String>,
    /// `MENU DEFAULT`.
    pub menu_default: bool,
}

/// A configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtlinuxConf {
    /// `DEFAULT`, or what `ONTIMEOUT` says instead.
    pub default: Option<String>,
    /// `APPEND` outside any label.
    pub append: String,
    /// In the order of the file.
    pub labels: Vec<Label>,
    /// `INCLUDE`d files, not read yet.
    pub includes: Vec<String>,
}

impl ExtlinuxConf {
    /// Parses a file. Unknown keywords are skipped.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        conf.add(text);
        conf
    }

    fn add(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.trim();
            let (keyword, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            self.line(&keyword.to_ascii_lowercase(), value.trim());
        }
    }

    fn line(&mut self, keyword: &str, value: &str) {
        match keyword {
            "default" | "ontimeout" => {
                // `DEFAULT` may name a kernel with options instead of a label.
                let first = value.split_whitespace().next().unwrap_or_default();
                self.default = Some(first.to_owned());
            }
            "include" if self.includes.len() < MAX_INCLUDES => {
                let first = value.split_whitespace().next().unwrap_or_default();
                self.includes.push(first.to_owned());
            }
            "label" if self.labels.len() < MAX_LABELS => {
                self.labels.push(Label { name: value.to_owned(), ..Label::default() })
            }
            "append" => {
                let (append, initrds) = split_append(value);
                match self.labels.last_mut() {
                    Some(label) => {
                        label.append = Some(append);
                        label.initrds.extend(initrds);
                        label.initrds.truncate(MAX_INITRDS);
                    }
                    None => self.append = append,
                }
            }
            _ => {
                if let Some(label) = self.labels.last_mut() {
                    label.line(keyword, value);
                }
            }
        }
    }

    /// The label to boot: `DEFAULT`, `MENU DEFAULT`, `linux`, or the first with a kernel.
    pub fn default_label(&self) -> Option<&Label> {
        let named = |name: &str| {
            let is_it = |label: &&Label| label.name == name && label.kernel.is_some();
            self.labels.iter().find(is_it)
        };
        self.labels
            .iter()
            .find(|label| label.menu_default && label.kernel.is_some())
            .or_else(|| named(self.default.as_deref()?))
            .or_else(|| named("linux"))
            .or_else(|| self.labels.iter().find(|label| label.kernel.is_some()))
    }
}

impl Label {
    fn line(&mut self, keyword: &str, value: &str) {
        match keyword {
            "kernel" | "linux" => self.kernel = Some(value.to_owned()),
            "initrd" => {
                self.initrds.extend(value.split(',').map(str::to_owned));
                self.initrds.truncate(MAX_INITRDS);
            }
            "menu" => {
                let (keyword, value) = value.split_once([' ', '\t']).unwrap_or((value, ""));
                match keyword.to_ascii_lowercase().as_str() {
                    "label" => self.title = Some(value.trim().replace('^', "")),
                    "default" => self.menu_default = true,
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// Takes `initrd=a,b` out of kernel options.
fn split_append(value: &str) -> (String, Vec<String>) {
    // A single hyphen says: not even the global options.
    if value == "-" {
        return (String::new(), Vec::new());
    }
    let mut options = Vec::new();
    let mut initrds = Vec::new();
    for word in value.split_whitespace() {
        match word.strip_prefix("initrd=") {
            Some(files) => initrds.extend(files.split(',').map(str::to_owned)),
            None => options.push(word),
        }
    }
    initrds.truncate(MAX_INITRDS);
    (options.join(" "), initrds)
}

/// The configuration on `volume`, if there is one with a kernel: all entries, the default first.
pub(crate) fn candidates(volumes: &Volumes, volume: VolumeId, limits: &Limits) -> Option<Vec<Candidate>> {
    let fs = volumes.fs(volume)?;
    PLACES.iter().find_map(|path| {
        let conf = read(fs, path, limits)?;
        let default = conf.default_label()?;
        let place = Place { volume, path, origin: volumes.describe(volume) };
        let others = conf.labels.iter().filter(|label| *label != default);
        let all = std::iter::once(default).chain(others);
        Some(all.filter_map(|label| place.candidate(&conf, label)).collect())
    })
}

fn read(fs: &dyn FileSystem, path: &str, limits: &Limits) -> Option<ExtlinuxConf> {
    let bytes = fs.read_file(path, limits.config).ok()?;
    let mut conf = ExtlinuxConf::parse(&String::from_utf8_lossy(&bytes));
    let mut next = 0;
    while let Some(include) = conf.includes.get(next).cloned() {
        next += 1;
        if let Ok(bytes) = fs.read_file(&relative_to(path, &include), limits.config) {
            conf.add(&String::from_utf8_lossy(&bytes));
        }
    }
    Some(conf)
}

/// File names count from the directory of the configuration.
fn relative_to(config: &str, path: &str) -> String {
    match config.rsplit_once('/') {
        Some((directory, _)) if !path.starts_with('/') => format!("{directory}/{path}"),
        _ => path.to_owned(),
    }
}

struct Place<'a> {
    volume: VolumeId,
    path: &'a str,
    origin: String,
}

impl Place<'_> {
    fn candidate(&self, conf: &ExtlinuxConf, label: &Label) -> Option<Candidate> {
        let file = |path: &str| FileRef::whole(self.volume, &relative_to(self.path, path));
        let name = self.path.rsplit('/').next().unwrap_or(self.path);
        Some(Candidate {
            title: label.title.clone().unwrap_or_else(|| label.name.clone()),
            origin: format!("{name} on {}", self.origin),
            kernel: file(label.kernel.as_deref()?),
            initrds: label.initrds.iter().map(|path| file(path)).collect(),
            cmdline: label.append.clone().unwrap_or_else(|| conf.append.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPINE: &str = "DEFAULT menu.c32\nPROMPT 0\nAPPEND global\nLABEL virt\n  MENU LABEL Linux ^virt\n\
        \tLINUX vmlinuz-virt\n\tINITRD initramfs-virt,b\n\tAPPEND root=UUID=x modules=ext4\n\
        LABEL other\n  MENU DEFAULT\n  kernel /k\n append initrd=/i ro\nlabel third\nlinux /t\n";

    #[test]
    fn labels_have_their_fields() {
        let conf = ExtlinuxConf::parse(ALPINE);
        assert_eq!(conf.labels[0].title.as_deref(), Some("Linux virt"));
        assert_eq!(conf.labels[0].initrds, ["initramfs-virt", "b"]);
        assert_eq!(conf.labels[1].initrds, ["/i"]);
        assert_eq!(conf.labels[1].append.as_deref(), Some("ro"));
        assert_eq!((conf.labels[2].append.as_deref(), conf.append.as_str()), (None, "global"));
    }

    #[test]
    fn default_is_menu_default_then_name_then_first() {
        let name = |text: &str| ExtlinuxConf::parse(text).default_label().map(|l| l.name.clone());
        assert_eq!(name(ALPINE).as_deref(), Some("other"));
        let two = "label a\nlinux /a\nlabel b\nlinux /b\n";
        assert_eq!(name(&format!("default b\n{two}")).as_deref(), Some("b"));
        assert_eq!(name(&format!("default x.c32\n{two}")).as_deref(), Some("a"));
        assert_eq!(name("label a\nlocalboot 0\n"), None);
    }
}

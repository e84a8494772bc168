//! Unified kernel images (UAPI.5): a PE file whose sections are kernel, initrd and command line.
//!
//! ```text
//! MZ … 3c: offset ─▶ "PE" · COFF header (20) · optional header · section headers (40 each)
//!                                                   .linux .initrd .ucode .cmdline .osrel .uname
//! ```
//! Layout: Microsoft "PE Format". Only the section table is read; nothing is relocated.

use super::bls;
use super::candidate::{Candidate, FileRef};
use super::filesystem::{Contents, FsError};
use super::limits::Limits;
use super::version;
use super::volumes::{VolumeId, Volumes};
use super::well_known;

const DIRECTORIES: [&str; 2] = ["/EFI/Linux", "/boot/EFI/Linux"];
const MAX_IMAGES: usize = 64;
/// A PE file may have 96 sections.
const MAX_SECTIONS: u16 = 96;
const SECTION_HEADER: usize = 40;
/// Largest text section that is read.
const MAX_TEXT: u64 = 64 << 10;

/// Where a section lies in the file: offset and length in bytes.
pub type Section = (u64, u64);

/// What is inside an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnifiedImage {
    /// `.linux`.
    pub linux: Option<Section>,
    /// `.ucode`, to be loaded before the initrd.
    pub microcode: Option<Section>,
    /// `.initrd`.
    pub initrd: Option<Section>,
    /// `.cmdline`.
    pub cmdline: Option<Section>,
    /// `.osrel`.
    pub os_release: Option<Section>,
}

impl UnifiedImage {
    /// Finds the sections. `read` fills a buffer from an offset on; `len` is the file's length.
    ///
    /// # Errors
    /// What `read` says, or [`FsError::Damaged`] for anything that is no PE file.
    pub fn parse(len: u64, read: impl Fn(&mut [u8], u64) -> Result<(), FsError>) -> Result<Self, FsError> {
        let no_pe = || FsError::Damaged("it is no PE file");
        let mut dos = [0; 64];
        if len < dos.len() as u64 {
            return Err(no_pe());
        }
        read(&mut dos, 0)?;
        let [.., p0, p1, p2, p3] = dos;
        let pe = u64::from(u32::from_le_bytes([p0, p1, p2, p3]));
        if !dos.starts_with(b"MZ") || pe + 24 > len {
            return Err(no_pe());
        }
        let mut header = [0; 24];
        read(&mut header, pe)?;
        let word = |low: usize| match header.get(low..low + 2) {
            Some(&[a, b]) => u16::from_le_bytes([a, b]),
            _ => 0,
        };
        let sections = word(6);
        let table = pe + 24 + u64::from(word(20));
        if !header.starts_with(b"PE\0\0") || sections > MAX_SECTIONS {
            return Err(no_pe());
        }
        let mut headers = vec![0; usize::from(sections) * SECTION_HEADER];
        if table + headers.len() as u64 > len {
            return Err(no_pe());
        }
        read(&mut headers, table)?;
        let mut image = Self::default();
        for header in headers.as_chunks::<SECTION_HEADER>().0 {
            image.add(header, len)?;
        }
        Ok(image)
    }

    fn add(&mut self, header: &[u8; SECTION_HEADER], file_len: u64) -> Result<(), FsError> {
        let [name, rest @ ..] = header.as_chunks::<8>().0 else {
            return Ok(());
        };
        // After the name: virtual size and address, raw size and offset.
        let word = |index: usize, half: usize| match rest.get(index) {
            Some(&[a, b, c, d, e, f, g, h]) => {
                u32::from_le_bytes(if half == 0 { [a, b, c, d] } else { [e, f, g, h] })
            }
            None => 0,
        };
        let (virtual_size, raw_size, place) = (word(0, 0), word(1, 0), u64::from(word(1, 1)));
        let slot = match name {
            b".linux\0\0" => &mut self.linux,
            b".initrd\0" => &mut self.initrd,
            b".ucode\0\0" => &mut self.microcode,
            b".cmdline" => &mut self.cmdline,
            b".osrel\0\0" => &mut self.os_release,
            _ => return Ok(()),
        };
        // The raw size is padded to the file's alignment, the virtual size is not.
        let size = match virtual_size {
            0 => raw_size,
            _ => raw_size.min(virtual_size),
        };
        if place + u64::from(size) > file_len {
            return Err(FsError::Damaged("a section lies outside the file"));
        }
        // Later sections of the same name belong to other profiles.
        slot.get_or_insert((place, u64::from(size)));
        Ok(())
    }
}

/// Unified images on `volume`, newest first, after the one that `loader.conf` wants.
pub(crate) fn candidates(volumes: &Volumes, volume: VolumeId, limits: &Limits) -> Vec<Candidate> {
    let Some(fs) = volumes.fs(volume) else {
        return Vec::new();
    };
    let default = bls::default_pattern(fs, "/loader", limits);
    let mut found = Vec::new();
    for directory in DIRECTORIES {
        let mut names = fs.list_dir(directory).unwrap_or_default();
        names.retain(|name| name.to_ascii_lowercase().ends_with(".efi"));
        names.truncate(MAX_IMAGES);
        for name in names {
            let path = format!("{directory}/{name}");
            let stem = name.get(..name.len().saturating_sub(4)).unwrap_or_default();
            let (id, exhausted) = bls::split_boot_counter(stem);
            if let Ok(contents) = fs.open(&path)
                && let Some(candidate) = candidate(volumes, volume, &path, &contents)
            {
                let wanted = default.as_ref().is_some_and(|pattern| pattern.matches(&id));
                found.push((exhausted, !wanted, id, candidate));
            }
        }
    }
    found.sort_by(|a, b| {
        let rank = (a.0, a.1).cmp(&(b.0, b.1));
        rank.then_with(|| version::compare(&b.2, &a.2))
    });
    found.into_iter().map(|(.., candidate)| candidate).collect()
}

fn candidate(volumes: &Volumes, volume: VolumeId, path: &str, contents: &Contents) -> Option<Candidate> {
    let read = |buf: &mut [u8], at: u64| contents.read_exact_at(buf, at);
    let image = UnifiedImage::parse(contents.len(), read).ok()?;
    let section = |section| FileRef { volume, path: path.to_owned(), section: Some(section) };
    let text = |(start, len): Section| {
        let mut bytes = vec![0; len.min(MAX_TEXT) as usize];
        contents.read_exact_at(&mut bytes, start).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_end_matches(['\0', '\n', ' ']).to_owned())
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    let title = image.os_release.and_then(text);
    let title = title.and_then(|text| well_known::pretty_name(&text));
    let cmdline = image.cmdline.and_then(text);
    Some(Candidate {
        title: title.unwrap_or_else(|| name.to_owned()),
        origin: format!("{name} on {}", volumes.describe(volume)),
        kernel: section(image.linux?),
        initrds: [image.microcode, image.initrd]
            .into_iter()
            .flatten()
            .filter(|(_, len)| *len > 0)
            .map(section)
            .collect(),
        cmdline: cmdline.unwrap_or_else(|| well_known::command_line(volumes, Some(volume))),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A PE file with the given sections.
    pub(crate) fn build(sections: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..2].copy_from_slice(b"MZ");
        file[60] = 64;
        file.extend(b"PE\0\0\x64\x86");
        file.extend((sections.len() as u16).to_le_bytes());
        file.extend([0; 12]);
        file.extend([0, 0, 0, 0]);
        let mut at = (file.len() + sections.len() * SECTION_HEADER).next_multiple_of(512);
        let mut body = Vec::new();
        for (name, contents) in sections {
            let mut header = [0; SECTION_HEADER];
            header[..name.len()].copy_from_slice(name);
            let padded = contents.len().next_multiple_of(512);
            header[8..12].copy_from_slice(&(contents.len() as u32).to_le_bytes());
            header[16..20].copy_from_slice(&(padded as u32).to_le_bytes());
            header[20..24].copy_from_slice(&(at as u32).to_le_bytes());
            file.extend(header);
            body.extend_from_slice(contents);
            body.resize(body.len().next_multiple_of(512), 0);
            at += padded;
        }
        file.resize(file.len().next_multiple_of(512), 0);
        file.extend(body);
        file
    }

    fn parse(file: &[u8]) -> Result<UnifiedImage, FsError> {
        UnifiedImage::parse(file.len() as u64, |buf, at| {
            let at = at as usize;
            buf.copy_from_slice(&file[at..at + buf.len()]);
            Ok(())
        })
    }

    #[test]
    fn sections_are_found_at_their_unpadded_length() {
        let file = build(&[(b".text", b"stub"), (b".linux", b"MZkernel"), (b".cmdline", b"quiet\0")]);
        let image = parse(&file).unwrap();
        assert_eq!(image.linux, Some((1024, 8)));
        assert_eq!(image.cmdline, Some((1536, 6)));
        assert_eq!(image.initrd, None);
    }

    #[test]
    fn damaged_files_are_refused() {
        let file = build(&[(b".linux", b"MZkernel")]);
        assert!(parse(&file[..10]).is_err());
        assert!(parse(&file[..80]).is_err());
        let truncated = &file[..file.len() - 1];
        assert!(parse(truncated).is_ok(), "the padding may be missing");
        assert!(parse(&file[..512]).is_err());
        let mut far = file.clone();
        far[60..64].fill(0xff);
        assert!(parse(&far).is_err());
        let mut many = file;
        many[70..72].fill(0xff);
        assert!(parse(&many).is_err());
    }
}

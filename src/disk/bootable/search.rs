//! The order of sources, and the step from what an entry names to files that are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bls::LoaderEntries;
use super::candidate::{Candidate, FileRef};
use super::entry::{BootEntry, BootFile};
use super::filesystem::FsError;
use super::grub::{Menu, Shell, parse_environment_block};
use super::limits::{Budget, Limits};
use super::volumes::{VolumeId, Volumes};
use super::{BootError, extlinux, uki, well_known};
use crate::partition::{TableKind, printable};

/// Where GRUB's configuration lies, on a root file system, a `/boot` partition or an ESP.
const GRUB_PLACES: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// Vendor directories on an ESP that are looked into.
const MAX_VENDORS: usize = 16;

/// Entries shown of one disk.
const MAX_ENTRIES: usize = 64;

/// A kind of boot configuration.
#[derive(Debug, Clone, Copy)]
enum Source {
    LoaderEntries,
    UnifiedImages,
    Grub,
    Extlinux,
    WellKnown,
}

/// In the order of preference.
const SOURCES: [Source; 5] =
    [Source::LoaderEntries, Source::UnifiedImages, Source::Grub, Source::Extlinux, Source::WellKnown];

/// A search on one disk.
pub(super) struct Search<'a> {
    volumes: &'a Volumes,
    limits: &'a Limits,
    budget: &'a Budget,
}

impl<'a> Search<'a> {
    pub(super) fn new(volumes: &'a Volumes, limits: &'a Limits, budget: &'a Budget) -> Self {
        Self { volumes, limits, budget }
    }

    /// The entry to boot, as written and opened.
    pub(super) fn default(&self) -> Result<(Candidate, BootEntry), BootError> {
        let mut first_error = None;
        for source in SOURCES {
            for (id, ..) in self.volumes.mounted() {
                let found = self.default_of(source, id).and_then(|candidate| {
                    let Some(candidate) = candidate else {
                        return Ok(None);
                    };
                    let entry = self.open(&candidate)?;
                    Ok(Some((candidate, entry)))
                });
                match found {
                    Ok(None) => {}
                    Ok(Some(found)) => return Ok(found),
                    Err(error) => {
                        first_error.get_or_insert(error);
                    }
                }
            }
        }
        if self.budget.is_exhausted() {
            return Err(BootError::Exhausted);
        }
        Err(first_error.unwrap_or_else(|| self.nothing()))
    }

    /// Every entry of every source, as far as they can be understood.
    pub(super) fn all(&self) -> Vec<Candidate> {
        let mut all = Vec::new();
        for source in SOURCES {
            for (id, ..) in self.volumes.mounted() {
                for found in self.all_of(source, id) {
                    if all.len() < MAX_ENTRIES && !all.contains(&found) {
                        all.push(found);
                    }
                }
            }
        }
        all
    }

    fn default_of(&self, source: Source, id: VolumeId) -> Result<Option<Candidate>, BootError> {
        match source {
            Source::LoaderEntries => Ok(self.loader_entries(id)),
            Source::UnifiedImages => Ok(self.unified(id).into_iter().next()),
            Source::Grub => self.grub(id),
            Source::Extlinux => Ok(self.extlinux(id).into_iter().next()),
            Source::WellKnown => Ok(well_known::candidate(self.volumes, id)),
        }
    }

    fn all_of(&self, source: Source, id: VolumeId) -> Vec<Candidate> {
        match source {
            Source::LoaderEntries => {
                let entries = LoaderEntries::read(self.volumes, id, self.limits);
                let variables = self.grub_variables(id);
                let candidates = entries.map(|e| e.candidates(self.volumes, variables.as_ref()));
                let candidates = candidates.unwrap_or_default().into_iter();
                candidates.map(|(_, candidate)| candidate).collect()
            }
            Source::UnifiedImages => self.unified(id),
            Source::Grub => self.grub_menu(id),
            Source::Extlinux => self.extlinux(id),
            Source::WellKnown => well_known::candidate(self.volumes, id).into_iter().collect(),
        }
    }

    /// Says what the disk has instead of a kernel.
    fn nothing(&self) -> BootError {
        let readable = self.volumes.mounted().map(|(_, volume, _)| volume);
        let readable: Vec<_> = readable.map(ToString::to_string).collect();
        let unreadable = self.volumes.iter().filter_map(|(_, volume)| volume.problem());
        let unreadable: Vec<_> = unreadable.collect();
        match (readable.is_empty(), unreadable.is_empty()) {
            (true, true) if self.volumes.kind == TableKind::None => BootError::Nothing,
            (true, true) => BootError::NoFileSystem("no file system on any partition".to_owned()),
            (true, false) => BootError::NoFileSystem(unreadable.join(", ")),
            (false, true) => BootError::NoEntry(readable.join(", ")),
            // The root is probably among those that cannot be read.
            (false, false) => BootError::NoFileSystem(format!(
                "no kernel on {}; {}",
                readable.join(", "),
                unreadable.join(", ")
            )),
        }
    }

    /// GRUB's variables as far as loader entries may use them.
    fn grub_variables(&self, id: VolumeId) -> Option<BTreeMap<String, String>> {
        let fs = self.volumes.fs(id)?;
        let mut variables = BTreeMap::new();
        let mut any = false;
        for place in GRUB_PLACES {
            if let Ok(Some(shell)) = self.run_grub(id, place) {
                variables.extend(shell.variables().clone());
                any = true;
            }
            let environment = place.replace("grub.cfg", "grubenv");
            if let Ok(bytes) = fs.read_file(&environment, self.limits.config) {
                variables.extend(parse_environment_block(&bytes));
                any = true;
            }
        }
        any.then_some(variables)
    }

    fn loader_entries(&self, id: VolumeId) -> Option<Candidate> {
        let entries = LoaderEntries::read(self.volumes, id, self.limits)?;
        let variables = self.grub_variables(id);
        let default = entries.default_index(variables.as_ref());
        let mut candidates = entries.candidates(self.volumes, variables.as_ref());
        (default < candidates.len()).then(|| candidates.swap_remove(default).1)
    }

    fn unified(&self, id: VolumeId) -> Vec<Candidate> {
        uki::candidates(self.volumes, id, self.limits)
    }

    fn extlinux(&self, id: VolumeId) -> Vec<Candidate> {
        extlinux::candidates(self.volumes, id, self.limits).unwrap_or_default()
    }

    /// Paths at which `grub.cfg` may be. Vendor directories of an ESP come last: what is there
    /// mostly points elsewhere.
    fn grub_places(&self, id: VolumeId) -> Vec<String> {
        let mut places: Vec<String> = GRUB_PLACES.map(str::to_owned).into();
        if let Some(fs) = self.volumes.fs(id) {
            let vendors = fs.list_dir("/EFI").unwrap_or_default();
            let stub = |vendor: &String| format!("/EFI/{vendor}/grub.cfg");
            places.extend(vendors.iter().take(MAX_VENDORS).map(stub));
        }
        places
    }

    fn grub(&self, id: VolumeId) -> Result<Option<Candidate>, BootError> {
        for place in self.grub_places(id) {
            let Some(mut shell) = self.run_grub(id, &place)? else {
                continue;
            };
            let origin = self.grub_origin(id);
            let menu = Menu::take(&mut shell, origin.clone());
            let found = menu.default_entry(&mut shell);
            let failed = |source| BootError::Script { origin: origin.clone(), source };
            if let Some(found) = found.map_err(failed)? {
                return Ok(Some(found));
            }
            if let Some((title, path)) = shell.unreachable.take() {
                return Err(BootError::Unreachable {
                    origin,
                    title: printable(&title),
                    path: printable(&path),
                });
            }
        }
        Ok(None)
    }

    fn grub_menu(&self, id: VolumeId) -> Vec<Candidate> {
        let mut all = Vec::new();
        for place in self.grub_places(id) {
            if let Ok(Some(mut shell)) = self.run_grub(id, &place) {
                let menu = Menu::take(&mut shell, self.grub_origin(id));
                all.extend(menu.all(&mut shell, MAX_ENTRIES).unwrap_or_default());
            }
        }
        all
    }

    fn grub_origin(&self, id: VolumeId) -> String {
        format!("grub.cfg on {}", self.volumes.describe(id))
    }

    /// Runs a configuration; `Ok(None)` where there is none.
    fn run_grub(&self, id: VolumeId, place: &str) -> Result<Option<Shell<'a>>, BootError> {
        let Some(fs) = self.volumes.fs(id) else {
            return Ok(None);
        };
        let bytes = match fs.read_file(place, self.limits.config) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(source) => {
                return Err(BootError::File {
                    origin: self.volumes.describe(id),
                    title: "GRUB".to_owned(),
                    file: place.to_owned(),
                    source,
                });
            }
        };
        let mut shell = Shell::new(self.volumes, self.limits, self.budget);
        shell
            .run_config(id, place, &String::from_utf8_lossy(&bytes))
            .map_err(|source| BootError::Script { origin: self.grub_origin(id), source })?;
        Ok(Some(shell))
    }

    /// Opens the files of an entry and holds them against the limits.
    pub(super) fn open(&self, candidate: &Candidate) -> Result<BootEntry, BootError> {
        let kernel = self.open_file(candidate, &candidate.kernel, self.limits.kernel)?;
        let mut left = self.limits.initrd;
        let mut initrds = Vec::with_capacity(candidate.initrds.len());
        for file in &candidate.initrds {
            let initrd = self.open_file(candidate, file, left)?;
            left = left.saturating_sub(initrd.len());
            initrds.push(initrd);
        }
        let is_text = |c: &char| !c.is_control();
        Ok(BootEntry {
            title: printable(&candidate.title),
            origin: candidate.origin.clone(),
            kernel,
            initrds,
            cmdline: candidate.cmdline.trim().chars().filter(is_text).collect(),
        })
    }

    /// Path and partition of a file, for people.
    pub(super) fn place(&self, file: &FileRef) -> String {
        let path = printable(&file.path);
        format!("{path} on {}", self.volumes.describe(file.volume))
    }

    fn open_file(&self, candidate: &Candidate, file: &FileRef, limit: u64) -> Result<BootFile, BootError> {
        let place = self.place(file);
        let failed = |source| BootError::File {
            origin: candidate.origin.clone(),
            title: printable(&candidate.title),
            file: place.clone(),
            source,
        };
        let fs = self.volumes.fs(file.volume);
        let contents = fs.ok_or(FsError::NotFound).and_then(|fs| fs.open(&file.path)).map_err(failed)?;
        let (start, len) = file.section.unwrap_or((0, contents.len()));
        let inside = start.checked_add(len).is_some_and(|end| end <= contents.len());
        if !inside || len == 0 {
            return Err(failed(FsError::Damaged("the file is empty or cut short")));
        }
        if len > limit {
            return Err(failed(FsError::TooLarge { size: len, limit }));
        }
        Ok(BootFile::new(Arc::new(contents), start, len, place))
    }
}

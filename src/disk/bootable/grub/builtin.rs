//! The commands that matter for finding a kernel (GRUB manual §16.3).
//!
//! What is not here fails silently, like a command whose module is missing. That is right for all of
//! `keystatus`, `loadfont`, `background_image`, `cpuid`, … whose failure leads a configuration down
//! its plainest path.

use super::super::bls::LoaderEntries;
use super::super::candidate::FileRef;
use super::super::filesystem::NodeKind;
use super::super::volumes::VolumeId;
use super::ScriptError;
use super::environment::parse_environment_block;
use super::menu::{Action, Item, MAX_ITEMS};
use super::parser::Block;
use super::shell::{Leave, Shell};
use super::test_command::{self, Files};

/// Runs one command and tells whether it succeeded.
pub(super) fn run(
    shell: &mut Shell<'_>,
    words: &[String],
    block: Option<&Block>,
) -> Result<bool, ScriptError> {
    let Some((name, arguments)) = words.split_first() else {
        return Ok(true);
    };
    if let Some(body) = shell.function(name) {
        return shell.call(&body, arguments);
    }
    match name.as_str() {
        "!" => return Ok(!run(shell, arguments, block)?),
        "[" | "test" => return Ok(test(shell, name, arguments)),
        "set" => return Ok(arguments.first().is_none_or(|word| assign(shell, word))),
        "unset" => arguments.iter().for_each(|name| shell.unset(name)),
        "load_env" => return Ok(load_env(shell, arguments)),
        "menuentry" | "submenu" => return Ok(add_item(shell, name, arguments, block)),
        "search" => return Ok(search(shell, arguments)),
        "search.fs_uuid" | "search.fs_label" | "search.file" => {
            let kind = name.replace("search.", "--").replace("fs_", "fs-");
            return Ok(short_search(shell, &kind, arguments));
        }
        "probe" => return Ok(probe(shell, arguments)),
        "linux" | "linux16" | "linuxefi" => linux(shell, arguments),
        "initrd" | "initrd16" | "initrdefi" => initrd(shell, arguments),
        "source" | "." => return source(shell, arguments),
        "configfile" | "extract_entries_configfile" => return configfile(shell, arguments),
        "normal" if !arguments.is_empty() => return configfile(shell, arguments),
        "blscfg" => shell.add_loader_entries()?,
        "break" => shell.leave = Some(Leave::Break),
        "continue" => shell.leave = Some(Leave::Continue),
        "return" => {
            shell.leave = Some(Leave::Return);
            return Ok(arguments.first().is_none_or(|status| status == "0"));
        }
        "exit" => shell.leave = Some(Leave::Script),
        "shift" | "setparams" | "eval" | "false" => return Ok(false),
        "true" | "echo" | "export" | "insmod" | "save_env" | "serial" | "terminal_input"
        | "terminal_output" | "clear" | "sleep" | "boot" | "normal" => {}
        _ => return Ok(assign(shell, name)),
    }
    Ok(true)
}

/// `name=value`; anything else is no assignment.
fn assign(shell: &mut Shell<'_>, word: &str) -> bool {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match word.split_once('=') {
        Some((name, value)) if is_name(name) => {
            shell.set(name, value);
            true
        }
        _ => false,
    }
}

fn test(shell: &Shell<'_>, name: &str, words: &[String]) -> bool {
    let words = match words.split_last() {
        Some((last, words)) if name == "[" && last == "]" => words,
        _ if name == "[" => return false,
        _ => words,
    };
    test_command::evaluate(words, shell)
}

impl Files for Shell<'_> {
    fn look_up(&self, path: &str) -> Option<(NodeKind, u64)> {
        let file = self.locate(path)?;
        let fs = self.volumes.fs(file.volume)?;
        let kind = fs.stat(&file.path).ok()?;
        let size = match kind {
            NodeKind::File => fs.open(&file.path).ok()?.len(),
            _ => 0,
        };
        Some((kind, size))
    }
}

impl Shell<'_> {
    /// `(device)/path`, or `/path` on the device that `root` names.
    pub(super) fn locate(&self, path: &str) -> Option<FileRef> {
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (self.get("root"), path),
        };
        let device = device.trim_start_matches('(').trim_end_matches(')');
        let volume = self.volumes.by_grub_device(device)?;
        Some(FileRef::whole(volume, path))
    }

    /// Reads a configuration file. Its size is charged when it is used.
    fn read_config(&self, path: &str) -> Option<Vec<u8>> {
        let file = self.locate(path)?;
        let fs = self.volumes.fs(file.volume)?;
        fs.read_file(&file.path, self.limits.config).ok()
    }
}

fn load_env(shell: &mut Shell<'_>, arguments: &[String]) -> bool {
    let mut file = format!("{}/grubenv", shell.get("prefix"));
    let mut wanted = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-f" | "--file" => match arguments.next() {
                Some(path) => file.clone_from(path),
                None => return false,
            },
            "-s" | "--skip-sig" => {}
            name => match name.strip_prefix("--file=") {
                Some(path) => path.clone_into(&mut file),
                None => wanted.push(name),
            },
        }
    }
    let Some(bytes) = shell.read_config(&file) else {
        return false;
    };
    for (name, value) in parse_environment_block(&bytes) {
        // See the module's head: what is picked for one boot must not be picked for all.
        let once = name == "next_entry";
        if !once && (wanted.is_empty() || wanted.contains(&name.as_str())) {
            shell.set(&name, &value);
        }
    }
    true
}

fn add_item(shell: &mut Shell<'_>, command: &str, arguments: &[String], block: Option<&Block>) -> bool {
    let mut id = None;
    let mut positional = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--class" | "--users" | "--hotkey" | "--source" => {
                arguments.next();
            }
            "--id" => id = arguments.next().cloned(),
            option if option.starts_with("--") => {
                if let Some(value) = option.strip_prefix("--id=") {
                    id = Some(value.to_owned());
                }
            }
            _ => positional.push(argument.clone()),
        }
    }
    let (Some(title), Some(body)) = (positional.first().cloned(), block) else {
        return false;
    };
    let body = Block::clone(body);
    let action =
        if command == "submenu" { Action::Submenu(body, positional) } else { Action::Boot(body, positional) };
    shell.add_to_menu(Item { title, id, action });
    true
}

impl Shell<'_> {
    /// Adds a line to the menu unless it is full.
    pub(super) fn add_to_menu(&mut self, item: Item) {
        if self.items.len() < MAX_ITEMS {
            self.items.push(item);
        }
    }
}

/// `search.fs_uuid UUID VARIABLE HINT…`, as in the stub on an EFI system partition.
fn short_search(shell: &mut Shell<'_>, kind: &str, arguments: &[String]) -> bool {
    let Some(what) = arguments.first() else {
        return false;
    };
    let variable = arguments.get(1).map_or("root", String::as_str);
    let found = find_volume(shell, kind, what);
    set_to_device(shell, variable, found)
}

fn search(shell: &mut Shell<'_>, arguments: &[String]) -> bool {
    let mut kind = "--file";
    let mut variable = "root".to_owned();
    let mut what = None;
    let mut arguments = arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-u" | "--fs-uuid" => kind = "--fs-uuid",
            "-l" | "--label" | "--fs-label" => kind = "--fs-label",
            "-f" | "--file" => kind = "--file",
            "-s" | "--set" => {
                // The name is optional: what is left for the end of the line is what is sought.
                let names_variable = arguments
                    .peek()
                    .is_some_and(|next| !next.starts_with('-') && is_variable_name(next) && what.is_none());
                if names_variable
                    && arguments.len() > 1
                    && let Some(name) = arguments.next()
                {
                    variable.clone_from(name);
                }
            }
            "--hint" | "--hint-ieee1275" | "--hint-bios" | "--hint-baremetal" | "--hint-efi"
            | "--hint-arc" => {
                arguments.next();
            }
            option if option.starts_with('-') => {
                if let Some(name) = option.strip_prefix("--set=") {
                    name.clone_into(&mut variable);
                }
            }
            _ => what = what.or(Some(argument.clone())),
        }
    }
    let Some(what) = what else {
        return false;
    };
    let found = find_volume(shell, kind, &what);
    set_to_device(shell, &variable, found)
}

fn is_variable_name(word: &str) -> bool {
    !word.is_empty()
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !word.starts_with(|c: char| c.is_ascii_digit())
}

fn find_volume(shell: &Shell<'_>, kind: &str, what: &str) -> Option<VolumeId> {
    match kind {
        "--fs-uuid" => shell.volumes.by_uuid(what),
        "--fs-label" => shell.volumes.by_label(what),
        _ => shell.volumes.by_file(what),
    }
}

fn set_to_device(shell: &mut Shell<'_>, variable: &str, found: Option<VolumeId>) -> bool {
    let Some(found) = found else {
        return false;
    };
    let device = shell.volumes.grub_device(found);
    shell.set(variable, &device);
    true
}

/// `probe --set=VARIABLE --fs-uuid DEVICE`.
fn probe(shell: &mut Shell<'_>, arguments: &[String]) -> bool {
    let mut variable = None;
    let mut what = None;
    let mut device = None;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-s" | "--set" => variable = arguments.next().cloned(),
            "-u" | "--fs-uuid" | "-l" | "--label" | "-f" | "--fs" => {
                what = Some(argument.trim_start_matches('-').to_owned());
            }
            option => match option.strip_prefix("--set=") {
                Some(name) => variable = Some(name.to_owned()),
                None if option.starts_with('-') => return false,
                None => device = Some(option.trim_matches(['(', ')']).to_owned()),
            },
        }
    }
    let (Some(variable), Some(what), Some(device)) = (variable, what, device) else {
        return false;
    };
    let volume = shell.volumes.by_grub_device(&device);
    let Some(fs) = volume.and_then(|volume| shell.volumes.fs(volume)) else {
        return false;
    };
    let value = match what.as_str() {
        "u" | "fs-uuid" => fs.uuid(),
        "l" | "label" => fs.label(),
        _ => Some(fs.kind().to_string().to_lowercase()),
    };
    shell.set(&variable, &value.unwrap_or_default());
    true
}

/// GRUB protects blanks, quotes and backslashes of an argument when it joins them.
fn join_arguments(arguments: &[String]) -> String {
    let quoted = |argument: &String| {
        let mut text = String::new();
        let has_blank = argument.contains(' ');
        if has_blank {
            text.push('"');
        }
        for c in argument.chars() {
            if matches!(c, '\\' | '"' | '\'') {
                text.push('\\');
            }
            text.push(c);
        }
        if has_blank {
            text.push('"');
        }
        text
    };
    let arguments: Vec<_> = arguments.iter().map(quoted).collect();
    arguments.join(" ")
}

fn linux(shell: &mut Shell<'_>, arguments: &[String]) {
    let Some((path, arguments)) = arguments.split_first() else {
        return;
    };
    // As in GRUB, another kernel forgets the initrds of the one before.
    shell.loaded.initrds.clear();
    match shell.locate(path) {
        Some(kernel) => shell.loaded.kernel = Some((kernel, join_arguments(arguments))),
        None => shell.loaded.missing = Some(path.clone()),
    }
}

fn initrd(shell: &mut Shell<'_>, arguments: &[String]) {
    const MAX_INITRDS: usize = 32;
    shell.loaded.initrds.clear();
    for path in arguments.iter().take(MAX_INITRDS) {
        match shell.locate(path) {
            Some(file) => shell.loaded.initrds.push(file),
            None => shell.loaded.missing = Some(path.clone()),
        }
    }
}

fn source(shell: &mut Shell<'_>, arguments: &[String]) -> Result<bool, ScriptError> {
    let Some(bytes) = arguments.first().and_then(|path| shell.read_config(path)) else {
        return Ok(false);
    };
    shell.run_text(&String::from_utf8_lossy(&bytes))
}

/// Starts over with another file. The menu so far is not shown any more.
fn configfile(shell: &mut Shell<'_>, arguments: &[String]) -> Result<bool, ScriptError> {
    let Some(path) = arguments.first().cloned() else {
        return Ok(false);
    };
    let Some(bytes) = shell.read_config(&path) else {
        return Ok(false);
    };
    let device = shell.get("root").to_owned();
    let path = match path.starts_with('(') {
        true => path,
        false => format!("({device}){path}"),
    };
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    shell.set("config_directory", directory);
    shell.set("config_file", &path);
    shell.items.clear();
    shell.run_text(&String::from_utf8_lossy(&bytes))?;
    shell.leave = Some(Leave::Script);
    Ok(true)
}

impl Shell<'_> {
    /// `blscfg`: the loader entries of the device in `root`, or of any other, become the menu.
    fn add_loader_entries(&mut self) -> Result<(), ScriptError> {
        let root = self.volumes.by_grub_device(self.get("root"));
        let others = self.volumes.mounted().map(|(id, ..)| id);
        let entries =
            root.into_iter().chain(others).find_map(|id| LoaderEntries::read(self.volumes, id, &self.limits));
        let Some(entries) = entries else {
            return Ok(());
        };
        let candidates = entries.candidates(self.volumes, Some(self.variables()));
        for (id, candidate) in candidates {
            self.charge(candidate.cmdline.len())?;
            self.add_to_menu(Item {
                title: candidate.title.clone(),
                id: Some(id),
                action: Action::Ready(candidate),
            });
        }
        Ok(())
    }
}

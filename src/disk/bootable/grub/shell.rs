//! Runs scripts: variables, control flow, and the limits on both.
//!
//! Invariant: every command costs at least one step, and what a command costs grows with the bytes
//! it handles, so that a script's time and memory are bounded by [`Limits::steps`].

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::super::limits::{Budget, Limits};
use super::super::volumes::{VolumeId, Volumes};
use super::lexer::{Part, Word};
use super::menu::Item;
use super::parser::{Block, Command, parse};
use super::{ScriptError, builtin};
use crate::bootable::candidate::FileRef;

/// Functions and files within each other.
const MAX_DEPTH: u32 = 32;
/// Bytes that the words of one command may have after expansion. Linux takes a command line of 2 KiB.
const MAX_COMMAND: usize = 64 << 10;
/// Bytes that all names and values of variables may have.
const MAX_VARIABLES: usize = 1 << 20;
/// Bytes of script count this many times: parsed, they take that much memory.
const PARSED_BYTE: usize = 16;
/// Bytes that are as much work as one step.
const BYTES_PER_STEP: u64 = 256;

/// Why a block ended before its last command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    Break,
    Continue,
    Return,
    /// `exit`, `configfile`, `normal`: nothing of the script runs any more.
    Script,
}

/// What `linux` and `initrd` have set up so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Loaded {
    pub(super) kernel: Option<(FileRef, String)>,
    pub(super) initrds: Vec<FileRef>,
    /// A `linux` or `initrd` whose device is not on this disk.
    pub(super) missing: Option<String>,
}

/// GRUB's command interpreter, for the file systems of one disk.
pub(crate) struct Shell<'a> {
    pub(super) volumes: &'a Volumes,
    pub(super) limits: Limits,
    budget: &'a Budget,
    depth: u32,
    variables: BTreeMap<String, String>,
    variable_bytes: usize,
    functions: HashMap<String, Block>,
    positional: Rc<[String]>,
    pub(super) leave: Option<Leave>,
    pub(super) items: Vec<Item>,
    pub(super) loaded: Loaded,
    /// Title and path of the first entry that needs a device which is not there.
    pub(crate) unreachable: Option<(String, String)>,
}

/// What an entry's commands may change without the other entries seeing it.
pub(super) struct Saved {
    variables: BTreeMap<String, String>,
    variable_bytes: usize,
    functions: HashMap<String, Block>,
    positional: Rc<[String]>,
    items: Vec<Item>,
    loaded: Loaded,
}

impl<'a> Shell<'a> {
    /// A shell as GRUB starts it on a PC. Its steps are paid from `budget`.
    pub(crate) fn new(volumes: &'a Volumes, limits: &Limits, budget: &'a Budget) -> Self {
        let mut shell = Self {
            volumes,
            limits: *limits,
            budget,
            depth: 0,
            variables: BTreeMap::new(),
            variable_bytes: 0,
            functions: HashMap::new(),
            positional: Rc::from([]),
            leave: None,
            items: Vec::new(),
            loaded: Loaded::default(),
            unreachable: None,
        };
        for (name, value) in [
            ("grub_cpu", "i386"),
            ("grub_platform", "pc"),
            ("feature_200_final", "y"),
            ("feature_all_video_module", "y"),
            ("feature_chainloader_bpb", "y"),
            ("feature_default_font_path", "y"),
            ("feature_menuentry_id", "y"),
            ("feature_menuentry_options", "y"),
            ("feature_nativedisk_cmd", "y"),
            ("feature_ntldr", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_timeout_style", "y"),
        ] {
            shell.set(name, value);
        }
        shell
    }

    /// Runs `path` of `volume` as GRUB runs its `grub.cfg`: `root`, `prefix` and the directory of the
    /// configuration are where the file is.
    ///
    /// # Errors
    /// The limits, nonsense in the file, or [`ScriptError::TooLong`] for a file that is too large.
    pub(crate) fn run_config(&mut self, volume: VolumeId, path: &str, text: &str) -> Result<(), ScriptError> {
        let device = self.volumes.grub_device(volume);
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        self.set("root", &device);
        self.set("prefix", &format!("({device}){directory}"));
        self.set("config_directory", &format!("({device}){directory}"));
        self.set("config_file", &format!("({device}){path}"));
        self.run_text(text)?;
        self.leave = None;
        Ok(())
    }

    /// Runs a script. Its size is charged.
    pub(super) fn run_text(&mut self, text: &str) -> Result<bool, ScriptError> {
        self.charge(text.len().saturating_mul(PARSED_BYTE))?;
        let block = parse(text)?;
        self.nested(|shell| shell.run(&block))
    }

    /// Pays for a command that handles `bytes`.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), ScriptError> {
        let price = 1 + bytes as u64 / BYTES_PER_STEP;
        self.budget.step(price).map_err(|_| ScriptError::TooLong)
    }

    /// Value of a variable; empty when unset.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    /// All variables.
    pub(crate) fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Sets a variable. Does nothing when the variables would take too much memory.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        let bytes = name.len() + value.len();
        if self.variable_bytes + bytes > MAX_VARIABLES {
            return;
        }
        self.variable_bytes += bytes;
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(value) = self.variables.remove(name) {
            self.variable_bytes = self.variable_bytes.saturating_sub(name.len() + value.len());
        }
    }

    pub(super) fn define(&mut self, name: &str, body: &Block) {
        self.functions.insert(name.to_owned(), Rc::clone(body));
    }

    pub(super) fn function(&self, name: &str) -> Option<Block> {
        self.functions.get(name).cloned()
    }

    /// Does something that may come back here.
    pub(super) fn nested<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, ScriptError>,
    ) -> Result<T, ScriptError> {
        if self.depth >= MAX_DEPTH {
            return Err(ScriptError::TooDeep);
        }
        self.depth += 1;
        let result = act(self);
        self.depth -= 1;
        result
    }

    /// Runs a block with its own `$1`, `$2`, ….
    pub(super) fn call(&mut self, body: &Block, arguments: &[String]) -> Result<bool, ScriptError> {
        let before = std::mem::replace(&mut self.positional, arguments.into());
        let status = self.nested(|shell| shell.run(body));
        self.positional = before;
        if self.leave == Some(Leave::Return) {
            self.leave = None;
        }
        status
    }

    /// Runs an entry or submenu on a copy of everything it could change, and takes out what it
    /// loaded and listed.
    pub(super) fn isolated(
        &mut self,
        body: &Block,
        arguments: &[String],
        title: &str,
    ) -> Result<(Loaded, Vec<Item>), ScriptError> {
        self.charge(self.variable_bytes)?;
        let saved = Saved {
            variables: self.variables.clone(),
            variable_bytes: self.variable_bytes,
            functions: self.functions.clone(),
            positional: Rc::clone(&self.positional),
            items: std::mem::take(&mut self.items),
            loaded: std::mem::take(&mut self.loaded),
        };
        self.set("chosen", title);
        let result = self.call(body, arguments);
        self.leave = None;
        self.variables = saved.variables;
        self.variable_bytes = saved.variable_bytes;
        self.functions = saved.functions;
        self.positional = saved.positional;
        let items = std::mem::replace(&mut self.items, saved.items);
        let loaded = std::mem::replace(&mut self.loaded, saved.loaded);
        result?;
        Ok((loaded, items))
    }

    /// Runs commands and tells whether the last one succeeded.
    fn run(&mut self, block: &[Command]) -> Result<bool, ScriptError> {
        let mut status = true;
        for command in block {
            status = self.command(command)?;
            if self.leave.is_some() {
                break;
            }
        }
        Ok(status)
    }

    fn command(&mut self, command: &Command) -> Result<bool, ScriptError> {
        self.charge(0)?;
        let status = match command {
            Command::Simple { words, block } => {
                let words = self.expand(words)?;
                builtin::run(self, &words, block.as_ref())?
            }
            Command::If { branches, otherwise } => return self.conditional(branches, otherwise),
            Command::For { variable, words, body } => return self.for_each(variable, words, body),
            Command::While { condition, until, body } => return self.repeat(condition, *until, body),
            Command::Function { name, body } => {
                self.define(name, body);
                true
            }
        };
        self.set("?", if status { "0" } else { "1" });
        Ok(status)
    }

    fn conditional(&mut self, branches: &[(Block, Block)], otherwise: &Block) -> Result<bool, ScriptError> {
        for (condition, body) in branches {
            let holds = self.run(condition)?;
            if self.leave.is_some() {
                return Ok(holds);
            }
            if holds {
                return self.run(body);
            }
        }
        self.run(otherwise)
    }

    fn for_each(&mut self, variable: &str, words: &[Word], body: &Block) -> Result<bool, ScriptError> {
        let mut status = true;
        for value in self.expand(words)? {
            self.charge(value.len())?;
            self.set(variable, &value);
            status = self.run(body)?;
            if self.ends_loop() {
                break;
            }
        }
        Ok(status)
    }

    fn repeat(&mut self, condition: &Block, until: bool, body: &Block) -> Result<bool, ScriptError> {
        let mut status = true;
        loop {
            self.charge(0)?;
            if self.run(condition)? == until || self.leave.is_some() {
                return Ok(status);
            }
            status = self.run(body)?;
            if self.ends_loop() {
                return Ok(status);
            }
        }
    }

    /// Whether `break` or something stronger ends the loop that just ran its body.
    fn ends_loop(&mut self) -> bool {
        match self.leave {
            None => false,
            Some(Leave::Continue) => {
                self.leave = None;
                false
            }
            Some(Leave::Break) => {
                self.leave = None;
                true
            }
            Some(Leave::Return | Leave::Script) => true,
        }
    }

    /// Replaces variables. Outside quotes their values are split at blanks; a word that comes to
    /// nothing without quotes vanishes.
    fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, ScriptError> {
        let mut expanded = Vec::new();
        let mut bytes = 0;
        for word in words {
            let mut current: Option<String> = None;
            for part in &word.0 {
                match part {
                    Part::Literal { text, .. } => {
                        bytes += text.len();
                        current.get_or_insert_default().push_str(text);
                    }
                    Part::Variable { name, quoted } => {
                        let value = self.lookup(name);
                        bytes += value.len();
                        if bytes > MAX_COMMAND {
                            return Err(ScriptError::TooLong);
                        }
                        if *quoted {
                            current.get_or_insert_default().push_str(&value);
                        } else {
                            split_into(&value, &mut current, &mut expanded);
                        }
                    }
                }
            }
            bytes += 1;
            expanded.extend(current);
            if bytes > MAX_COMMAND {
                return Err(ScriptError::TooLong);
            }
        }
        self.charge(bytes)?;
        Ok(expanded)
    }

    fn lookup(&self, name: &str) -> String {
        match name {
            "*" | "@" => self.positional.join(" "),
            "#" => self.positional.len().to_string(),
            _ => match name.parse::<usize>() {
                // $0 is the name of the script, which nobody uses.
                Ok(index) => {
                    let argument = index.checked_sub(1).and_then(|i| self.positional.get(i));
                    argument.cloned().unwrap_or_default()
                }
                Err(_) => self.get(name).to_owned(),
            },
        }
    }
}

/// Appends `value` to the word under construction; blanks within end that word and begin another.
fn split_into(value: &str, current: &mut Option<String>, done: &mut Vec<String>) {
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\n');
    for (index, piece) in value.split(is_blank).enumerate() {
        if index > 0 {
            done.extend(current.take());
        }
        if !piece.is_empty() {
            current.get_or_insert_default().push_str(piece);
        }
    }
}

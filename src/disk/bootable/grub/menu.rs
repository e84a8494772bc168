//! The menu that a configuration builds, and the choice of the default entry.

use super::super::candidate::Candidate;
use super::ScriptError;
use super::parser::Block;
use super::shell::{Loaded, Shell};

/// Entries in one menu; more are ignored.
pub(super) const MAX_ITEMS: usize = 256;
/// Submenus within each other.
const MAX_LEVELS: usize = 4;

/// A line of the menu.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) title: String,
    pub(super) id: Option<String>,
    pub(super) action: Action,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    /// `menuentry`: commands that load a kernel, and `$1`, `$2`, ….
    Boot(Block, Vec<String>),
    /// `submenu`: commands that build another menu.
    Submenu(Block, Vec<String>),
    /// From `blscfg`: nothing to run.
    Ready(Candidate),
}

/// The menu after the configuration ran.
pub(crate) struct Menu {
    items: Vec<Item>,
    default: String,
    /// `grub.cfg on partition 1 (ext4)`.
    origin: String,
}

impl Menu {
    /// Takes what `shell` has built.
    pub(crate) fn take(shell: &mut Shell<'_>, origin: String) -> Self {
        let mut items = std::mem::take(&mut shell.items);
        // `linux` outside any entry: GRUB boots that when there is no menu.
        if items.is_empty() && shell.loaded.kernel.is_some() {
            let loaded = std::mem::take(&mut shell.loaded);
            if let Some(candidate) = candidate(loaded, "grub.cfg", &origin) {
                items.push(Item {
                    title: candidate.title.clone(),
                    id: None,
                    action: Action::Ready(candidate),
                });
            }
        }
        Self { items, default: shell.get("default").to_owned(), origin }
    }

    /// The entry that GRUB boots when nobody touches a key. Where that is not a Linux kernel (a
    /// firmware menu, a memory test), the first that is.
    ///
    /// # Errors
    /// The limits of `shell`.
    pub(crate) fn default_entry(&self, shell: &mut Shell<'_>) -> Result<Option<Candidate>, ScriptError> {
        let path = split_path(&self.default);
        if let Some(found) = self.follow(shell, &self.items, &path, 0)? {
            return Ok(Some(found));
        }
        Ok(self.all_within(shell, &self.items, 0, 1)?.pop())
    }

    /// At most `limit` entries that load a Linux kernel, submenus included, in the menu's order.
    ///
    /// # Errors
    /// The limits of `shell`.
    pub(crate) fn all(&self, shell: &mut Shell<'_>, limit: usize) -> Result<Vec<Candidate>, ScriptError> {
        self.all_within(shell, &self.items, 0, limit)
    }

    fn follow(
        &self,
        shell: &mut Shell<'_>,
        items: &[Item],
        path: &[String],
        level: usize,
    ) -> Result<Option<Candidate>, ScriptError> {
        let (wanted, rest) = match path.split_first() {
            Some((first, rest)) => (first.as_str(), rest),
            None => ("0", path),
        };
        // A default that names nothing counts as the first entry.
        let Some(item) = pick(items, wanted).or(items.first()) else {
            return Ok(None);
        };
        match &item.action {
            Action::Submenu(..) if level >= MAX_LEVELS => Ok(None),
            Action::Submenu(body, arguments) => {
                let (_, items) = shell.isolated(body, arguments, &item.title)?;
                self.follow(shell, &items, rest, level + 1)
            }
            _ => self.load(shell, item),
        }
    }

    fn all_within(
        &self,
        shell: &mut Shell<'_>,
        items: &[Item],
        level: usize,
        limit: usize,
    ) -> Result<Vec<Candidate>, ScriptError> {
        let mut found = Vec::new();
        for item in items {
            if found.len() >= limit {
                break;
            }
            if let Action::Submenu(body, arguments) = &item.action {
                if level < MAX_LEVELS {
                    let (_, inner) = shell.isolated(body, arguments, &item.title)?;
                    found.extend(self.all_within(shell, &inner, level + 1, limit - found.len())?);
                }
            } else {
                found.extend(self.load(shell, item)?);
            }
        }
        Ok(found)
    }

    fn load(&self, shell: &mut Shell<'_>, item: &Item) -> Result<Option<Candidate>, ScriptError> {
        match &item.action {
            Action::Ready(candidate) => Ok(Some(candidate.clone())),
            Action::Boot(body, arguments) => {
                let (loaded, _) = shell.isolated(body, arguments, &item.title)?;
                if let Some(path) = loaded.missing {
                    shell.unreachable.get_or_insert_with(|| (item.title.clone(), path));
                    return Ok(None);
                }
                Ok(candidate(loaded, &item.title, &self.origin))
            }
            Action::Submenu(..) => Ok(None),
        }
    }
}

fn candidate(loaded: Loaded, title: &str, origin: &str) -> Option<Candidate> {
    let (kernel, cmdline) = loaded.kernel?;
    Some(Candidate {
        title: title.to_owned(),
        origin: origin.to_owned(),
        kernel,
        initrds: loaded.initrds,
        cmdline,
    })
}

/// By number from 0, else by id or title.
fn pick<'i>(items: &'i [Item], wanted: &str) -> Option<&'i Item> {
    if let Ok(index) = wanted.parse::<usize>() {
        return items.get(index);
    }
    items.iter().find(|item| item.id.as_deref() == Some(wanted) || item.title == wanted)
}

/// Splits `1>2`; `>>` stands for one `>` in a title.
fn split_path(default: &str) -> Vec<String> {
    let mut path = vec![String::new()];
    let mut chars = default.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = c == '>' && chars.next_if_eq(&'>').is_some();
        if c == '>' && !escaped {
            path.push(String::new());
        } else if let Some(last) = path.last_mut() {
            last.push(c);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_at_single_angles() {
        assert_eq!(split_path("1>2"), ["1", "2"]);
        assert_eq!(split_path("a>>b>c"), ["a>b", "c"]);
        assert_eq!(split_path(""), [""]);
    }
}

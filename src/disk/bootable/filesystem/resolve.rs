//! Paths: the one walk from `/` to a node, for all kinds of file systems.

use super::{Contents, FileSystem, Format, FsError, FsKind, MAX_SYMLINK, NodeKind};

/// As Linux (`MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;
/// Names on the way, symlinks included.
const MAX_COMPONENTS: usize = 512;

/// Offers [`FileSystem`] on top of a [`Format`].
pub(super) struct Mounted<F>(pub(super) F);

impl<F: Format> Mounted<F> {
    /// Follows `path`, symlinks included. Absolute targets start at this file system's own root:
    /// other mount points do not exist here.
    fn resolve(&self, path: &str) -> Result<F::Node, FsError> {
        // Directories from the root down to where the walk stands.
        let mut trail = vec![self.0.root()?];
        // What is still to go, next name last.
        let mut rest: Vec<String> = components(path).collect();
        let mut symlinks = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let Some(here) = trail.last() else {
                return Err(FsError::NotFound);
            };
            if self.0.node_kind(here) != NodeKind::Directory {
                return Err(FsError::NotFound);
            }
            let node = self.0.lookup(here, &name)?;
            if self.0.node_kind(&node) != NodeKind::Symlink {
                trail.push(node);
                continue;
            }
            symlinks += 1;
            let target = self.0.read_link(&node)?;
            rest.extend(components(&target));
            if symlinks > MAX_SYMLINKS || rest.len() + trail.len() > MAX_COMPONENTS {
                return Err(FsError::SymlinkLoop);
            }
            if target.starts_with('/') {
                trail.truncate(1);
            }
        }
        trail.pop().ok_or(FsError::NotFound)
    }
}

/// Names of a path, last one first.
fn components(path: &str) -> impl Iterator<Item = String> {
    let bounded = if path.len() as u64 > MAX_SYMLINK { "" } else { path };
    bounded.rsplit('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned)
}

impl<F: Format> FileSystem for Mounted<F> {
    fn kind(&self) -> FsKind {
        self.0.kind()
    }

    fn label(&self) -> Option<String> {
        self.0.label()
    }

    fn uuid(&self) -> Option<String> {
        self.0.uuid()
    }

    fn open(&self, path: &str) -> Result<Contents, FsError> {
        let node = self.resolve(path)?;
        if self.0.node_kind(&node) != NodeKind::File {
            return Err(FsError::WrongKind("file"));
        }
        self.0.contents(&node)
    }

    fn list_dir(&self, path: &str) -> Result<Vec<String>, FsError> {
        let node = self.resolve(path)?;
        if self.0.node_kind(&node) != NodeKind::Directory {
            return Err(FsError::WrongKind("directory"));
        }
        self.0.list(&node)
    }

    fn stat(&self, path: &str) -> Result<NodeKind, FsError> {
        Ok(self.0.node_kind(&self.resolve(path)?))
    }
}

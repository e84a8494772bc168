//! Tags of resources that have no place for them in their own rows. Those of instances are in the
//! instance's row, where its metadata come from.

use kiln_model::Tag;
use serde::{Deserialize, Serialize};

use crate::state::{Row, Store, StoreError, Transaction, transact};

/// Most tags of one resource.
pub const MAX_TAGS: usize = 50;

/// All tags of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceTags {
    /// Id of the resource.
    pub resource: String,
    /// By key.
    pub tags: Vec<Tag>,
}

impl Row for ResourceTags {
    const KIND: &'static str = "tags";
    type Key = String;

    fn key(&self) -> String {
        self.resource.clone()
    }
}

/// Why tags cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// More than a resource can have.
    #[error("{resource} would have {count} tags, more than {MAX_TAGS}")]
    TooMany {
        /// Which resource.
        resource: String,
        /// How many it would have.
        count: usize,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All tags of all these resources.
pub fn all(store: &dyn Store) -> Result<Vec<ResourceTags>, StoreError> {
    transact(store, |tx| tx.list::<ResourceTags>())
}

/// Sets tags of some resources, all or none.
pub fn set(store: &dyn Store, resources: &[String], tags: &[Tag]) -> Result<(), TagError> {
    transact(store, |tx| resources.iter().try_for_each(|resource| set_in(tx, resource, tags)))
}

/// As [`set`], of one resource and as part of `tx`.
pub fn set_in(tx: &mut Transaction<'_>, resource: &str, tags: &[Tag]) -> Result<(), TagError> {
    if tags.is_empty() {
        return Ok(());
    }
    let mut row = get(tx, resource)?;
    row.tags.retain(|tag| !tags.iter().any(|new| new.key() == tag.key()));
    row.tags.extend(tags.iter().cloned());
    row.tags.sort();
    if row.tags.len() > MAX_TAGS {
        return Err(TagError::TooMany { resource: resource.to_owned(), count: row.tags.len() });
    }
    Ok(tx.put(&row)?)
}

/// Removes the tags of some resources for which `gone` says so.
pub fn remove(
    store: &dyn Store,
    resources: &[String],
    gone: impl Fn(&Tag) -> bool,
) -> Result<(), StoreError> {
    transact(store, |tx| {
        for resource in resources {
            let mut row = get(tx, resource)?;
            row.tags.retain(|tag| !gone(tag));
            match row.tags.is_empty() {
                true => tx.remove::<ResourceTags>(resource),
                false => tx.put(&row)?,
            }
        }
        Ok(())
    })
}

/// Forgets a resource that is gone.
pub fn forget(store: &dyn Store, resource: &str) -> Result<(), StoreError> {
    transact(store, |tx| {
        forget_in(tx, resource);
        Ok(())
    })
}

/// The same as part of the transaction in which it goes: for what goes with something else.
pub(crate) fn forget_in(tx: &mut Transaction<'_>, resource: &str) {
    tx.remove::<ResourceTags>(&resource.to_owned());
}

fn get(tx: &mut Transaction<'_>, resource: &str) -> Result<ResourceTags, StoreError> {
    let none = || ResourceTags { resource: resource.to_owned(), tags: Vec::new() };
    Ok(tx.get::<ResourceTags>(&resource.to_owned())?.unwrap_or_else(none))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SqliteStore;

    #[test]
    fn tags_are_set_replaced_and_removed_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("kiln.db")).unwrap();
        let tag = |key: &str, value: &str| Tag::new(key, value).unwrap();
        let both = ["vpc-1".to_owned(), "sg-1".to_owned()];
        set(&store, &both, &[tag("b", "1"), tag("a", "1")]).unwrap();
        set(&store, &both[..1], &[tag("b", "2")]).unwrap();
        let shown =
            || all(&store).unwrap().into_iter().map(|row| (row.resource, row.tags)).collect::<Vec<_>>();
        let expected = [
            ("sg-1".into(), vec![tag("a", "1"), tag("b", "1")]),
            ("vpc-1".into(), vec![tag("a", "1"), tag("b", "2")]),
        ];
        assert_eq!(shown(), expected);
        let many: Vec<_> = (0..49).map(|n| tag(&format!("k{n}"), "")).collect();
        assert!(matches!(set(&store, &both, &many), Err(TagError::TooMany { count: 51, .. })));
        assert_eq!(shown(), expected);
        remove(&store, &both, |tag| tag.key() == "b").unwrap();
        forget(&store, "vpc-1").unwrap();
        assert_eq!(shown(), [("sg-1".to_owned(), vec![tag("a", "1")])]);
    }
}

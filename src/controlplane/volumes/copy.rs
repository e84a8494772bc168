//! `CopySnapshot`: another row over the same files, which stay as long as any row names them.

use kiln_model::SnapshotId;

use super::{Progress, Snapshot, VolumeError, Volumes};
use crate::instances::NoticeEvent;
use crate::state::{StoreError, Transaction, transact};

/// What else the transaction shall write that copies a snapshot. It may run several times; its error undoes all.
pub type AlsoSnapshot<'a> = dyn FnMut(&mut Transaction<'_>, &Snapshot) -> Result<(), StoreError> + 'a;

/// The row of a copy, as part of `tx`, which must have read `source` itself.
pub(crate) fn put_copy(
    tx: &mut Transaction<'_>,
    source: &Snapshot,
    description: &str,
    now: u64,
) -> Result<Snapshot, VolumeError> {
    if source.progress != Progress::Complete {
        return Err(VolumeError::SnapshotPending(source.id));
    }
    let copy = Snapshot {
        id: SnapshotId::from_bits(rand::random()),
        description: description.to_owned(),
        tags: Vec::new(),
        created: now,
        ..source.clone()
    };
    tx.put(&copy)?;
    Ok(copy)
}

impl Volumes<'_> {
    /// Copies a complete snapshot. In constant time.
    pub fn copy_snapshot(
        &self,
        id: SnapshotId,
        description: &str,
        also: &mut AlsoSnapshot<'_>,
    ) -> Result<Snapshot, VolumeError> {
        let copy = transact(self.store, |tx| {
            let source = tx.get::<Snapshot>(&id)?.ok_or(VolumeError::NoSnapshot(id))?;
            let copy = put_copy(tx, &source, description, self.now)?;
            also(tx, &copy)?;
            Ok::<_, VolumeError>(copy)
        })?;
        let event = NoticeEvent::Snapshot { snapshot: copy.id, progress: copy.progress };
        self.notices.tell(self.now, event);
        Ok(copy)
    }
}

//! `ModifyVolume`: larger, or of another type.

use kiln_model::{ByteSize, InstanceState, VolumeId};
use serde::{Deserialize, Serialize};

use super::files::grow_volume;
use super::service::{check_size, in_state};
use super::{Attachment, Progress, Volume, VolumeError, VolumeKind, VolumeState, VolumeType, Volumes};
use crate::instances::Instance;
use crate::state::dir::Lock;
use crate::state::transact;

/// A change that was made. All of it is done when it is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modification {
    /// Size before.
    pub original_size: ByteSize,
    /// Type before.
    pub original_kind: VolumeKind,
    /// Size since.
    pub size: ByteSize,
    /// Type since.
    pub kind: VolumeKind,
    /// When, Unix seconds.
    pub at: u64,
}

/// What shall be changed. What is not said stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeChange {
    /// Its size.
    pub size: Option<ByteSize>,
    /// Its type.
    pub volume_type: Option<VolumeType>,
    /// Operations per second; those of before only as long as the type stays.
    pub iops: Option<u32>,
    /// Throughput; as before only as long as the type stays.
    pub throughput: Option<u32>,
}

impl VolumeChange {
    /// Size and type that a volume has after it.
    pub(crate) fn of(&self, before: &Volume) -> Result<(ByteSize, VolumeKind), VolumeError> {
        if before.progress != Progress::Complete {
            return Err(VolumeError::Creating(before.id));
        }
        let size = self.size.map(check_size).transpose()?.unwrap_or(before.size);
        if size < before.size {
            return Err(VolumeError::Shrinking { wanted: size, least: before.size });
        }
        Ok((size, self.kind(before.kind)?))
    }

    fn kind(&self, before: VolumeKind) -> Result<VolumeKind, VolumeError> {
        let volume_type = self.volume_type.unwrap_or(before.volume_type);
        let kept = if volume_type == before.volume_type { before } else { VolumeKind::default() };
        let (iops, throughput) = (self.iops.or(kept.iops), self.throughput.or(kept.throughput));
        VolumeKind { volume_type, iops, throughput }.check()
    }
}

impl Volumes<'_> {
    /// Changes a volume. To make it larger, nobody may have it but a stopped instance.
    pub fn modify(&self, id: VolumeId, change: VolumeChange) -> Result<Volume, VolumeError> {
        let before = self.get(id)?;
        let (size, kind) = change.of(&before)?;
        let lock = if size == before.size { None } else { self.grow(&before, size)? };
        let changed = self.note_modified(id, size, kind)?;
        lock.into_iter().for_each(Lock::remove);
        Ok(changed)
    }

    /// Writes down what a volume is since now; its file is as large already.
    pub(crate) fn note_modified(
        &self,
        id: VolumeId,
        size: ByteSize,
        kind: VolumeKind,
    ) -> Result<Volume, VolumeError> {
        let changed = transact(self.store, |tx| {
            let mut row = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
            let (original_size, original_kind) = (row.size, row.kind);
            (row.size, row.kind) = (row.size.max(size), kind);
            let size = row.size;
            row.modification = Some(Modification { original_size, original_kind, size, kind, at: self.now });
            if row.is_root()
                && let Some(attachment) = &row.attachment
                && let Some(mut instance) = tx.get::<Instance>(&attachment.instance)?
            {
                instance.root.size = size;
                tx.put(&instance)?;
            }
            tx.put(&row)?;
            Ok::<_, VolumeError>(row)
        })?;
        let instance = changed.attachment.as_ref().map(|attachment| attachment.instance);
        self.tell(id, VolumeState::Modified, instance);
        Ok(changed)
    }

    /// Makes the file of a volume larger. The row comes after: a file that is larger than its row says is
    /// still whole. Answers the lock of the instance that has it, which is to be held until then.
    fn grow(&self, before: &Volume, size: ByteSize) -> Result<Option<Lock>, VolumeError> {
        const ACTION: &str = "resizing a volume";
        let lock = match before.attachment {
            // Nobody starts it meanwhile.
            Some(Attachment { instance, .. }) => {
                Some(self.dir.lock_instance(instance)?.ok_or_else(|| {
                    let row = transact(self.store, |tx| tx.get::<Instance>(&instance)).ok().flatten();
                    let state = row.map_or(InstanceState::Pending, |row| row.state);
                    VolumeError::State { action: ACTION, instance, state }
                })?)
            }
            None => None,
        };
        let volume = transact(self.store, |tx| {
            let volume = tx.get::<Volume>(&before.id)?.ok_or(VolumeError::NoVolume(before.id))?;
            if size < volume.size {
                return Err(VolumeError::Shrinking { wanted: size, least: volume.size });
            }
            if let Some(attachment) = &volume.attachment {
                in_state(tx, attachment.instance, InstanceState::Stopped, ACTION)?;
            }
            // Whoever attaches it meanwhile writes its row too, and one of the two begins again.
            tx.put(&volume)?;
            Ok(Volume { size, ..volume })
        })?;
        grow_volume(self.dir, &volume)?;
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_of_a_type_goes_with_the_type() {
        let before = VolumeKind { volume_type: VolumeType::Gp3, iops: Some(5000), throughput: Some(250) };
        let change = |volume_type, iops| VolumeChange { volume_type, iops, ..VolumeChange::default() };
        assert_eq!(change(None, None).kind(before).unwrap(), before);
        assert_eq!(change(None, Some(4000)).kind(before).unwrap(), VolumeKind { iops: Some(4000), ..before });
        let gp2 = change(Some(VolumeType::Gp2), None).kind(before).unwrap();
        assert_eq!(gp2, VolumeKind { volume_type: VolumeType::Gp2, iops: None, throughput: None });
        assert!(change(Some(VolumeType::Io1), None).kind(before).is_err());
    }
}

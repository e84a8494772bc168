//! What can be changed of an instance besides its life. It is written to its row, by a daemon or beside one.

use kiln_model::{InstanceId, InstanceState, UserData, VolumeId};

use super::SupervisorError;
use crate::instances::{ControlPlane, HostMemory, Instance, LaunchRequest, RequestError, ShutdownBehavior};
use crate::state::{Transaction, transact};
use crate::volumes::{Volume, VolumeError, attached};

/// What of an instance can be changed.
#[derive(Debug, Clone)]
pub enum Attribute {
    /// Name of its type. While stopped.
    InstanceType(String),
    /// User data; its guest's first boot is over, so this is for programs that look each time. While stopped.
    UserData(Option<UserData>),
    /// What becomes of it when its guest powers off.
    Shutdown(ShutdownBehavior),
    /// Whether it refuses to be terminated.
    Protected(bool),
    /// Whether it shall be monitored in detail; remembered only.
    Monitoring(bool),
    /// Whether its disks shall be optimised; remembered only. While stopped.
    EbsOptimized(bool),
    /// Whether its processor credits are unlimited; remembered only.
    UnlimitedCredits(bool),
    /// What cannot be otherwise.
    AsItIs,
    /// Its security groups, by id or name.
    Groups(Vec<String>),
    /// Which of its volumes go with it.
    DeleteOnTermination(Vec<DeviceEnd>),
    /// Whether its interface drops what is not from or for it.
    SourceDestCheck(bool),
}

/// What becomes of a volume when its instance goes.
#[derive(Debug, Clone)]
pub struct DeviceEnd {
    /// Name of its device.
    pub device: String,
    /// Its id, to be sure.
    pub volume: Option<VolumeId>,
    /// Whether it goes.
    pub goes: bool,
}

/// Notes what becomes of volumes, all or none, as part of `tx`.
fn set_ends(tx: &mut Transaction<'_>, id: InstanceId, ends: &[DeviceEnd]) -> Result<(), SupervisorError> {
    let volumes = attached(tx, id)?;
    for end in ends {
        let device = |volume: &Volume| volume.attachment.as_ref().is_some_and(|a| a.device == end.device);
        let meant = volumes.iter().find(|volume| device(volume));
        let meant = meant.filter(|volume| end.volume.is_none_or(|wanted| wanted == volume.id));
        let missing = || VolumeError::NoDevice { instance: id, device: end.device.clone() };
        let id = meant.ok_or_else(missing)?.id;
        let mut volume = tx.get::<Volume>(&id)?.ok_or(VolumeError::NoVolume(id))?;
        let Some(attachment) = &mut volume.attachment else {
            return Err(VolumeError::NotAttached(id).into());
        };
        attachment.delete_on_termination = end.goes;
        tx.put(&volume)?;
    }
    Ok(())
}

impl ControlPlane {
    /// Changes one attribute. Answers the instance as it is then.
    pub fn modify(&self, id: InstanceId, attribute: &Attribute) -> Result<Instance, SupervisorError> {
        if let Attribute::Groups(groups) = attribute {
            let instance = self.living(id, "change its groups")?;
            self.networks().set_groups(instance.interface.id, groups)?;
        }
        if let Attribute::SourceDestCheck(check) = attribute {
            let instance = self.living(id, "change its source/destination check")?;
            self.networks().set_source_dest_check(instance.interface.id, *check)?;
        }
        transact(self.parts.store.as_ref(), |tx| {
            let mut row = tx.get::<Instance>(&id)?.ok_or(SupervisorError::NotFound(id))?;
            let incorrect = |action| SupervisorError::IncorrectState { id, state: row.state, action };
            let stopped = row.state == InstanceState::Stopped;
            match attribute {
                _ if matches!(row.state, InstanceState::ShuttingDown | InstanceState::Terminated) => {
                    return Err(incorrect("be modified"));
                }
                Attribute::InstanceType(_) if !stopped => return Err(incorrect("change its type")),
                Attribute::InstanceType(name) => {
                    let wish = LaunchRequest::new("", name);
                    let size = wish.size(HostMemory::UNBOUNDED).map_err(RequestError::into_launch)?;
                    (row.instance_type, row.vcpus, row.memory) =
                        (size.instance_type, size.vcpus, size.memory);
                }
                Attribute::UserData(_) if !stopped => return Err(incorrect("change its user data")),
                Attribute::UserData(data) => row.user_data = data.clone(),
                Attribute::Shutdown(behavior) => row.shutdown = *behavior,
                Attribute::Protected(protected) => row.protected = *protected,
                Attribute::Monitoring(on) => row.remembered.monitoring = *on,
                Attribute::EbsOptimized(_) if !stopped => {
                    return Err(incorrect("change its EBS optimization"));
                }
                Attribute::EbsOptimized(on) => row.remembered.ebs_optimized = *on,
                Attribute::UnlimitedCredits(on) => row.remembered.unlimited_credits = Some(*on),
                Attribute::DeleteOnTermination(ends) => set_ends(tx, id, ends)?,
                Attribute::Groups(_) | Attribute::SourceDestCheck(_) | Attribute::AsItIs => {}
            }
            row.metadata.wanted += 1;
            tx.put(&row)?;
            Ok(row)
        })
    }

    /// One instance.
    pub(super) fn instance(&self, id: InstanceId) -> Result<Instance, SupervisorError> {
        let row = transact(self.parts.store.as_ref(), |tx| tx.get::<Instance>(&id))?;
        row.ok_or(SupervisorError::NotFound(id))
    }

    /// One whose life is not over; `action` says what for.
    pub(super) fn living(&self, id: InstanceId, action: &'static str) -> Result<Instance, SupervisorError> {
        let instance = self.instance(id)?;
        let state = instance.state;
        if matches!(state, InstanceState::ShuttingDown | InstanceState::Terminated) {
            return Err(SupervisorError::IncorrectState { id, state, action });
        }
        Ok(instance)
    }
}

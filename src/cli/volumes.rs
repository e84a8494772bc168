//! `kiln volume` and `kiln snapshot`.
//!
//! Rows are made, listed and removed in the store. Volumes are attached and detached by `kilnd` where it
//! runs, and otherwise here; machines are spoken to by their own control sockets.

use std::path::Path;

use kiln_controlplane::volumes::{NewVolume, Progress, Snapshot, Volume, VolumeChange};
use kiln_model::size::GIB;
use serde_json::json;

use crate::args::JsonArg;
use crate::daemon::{Daemon, Parameters};
use crate::error::Failure;
use crate::table::{Table, ago};
use crate::volume_args::{SnapshotCommand, VolumeCommand};
use crate::{open, print_json};

/// `kiln volume`.
pub fn volume(state_dir: &Path, command: &VolumeCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let volumes = plane.volumes();
    match command {
        VolumeCommand::Create(args) => {
            let wish = NewVolume { size: args.size, snapshot: args.snapshot, ..NewVolume::default() };
            crate::print(&format!("{}\n", volumes.create(&wish)?.id))
        }
        VolumeCommand::Ls(args) => list(&volumes.list()?, args, plane.clock().unix_seconds()),
        VolumeCommand::Attach { volume, instance, device } => {
            let instance = plane.find(instance)?.id;
            match Daemon::find(&plane)? {
                Some(daemon) => {
                    let parameters =
                        Parameters::default().with("VolumeId", volume).with("InstanceId", instance);
                    daemon.call("AttachVolume", parameters.with("Device", device))?;
                }
                None => {
                    plane.attach_volume(*volume, instance, device)?;
                }
            }
            Ok(())
        }
        VolumeCommand::Detach { volume, force } => {
            match Daemon::find(&plane)? {
                Some(daemon) => {
                    let parameters = Parameters::default().with("VolumeId", volume).with("Force", force);
                    daemon.call("DetachVolume", parameters)?;
                }
                None => {
                    plane.detach_volume(*volume, *force)?;
                }
            }
            Ok(())
        }
        VolumeCommand::Resize { volume, size } => {
            match Daemon::find(&plane)? {
                Some(daemon) => {
                    let gib = size.as_bytes() / GIB;
                    if size.as_bytes() % GIB != 0 {
                        return Err(Failure::new(
                            "beside kilnd, the size of a volume is a whole number of GiB",
                        ));
                    }
                    daemon.call(
                        "ModifyVolume",
                        Parameters::default().with("VolumeId", volume).with("Size", gib),
                    )?;
                }
                None => {
                    plane.modify_volume(
                        *volume,
                        VolumeChange { size: Some(*size), ..VolumeChange::default() },
                    )?;
                }
            }
            Ok(())
        }
        VolumeCommand::Rm { volumes: all } => Ok(all.iter().try_for_each(|id| volumes.delete(*id))?),
    }
}

fn list(all: &[Volume], args: &JsonArg, now: u64) -> Result<(), Failure> {
    if args.json {
        let shown = |volume: &Volume| {
            let own = volume.attachment.as_ref();
            json!({
                "id": volume.id.to_string(),
                "bytes": volume.size.as_bytes(),
                "snapshot": volume.snapshot.map(|id| id.to_string()),
                "instance": own.map(|own| own.instance.to_string()),
                "device": own.map(|own| own.device.clone()),
                "state": own.map_or("available", |own| own.state.name()),
                "created": volume.created,
            })
        };
        return print_json(&all.iter().map(shown).collect::<Vec<_>>());
    }
    let mut table = Table::new(["ID", "SIZE", "STATE", "INSTANCE", "DEVICE", "SNAPSHOT", "CREATED"]);
    for volume in all {
        let own = volume.attachment.as_ref();
        table.row([
            volume.id.to_string(),
            volume.size.to_string(),
            own.map_or("available", |own| own.state.name()).to_owned(),
            own.map_or_else(|| "-".to_owned(), |own| own.instance.to_string()),
            own.map_or_else(|| "-".to_owned(), |own| own.device.clone()),
            volume.snapshot.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            ago(volume.created, now),
        ]);
    }
    crate::print(&table.render())
}

/// `kiln snapshot`.
pub fn snapshot(state_dir: &Path, command: &SnapshotCommand) -> Result<(), Failure> {
    let plane = open(state_dir)?;
    let volumes = plane.volumes();
    match command {
        SnapshotCommand::Create { volume, description } => {
            let daemon = Daemon::need(&plane, &format!("keep what {volume} holds"))?;
            let parameters =
                Parameters::default().with("VolumeId", volume).maybe("Description", description.as_ref());
            let answer = daemon.call("CreateSnapshot", parameters)?;
            crate::print(&format!("{}\n", answer.text("snapshotId")?))
        }
        SnapshotCommand::Ls(args) => {
            list_snapshots(&volumes.snapshots()?, args, plane.clock().unix_seconds())
        }
        SnapshotCommand::Rm { snapshots } => {
            Ok(snapshots.iter().try_for_each(|id| volumes.delete_snapshot(*id))?)
        }
    }
}

fn list_snapshots(all: &[Snapshot], args: &JsonArg, now: u64) -> Result<(), Failure> {
    let state = |snapshot: &Snapshot| match snapshot.progress {
        Progress::Pending => "pending",
        Progress::Complete => "completed",
        Progress::Failed => "error",
    };
    if args.json {
        let shown = |snapshot: &Snapshot| {
            json!({
                "id": snapshot.id.to_string(),
                "volume": snapshot.volume.map(|id| id.to_string()),
                "bytes": snapshot.size.as_bytes(),
                "state": state(snapshot),
                "description": snapshot.description,
                "created": snapshot.created,
            })
        };
        return print_json(&all.iter().map(shown).collect::<Vec<_>>());
    }
    let mut table = Table::new(["ID", "VOLUME", "SIZE", "STATE", "CREATED", "DESCRIPTION"]);
    for snapshot in all {
        table.row([
            snapshot.id.to_string(),
            snapshot.volume.map(|id| id.to_string()).unwrap_or_default(),
            snapshot.size.to_string(),
            state(snapshot).to_owned(),
            ago(snapshot.created, now),
            snapshot.description.clone(),
        ]);
    }
    crate::print(&table.render())
}

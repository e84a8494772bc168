//! Volumes and snapshots.

use kiln_controlplane::metadata::{ACCOUNT, ZONE, ZONE_ID};
use kiln_controlplane::state::Store;
use kiln_controlplane::tags;
use kiln_controlplane::volumes::{
    Attachment, NewVolume, Progress, Snapshot, Volume, VolumeChange, VolumeError,
};
use kiln_model::{InstanceId, SnapshotId, VolumeId};
use serde_json::{Value, json};

use super::devices::{self, gib};
use super::ids::{INSTANCE, SNAPSHOT, VOLUME};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::{Answer, Context, done, images, input, parse, subnets};
use crate::error::ApiError;

input!(CreateVolume { availability_zone: Option<String>, availability_zone_id: Option<String>, size: Option<u64>,
    snapshot_id: Option<String>, volume_type: Option<String>, iops: Option<u32>, throughput: Option<u32>,
    encrypted: bool, multi_attach_enabled: bool, tag_specifications: Vec<TagSpecification> });
input!(ModifyVolume { volume_id: String, size: Option<u64>, volume_type: Option<String>, iops: Option<u32>,
    throughput: Option<u32>, multi_attach_enabled: bool });
input!(DeleteVolume { volume_id: String });
input!(AttachVolume { volume_id: String, instance_id: String, device: String });
input!(DetachVolume { volume_id: String, instance_id: Option<String>, device: Option<String>, force: bool });
input!(CreateSnapshot { volume_id: String, description: Option<String>, tag_specifications: Vec<TagSpecification> });
input!(CopySnapshot { source_snapshot_id: String, source_region: String, destination_region: Option<String>,
    presigned_url: Option<String>, description: Option<String>, encrypted: bool,
    tag_specifications: Vec<TagSpecification> });
input!(DescribeSnapshotAttribute { snapshot_id: String, attribute: String });
input!(DeleteSnapshot { snapshot_id: String });
listing!(DescribeVolumes { volume_ids: Vec<String>, include_managed_resources: bool });
listing!(DescribeVolumesModifications { volume_ids: Vec<String>, include_managed_resources: bool });
listing!(DescribeSnapshots { snapshot_ids: Vec<String>, owner_ids: Vec<String>, restorable_by_user_ids: Vec<String> });

/// What EC2 shows of a snapshot that is of none.
const NO_VOLUME: &str = "vol-ffffffff";

const FILTERS: &Filters = &[
    ("volume-id", "VolumeId"),
    ("attachment.attach-time", "Attachments.AttachTime"),
    ("attachment.delete-on-termination", "Attachments.DeleteOnTermination"),
    ("attachment.device", "Attachments.Device"),
    ("attachment.instance-id", "Attachments.InstanceId"),
    ("attachment.status", "Attachments.State"),
    ("availability-zone", "AvailabilityZone"),
    ("encrypted", "Encrypted"),
    ("size", "Size"),
    ("snapshot-id", "SnapshotId"),
    ("status", "State"),
    ("volume-type", "VolumeType"),
];
const SNAPSHOT_FILTERS: &Filters = &[
    ("snapshot-id", "SnapshotId"),
    ("description", "Description"),
    ("encrypted", "Encrypted"),
    ("owner-id", "OwnerId"),
    ("progress", "Progress"),
    ("status", "State"),
    ("volume-id", "VolumeId"),
    ("volume-size", "VolumeSize"),
];

const MODIFICATION_FILTERS: &Filters = &[
    ("volume-id", "VolumeId"),
    ("modification-state", "ModificationState"),
    ("original-iops", "OriginalIops"),
    ("original-size", "OriginalSize"),
    ("original-volume-type", "OriginalVolumeType"),
    ("start-time", "StartTime"),
    ("target-iops", "TargetIops"),
    ("target-size", "TargetSize"),
    ("target-volume-type", "TargetVolumeType"),
];

fn attachment(volume: VolumeId, attachment: &Attachment, state: &str) -> Value {
    json!({
        "VolumeId": volume.to_string(), "InstanceId": attachment.instance.to_string(), "State": state,
        "Device": attachment.device, "DeleteOnTermination": attachment.delete_on_termination,
        "AttachTime": attachment.since,
    })
}

fn shown(volume: &Volume, tags: &TagMap) -> Value {
    let id = volume.id.to_string();
    let attachments: Vec<_> =
        volume.attachment.iter().map(|a| attachment(volume.id, a, a.state.name())).collect();
    let state = match (volume.progress, &volume.attachment) {
        (Progress::Pending, _) => "creating",
        (Progress::Failed, _) => "error",
        (_, None) => "available",
        (_, Some(_)) => "in-use",
    };
    json!({
        "VolumeId": id, "State": state, "Size": gib(volume.size), "CreateTime": volume.created, "Encrypted": false,
        "VolumeType": volume.kind.volume_type.name(), "Iops": volume.kind.shown_iops(volume.size),
        "Throughput": volume.kind.shown_throughput(),
        "MultiAttachEnabled": false, "AvailabilityZone": ZONE, "AvailabilityZoneId": ZONE_ID,
        "SnapshotId": volume.snapshot.map(|s| s.to_string()).unwrap_or_default(), "Attachments": attachments,
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

/// State and progress of a snapshot.
pub(super) fn snapshot_state(snapshot: &Snapshot) -> (&'static str, &'static str) {
    match snapshot.progress {
        Progress::Pending => ("pending", "0%"),
        Progress::Complete => ("completed", "100%"),
        Progress::Failed => ("error", "0%"),
    }
}

fn shown_snapshot(snapshot: &Snapshot, tags: &TagMap) -> Value {
    let id = snapshot.id.to_string();
    let (state, progress) = snapshot_state(snapshot);
    let volume = snapshot.volume.map_or_else(|| NO_VOLUME.to_owned(), |volume| volume.to_string());
    json!({
        "SnapshotId": id, "VolumeId": volume, "State": state, "Progress": progress,
        "StartTime": snapshot.created, "OwnerId": ACCOUNT, "VolumeSize": gib(snapshot.size), "Encrypted": false,
        "Description": snapshot.description, "StorageTier": "standard",
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

/// `CreateVolume`.
pub(super) fn create(context: &Context<'_>, mut input: Value) -> Answer {
    let store = context.plane.store();
    let token = Token::take(context, "CreateVolume", &mut input)?;
    if let Some(id) = first(&token, store)? {
        return Ok(shown(&context.plane.volumes().get(id)?, &tagging::read(context)?));
    }
    let request: CreateVolume = parse(input)?;
    subnets::check_zone(request.availability_zone.as_deref(), request.availability_zone_id.as_deref())?;
    if request.encrypted || request.multi_attach_enabled {
        return Err(ApiError::unsupported("Volumes are not encrypted, and attached to one instance"));
    }
    let tags = tagging::specified(request.tag_specifications, "volume")?;
    let snapshot: Option<SnapshotId> = request.snapshot_id.map(|id| SNAPSHOT.parse(&id)).transpose()?;
    let kind = devices::kind(request.volume_type.as_deref(), request.iops, request.throughput)?;
    let wish = NewVolume {
        size: request.size.map(devices::bytes).transpose()?,
        snapshot,
        kind: kind.unwrap_or_default(),
        tags: Vec::new(),
    };
    let made = context.plane.volumes().create_and(&wish, &mut |tx, volume| {
        let id = volume.id.to_string();
        tagging::set_new(tx, &id, &tags)?;
        token.note(tx, vec![id])
    });
    let volume = match made {
        Ok(volume) => volume,
        // The same request may have been faster.
        Err(error) => match first(&token, store)? {
            Some(id) => match context.plane.volumes().get(id) {
                Ok(volume) => volume,
                // It was made as far as its row, and undone.
                Err(_) => {
                    token.forget(store)?;
                    return Err(error.into());
                }
            },
            None => return Err(error.into()),
        },
    };
    Ok(shown(&volume, &tagging::read(context)?))
}

/// The volume that the same request made before.
fn first(token: &Token, store: &dyn Store) -> Result<Option<VolumeId>, ApiError> {
    Ok(token.made(store)?.and_then(|made| made.first()?.parse().ok()))
}

fn modification(volume: &Volume) -> Option<Value> {
    let change = volume.modification?;
    Some(json!({
        "VolumeId": volume.id.to_string(), "ModificationState": "completed", "Progress": 100,
        "OriginalSize": gib(change.original_size), "OriginalVolumeType": change.original_kind.volume_type.name(),
        "OriginalIops": change.original_kind.shown_iops(change.original_size),
        "OriginalThroughput": change.original_kind.shown_throughput(), "OriginalMultiAttachEnabled": false,
        "TargetSize": gib(change.size), "TargetVolumeType": change.kind.volume_type.name(),
        "TargetIops": change.kind.shown_iops(change.size), "TargetThroughput": change.kind.shown_throughput(),
        "TargetMultiAttachEnabled": false, "StartTime": change.at, "EndTime": change.at,
    }))
}

/// `ModifyVolume`: done when it returns.
pub(super) fn modify(context: &Context<'_>, request: ModifyVolume) -> Answer {
    let id: VolumeId = VOLUME.parse(&request.volume_id)?;
    if request.multi_attach_enabled {
        return Err(ApiError::unsupported("A volume is attached to one instance"));
    }
    let change = VolumeChange {
        size: request.size.map(devices::bytes).transpose()?,
        volume_type: request.volume_type.as_deref().map(str::parse).transpose()?,
        iops: request.iops,
        throughput: request.throughput,
    };
    if change == VolumeChange::default() {
        return Err(ApiError::combination("No modification specified."));
    }
    let volume = context.supervisor.modify_volume(id, change)?;
    Ok(json!({"VolumeModification": modification(&volume)}))
}

/// `DescribeVolumesModifications`: the last one of each volume that had any.
pub(super) fn describe_modifications(
    context: &Context<'_>,
    mut request: DescribeVolumesModifications,
) -> Answer {
    let all = context.plane.volumes().list()?;
    for wanted in &request.volume_ids {
        VOLUME.check(wanted)?;
        if !all.iter().any(|volume| volume.id.to_string() == *wanted) {
            return Err(VOLUME.missing(wanted));
        }
    }
    let named = |volume: &&Volume| {
        request.volume_ids.is_empty() || request.volume_ids.contains(&volume.id.to_string())
    };
    let items: Vec<_> = all.iter().filter(named).filter_map(modification).collect();
    if let Some(wanted) = request.volume_ids.first().filter(|_| items.is_empty()) {
        let message = format!("Modification for volume '{wanted}' does not exist.");
        return Err(ApiError::new("InvalidVolumeModification.NotFound", message));
    }
    listing::answer(items, request.wish(), MODIFICATION_FILTERS, "VolumesModifications", "VolumeId")
}

/// `DeleteVolume`.
pub(super) fn delete(context: &Context<'_>, request: DeleteVolume) -> Answer {
    context.plane.volumes().delete(VOLUME.parse(&request.volume_id)?)?;
    tags::forget(context.plane.store(), &request.volume_id)?;
    done()
}

/// `AttachVolume`.
pub(super) fn attach(context: &Context<'_>, request: AttachVolume) -> Answer {
    let (id, instance): (VolumeId, InstanceId) =
        (VOLUME.parse(&request.volume_id)?, INSTANCE.parse(&request.instance_id)?);
    let volume = context.plane.attach_volume(id, instance, &request.device)?;
    let own = volume.attachment.ok_or_else(|| VOLUME.missing(&request.volume_id))?;
    Ok(attachment(id, &own, own.state.name()))
}

/// `DetachVolume`: `detaching` until the guest has let go.
pub(super) fn detach(context: &Context<'_>, request: DetachVolume) -> Answer {
    let id: VolumeId = VOLUME.parse(&request.volume_id)?;
    let there = context.plane.volumes().get(id)?.attachment.ok_or(VolumeError::NotAttached(id))?;
    let other = request.instance_id.is_some_and(|wanted| wanted != there.instance.to_string())
        || request.device.is_some_and(|wanted| wanted != there.device);
    if other {
        let message = format!("{id} is attached to {} as {}", there.instance, there.device);
        return Err(ApiError::new("InvalidAttachment.NotFound", message));
    }
    let volume = context.plane.detach_volume(id, request.force)?;
    let state = volume.attachment.map_or("detached", |own| own.state.name());
    Ok(attachment(id, &there, state))
}

/// `DescribeVolumes`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeVolumes) -> Answer {
    let tags = tagging::read(context)?;
    let mut items: Vec<_> = context.plane.volumes().list()?.iter().map(|v| shown(v, &tags)).collect();
    listing::select(&mut items, &request.volume_ids, "VolumeId", VOLUME)?;
    listing::answer(items, request.wish(), FILTERS, "Volumes", "VolumeId")
}

/// `CreateSnapshot`: pending when it returns.
pub(super) fn create_snapshot(context: &Context<'_>, request: CreateSnapshot) -> Answer {
    let tags = tagging::specified(request.tag_specifications, "snapshot")?;
    let id: VolumeId = VOLUME.parse(&request.volume_id)?;
    let text = request.description.unwrap_or_default();
    let snapshot = context.supervisor.create_snapshot(id, &text, &[])?;
    tags::set(context.plane.store(), &[snapshot.id.to_string()], &tags)?;
    Ok(shown_snapshot(&snapshot, &tagging::read(context)?))
}

/// `CopySnapshot`: there at once.
pub(super) fn copy_snapshot(context: &Context<'_>, request: CopySnapshot) -> Answer {
    images::check_region(&request.source_region)?;
    if let Some(other) = &request.destination_region {
        images::check_region(other)?;
    }
    if request.encrypted {
        return Err(ApiError::unsupported("Snapshots are not encrypted"));
    }
    let tags = tagging::specified(request.tag_specifications, "snapshot")?;
    let id: SnapshotId = SNAPSHOT.parse(&request.source_snapshot_id)?;
    let text = request.description.unwrap_or_default();
    let copy = context
        .plane
        .volumes()
        .copy_snapshot(id, &text, &mut |tx, copy| tagging::set_new(tx, &copy.id.to_string(), &tags))?;
    Ok(json!({"SnapshotId": copy.id.to_string(), "Tags": tagging::shown(&tags)}))
}

/// `DescribeSnapshotAttribute`: a snapshot is its owner's alone.
pub(super) fn describe_snapshot_attribute(
    context: &Context<'_>,
    request: DescribeSnapshotAttribute,
) -> Answer {
    let id = context.plane.volumes().snapshot(SNAPSHOT.parse(&request.snapshot_id)?)?.id;
    let member = if request.attribute == "productCodes" { "ProductCodes" } else { "CreateVolumePermissions" };
    Ok(json!({"SnapshotId": id.to_string(), member: []}))
}

/// `DeleteSnapshot`.
pub(super) fn delete_snapshot(context: &Context<'_>, request: DeleteSnapshot) -> Answer {
    context.plane.volumes().delete_snapshot(SNAPSHOT.parse(&request.snapshot_id)?)?;
    tags::forget(context.plane.store(), &request.snapshot_id)?;
    done()
}

/// `DescribeSnapshots`.
pub(super) fn describe_snapshots(context: &Context<'_>, mut request: DescribeSnapshots) -> Answer {
    let tags = tagging::read(context)?;
    let all = context.plane.volumes().snapshots()?;
    let mut items: Vec<_> = all.iter().map(|snapshot| shown_snapshot(snapshot, &tags)).collect();
    listing::select(&mut items, &request.snapshot_ids, "SnapshotId", SNAPSHOT)?;
    let own =
        |names: &[String]| names.is_empty() || names.iter().any(|name| name == "self" || name == ACCOUNT);
    if !own(&request.owner_ids) || !own(&request.restorable_by_user_ids) {
        items.clear();
    }
    listing::answer(items, request.wish(), SNAPSHOT_FILTERS, "Snapshots", "SnapshotId")
}

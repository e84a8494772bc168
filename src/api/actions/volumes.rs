//! Volumes and snapshots.

use kiln_controlplane::metadata::{ACCOUNT, ZONE, ZONE_ID};
use kiln_controlplane::tags;
use kiln_controlplane::volumes::{Attachment, NewVolume, Progress, Snapshot, Volume, VolumeError};
use kiln_model::{ByteSize, InstanceId, SnapshotId, VolumeId};
use serde_json::{Value, json};

use super::ids::{INSTANCE, SNAPSHOT, VOLUME};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::{Answer, Context, done, input, parse, subnets};
use crate::error::ApiError;

input!(CreateVolume { availability_zone: Option<String>, availability_zone_id: Option<String>, size: Option<u64>,
    snapshot_id: Option<String>, volume_type: Option<String>, encrypted: bool,
    tag_specifications: Vec<TagSpecification> });
input!(DeleteVolume { volume_id: String });
input!(AttachVolume { volume_id: String, instance_id: String, device: String });
input!(DetachVolume { volume_id: String, instance_id: Option<String>, device: Option<String>, force: bool });
input!(CreateSnapshot { volume_id: String, description: Option<String>, tag_specifications: Vec<TagSpecification> });
input!(DeleteSnapshot { snapshot_id: String });
listing!(DescribeVolumes { volume_ids: Vec<String> });
listing!(DescribeSnapshots { snapshot_ids: Vec<String>, owner_ids: Vec<String>, restorable_by_user_ids: Vec<String> });

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

fn gib(size: ByteSize) -> u64 {
    size.as_bytes().div_ceil(1 << 30)
}

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
        volume.attachment.iter().map(|a| attachment(volume.id, a, "attached")).collect();
    json!({
        "VolumeId": id, "State": if attachments.is_empty() { "available" } else { "in-use" },
        "Size": gib(volume.size), "CreateTime": volume.created, "VolumeType": "gp3", "Encrypted": false,
        "MultiAttachEnabled": false, "AvailabilityZone": ZONE, "AvailabilityZoneId": ZONE_ID,
        "SnapshotId": volume.snapshot.map(|s| s.to_string()).unwrap_or_default(), "Attachments": attachments,
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

fn shown_snapshot(snapshot: &Snapshot, tags: &TagMap) -> Value {
    let id = snapshot.id.to_string();
    let (state, progress) = match snapshot.progress {
        Progress::Pending => ("pending", "0%"),
        Progress::Complete => ("completed", "100%"),
        Progress::Failed => ("error", "0%"),
    };
    json!({
        "SnapshotId": id, "VolumeId": snapshot.volume.to_string(), "State": state, "Progress": progress,
        "StartTime": snapshot.created, "OwnerId": ACCOUNT, "VolumeSize": gib(snapshot.size), "Encrypted": false,
        "Description": snapshot.description, "StorageTier": "standard",
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

/// `CreateVolume`.
pub(super) fn create(context: &Context<'_>, mut input: Value) -> Answer {
    let store = context.plane.store();
    let token = Token::take(context, "CreateVolume", &mut input)?;
    if let Some(id) = token.made(store)?.and_then(|made| made.first()?.parse::<VolumeId>().ok()) {
        return Ok(shown(&context.plane.volumes().get(id)?, &tagging::read(context)?));
    }
    let request: CreateVolume = parse(input)?;
    subnets::check_zone(request.availability_zone.as_deref(), request.availability_zone_id.as_deref())?;
    if request.encrypted {
        return Err(ApiError::unsupported("Volumes are not encrypted"));
    }
    let tags = tagging::specified(request.tag_specifications, "volume")?;
    let too_large = || ApiError::value("The volume is too large");
    let size = request.size.map(|gib| gib.checked_mul(1 << 30).map(ByteSize::bytes).ok_or_else(too_large));
    let snapshot: Option<SnapshotId> = request.snapshot_id.map(|id| SNAPSHOT.parse(&id)).transpose()?;
    let wish = NewVolume { size: size.transpose()?, snapshot, tags: Vec::new() };
    let volume = context.plane.volumes().create(&wish)?;
    let id = volume.id.to_string();
    tags::set(store, std::slice::from_ref(&id), &tags)?;
    kiln_controlplane::state::transact(store, |tx| token.note(tx, vec![id.clone()]))?;
    Ok(shown(&volume, &tagging::read(context)?))
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
    let volume = context.plane.volumes().attach(id, instance, &request.device)?;
    let own = volume.attachment.ok_or_else(|| VOLUME.missing(&request.volume_id))?;
    Ok(attachment(id, &own, "attached"))
}

/// `DetachVolume`.
pub(super) fn detach(context: &Context<'_>, request: DetachVolume) -> Answer {
    let id: VolumeId = VOLUME.parse(&request.volume_id)?;
    let there = context.plane.volumes().get(id)?.attachment.ok_or(VolumeError::NotAttached(id))?;
    let other = request.instance_id.is_some_and(|wanted| wanted != there.instance.to_string())
        || request.device.is_some_and(|wanted| wanted != there.device);
    if other {
        let message = format!("{id} is attached to {} as {}", there.instance, there.device);
        return Err(ApiError::new("InvalidAttachment.NotFound", message));
    }
    context.plane.volumes().detach(id)?;
    Ok(attachment(id, &there, "detached"))
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

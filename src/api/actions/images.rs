//! Images.

use std::path::PathBuf;

use kiln_controlplane::images::{CopyWish, Drivers, Image, ImageError, ImportRequest, Registration};
use kiln_controlplane::instances::{NewImage, NoticeEvent};
use kiln_controlplane::metadata::{ACCOUNT, REGION};
use kiln_controlplane::tags;
use kiln_controlplane::volumes::{BlockDevice, Progress, ROOT_DEVICE, VolumeError};
use kiln_model::{ImageId, InstanceId, Tag, Utc};
use serde_json::{Value, json};

use super::devices::{self, Mapping};
use super::ids::{IMAGE, INSTANCE};
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::{Answer, Context, image_attributes, input, parse};
use crate::auth::Kind;
use crate::error::ApiError;

listing!(DescribeImages { image_ids: Vec<String>, owners: Vec<String>, executable_users: Vec<String>,
    include_deprecated: bool, include_disabled: bool });
input!(RegisterImage { name: String, image_location: Option<String>, description: Option<String>,
    architecture: Option<String>, root_device_name: Option<String>, virtualization_type: Option<String>,
    ena_support: Option<bool>, sriov_net_support: Option<String>, block_device_mappings: Vec<Mapping>,
    tag_specifications: Vec<TagSpecification> });
input!(CreateImage { instance_id: String, name: String, description: Option<String>, no_reboot: bool,
    block_device_mappings: Vec<Mapping>, tag_specifications: Vec<TagSpecification> });
input!(CopyImage { name: String, description: Option<String>, source_image_id: String, source_region: String,
    encrypted: bool, copy_image_tags: bool, tag_specifications: Vec<TagSpecification> });
input!(DeregisterImage { image_id: String, delete_associated_snapshots: bool });

const FILTERS: &Filters = &[
    ("image-id", "ImageId"),
    ("name", "Name"),
    ("state", "State"),
    ("owner-id", "OwnerId"),
    ("architecture", "Architecture"),
    ("hypervisor", "Hypervisor"),
    ("image-type", "ImageType"),
    ("is-public", "Public"),
    ("root-device-name", "RootDeviceName"),
    ("root-device-type", "RootDeviceType"),
    ("virtualization-type", "VirtualizationType"),
    ("creation-date", "CreationDate"),
    ("description", "Description"),
    ("ena-support", "EnaSupport"),
    ("sriov-net-support", "SriovNetSupport"),
    ("block-device-mapping.device-name", "BlockDeviceMappings.DeviceName"),
    ("block-device-mapping.snapshot-id", "BlockDeviceMappings.Ebs.SnapshotId"),
    ("block-device-mapping.volume-size", "BlockDeviceMappings.Ebs.VolumeSize"),
    ("block-device-mapping.volume-type", "BlockDeviceMappings.Ebs.VolumeType"),
    ("block-device-mapping.delete-on-termination", "BlockDeviceMappings.Ebs.DeleteOnTermination"),
];

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let code = match &error {
            ImageError::NotFound { .. } => "InvalidAMIID.NotFound",
            ImageError::InUse { .. } => "DependencyViolation",
            ImageError::BadName(_) => "InvalidAMIName.Malformed",
            ImageError::NameTaken { .. } => "InvalidAMIName.Duplicate",
            ImageError::Source(_) => "InvalidParameterValue",
            ImageError::NotReady(_) => "InvalidAMIID.Unavailable",
            ImageError::Volume(_) => {
                let ImageError::Volume(error) = error else { return ApiError::internal(&error) };
                return devices::refused(error);
            }
            _ => return ApiError::internal(&error),
        };
        ApiError::new(code, error.to_string())
    }
}

fn shown(image: &Image, tags: &TagMap) -> Value {
    let id = image.id.to_string();
    let name = image.name.clone().unwrap_or_default();
    let state = match image.progress {
        Progress::Pending => "pending",
        Progress::Complete => "available",
        Progress::Failed => "failed",
    };
    let root = image.root_volume();
    let mappings: Vec<_> = std::iter::once(&root).chain(&image.devices).map(devices::shown).collect();
    json!({
        "ImageId": id, "Name": name, "State": state, "Description": image.description, "OwnerId": ACCOUNT, "Public": false,
        "ImageLocation": format!("{ACCOUNT}/{name}"), "ImageType": "machine", "Architecture": "x86_64",
        "CreationDate": Utc::from_unix(image.created).rfc3339().replace('Z', ".000Z"),
        "RootDeviceName": root.device, "RootDeviceType": "ebs", "VirtualizationType": "hvm", "Hypervisor": "xen",
        "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances", "EnaSupport": image.drivers.ena,
        "SriovNetSupport": image.drivers.sriov,
        "BlockDeviceMappings": mappings, "StateReason": image_attributes::reason(image),
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

/// `DescribeImages`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeImages) -> Answer {
    let tags = tagging::read(context)?;
    let mut items: Vec<_> = context.plane.images().list()?.iter().map(|image| shown(image, &tags)).collect();
    listing::select(&mut items, &request.image_ids, "ImageId", IMAGE)?;
    let own =
        |names: &[String]| names.is_empty() || names.iter().any(|name| name == "self" || name == ACCOUNT);
    if !own(&request.owners) || !own(&request.executable_users) {
        items.clear();
    }
    listing::answer(items, request.wish(), FILTERS, "Images", "ImageId")
}

/// `RegisterImage`: of snapshots, which is done at once, or of a file of this host, which is copied behind.
pub(super) fn register(context: &Context<'_>, mut request: RegisterImage) -> Answer {
    if request.architecture.as_ref().is_some_and(|word| word != "x86_64")
        || request.virtualization_type.as_ref().is_some_and(|word| word != "hvm")
        || request.sriov_net_support.as_ref().is_some_and(|word| word != "simple")
    {
        return Err(ApiError::unsupported("Images are of x86_64, of hvm and of simple SriovNetSupport"));
    }
    let tags = tagging::specified(std::mem::take(&mut request.tag_specifications), "image")?;
    let image = match request.image_location.take() {
        Some(location) => register_file(context, &request, location, &tags),
        None => register_snapshots(context, request, &tags),
    }?;
    Ok(json!({"ImageId": image.id.to_string()}))
}

fn register_file(
    context: &Context<'_>,
    request: &RegisterImage,
    location: String,
    tags: &[Tag],
) -> Result<Image, ApiError> {
    if context.caller.kind != Kind::Root {
        let message = "Files of the host are registered by the account itself";
        return Err(ApiError::new("UnauthorizedOperation", message));
    }
    let plain = request.root_device_name.as_deref().is_none_or(|name| name == ROOT_DEVICE);
    if !request.block_device_mappings.is_empty() || !plain {
        return Err(ApiError::unsupported("An image of a file has the root device /dev/xvda and no other"));
    }
    let path = PathBuf::from(&location);
    if !path.is_absolute() {
        return Err(ApiError::value("ImageLocation is the absolute path of a file of the host"));
    }
    let wish = ImportRequest {
        path,
        format: None,
        name: Some(request.name.clone()),
        replace: false,
        drivers: drivers(request),
    };
    let description = request.description.as_deref().unwrap_or_default();
    Ok(context.supervisor.import_image(&wish, description, &mut |tx, image| {
        tagging::set_new(tx, &image.id.to_string(), tags)
    })?)
}

fn register_snapshots(
    context: &Context<'_>,
    request: RegisterImage,
    tags: &[Tag],
) -> Result<Image, ApiError> {
    let drivers = drivers(&request);
    let devices = devices::read(request.block_device_mappings)?;
    let Some(root) = devices.root else {
        return Err(ApiError::combination(
            "An image is registered from an ImageLocation, a file of the host, or with a block device mapping for \
             its root device, /dev/xvda or /dev/sda1",
        ));
    };
    let missing = || {
        let message = format!("A snapshot ID must be provided for the root device {}", root.device);
        ApiError::new("InvalidBlockDeviceMapping", message)
    };
    let mut own = BlockDevice { device: root.device.clone(), ..BlockDevice::plain_root() };
    own.snapshot = Some(root.snapshot.ok_or_else(missing)?);
    own.size = root.size;
    own.delete_on_termination = root.delete_on_termination.unwrap_or(true);
    own.kind = root.kind.unwrap_or_default();
    if let Some(name) = request.root_device_name.filter(|name| *name != own.device) {
        let message = format!("The root device {name} has no block device mapping");
        return Err(ApiError::new("InvalidBlockDeviceMapping", message));
    }
    let wish = Registration {
        name: request.name,
        description: request.description.unwrap_or_default(),
        root: own,
        devices: devices.others,
        drivers,
    };
    let image = context.plane.images().register(&wish, context.plane.clock(), &mut |tx, image| {
        tagging::set_new(tx, &image.id.to_string(), tags)
    })?;
    tell(context, &image);
    Ok(image)
}

fn drivers(request: &RegisterImage) -> Drivers {
    Drivers { ena: request.ena_support.unwrap_or_default(), sriov: request.sriov_net_support.clone() }
}

fn tell(context: &Context<'_>, image: &Image) {
    let event = NoticeEvent::Image { image: image.id, progress: image.progress };
    context.supervisor.notices().tell(context.now, event);
}

/// `CreateImage`: pending when it returns. The guest of a running instance starts again, unless it shall not.
pub(super) fn create(context: &Context<'_>, request: CreateImage) -> Answer {
    let mut tags = tagging::specified_for(request.tag_specifications, &["image", "snapshot"])?;
    let id: InstanceId = INSTANCE.parse(&request.instance_id)?;
    let devices = devices::read(request.block_device_mappings)?;
    if devices.root.as_ref().is_some_and(|root| root.snapshot.is_some()) {
        let message = "The root volume of an image is that of its instance";
        return Err(ApiError::new("InvalidBlockDeviceMapping", message));
    }
    let wish = NewImage {
        name: request.name,
        description: request.description.unwrap_or_default(),
        devices: devices.others,
        root: devices.root.unwrap_or_default(),
        reboot: !request.no_reboot,
        ..NewImage::default()
    };
    let image = context.supervisor.create_image(id, &wish)?;
    let (own, store) = (image.id.to_string(), context.plane.store());
    tags::set(store, std::slice::from_ref(&own), &tags.remove("image").unwrap_or_default())?;
    let snapshots: Vec<_> = image.snapshots().map(|snapshot| snapshot.to_string()).collect();
    tags::set(store, &snapshots, &tags.remove("snapshot").unwrap_or_default())?;
    Ok(json!({ "ImageId": own }))
}

/// `CopyImage`: there at once.
pub(super) fn copy(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CopyImage", &mut input)?;
    if let Some(made) = token.made(context.plane.store())? {
        return Ok(json!({"ImageId": made.first()}));
    }
    let request: CopyImage = parse(input)?;
    check_region(&request.source_region)?;
    if request.encrypted {
        return Err(ApiError::unsupported("Volumes are not encrypted"));
    }
    let mut tags = tagging::specified_for(request.tag_specifications, &["image", "snapshot"])?;
    let id: ImageId = IMAGE.parse(&request.source_image_id)?;
    let mut of_image = tags.remove("image").unwrap_or_default();
    if request.copy_image_tags {
        let all = tagging::read(context)?;
        let there = all.get(&id.to_string()).cloned().unwrap_or_default();
        let new = |tag: &Tag| !of_image.iter().any(|own| own.key() == tag.key());
        let copied: Vec<_> = there.into_iter().filter(new).collect();
        of_image.extend(copied);
    }
    let of_snapshots = tags.remove("snapshot").unwrap_or_default();
    let wish = CopyWish { name: request.name, description: request.description };
    let image = context.plane.images().copy(id, &wish, context.plane.clock(), &mut |tx, image| {
        tagging::set_new(tx, &image.id.to_string(), &of_image)?;
        for snapshot in image.snapshots() {
            tagging::set_new(tx, &snapshot.to_string(), &of_snapshots)?;
        }
        token.note(tx, vec![image.id.to_string()])
    });
    match (image, token.made(context.plane.store())?) {
        (Ok(image), _) => {
            tell(context, &image);
            Ok(json!({"ImageId": image.id.to_string()}))
        }
        // The same request was faster.
        (Err(_), Some(made)) => Ok(json!({"ImageId": made.first()})),
        (Err(error), None) => Err(error.into()),
    }
}

/// There is one region.
pub(super) fn check_region(source: &str) -> Result<(), ApiError> {
    match source {
        REGION => Ok(()),
        _ => Err(ApiError::value(format!("Value ({source}) for parameter sourceRegion is invalid"))),
    }
}

/// `DeregisterImage`: what was launched from it goes on.
pub(super) fn deregister(context: &Context<'_>, request: DeregisterImage) -> Answer {
    let id: ImageId = IMAGE.parse(&request.image_id)?;
    let image = context.plane.images().deregister(id)?;
    tags::forget(context.plane.store(), &request.image_id)?;
    let snapshots =
        if request.delete_associated_snapshots { image.snapshots().collect() } else { Vec::new() };
    let mut results = Vec::new();
    for snapshot in snapshots {
        let code = match context.plane.volumes().delete_snapshot(snapshot) {
            Ok(()) => {
                tags::forget(context.plane.store(), &snapshot.to_string())?;
                "success"
            }
            Err(VolumeError::SnapshotInUse { .. }) => "skipped",
            Err(VolumeError::NoSnapshot(_)) => "missing-permissions",
            Err(_) => "internal-error",
        };
        results.push(json!({"SnapshotId": snapshot.to_string(), "ReturnCode": code}));
    }
    Ok(json!({"Return": true, "DeleteSnapshotResults": results}))
}

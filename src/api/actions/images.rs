//! Images.

use std::path::PathBuf;

use kiln_controlplane::images::{Image, ImageError, ImportRequest};
use kiln_controlplane::instances::NewImage;
use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::progress::Silent;
use kiln_controlplane::tags;
use kiln_controlplane::volumes::Progress;
use kiln_model::{ImageId, InstanceId, Utc};
use serde_json::{Value, json};

use super::ids::{IMAGE, INSTANCE};
use super::instances::ROOT_DEVICE;
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::{Answer, Context, done, input};
use crate::auth::Kind;
use crate::error::ApiError;

listing!(DescribeImages { image_ids: Vec<String>, owners: Vec<String>, executable_users: Vec<String>,
    include_deprecated: bool, include_disabled: bool });
input!(RegisterImage { name: String, image_location: Option<String>, description: Option<String>,
    architecture: Option<String>, root_device_name: Option<String>, virtualization_type: Option<String>,
    ena_support: Option<bool>, tag_specifications: Vec<TagSpecification> });
input!(CreateImage { instance_id: String, name: String, description: Option<String>, no_reboot: bool,
    tag_specifications: Vec<TagSpecification> });
input!(DeregisterImage { image_id: String });

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
    ("block-device-mapping.device-name", "BlockDeviceMappings.DeviceName"),
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
            _ => return ApiError::internal(&error),
        };
        ApiError::new(code, error.to_string())
    }
}

fn shown(image: &Image, tags: &TagMap) -> Value {
    let id = image.id.to_string();
    let gib = image.virtual_size.as_bytes().div_ceil(1 << 30);
    let name = image.name.clone().unwrap_or_default();
    let state = match image.progress {
        Progress::Pending => "pending",
        Progress::Complete => "available",
        Progress::Failed => "failed",
    };
    let snapshot = image.root.map(|snapshot| snapshot.to_string());
    json!({
        "ImageId": id, "Name": name, "State": state, "Description": image.description, "OwnerId": ACCOUNT, "Public": false,
        "ImageLocation": format!("{ACCOUNT}/{name}"), "ImageType": "machine", "Architecture": "x86_64",
        "CreationDate": Utc::from_unix(image.created).rfc3339().replace('Z', ".000Z"),
        "RootDeviceName": ROOT_DEVICE, "RootDeviceType": "ebs", "VirtualizationType": "hvm", "Hypervisor": "xen",
        "PlatformDetails": "Linux/UNIX", "UsageOperation": "RunInstances", "EnaSupport": false,
        "BlockDeviceMappings": [{
            "DeviceName": ROOT_DEVICE,
            "Ebs": {"SnapshotId": snapshot, "VolumeSize": gib, "VolumeType": "gp3", "DeleteOnTermination": true, "Encrypted": false},
        }],
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

/// `RegisterImage`: of a file of this host, which is copied before the answer comes.
pub(super) fn register(context: &Context<'_>, request: RegisterImage) -> Answer {
    if context.caller.kind != Kind::Root {
        let message = "Files of the host are registered by the account itself";
        return Err(ApiError::new("UnauthorizedOperation", message));
    }
    if request.architecture.is_some_and(|word| word != "x86_64")
        || request.virtualization_type.is_some_and(|word| word != "hvm")
    {
        return Err(ApiError::unsupported("Images are of x86_64 and of hvm"));
    }
    let tags = tagging::specified(request.tag_specifications, "image")?;
    let location = request.image_location.ok_or_else(|| {
        ApiError::unsupported("Images are registered from an ImageLocation, a file of the host")
    })?;
    let path = PathBuf::from(&location);
    if !path.is_absolute() {
        return Err(ApiError::value("ImageLocation is the absolute path of a file of the host"));
    }
    let images = context.plane.images();
    if images.list()?.iter().any(|image| image.name.as_deref() == Some(&request.name)) {
        let message = format!("AMI name {} is already in use", request.name);
        return Err(ApiError::new("InvalidAMIName.Duplicate", message));
    }
    let wish = ImportRequest { path, format: None, name: Some(request.name), replace: false };
    let image = images.import(&wish, context.plane.clock(), &Silent)?;
    let id = image.id.to_string();
    tags::set(context.plane.store(), std::slice::from_ref(&id), &tags)?;
    Ok(json!({ "ImageId": id }))
}

/// `CreateImage`: pending when it returns. The guest is not restarted; it stands still for a moment.
pub(super) fn create(context: &Context<'_>, request: CreateImage) -> Answer {
    let mut tags = tagging::specified_for(request.tag_specifications, &["image", "snapshot"])?;
    let id: InstanceId = INSTANCE.parse(&request.instance_id)?;
    let wish = NewImage {
        name: request.name,
        description: request.description.unwrap_or_default(),
        ..NewImage::default()
    };
    let image = context.supervisor.create_image(id, &wish)?;
    let (own, store) = (image.id.to_string(), context.plane.store());
    tags::set(store, std::slice::from_ref(&own), &tags.remove("image").unwrap_or_default())?;
    let snapshots: Vec<_> = image.snapshots().map(|snapshot| snapshot.to_string()).collect();
    tags::set(store, &snapshots, &tags.remove("snapshot").unwrap_or_default())?;
    Ok(json!({ "ImageId": own }))
}

/// `DeregisterImage`.
pub(super) fn deregister(context: &Context<'_>, request: DeregisterImage) -> Answer {
    let id: ImageId = IMAGE.parse(&request.image_id)?;
    context.plane.images().remove(&id.to_string())?;
    tags::forget(context.plane.store(), &request.image_id)?;
    done()
}

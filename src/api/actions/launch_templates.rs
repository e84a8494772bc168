//! Launch templates, and what a launch takes from one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_controlplane::instances::{Instance, ShutdownBehavior};
use kiln_controlplane::launch_templates::{
    LaunchTemplate, LaunchTemplateError, LaunchTemplates, NewVersion, TemplateUse, TemplateVersion,
    WantedVersion,
};
use kiln_controlplane::volumes::Volume;
use kiln_model::{InstanceId, LaunchTemplateId};
use serde_json::{Map, Value, json};

use super::ids::{INSTANCE, LAUNCH_TEMPLATE};
use super::instances::World;
use super::listing::{self, Filters, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::template_data::over;
use super::tokens::{self, Token};
use super::{Answer, Context, devices, input, launch, metadata_options, parse};
use crate::error::ApiError;

/// Versions that one request names.
const MAX_NAMED: usize = 200;

input!(
    /// A template by id or name.
    Reference { launch_template_id: Option<String>, launch_template_name: Option<String> }
);
input!(Specification { launch_template_id: Option<String>, launch_template_name: Option<String>,
    version: Option<String> });
input!(CreateLaunchTemplate { launch_template_name: String, version_description: Option<String>,
    launch_template_data: Map<String, Value>, tag_specifications: Vec<TagSpecification> });
input!(CreateLaunchTemplateVersion { launch_template_id: Option<String>, launch_template_name: Option<String>,
    source_version: Option<String>, version_description: Option<String>, launch_template_data: Map<String, Value>,
    resolve_alias: bool });
input!(ModifyLaunchTemplate { launch_template_id: Option<String>, launch_template_name: Option<String>,
    default_version: Option<String> });
input!(DeleteLaunchTemplateVersions { launch_template_id: Option<String>, launch_template_name: Option<String>,
    versions: Vec<String> });
input!(GetLaunchTemplateData { instance_id: String });
listing!(DescribeLaunchTemplates { launch_template_ids: Vec<String>, launch_template_names: Vec<String> });
listing!(DescribeLaunchTemplateVersions { launch_template_id: Option<String>, launch_template_name: Option<String>,
    versions: Vec<String>, min_version: Option<String>, max_version: Option<String>, resolve_alias: bool });

const FILTERS: &Filters = &[("launch-template-name", "LaunchTemplateName"), ("create-time", "CreateTime")];
const VERSION_FILTERS: &Filters = &[
    ("create-time", "CreateTime"),
    ("ebs-optimized", "LaunchTemplateData.EbsOptimized"),
    ("http-endpoint", "LaunchTemplateData.MetadataOptions.HttpEndpoint"),
    ("http-tokens", "LaunchTemplateData.MetadataOptions.HttpTokens"),
    ("iam-instance-profile", "LaunchTemplateData.IamInstanceProfile.Arn"),
    ("image-id", "LaunchTemplateData.ImageId"),
    ("instance-type", "LaunchTemplateData.InstanceType"),
    ("is-default-version", "DefaultVersion"),
];

pub(super) fn service<'a>(context: &Context<'a>) -> LaunchTemplates<'a> {
    LaunchTemplates { store: context.plane.store(), now: context.now }
}

fn shown(template: &LaunchTemplate, tags: &TagMap) -> Value {
    let id = template.id.to_string();
    json!({
        "LaunchTemplateId": id, "LaunchTemplateName": template.name, "CreateTime": template.created,
        "CreatedBy": template.creator, "DefaultVersionNumber": template.default_version,
        "LatestVersionNumber": template.latest_version, "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

fn shown_version(template: &LaunchTemplate, version: &TemplateVersion) -> Value {
    json!({
        "LaunchTemplateId": template.id.to_string(), "LaunchTemplateName": template.name,
        "VersionNumber": version.number, "VersionDescription": version.description,
        "CreateTime": version.created, "CreatedBy": version.creator,
        "DefaultVersion": version.number == template.default_version, "LaunchTemplateData": version.data,
    })
}

fn find(context: &Context<'_>, id: Option<&str>, name: Option<&str>) -> Result<LaunchTemplate, ApiError> {
    match (id, name) {
        (Some(id), None) => {
            let parsed: LaunchTemplateId = LAUNCH_TEMPLATE.parse(id)?;
            Ok(service(context).get(parsed)?)
        }
        (None, Some(name)) => Ok(service(context).named(name)?),
        (Some(_), Some(_)) => {
            Err(ApiError::combination("Name a launch template by its ID or by its name, not both"))
        }
        (None, None) => Err(ApiError::missing("LaunchTemplateId")),
    }
}

/// `3`, `$Latest` or `$Default`.
fn wanted(text: &str) -> Result<WantedVersion, ApiError> {
    match text {
        "$Default" => Ok(WantedVersion::Default),
        "$Latest" => Ok(WantedVersion::Latest),
        text => text.parse().map(WantedVersion::Number).map_err(|_| {
            ApiError::value(format!("'{text}' is no version: give a number, $Latest or $Default"))
        }),
    }
}

/// Refuses what no launch would take; the rest shows at the launch, as in EC2.
fn checked(data: &Map<String, Value>) -> Result<(), ApiError> {
    launch::check_template(data.clone().into())
}

/// `CreateLaunchTemplate`.
pub(super) fn create(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CreateLaunchTemplate", &mut input)?;
    let request: CreateLaunchTemplate = parse(input)?;
    checked(&request.launch_template_data)?;
    let tags = tagging::specified(request.tag_specifications, "launch-template")?;
    let new = NewVersion {
        creator: context.caller.arn.clone(),
        description: request.version_description,
        data: request.launch_template_data.into(),
    };
    let id = tokens::once_of(context, &token, |token| {
        let made = service(context).create(&request.launch_template_name, &new, &mut token.making(&tags))?;
        Ok::<_, LaunchTemplateError>(made.id.to_string())
    })?;
    let template = find(context, Some(&id), None)?;
    Ok(json!({"LaunchTemplate": shown(&template, &tagging::read(context)?)}))
}

/// `CreateLaunchTemplateVersion`.
pub(super) fn create_version(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CreateLaunchTemplateVersion", &mut input)?;
    let request: CreateLaunchTemplateVersion = parse(input)?;
    no_aliases(request.resolve_alias)?;
    let named = (request.launch_template_id.as_deref(), request.launch_template_name.as_deref());
    let template = find(context, named.0, named.1)?;
    let service = service(context);
    checked(&request.launch_template_data)?;
    let mut data = request.launch_template_data;
    if let Some(source) = &request.source_version {
        let source = service.version(template.id, wanted(source)?.of(&template))?;
        data = over(&data, source.data.as_object().unwrap_or(&Map::new()));
    }
    let new = NewVersion {
        creator: context.caller.arn.clone(),
        description: request.version_description,
        data: data.into(),
    };
    let number = tokens::once_of(context, &token, |token| {
        let version = service.add_version(template.id, &new, &mut token.making(&[]))?;
        Ok::<_, LaunchTemplateError>(version.number.to_string())
    })?;
    let (template, number) = (service.get(template.id)?, wanted(&number)?);
    let version = service.version(template.id, number.of(&template))?;
    Ok(json!({"LaunchTemplateVersion": shown_version(&template, &version)}))
}

/// What a template says is what its launches do.
fn no_aliases(resolve: bool) -> Result<(), ApiError> {
    match resolve {
        true => Err(ApiError::unsupported("Images have no aliases")),
        false => Ok(()),
    }
}

/// `ModifyLaunchTemplate`.
pub(super) fn modify(context: &Context<'_>, mut input: Value) -> Answer {
    // Nothing is made: said again, it does the same.
    input.as_object_mut().and_then(|object| object.remove("ClientToken"));
    let request: ModifyLaunchTemplate = parse(input)?;
    let template =
        find(context, request.launch_template_id.as_deref(), request.launch_template_name.as_deref())?;
    let version = request.default_version.ok_or_else(|| ApiError::missing("SetDefaultVersion"))?;
    let template = service(context).set_default(template.id, wanted(&version)?)?;
    Ok(json!({"LaunchTemplate": shown(&template, &tagging::read(context)?)}))
}

/// `DeleteLaunchTemplate`.
pub(super) fn delete(context: &Context<'_>, request: Reference) -> Answer {
    let template =
        find(context, request.launch_template_id.as_deref(), request.launch_template_name.as_deref())?;
    let shown = shown(&template, &tagging::read(context)?);
    service(context).delete(template.id)?;
    Ok(json!({ "LaunchTemplate": shown }))
}

/// `DeleteLaunchTemplateVersions`: each by itself.
pub(super) fn delete_versions(context: &Context<'_>, request: DeleteLaunchTemplateVersions) -> Answer {
    let template =
        find(context, request.launch_template_id.as_deref(), request.launch_template_name.as_deref())?;
    if !(1..=MAX_NAMED).contains(&request.versions.len()) {
        return Err(ApiError::value(format!("A request names 1 to {MAX_NAMED} versions")));
    }
    let (mut gone, mut left) = (Vec::new(), Vec::new());
    for text in &request.versions {
        let WantedVersion::Number(number) = wanted(text)? else {
            return Err(ApiError::value("Versions are deleted by their numbers"));
        };
        let mut item = json!({
            "LaunchTemplateId": template.id.to_string(), "LaunchTemplateName": template.name,
            "VersionNumber": number,
        });
        match service(context).delete_version(template.id, number) {
            Ok(()) => gone.push(item),
            Err(LaunchTemplateError::Store(error)) => return Err(error.into()),
            Err(error) => {
                let code = match error {
                    LaunchTemplateError::NoSuchVersion { .. } => "launchTemplateVersionDoesNotExist",
                    LaunchTemplateError::NoSuchId(_) => "launchTemplateIdDoesNotExist",
                    _ => "unexpectedError",
                };
                item["ResponseError"] = json!({"Code": code, "Message": error.to_string()});
                left.push(item);
            }
        }
    }
    Ok(json!({
        "SuccessfullyDeletedLaunchTemplateVersions": gone, "UnsuccessfullyDeletedLaunchTemplateVersions": left,
    }))
}

/// `DescribeLaunchTemplates`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeLaunchTemplates) -> Answer {
    let tags = tagging::read(context)?;
    let templates = service(context).list()?;
    let mut items: Vec<_> = templates.iter().map(|template| shown(template, &tags)).collect();
    listing::select(&mut items, &request.launch_template_ids, "LaunchTemplateId", LAUNCH_TEMPLATE)?;
    listing::select_names(&mut items, &request.launch_template_names, "LaunchTemplateName", |name| {
        LaunchTemplateError::NoSuchName(name.to_owned()).into()
    })?;
    listing::answer(items, request.wish(), FILTERS, "LaunchTemplates", "LaunchTemplateId")
}

/// `DescribeLaunchTemplateVersions`: of one template, or the latest or default ones of all. The newest first.
pub(super) fn describe_versions(
    context: &Context<'_>,
    mut request: DescribeLaunchTemplateVersions,
) -> Answer {
    no_aliases(request.resolve_alias)?;
    let service = service(context);
    let versions: Vec<_> =
        request.versions.iter().map(|text| wanted(text)).collect::<Result<_, ApiError>>()?;
    let (id, name) = (request.launch_template_id.as_deref(), request.launch_template_name.as_deref());
    let mut items = Vec::new();
    if id.is_none() && name.is_none() {
        if versions.is_empty() || versions.iter().any(|version| matches!(version, WantedVersion::Number(_))) {
            return Err(ApiError::missing("LaunchTemplateId"));
        }
        for template in service.list()? {
            for version in &versions {
                let version = service.version(template.id, version.of(&template))?;
                items.push(shown_version(&template, &version));
            }
        }
        items.dedup();
    } else {
        let template = find(context, id, name)?;
        let bound = |text: &Option<String>| {
            text.as_deref().map(|text| Ok::<_, ApiError>(wanted(text)?.of(&template))).transpose()
        };
        let (min, max) = (bound(&request.min_version)?, bound(&request.max_version)?);
        let named: Vec<u64> = versions.iter().map(|version| version.of(&template)).collect();
        for number in &named {
            service.version(template.id, *number)?;
        }
        let meant = |number: u64| {
            (named.is_empty() || named.contains(&number))
                && min.is_none_or(|min| number >= min)
                && max.is_none_or(|max| number <= max)
        };
        let all = service.versions(template.id)?;
        items.extend(all.iter().filter(|v| meant(v.number)).map(|version| shown_version(&template, version)));
    }
    let wish = request.wish();
    listing::filter(&mut items, &wish.filters, VERSION_FILTERS)?;
    let key = |item: &Value| {
        let number = item["VersionNumber"].as_u64().unwrap_or_default();
        format!("{} {:020}", item["LaunchTemplateId"], u64::MAX - number)
    };
    let (items, token) = listing::page(items, &wish, key)?;
    Ok(json!({"LaunchTemplateVersions": items, "NextToken": token}))
}

/// `GetLaunchTemplateData`: what would launch another instance like this one.
pub(super) fn of_instance(context: &Context<'_>, request: GetLaunchTemplateData) -> Answer {
    let id: InstanceId = INSTANCE.parse(&request.instance_id)?;
    let instance = context.supervisor.instance(id)?;
    let volumes = context.plane.volumes().list()?;
    Ok(json!({"LaunchTemplateData": data_of(&World::read(context)?.shown(&instance), &instance, &volumes)}))
}

/// From how an instance is shown.
fn data_of(shown: &Value, instance: &Instance, volumes: &[Volume]) -> Value {
    let behavior = match instance.shutdown {
        ShutdownBehavior::Stop => "stop",
        ShutdownBehavior::Terminate => "terminate",
    };
    let own = |volume: &&Volume| volume.attachment.as_ref().is_some_and(|a| a.instance == instance.id);
    let device = |volume: &Volume| {
        let attachment = volume.attachment.as_ref()?;
        // The root volume is that of the image.
        let snapshot = volume.snapshot.filter(|_| volume.id != instance.root.id);
        Some(json!({
            "DeviceName": attachment.device,
            "Ebs": {
                "DeleteOnTermination": attachment.delete_on_termination, "VolumeSize": devices::gib(volume.size),
                "SnapshotId": snapshot.map(|id| id.to_string()),
            },
        }))
    };
    let interface = |own: &Value| {
        let groups: Vec<_> = own["Groups"].as_array().into_iter().flatten().map(|g| &g["GroupId"]).collect();
        json!({
            "DeviceIndex": own["Attachment"]["DeviceIndex"], "SubnetId": own["SubnetId"], "Groups": groups,
            "DeleteOnTermination": own["Attachment"]["DeleteOnTermination"], "Description": own["Description"],
            "Ipv6AddressCount": own["Ipv6Addresses"].as_array().map(Vec::len).filter(|count| *count > 0),
        })
    };
    let interfaces = shown["NetworkInterfaces"].as_array().into_iter().flatten().map(interface);
    let tags = tagging::shown(&instance.tags);
    json!({
        "ImageId": shown.get("ImageId"), "InstanceType": instance.instance_type, "KeyName": instance.key_name,
        "UserData": instance.user_data.as_ref().map(|data| STANDARD.encode(data.as_bytes())),
        "IamInstanceProfile": shown["IamInstanceProfile"].get("Arn").map(|arn| json!({"Arn": arn})),
        "DisableApiTermination": instance.protected, "InstanceInitiatedShutdownBehavior": behavior,
        "Monitoring": {"Enabled": instance.remembered.monitoring}, "MetadataOptions": metadata_options::shown(instance),
        "BlockDeviceMappings": volumes.iter().filter(own).filter_map(device).collect::<Vec<_>>(),
        "NetworkInterfaces": interfaces.collect::<Vec<_>>(),
        "TagSpecifications": (!instance.tags.is_empty()).then(|| json!([{"ResourceType": "instance", "Tags": tags}])),
    })
}

/// Puts what a launch template says below what a launch says. Answers the parameters as they were sent, if
/// the launch names a template; the parameters name the version by its number then.
pub(crate) fn expand(
    context: &Context<'_>,
    action: &str,
    input: &mut Value,
) -> Result<Option<Value>, ApiError> {
    let Some(named) = input.get("LaunchTemplate").filter(|_| action == "RunInstances").cloned() else {
        return Ok(None);
    };
    let named: Specification = parse(named)?;
    let (id, name) = (named.launch_template_id.as_deref(), named.launch_template_name.as_deref());
    let template = find(context, id, name)?;
    let version = named.version.as_deref().map_or(Ok(WantedVersion::Default), wanted)?;
    let version = service(context).version(template.id, version.of(&template))?;
    let none = Map::new();
    let mut all = over(input.as_object().unwrap_or(&none), version.data.as_object().unwrap_or(&none));
    let used = json!({"LaunchTemplateId": template.id.to_string(), "Version": version.number.to_string()});
    all.insert("LaunchTemplate".to_owned(), used);
    Ok(Some(std::mem::replace(input, all.into())))
}

/// The version that a launch is from, as [`expand`] left it.
pub(super) fn used(named: &Specification) -> Option<TemplateUse> {
    let template = named.launch_template_id.as_deref()?.parse().ok()?;
    Some(TemplateUse { template, version: named.version.as_deref()?.parse().ok()? })
}

//! Attributes of instances, one at a time, and what their guests have said.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_controlplane::instances::{Attribute, DeviceEnd, Instance, ShutdownBehavior};
use kiln_model::{InstanceId, InstanceType, UserData};
use serde_json::{Value, json};

use super::ids::{INSTANCE, VOLUME};
use super::instances::World;
use super::lifecycle::{self, Instances};
use super::vpcs::Switch;
use super::{Answer, Context, input};
use crate::error::ApiError;

input!(DescribeInstanceAttribute { instance_id: String, attribute: String });
input!(Text { value: Option<String> });
input!(ModifyInstanceAttribute { instance_id: String, attribute: Option<String>, value: Option<String>,
    instance_type: Option<Text>, user_data: Option<Text>, groups: Vec<String>, disable_api_termination: Option<Switch>,
    disable_api_stop: Option<Switch>, source_dest_check: Option<Switch>, ebs_optimized: Option<Switch>,
    instance_initiated_shutdown_behavior: Option<Text>, block_device_mappings: Vec<DeviceChange> });
input!(CreditChange { instance_id: String, cpu_credits: Option<String> });
input!(ModifyInstanceCreditSpecification { instance_credit_specifications: Vec<CreditChange>,
    client_token: Option<String> });
input!(EbsChange { delete_on_termination: Option<bool>, volume_id: Option<String> });
input!(DeviceChange { device_name: Option<String>, ebs: Option<EbsChange> });
input!(GetInstanceUefiData { instance_id: String });
input!(GetConsoleOutput { instance_id: String, latest: bool });
input!(GetPasswordData { instance_id: String });

fn find(context: &Context<'_>, id: &str) -> Result<Instance, ApiError> {
    let id: InstanceId = INSTANCE.parse(id)?;
    Ok(context.supervisor.instance(id)?)
}

/// `DescribeInstanceAttribute`.
pub(super) fn describe(context: &Context<'_>, request: DescribeInstanceAttribute) -> Answer {
    let instance = find(context, &request.instance_id)?;
    let mut answer = json!({"InstanceId": instance.id.to_string()});
    let (name, value) = match request.attribute.as_str() {
        "instanceType" => ("InstanceType", json!({"Value": instance.instance_type})),
        "userData" => {
            let data = instance.user_data.as_ref().map(|data| STANDARD.encode(data.as_bytes()));
            ("UserData", json!({ "Value": data }))
        }
        "disableApiTermination" => ("DisableApiTermination", json!({"Value": instance.protected})),
        "disableApiStop" => ("DisableApiStop", json!({"Value": false})),
        "instanceInitiatedShutdownBehavior" => {
            let word = if instance.shutdown == ShutdownBehavior::Stop { "stop" } else { "terminate" };
            ("InstanceInitiatedShutdownBehavior", json!({ "Value": word }))
        }
        "rootDeviceName" => ("RootDeviceName", json!({"Value": instance.root.device})),
        "sourceDestCheck" => {
            let members = context.plane.networks().memberships()?;
            let own = members.iter().find(|member| member.interface.id == instance.interface.id);
            ("SourceDestCheck", json!({"Value": own.is_none_or(|member| !member.forwards)}))
        }
        "groupSet" => ("Groups", World::read(context)?.groups_of(&instance).into()),
        "ebsOptimized" => ("EbsOptimized", json!({"Value": instance.remembered.ebs_optimized})),
        "enaSupport" => ("EnaSupport", json!({"Value": false})),
        "enclaveOptions" => ("EnclaveOptions", json!({"Enabled": false})),
        "productCodes" => ("ProductCodes", json!([])),
        "blockDeviceMapping" => ("BlockDeviceMappings", World::read(context)?.devices_of(&instance).into()),
        // Of paravirtual machines.
        "kernel" => ("KernelId", json!({})),
        "ramdisk" => ("RamdiskId", json!({})),
        _ => ("SriovNetSupport", json!({})),
    };
    answer[name] = value;
    Ok(answer)
}

fn boolean(text: Option<&str>) -> Result<bool, ApiError> {
    match text {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(ApiError::value("The attribute is true or false")),
    }
}

impl ModifyInstanceAttribute {
    /// The one change that is asked for.
    fn change(self) -> Result<Attribute, ApiError> {
        let mut all = Vec::new();
        if let Some(Text { value: Some(name) }) = self.instance_type {
            all.push(kind(&name)?);
        }
        if let Some(text) = self.user_data {
            all.push(user_data(text.value.as_deref())?);
        }
        if let Some(Text { value: Some(word) }) = self.instance_initiated_shutdown_behavior {
            all.push(shutdown(&word)?);
        }
        if let Some(Switch { value: Some(on) }) = self.disable_api_termination {
            all.push(Attribute::Protected(on));
        }
        if let Some(Switch { value: Some(on) }) = self.source_dest_check {
            all.push(Attribute::SourceDestCheck(on));
        }
        if !self.groups.is_empty() {
            all.push(Attribute::Groups(self.groups));
        }
        if let Some(Switch { value: Some(on) }) = self.ebs_optimized {
            all.push(Attribute::EbsOptimized(on));
        }
        match self.disable_api_stop.and_then(|switch| switch.value) {
            Some(true) => return Err(ApiError::unsupported("Stop protection is not supported")),
            Some(false) => all.push(Attribute::AsItIs),
            None => {}
        }
        if !self.block_device_mappings.is_empty() {
            all.push(volumes_go(self.block_device_mappings)?);
        }
        let value = self.value.as_deref();
        match self.attribute.as_deref() {
            None => {}
            Some("instanceType") => all.push(kind(value.unwrap_or_default())?),
            Some("userData") => all.push(user_data(value)?),
            Some("disableApiTermination") => all.push(Attribute::Protected(boolean(value)?)),
            Some("ebsOptimized") => all.push(Attribute::EbsOptimized(boolean(value)?)),
            Some("sourceDestCheck") => all.push(Attribute::SourceDestCheck(boolean(value)?)),
            Some("instanceInitiatedShutdownBehavior") => all.push(shutdown(value.unwrap_or_default())?),
            Some(other) => {
                return Err(ApiError::unsupported(format!("The attribute {other} cannot be modified")));
            }
        }
        match (all.pop(), all.is_empty()) {
            (Some(one), true) => Ok(one),
            (None, _) => Err(ApiError::combination("No attributes specified.")),
            (Some(_), false) => Err(ApiError::combination(
                "Fields for multiple attribute types specified; a request modifies one of them",
            )),
        }
    }
}

/// Which volumes go with the instance.
fn volumes_go(changes: Vec<DeviceChange>) -> Result<Attribute, ApiError> {
    let one = |change: DeviceChange| {
        let device = change.device_name.ok_or_else(|| ApiError::missing("BlockDeviceMapping.DeviceName"))?;
        let ebs = change.ebs.unwrap_or_default();
        let goes = ebs.delete_on_termination;
        let goes = goes.ok_or_else(|| ApiError::missing("BlockDeviceMapping.Ebs.DeleteOnTermination"))?;
        let volume = ebs.volume_id.map(|id| VOLUME.parse(&id)).transpose()?;
        Ok(DeviceEnd { device, volume, goes })
    };
    Ok(Attribute::DeleteOnTermination(changes.into_iter().map(one).collect::<Result<_, ApiError>>()?))
}

fn kind(name: &str) -> Result<Attribute, ApiError> {
    match InstanceType::find(name) {
        Ok(_) => Ok(Attribute::InstanceType(name.to_owned())),
        Err(_) => Err(ApiError::value(format!("Invalid value '{name}' for InstanceType."))),
    }
}

fn shutdown(word: &str) -> Result<Attribute, ApiError> {
    match word {
        "stop" => Ok(Attribute::Shutdown(ShutdownBehavior::Stop)),
        "terminate" => Ok(Attribute::Shutdown(ShutdownBehavior::Terminate)),
        _ => Err(ApiError::value(format!("Invalid value '{word}' for instanceInitiatedShutdownBehavior"))),
    }
}

fn user_data(text: Option<&str>) -> Result<Attribute, ApiError> {
    let Some(text) = text else { return Ok(Attribute::UserData(None)) };
    let malformed = || ApiError::new("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.");
    let data = UserData::new(STANDARD.decode(text).map_err(|_| malformed())?);
    Ok(Attribute::UserData(Some(data.map_err(|e| ApiError::value(e.to_string()))?)))
}

/// `ModifyInstanceAttribute`.
pub(super) fn modify(context: &Context<'_>, request: ModifyInstanceAttribute) -> Answer {
    let id = find(context, &request.instance_id)?.id;
    context.supervisor.modify(id, &request.change()?)?;
    Ok(json!({}))
}

/// Whether an instance is monitored in detail, as it is shown.
pub(super) fn shown_monitoring(instance: &Instance) -> Value {
    json!({"State": if instance.remembered.monitoring { "enabled" } else { "disabled" }})
}

fn set_monitoring(context: &Context<'_>, wanted: &[String], on: bool) -> Answer {
    let ids = lifecycle::ids(context, wanted)?;
    let mut items = Vec::new();
    for id in ids {
        let instance = context.supervisor.modify(id, &Attribute::Monitoring(on))?;
        items.push(json!({"InstanceId": id.to_string(), "Monitoring": shown_monitoring(&instance)}));
    }
    Ok(json!({ "InstanceMonitorings": items }))
}

/// `MonitorInstances`: remembered and shown; nothing is measured for it.
pub(super) fn monitor(context: &Context<'_>, request: Instances) -> Answer {
    set_monitoring(context, &request.instance_ids, true)
}

/// `UnmonitorInstances`.
pub(super) fn unmonitor(context: &Context<'_>, request: Instances) -> Answer {
    set_monitoring(context, &request.instance_ids, false)
}

/// Whether the processor credits of an instance are unlimited: those of the first burstable types are not, if
/// nothing was said.
pub(super) fn shown_credits(instance: &Instance) -> &'static str {
    let unlimited = !instance.instance_type.starts_with("t2.");
    if instance.remembered.unlimited_credits.unwrap_or(unlimited) { "unlimited" } else { "standard" }
}

/// Whether there are unlimited credits for an instance of this type, in the words of EC2.
pub(super) fn credits(kind: &str, word: &str) -> Result<bool, ApiError> {
    if !is_burstable(kind) {
        return Err(ApiError::combination(format!("Instances of the type {kind} have no processor credits")));
    }
    match word {
        "unlimited" => Ok(true),
        "standard" => Ok(false),
        other => {
            Err(ApiError::value(format!("Invalid value '{other}' for cpuCredits: standard or unlimited")))
        }
    }
}

/// Whether a type has processor credits.
pub(super) fn is_burstable(kind: &str) -> bool {
    kind.starts_with('t')
}

/// `ModifyInstanceCreditSpecification`: remembered and shown; nothing is metered.
pub(super) fn modify_credits(context: &Context<'_>, request: ModifyInstanceCreditSpecification) -> Answer {
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for change in request.instance_credit_specifications {
        let modify = || {
            let instance = find(context, &change.instance_id)?;
            let word = change.cpu_credits.as_deref().unwrap_or_default();
            let unlimited = credits(&instance.instance_type, word)?;
            Ok::<_, ApiError>(
                context.supervisor.modify(instance.id, &Attribute::UnlimitedCredits(unlimited))?,
            )
        };
        match modify() {
            Ok(_) => done.push(json!({"InstanceId": change.instance_id})),
            Err(e) => refused.push(json!({
                "InstanceId": change.instance_id, "Error": {"Code": e.code, "Message": e.message},
            })),
        }
    }
    Ok(json!({
        "SuccessfulInstanceCreditSpecifications": done, "UnsuccessfulInstanceCreditSpecifications": refused,
    }))
}

/// `GetInstanceUefiData`: there is no firmware, so it has stored nothing.
pub(super) fn uefi_data(context: &Context<'_>, request: GetInstanceUefiData) -> Answer {
    let instance = find(context, &request.instance_id)?;
    Ok(json!({"InstanceId": instance.id.to_string()}))
}

/// `GetConsoleOutput`.
pub(super) fn console(context: &Context<'_>, request: GetConsoleOutput) -> Answer {
    let instance = find(context, &request.instance_id)?;
    let output = context.supervisor.console_output(instance.id)?;
    let text: Value =
        if output.bytes.is_empty() { Value::Null } else { STANDARD.encode(&output.bytes).into() };
    Ok(json!({"InstanceId": instance.id.to_string(), "Timestamp": output.time, "Output": text}))
}

/// `GetPasswordData`: what a guest has encrypted with the public key of its launch.
pub(super) fn password(context: &Context<'_>, request: GetPasswordData) -> Answer {
    let instance = find(context, &request.instance_id)?;
    let report = context.plane.password(&instance)?;
    let data = report.map(|report| report.password_data).unwrap_or_default();
    Ok(json!({"InstanceId": instance.id.to_string(), "Timestamp": instance.launched, "PasswordData": data}))
}

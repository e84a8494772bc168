//! `dynamic/instance-identity/document`.

use serde_json::{Value, json};

use super::InstanceFacts;
use super::document::{object, timestamp};

/// The identity document of an instance, made anew at launch and at each start. Signatures are over
/// exactly these bytes: make it once and keep it.
pub fn identity_document(facts: &InstanceFacts) -> String {
    let private_ip = facts.interfaces.first().and_then(|interface| interface.private_ipv4.first());
    object(&[
        ("accountId", json!(facts.account_id)),
        ("architecture", json!("x86_64")),
        ("availabilityZone", json!(facts.placement.zone)),
        ("billingProducts", Value::Null),
        ("devpayProductCodes", Value::Null),
        ("marketplaceProductCodes", Value::Null),
        ("imageId", facts.ami_id.map_or(Value::Null, |id| json!(id.to_string()))),
        ("instanceId", json!(facts.instance_id.to_string())),
        ("instanceType", json!(facts.instance_type)),
        ("kernelId", Value::Null),
        ("pendingTime", json!(timestamp(facts.launched))),
        ("privateIp", private_ip.map_or(Value::Null, |ip| json!(ip.to_string()))),
        ("ramdiskId", Value::Null),
        ("region", json!(facts.placement.region)),
        ("version", json!("2017-09-30")),
    ])
}

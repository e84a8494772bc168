//! How an instance's metadata service may be used.

use kiln_controlplane::instances::Instance;
use kiln_controlplane::metadata::{HttpTokens, MetadataOptions};
use kiln_model::InstanceId;
use serde_json::{Value, json};

use super::ids::INSTANCE;
use super::{Answer, Context, input};
use crate::error::ApiError;

input!(MetadataOptionsRequest { http_tokens: Option<String>, http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>, http_protocol_ipv6: Option<String>, instance_metadata_tags: Option<String> });
input!(ModifyInstanceMetadataOptions { instance_id: String, http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>, http_endpoint: Option<String>, http_protocol_ipv6: Option<String>,
    instance_metadata_tags: Option<String> });

/// Changes what the request names; its words are checked.
pub(super) fn change(
    options: &mut MetadataOptions,
    request: &MetadataOptionsRequest,
) -> Result<(), ApiError> {
    let switch = |word: &Option<String>, own: &mut bool| {
        if let Some(word) = word {
            *own = word == "enabled";
        }
    };
    switch(&request.http_endpoint, &mut options.endpoint_enabled);
    switch(&request.http_protocol_ipv6, &mut options.ipv6_enabled);
    switch(&request.instance_metadata_tags, &mut options.tags_enabled);
    if let Some(word) = &request.http_tokens {
        options.tokens = if word == "required" { HttpTokens::Required } else { HttpTokens::Optional };
    }
    if let Some(limit) = request.http_put_response_hop_limit {
        let limit = u8::try_from(limit).ok().filter(|limit| (1..=64).contains(limit));
        options.hop_limit = limit.ok_or_else(|| ApiError::value("HttpPutResponseHopLimit is 1 to 64"))?;
    }
    Ok(())
}

/// The options as they are shown.
pub(super) fn shown(instance: &Instance) -> Value {
    let options = instance.metadata_options;
    let word = |on: bool| if on { "enabled" } else { "disabled" };
    let tokens = match options.tokens {
        HttpTokens::Optional => "optional",
        HttpTokens::Required => "required",
    };
    let applied = instance.vmm.is_none() || instance.metadata.is_applied();
    json!({
        "State": if applied { "applied" } else { "pending" }, "HttpTokens": tokens,
        "HttpPutResponseHopLimit": options.hop_limit, "HttpEndpoint": word(options.endpoint_enabled),
        "HttpProtocolIpv6": word(options.ipv6_enabled), "InstanceMetadataTags": word(options.tags_enabled),
    })
}

/// `ModifyInstanceMetadataOptions`.
pub(super) fn modify(context: &Context<'_>, request: ModifyInstanceMetadataOptions) -> Answer {
    let id: InstanceId = INSTANCE.parse(&request.instance_id)?;
    let mut options = context.supervisor.instance(id)?.metadata_options;
    let wanted = MetadataOptionsRequest {
        http_tokens: request.http_tokens,
        http_put_response_hop_limit: request.http_put_response_hop_limit,
        http_endpoint: request.http_endpoint,
        http_protocol_ipv6: request.http_protocol_ipv6,
        instance_metadata_tags: request.instance_metadata_tags,
    };
    change(&mut options, &wanted)?;
    let instance = context.plane.modify_metadata_options(id, options)?;
    Ok(json!({"InstanceId": id.to_string(), "InstanceMetadataOptions": shown(&instance)}))
}

//! Key pairs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_controlplane::key_pairs::{KeyKind, KeyPair, KeyPairs};
use kiln_controlplane::tags;
use serde_json::{Value, json};

use super::ids::KEY_PAIR;
use super::listing::{self, Filter, Filters, Wish};
use super::tagging::{self, TagMap, TagSpecification};
use super::{Answer, Context, input};
use crate::error::ApiError;

input!(CreateKeyPair { key_name: String, key_type: Option<String>, key_format: Option<String>,
    tag_specifications: Vec<TagSpecification> });
input!(ImportKeyPair { key_name: String, public_key_material: String, tag_specifications: Vec<TagSpecification> });
input!(DeleteKeyPair { key_name: Option<String>, key_pair_id: Option<String> });
input!(DescribeKeyPairs { key_names: Vec<String>, key_pair_ids: Vec<String>, include_public_key: bool,
    filters: Vec<Filter> });

const FILTERS: &Filters =
    &[("key-pair-id", "KeyPairId"), ("fingerprint", "KeyFingerprint"), ("key-name", "KeyName")];

pub(super) fn service<'a>(context: &Context<'a>) -> KeyPairs<'a> {
    KeyPairs { store: context.plane.store(), now: context.now }
}

fn shown(pair: &KeyPair, tags: &TagMap, public: bool) -> Value {
    let id = pair.id.to_string();
    json!({
        "KeyPairId": id, "KeyName": pair.name, "KeyType": pair.kind.as_str(), "KeyFingerprint": pair.fingerprint,
        "CreateTime": pair.created, "PublicKey": public.then(|| pair.public.to_string()),
        "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

/// `CreateKeyPair`.
pub(super) fn create(context: &Context<'_>, request: CreateKeyPair) -> Answer {
    if request.key_format.is_some_and(|format| format != "pem") {
        return Err(ApiError::unsupported("Private keys come in the format pem"));
    }
    let kind = if request.key_type.as_deref() == Some("ed25519") { KeyKind::Ed25519 } else { KeyKind::Rsa };
    let tags = tagging::specified(request.tag_specifications, "key-pair")?;
    let created = service(context).create(&request.key_name, kind, &tags)?;
    Ok(json!({
        "KeyPairId": created.pair.id.to_string(), "KeyName": created.pair.name,
        "KeyFingerprint": created.pair.fingerprint, "KeyMaterial": created.private.expose(),
        "Tags": tagging::shown(&tags),
    }))
}

/// `ImportKeyPair`.
pub(super) fn import(context: &Context<'_>, request: ImportKeyPair) -> Answer {
    let bad = || ApiError::new("InvalidKey.Format", "Key is not in valid OpenSSH public key format");
    let text = STANDARD.decode(&request.public_key_material).map_err(|_| bad())?;
    let text = String::from_utf8(text).map_err(|_| bad())?;
    let tags = tagging::specified(request.tag_specifications, "key-pair")?;
    let pair = service(context).import(&request.key_name, &text, &tags)?;
    Ok(json!({
        "KeyPairId": pair.id.to_string(), "KeyName": pair.name, "KeyFingerprint": pair.fingerprint,
        "Tags": tagging::shown(&tags),
    }))
}

/// `DeleteKeyPair`: of one that is not there too.
pub(super) fn delete(context: &Context<'_>, request: DeleteKeyPair) -> Answer {
    let service = service(context);
    let name = match (request.key_name, request.key_pair_id) {
        (Some(name), _) => Some(name),
        (None, Some(id)) => {
            KEY_PAIR.check(&id)?;
            service.list()?.into_iter().find(|pair| pair.id.to_string() == id).map(|pair| pair.name)
        }
        (None, None) => return Err(ApiError::missing("KeyName")),
    };
    let gone = name.map(|name| service.delete(&name)).transpose()?.flatten();
    if let Some(pair) = &gone {
        tags::forget(context.plane.store(), &pair.id.to_string())?;
    }
    Ok(json!({"Return": true, "KeyPairId": gone.map(|pair| pair.id.to_string())}))
}

/// `DescribeKeyPairs`.
pub(super) fn describe(context: &Context<'_>, request: DescribeKeyPairs) -> Answer {
    let tags = tagging::read(context)?;
    let pairs = service(context).list()?;
    let mut items: Vec<_> = pairs.iter().map(|pair| shown(pair, &tags, request.include_public_key)).collect();
    listing::select(&mut items, &request.key_pair_ids, "KeyPairId", KEY_PAIR)?;
    listing::select_names(&mut items, &request.key_names, "KeyName", |name| {
        ApiError::new("InvalidKeyPair.NotFound", format!("The key pair '{name}' does not exist"))
    })?;
    listing::answer(
        items,
        Wish { filters: request.filters, ..Wish::default() },
        FILTERS,
        "KeyPairs",
        "KeyName",
    )
}

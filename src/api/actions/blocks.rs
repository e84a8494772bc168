//! The EBS direct APIs: snapshots written and read block by block.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::volumes::{BLOCK, LinearChecksum, NewUpload, Snapshot, VolumeError};
use kiln_model::SnapshotId;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::devices::{self, gib};
use super::ids::SNAPSHOT;
use super::tagging::{self, RawTag};
use super::tokens::{self, MAX_LONG_TOKEN, Token};
use super::{Context, input, parse, volumes};
use crate::auth::{Purpose, TOKEN_LIFE};
use crate::error::ApiError;
use crate::rest::Reply;

/// Answer of one of these.
type Answer = Result<Reply, ApiError>;
/// One of these, on checked parameters and the body of a block.
pub(crate) type BlockAction = fn(&Context<'_>, Value, Vec<u8>) -> Answer;

/// Blocks of one page, if not said.
const MAX_RESULTS: usize = 10_000;
/// How long an upload may rest, if not said, in minutes.
const TIMEOUT: u64 = 60;
const SHA256: &str = "SHA256";

input!(StartSnapshot { volume_size: u64, parent_snapshot_id: Option<String>, tags: Vec<RawTag>,
    description: Option<String>, encrypted: bool, timeout: Option<u64> });
input!(PutSnapshotBlock { snapshot_id: String, block_index: u64, data_length: u64, progress: Option<u64>,
    checksum: String, checksum_algorithm: String });
input!(CompleteSnapshot { snapshot_id: String, changed_blocks_count: u64, checksum: Option<String>,
    checksum_algorithm: Option<String>, checksum_aggregation_method: Option<String> });
input!(ListSnapshotBlocks { snapshot_id: String, next_token: Option<String>, max_results: Option<usize>,
    starting_block_index: Option<u64> });
input!(ListChangedBlocks { first_snapshot_id: Option<String>, second_snapshot_id: String,
    next_token: Option<String>, max_results: Option<usize>, starting_block_index: Option<u64> });
input!(GetSnapshotBlock { snapshot_id: String, block_index: u64, block_token: String });

/// They by name.
pub(super) static ACTIONS: &[(&str, BlockAction)] = &[
    ("CompleteSnapshot", complete),
    ("GetSnapshotBlock", get),
    ("ListChangedBlocks", list_changes),
    ("ListSnapshotBlocks", list),
    ("PutSnapshotBlock", put),
    ("StartSnapshot", start),
];

fn only(value: Value) -> Answer {
    Ok(Reply { value, block: None })
}

fn invalid(reason: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::new(reason, message)
}

fn id(text: &str) -> Result<SnapshotId, ApiError> {
    SNAPSHOT.parse(text)
}

/// A SHA-256 as headers have it.
fn digest(text: &str) -> Result<[u8; 32], ApiError> {
    let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| ApiError::value("A checksum is a SHA-256 in base64"))
}

/// `StartSnapshot`.
fn start(context: &Context<'_>, mut input: Value, _: Vec<u8>) -> Answer {
    let token = Token::take_within(context, "StartSnapshot", &mut input, MAX_LONG_TOKEN)?;
    let request: StartSnapshot = parse(input)?;
    if request.encrypted {
        return Err(ApiError::unsupported("Snapshots are not encrypted"));
    }
    let size = |message: String| invalid("INVALID_VOLUME_SIZE", message);
    let tags = tagging::checked(request.tags).map_err(|e| invalid("INVALID_TAG", e.message))?;
    let wish = NewUpload {
        size: devices::bytes(request.volume_size).map_err(|e| size(e.message))?,
        parent: request.parent_snapshot_id.as_deref().map(id).transpose()?,
        description: request.description.unwrap_or_default(),
        timeout: Duration::from_secs(request.timeout.unwrap_or(TIMEOUT).saturating_mul(60)),
    };
    let made = tokens::once_of(context, &token, |token| {
        let also = &mut token.making(&tags);
        let started =
            context.plane.volumes().start_upload(&wish, &mut |tx, row| also(tx, &row.id.to_string()));
        started.map(|snapshot| snapshot.id.to_string()).map_err(|e| match e {
            VolumeError::Size(_) | VolumeError::TooSmall { .. } => size(e.to_string()),
            e => e.into(),
        })
    })?;
    let snapshot = context.plane.volumes().snapshot(id(&made)?)?;
    let tags = tagging::read(context)?.remove(&made).unwrap_or_default();
    only(json!({
        "SnapshotId": made, "OwnerId": ACCOUNT, "Status": volumes::snapshot_state(&snapshot).0,
        "StartTime": snapshot.created, "VolumeSize": gib(snapshot.size), "BlockSize": BLOCK,
        "Description": Some(&snapshot.description).filter(|text| !text.is_empty()),
        "ParentSnapshotId": snapshot.upload.and_then(|upload| upload.parent).map(|id| id.to_string()),
        "Tags": Some(tagging::shown(&tags)).filter(|_| !tags.is_empty()),
    }))
}

/// `PutSnapshotBlock`.
fn put(context: &Context<'_>, input: Value, mut block: Vec<u8>) -> Answer {
    let request: PutSnapshotBlock = parse(input)?;
    let id = id(&request.snapshot_id)?;
    if request.data_length != BLOCK || block.len() as u64 != BLOCK {
        return Err(ApiError::value(format!("A block has {BLOCK} bytes")));
    }
    let computed: [u8; 32] = Sha256::digest(&block).into();
    if digest(&request.checksum)? != computed {
        return Err(ApiError::value("The checksum of the block is not the one that the request says"));
    }
    context.plane.volumes().put_block(id, request.block_index, &mut block)?;
    only(json!({"Checksum": STANDARD.encode(computed), "ChecksumAlgorithm": SHA256}))
}

/// `CompleteSnapshot`: complete when it returns.
fn complete(context: &Context<'_>, input: Value, _: Vec<u8>) -> Answer {
    let request: CompleteSnapshot = parse(input)?;
    let checksum = request.checksum.as_deref().map(digest).transpose()?.map(LinearChecksum);
    let (id, count) = (id(&request.snapshot_id)?, request.changed_blocks_count);
    let snapshot = context.plane.volumes().complete_upload(id, count, checksum)?;
    only(json!({"Status": volumes::snapshot_state(&snapshot).0}))
}

/// Where a list goes on.
fn beginning(
    context: &Context<'_>,
    purpose: Purpose,
    token: Option<&str>,
    said: Option<u64>,
) -> Result<u64, ApiError> {
    let Some(token) = token else { return Ok(said.unwrap_or_default()) };
    let known = context.block_tokens.read(purpose, token, context.now);
    known.ok_or_else(|| {
        invalid("INVALID_PAGE_TOKEN", "The page token was not given for this list, or is too old")
    })
}

/// What a page says besides its blocks.
fn page(
    context: &Context<'_>,
    snapshot: &Snapshot,
    purpose: Purpose,
    next: Option<u64>,
    until: u64,
) -> Value {
    json!({
        "ExpiryTime": until, "VolumeSize": gib(snapshot.size), "BlockSize": BLOCK,
        "NextToken": next.map(|index| context.block_tokens.give(purpose, index, until)),
    })
}

/// `ListSnapshotBlocks`.
fn list(context: &Context<'_>, input: Value, _: Vec<u8>) -> Answer {
    let request: ListSnapshotBlocks = parse(input)?;
    let id = id(&request.snapshot_id)?;
    let purpose = Purpose::List(id);
    let from = beginning(context, purpose, request.next_token.as_deref(), request.starting_block_index)?;
    let most = request.max_results.unwrap_or(MAX_RESULTS);
    let found = context.plane.volumes().list_blocks(id, from, most)?;
    let until = context.now.saturating_add(TOKEN_LIFE);
    let mut value = page(context, &found.snapshot, purpose, found.next, until);
    let token = |index| context.block_tokens.give(Purpose::Block(id), index, until);
    let blocks = found.blocks.into_iter().map(|at| json!({"BlockIndex": at, "BlockToken": token(at)}));
    value["Blocks"] = blocks.collect();
    only(value)
}

/// `ListChangedBlocks`.
fn list_changes(context: &Context<'_>, input: Value, _: Vec<u8>) -> Answer {
    let request: ListChangedBlocks = parse(input)?;
    let first = request.first_snapshot_id.as_deref();
    let first = id(first.ok_or_else(|| ApiError::missing("FirstSnapshotId"))?)?;
    let second = id(&request.second_snapshot_id)?;
    let purpose = Purpose::Changes(first, second);
    let from = beginning(context, purpose, request.next_token.as_deref(), request.starting_block_index)?;
    let most = request.max_results.unwrap_or(MAX_RESULTS);
    let found = context.plane.volumes().changed_blocks((first, second), from, most)?;
    let until = context.now.saturating_add(TOKEN_LIFE);
    let mut value = page(context, &found.snapshot, purpose, found.next, until);
    let token = |snapshot, index| context.block_tokens.give(Purpose::Block(snapshot), index, until);
    let shown = |block: kiln_controlplane::volumes::ChangedBlock| {
        let mut own = json!({"BlockIndex": block.index, "SecondBlockToken": token(second, block.index)});
        if block.in_first {
            own["FirstBlockToken"] = token(first, block.index).into();
        }
        own
    };
    value["ChangedBlocks"] = found.blocks.into_iter().map(shown).collect();
    only(value)
}

/// `GetSnapshotBlock`.
fn get(context: &Context<'_>, input: Value, _: Vec<u8>) -> Answer {
    let request: GetSnapshotBlock = parse(input)?;
    let id = id(&request.snapshot_id)?;
    let volumes = context.plane.volumes();
    volumes.snapshot(id)?;
    let known = context.block_tokens.read(Purpose::Block(id), &request.block_token, context.now);
    if known != Some(request.block_index) {
        let message = "The block token was not given for this block, or is too old";
        return Err(invalid("INVALID_BLOCK_TOKEN", message));
    }
    let block = volumes.read_block(id, request.block_index)?;
    let checksum = STANDARD.encode(Sha256::digest(&block));
    let value = json!({"DataLength": BLOCK, "Checksum": checksum, "ChecksumAlgorithm": SHA256});
    Ok(Reply { value, block: Some(block) })
}

//! Managed prefix lists: ranges that rules refer to by one id.

use kiln_controlplane::metadata::ACCOUNT;
use kiln_controlplane::network::{PrefixList, PrefixListChange, PrefixListEntry};
use kiln_controlplane::tags;
use kiln_model::{Ipv4Cidr, PrefixListId};
use serde_json::{Value, json};

use super::ids::PREFIX_LIST;
use super::listing::{self, Filters, Wish, listing};
use super::tagging::{self, TagMap, TagSpecification};
use super::tokens::Token;
use super::{Answer, Context, arn, input, parse, tokens};
use crate::error::ApiError;

input!(Entry { cidr: String, description: Option<String> });
input!(CreateManagedPrefixList { prefix_list_name: String, entries: Vec<Entry>, max_entries: i64,
    address_family: String, tag_specifications: Vec<TagSpecification> });
input!(ModifyManagedPrefixList { prefix_list_id: String, current_version: Option<i64>, prefix_list_name: Option<String>,
    add_entries: Vec<Entry>, remove_entries: Vec<Entry>, max_entries: Option<i64> });
input!(DeleteManagedPrefixList { prefix_list_id: String });
input!(GetManagedPrefixListEntries { prefix_list_id: String, target_version: Option<i64>, max_results: Option<i64>,
    next_token: Option<String> });
listing!(DescribeManagedPrefixLists { prefix_list_ids: Vec<String> });

const FILTERS: &Filters =
    &[("owner-id", "OwnerId"), ("prefix-list-id", "PrefixListId"), ("prefix-list-name", "PrefixListName")];

/// Longest name and longest description of a range.
const MAX_TEXT: usize = 255;

fn shown(list: &PrefixList, tags: &TagMap) -> Value {
    let id = list.id.to_string();
    // Whoever changed it waits for this word.
    let state = if list.modified { "modify-complete" } else { "create-complete" };
    json!({
        "PrefixListId": id, "PrefixListName": list.name, "PrefixListArn": arn("prefix-list", &id),
        "AddressFamily": "IPv4", "State": state, "MaxEntries": list.max_entries,
        "Version": list.version, "OwnerId": ACCOUNT, "Tags": tagging::shown_with_name(tags, &id, None),
    })
}

fn range(text: &str) -> Result<Ipv4Cidr, ApiError> {
    text.parse().map_err(|e| ApiError::value(format!("Value ({text}) for parameter cidr is invalid. {e}")))
}

fn entries(entries: Vec<Entry>) -> Result<Vec<PrefixListEntry>, ApiError> {
    let mut all: Vec<PrefixListEntry> = Vec::new();
    for Entry { cidr, description } in entries {
        let range = range(&cidr)?;
        if all.iter().any(|other| other.range == range) {
            return Err(ApiError::value(format!("The range {range} is given twice")));
        }
        if let Some(description) = &description {
            check_text(description)?;
        }
        all.push(PrefixListEntry { range, description });
    }
    Ok(all)
}

fn check_text(text: &str) -> Result<(), ApiError> {
    if text.chars().count() > MAX_TEXT {
        return Err(ApiError::value("A name or description has at most 255 characters"));
    }
    Ok(())
}

fn name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() || name.starts_with("com.amazonaws") {
        return Err(ApiError::value(format!("'{name}' cannot be the name of a prefix list")));
    }
    check_text(name)
}

fn count(count: i64) -> Result<usize, ApiError> {
    usize::try_from(count).ok().filter(|count| *count > 0).ok_or_else(|| {
        ApiError::value(format!("Value ({count}) for parameter maxEntries is invalid. It is 1 or more"))
    })
}

fn find(context: &Context<'_>, id: &str) -> Result<PrefixList, ApiError> {
    let wanted: PrefixListId = PREFIX_LIST.parse(id)?;
    let all = context.plane.networks().prefix_lists()?;
    all.into_iter().find(|list| list.id == wanted).ok_or_else(|| PREFIX_LIST.missing(id))
}

/// `CreateManagedPrefixList`.
pub(super) fn create(context: &Context<'_>, mut input: Value) -> Answer {
    let token = Token::take(context, "CreateManagedPrefixList", &mut input)?;
    let request: CreateManagedPrefixList = parse(input)?;
    if request.address_family != "IPv4" {
        return Err(ApiError::unsupported("A prefix list is of the address family IPv4"));
    }
    name(&request.prefix_list_name)?;
    let tags = tagging::specified(request.tag_specifications, "prefix-list")?;
    let (most, entries) = (count(request.max_entries)?, entries(request.entries)?);
    let id = tokens::once(context, &token, |token| {
        let networks = context.plane.networks();
        let mut also = token.making(&tags);
        let list =
            networks.create_described_prefix_list(&request.prefix_list_name, most, &entries, &mut also)?;
        Ok(list.id.to_string())
    })?;
    Ok(json!({"PrefixList": shown(&find(context, &id)?, &tagging::read(context)?)}))
}

/// `ModifyManagedPrefixList`.
pub(super) fn modify(context: &Context<'_>, request: ModifyManagedPrefixList) -> Answer {
    let id: PrefixListId = PREFIX_LIST.parse(&request.prefix_list_id)?;
    if let Some(text) = &request.prefix_list_name {
        name(text)?;
    }
    let change = PrefixListChange {
        version: request.current_version,
        name: request.prefix_list_name,
        max_entries: request.max_entries.map(count).transpose()?,
        add: entries(request.add_entries)?,
        remove: entries(request.remove_entries)?.into_iter().map(|entry| entry.range).collect(),
    };
    if (!change.add.is_empty() || !change.remove.is_empty()) && change.version.is_none() {
        return Err(ApiError::missing("CurrentVersion"));
    }
    if change.max_entries.is_some() && !(change.add.is_empty() && change.remove.is_empty()) {
        return Err(ApiError::combination("Entries and their number are modified one after the other"));
    }
    let list = context.plane.networks().change_prefix_list(id, &change)?;
    Ok(json!({"PrefixList": shown(&list, &tagging::read(context)?)}))
}

/// `DeleteManagedPrefixList`.
pub(super) fn delete(context: &Context<'_>, request: DeleteManagedPrefixList) -> Answer {
    let list = find(context, &request.prefix_list_id)?;
    let mut shown = shown(&list, &tagging::read(context)?);
    context.plane.networks().delete_prefix_list(list.id)?;
    tags::forget(context.plane.store(), &request.prefix_list_id)?;
    shown["State"] = "delete-complete".into();
    Ok(json!({ "PrefixList": shown }))
}

/// `DescribeManagedPrefixLists`.
pub(super) fn describe(context: &Context<'_>, mut request: DescribeManagedPrefixLists) -> Answer {
    let tags = tagging::read(context)?;
    let lists = context.plane.networks().prefix_lists()?;
    let mut items: Vec<_> = lists.iter().map(|list| shown(list, &tags)).collect();
    listing::select(&mut items, &request.prefix_list_ids, "PrefixListId", PREFIX_LIST)?;
    listing::answer(items, request.wish(), FILTERS, "PrefixLists", "PrefixListId")
}

/// `GetManagedPrefixListEntries`: of the version that there is.
pub(super) fn get_entries(context: &Context<'_>, request: GetManagedPrefixListEntries) -> Answer {
    let list = find(context, &request.prefix_list_id)?;
    if request.target_version.is_some_and(|version| version != list.version) {
        return Err(ApiError::unsupported("Earlier versions of a prefix list are not kept"));
    }
    let entry =
        |range: &Ipv4Cidr| json!({"Cidr": range.to_string(), "Description": list.descriptions.get(range)});
    let items: Vec<_> = list.ranges.iter().map(entry).collect();
    let wish = Wish { max_results: request.max_results, next_token: request.next_token, ..Wish::default() };
    listing::answer(items, wish, &[], "Entries", "Cidr")
}

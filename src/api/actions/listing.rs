//! What all describing actions share: selection by id, filters, order, pages.
//!
//! A filter is a path into the answer's own items (`Groups.GroupId` looks into every element of the
//! list `Groups`), so what is filtered is what is shown. One page goes on behind the last key of the
//! page before it, whatever came or went meanwhile.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiln_model::Wildcard;
use serde_json::{Map, Value};

use super::ids::IdKind;
use super::{Answer, input};
use crate::error::ApiError;

/// Most filters of a request, and most values of one.
const MAX_FILTERS: usize = 50;
const MAX_VALUES: usize = 200;
/// Items of a page when nothing is said.
const MAX_ITEMS: usize = 1000;

input!(Filter { name: Option<String>, values: Vec<String> });

/// Name of a filter and path of what it looks at.
pub(super) type Filters = [(&'static str, &'static str)];

/// What a request says of filters and pages.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub filters: Vec<Filter>,
    pub max_results: Option<i64>,
    pub next_token: Option<String>,
}

/// Parameters of a describing action: those named here, filters and pages.
macro_rules! listing {
    ($name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        crate::actions::input!($name {
            $($field: $kind,)*
            filters: Vec<crate::actions::listing::Filter>,
            max_results: Option<i64>,
            next_token: Option<String>,
        });

        impl $name {
            pub(super) fn wish(&mut self) -> crate::actions::listing::Wish {
                crate::actions::listing::Wish {
                    filters: std::mem::take(&mut self.filters),
                    max_results: self.max_results,
                    next_token: self.next_token.take(),
                }
            }
        }
    };
}
pub(super) use listing;

/// Keeps the items whose `member` is one of `ids`; each of them must be there. No ids: all items.
pub(super) fn select(
    items: &mut Vec<Value>,
    ids: &[String],
    member: &str,
    kind: IdKind,
) -> Result<(), ApiError> {
    if ids.is_empty() {
        return Ok(());
    }
    ids.iter().try_for_each(|id| kind.check(id))?;
    select_names(items, ids, member, |id| kind.missing(id))
}

/// As [`select`], of names: `missing` makes the error.
pub(super) fn select_names(
    items: &mut Vec<Value>,
    names: &[String],
    member: &str,
    missing: impl Fn(&str) -> ApiError,
) -> Result<(), ApiError> {
    if names.is_empty() {
        return Ok(());
    }
    let own = |item: &Value| text(item.get(member));
    let there: BTreeSet<String> = items.iter().map(own).collect();
    if let Some(name) = names.iter().find(|name| !there.contains(*name)) {
        return Err(missing(name));
    }
    let wanted: BTreeSet<&String> = names.iter().collect();
    items.retain(|item| wanted.contains(&own(item)));
    Ok(())
}

/// Filters, sorts by `key`, takes a page, and answers it as `member`.
pub(super) fn answer(
    mut items: Vec<Value>,
    mut wish: Wish,
    table: &Filters,
    member: &str,
    key: &str,
) -> Answer {
    filter(&mut items, &std::mem::take(&mut wish.filters), table)?;
    let (items, token) = page(items, &wish, |item| text(item.get(key)))?;
    let mut answer = Map::new();
    answer.insert(member.to_owned(), items.into());
    if let Some(token) = token {
        answer.insert("NextToken".to_owned(), token.into());
    }
    Ok(answer.into())
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Sorts by `key` and takes a page.
pub(super) fn page(
    items: Vec<Value>,
    wish: &Wish,
    key: impl Fn(&Value) -> String,
) -> Result<(Vec<Value>, Option<String>), ApiError> {
    let rows = items.into_iter().map(|item| (key(&item), item)).collect();
    page_of(rows, wish, |item| Some(std::mem::take(item)))
}

/// A page of rows with their keys, which are shown no further than the page needs; those that are not
/// shown are in none.
pub(super) fn page_of<T>(
    mut rows: Vec<(String, T)>,
    wish: &Wish,
    mut show: impl FnMut(&mut T) -> Option<Value>,
) -> Result<(Vec<Value>, Option<String>), ApiError> {
    let most = match wish.max_results {
        None => MAX_ITEMS,
        Some(most) => {
            usize::try_from(most).ok().filter(|most| (1..=MAX_ITEMS).contains(most)).ok_or_else(|| {
                ApiError::value(format!(
                    "Value ( {most} ) for parameter maxResults is invalid. Expecting 1 to 1000"
                ))
            })?
        }
    };
    rows.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut from = 0;
    if let Some(token) = &wish.next_token {
        let bad = || ApiError::new("InvalidNextToken", "The NextToken is none that this action gave");
        let last = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let last = last.ok_or_else(bad)?;
        from = rows.partition_point(|(key, _)| *key <= last);
    }
    let (mut items, mut last) = (Vec::new(), None);
    for (key, row) in rows.iter_mut().skip(from) {
        let Some(item) = show(row) else { continue };
        if items.len() == most {
            return Ok((items, last.map(|key: &String| URL_SAFE_NO_PAD.encode(key))));
        }
        items.push(item);
        last = Some(&*key);
    }
    Ok((items, None))
}

/// Finds what a filter looks at in an item.
type Look = Box<dyn Fn(&Value, &mut Vec<String>)>;

/// The filters of a request, ready for items.
pub(super) struct Sieve(Vec<(Look, Vec<Wildcard>)>);

impl Sieve {
    /// Those of a request; `table` has what can be filtered by.
    pub(super) fn new(filters: &[Filter], table: &Filters) -> Result<Self, ApiError> {
        if filters.len() > MAX_FILTERS {
            return Err(ApiError::new(
                "FilterLimitExceeded",
                format!("A request has at most {MAX_FILTERS} filters"),
            ));
        }
        let one = |filter: &Filter| {
            let name = filter.name.as_deref().ok_or_else(|| ApiError::missing("Filter.Name"))?;
            if filter.values.len() > MAX_VALUES {
                let message = format!("A filter has at most {MAX_VALUES} values");
                return Err(ApiError::new("FilterLimitExceeded", message));
            }
            let wanted = filter.values.iter().map(|value| Wildcard::with_escapes(value)).collect();
            Ok((look(name, table)?, wanted))
        };
        Ok(Sieve(filters.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// Whether every filter lets an item pass.
    pub(super) fn passes(&self, item: &Value) -> bool {
        self.0.iter().all(|(look, wanted)| {
            let mut found = Vec::new();
            look(item, &mut found);
            found.iter().any(|value| wanted.iter().any(|pattern| pattern.matches(value)))
        })
    }
}

fn look(name: &str, table: &Filters) -> Result<Look, ApiError> {
    /// Where items have their tags.
    const TAGS: [&str; 2] = ["Tags", "TagSet"];
    let every = |member: &'static str| -> Look {
        Box::new(move |item, found| TAGS.iter().for_each(|tags| collect(item, &[tags, member], found)))
    };
    Ok(match (name.strip_prefix("tag:"), name) {
        (Some(key), _) => {
            let key = key.to_owned();
            Box::new(move |item, found| {
                let all = TAGS.iter().filter_map(|tags| item.get(tags)?.as_array()).flatten();
                let own = all.filter(|tag| tag.get("Key").and_then(Value::as_str) == Some(&key));
                found.extend(own.map(|tag| text(tag.get("Value"))));
            })
        }
        (_, "tag-key") => every("Key"),
        (_, "tag-value") => every("Value"),
        _ => {
            let path = table.iter().find(|(other, _)| *other == name).map(|(_, path)| *path);
            let path = path.ok_or_else(|| ApiError::value(format!("The filter '{name}' is invalid")))?;
            let parts: Vec<_> = path.split('.').collect();
            Box::new(move |item, found| collect(item, &parts, found))
        }
    })
}

/// Keeps what every filter lets pass.
pub(super) fn filter(items: &mut Vec<Value>, filters: &[Filter], table: &Filters) -> Result<(), ApiError> {
    let sieve = Sieve::new(filters, table)?;
    items.retain(|item| sieve.passes(item));
    Ok(())
}

/// What is at `path`, in all elements of the lists on the way.
fn collect(value: &Value, path: &[&str], found: &mut Vec<String>) {
    match (value, path.split_first()) {
        (Value::Array(elements), _) => elements.iter().for_each(|element| collect(element, path, found)),
        (Value::Object(members), Some((first, rest))) => {
            if let Some(value) = members.get(*first) {
                collect(value, rest, found);
            }
        }
        (Value::String(text), None) => found.push(text.clone()),
        (Value::Bool(_) | Value::Number(_), None) => found.push(value.to_string()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TABLE: &Filters = &[("id", "Id"), ("group.name", "Groups.Name"), ("default", "Default")];

    fn items() -> Vec<Value> {
        let item = |id: &str, group: &str, default: bool| {
            json!({"Id": id, "Groups": [{"Name": group}, {"Name": "all"}], "Default": default,
                   "Tags": [{"Key": "Name", "Value": format!("web-{id}")}]})
        };
        vec![item("c", "x", false), item("a", "x*", true), item("b", "y", false)]
    }

    fn ids(answer: &Value) -> String {
        answer["Items"].as_array().unwrap().iter().map(|item| item["Id"].as_str().unwrap()).collect()
    }

    fn shown(filters: &[(&str, &[&str])]) -> String {
        let filter = |(name, values): &(&str, &[&str])| Filter {
            name: Some((*name).to_owned()),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let wish = Wish { filters: filters.iter().map(filter).collect(), ..Wish::default() };
        answer(items(), wish, TABLE, "Items", "Id").map_or_else(|e| e.code.into_owned(), |found| ids(&found))
    }

    #[test]
    fn values_are_alternatives_and_filters_all_hold() {
        assert_eq!(shown(&[("id", &["c", "a"])]), "ac");
        assert_eq!(shown(&[("id", &["c", "a"]), ("default", &["false"])]), "c");
        assert_eq!(shown(&[("group.name", &["all"])]), "abc");
        assert_eq!(shown(&[("group.name", &["x?"])]), "a");
        assert_eq!(shown(&[("group.name", &["x\\*"])]), "a");
        assert_eq!(shown(&[("tag:Name", &["web-*"]), ("tag-key", &["N*"]), ("tag-value", &["*b"])]), "b");
        assert_eq!(shown(&[("tag:Other", &["*"])]), "");
        assert_eq!(shown(&[("wrong", &["x"])]), "InvalidParameterValue");
    }

    #[test]
    fn pages_go_on_behind_the_last_key() {
        let page = |token: Option<String>| {
            let wish = Wish { max_results: Some(2), next_token: token, ..Wish::default() };
            answer(items(), wish, TABLE, "Items", "Id").unwrap()
        };
        let first = page(None);
        assert_eq!(ids(&first), "ab");
        let rest = page(first["NextToken"].as_str().map(str::to_owned));
        assert_eq!((ids(&rest).as_str(), rest.get("NextToken")), ("c", None));
        let wish = Wish { next_token: Some("!".into()), ..Wish::default() };
        assert_eq!(answer(items(), wish, TABLE, "Items", "Id").unwrap_err().code, "InvalidNextToken");
    }
}

//! Values and listings of a snapshot by path.

use kiln_vmspec::MetadataSnapshot;

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Node<'a> {
    /// A value.
    Leaf(&'a [u8]),
    /// A directory: names joined by newlines, none at the end.
    Listing(String),
}

/// Versions that are served, oldest first: those that EC2 listed in August 2024. All of them show the
/// newest tree, because clients ask old versions for new keys.
const VERSIONS: [&str; 29] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "2024-04-11",
    "latest",
];

/// Finds what `segments`, version first, lead to.
pub(crate) fn lookup<'a>(snapshot: &'a MetadataSnapshot, segments: &[String]) -> Option<Node<'a>> {
    let Some((version, names)) = segments.split_first() else {
        return Some(Node::Listing(VERSIONS.join("\n")));
    };
    if !VERSIONS.contains(&version.as_str()) {
        return None;
    }
    let path = names.join("/");
    if let Some(value) = snapshot.leaves.get(&path) {
        return Some(Node::Leaf(value.as_bytes()));
    }
    if let Some(listing) = snapshot.listings.get(&path) {
        return Some(Node::Listing(listing.clone()));
    }
    list(snapshot, &path).map(Node::Listing)
}

/// The names below `directory`, alphabetically, those of directories with a slash. The top level is
/// listed without slashes.
fn list(snapshot: &MetadataSnapshot, directory: &str) -> Option<String> {
    let top = directory.is_empty();
    let below = if top { String::new() } else { format!("{directory}/") };
    let mut names: Vec<(&str, bool)> = snapshot
        .leaves
        .range(below.clone()..)
        .map_while(|(path, _)| path.strip_prefix(&below))
        .map(|rest| rest.split_once('/').map_or((rest, false), |(name, _)| (name, true)))
        .collect();
    // The map has `a-b` before `a/x`, a listing has `a/` before `a-b`.
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return None;
    }
    let lines: Vec<String> = names
        .into_iter()
        .map(|(name, is_directory)| format!("{name}{}", if is_directory && !top { "/" } else { "" }))
        .collect();
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use kiln_vmspec::LeafValue;

    use super::*;

    fn snapshot() -> MetadataSnapshot {
        let leaves = [
            ("dynamic/instance-identity/document", "{}"),
            ("meta-data/ami-id", "ami-1"),
            ("meta-data/block-device-mapping/ami", "/dev/sda1"),
            ("meta-data/block-device-mapping/root", "/dev/sda1"),
            ("meta-data/block-device-mapping-x", "1"),
            ("meta-data/empty", ""),
            ("meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA me"),
            ("meta-data/tags/instance/a=b", "v"),
            ("user-data", "\u{0}bytes"),
        ];
        MetadataSnapshot {
            leaves: leaves.map(|(path, value)| (path.to_owned(), LeafValue::from(value))).into(),
            listings: [("meta-data/public-keys".to_owned(), "0=my-key".to_owned())].into(),
            ..MetadataSnapshot::default()
        }
    }

    fn get<'a>(snapshot: &'a MetadataSnapshot, path: &str) -> Option<Node<'a>> {
        let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        lookup(snapshot, &segments)
    }

    fn listing(names: &[&str]) -> Option<Node<'static>> {
        Some(Node::Listing(names.join("\n")))
    }

    #[test]
    fn version_listing_ends_in_latest_without_newline() {
        let snapshot = snapshot();
        let Some(Node::Listing(text)) = get(&snapshot, "/") else { panic!("no listing") };
        assert!(text.starts_with("1.0\n2007-01-19\n"));
        assert!(text.ends_with("\n2024-04-11\nlatest"));
    }

    #[test]
    fn listings_follow_from_leaves() {
        let snapshot = snapshot();
        for version in ["latest", "1.0", "2009-04-04", "2021-03-23"] {
            let at = |path: &str| get(&snapshot, &format!("{version}{path}"));
            assert_eq!(at(""), listing(&["dynamic", "meta-data", "user-data"]));
            assert_eq!(
                at("/meta-data"),
                listing(&[
                    "ami-id",
                    "block-device-mapping/",
                    "block-device-mapping-x",
                    "empty",
                    "public-keys/",
                    "tags/"
                ])
            );
            assert_eq!(at("/meta-data/block-device-mapping"), listing(&["ami", "root"]));
            assert_eq!(at("/meta-data/public-keys"), listing(&["0=my-key"]));
            assert_eq!(at("/meta-data/public-keys/0"), listing(&["openssh-key"]));
            assert_eq!(at("/meta-data/tags/instance"), listing(&["a=b"]));
            assert_eq!(at("/meta-data/tags/instance/a=b"), Some(Node::Leaf(b"v")));
            assert_eq!(at("/meta-data/empty"), Some(Node::Leaf(b"")));
            assert_eq!(at("/user-data"), Some(Node::Leaf(b"\0bytes")));
        }
    }

    #[test]
    fn what_does_not_exist_is_not_found() {
        let snapshot = snapshot();
        for path in [
            "/2021-03-24",
            "/Latest",
            "/latest/meta",
            "/latest/meta-dat",
            "/latest/meta-data/ami",
            "/latest/meta-data/ami-id/x",
            "/latest/meta-data/block-device",
            "/latest/meta-data/public-keys/0=my-key",
            "/latest/meta-data/..",
            "/latest/meta-data/AMI-ID",
            "/latest/api",
            "/latest/api/token",
        ] {
            assert_eq!(get(&snapshot, path), None, "{path}");
        }
        assert_eq!(get(&MetadataSnapshot::default(), "/latest"), None);
        assert_eq!(get(&MetadataSnapshot::default(), "/latest/meta-data"), None);
    }
}

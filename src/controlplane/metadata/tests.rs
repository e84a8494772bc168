//! Golden trees.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kiln_model::{ImageId, InstanceId, InterfaceId, ReservationId, SubnetId, Tag, UserData, VpcId};
use kiln_vmspec::{HttpTokens, LeafValue, MetadataOptions, MetadataSnapshot};

use super::*;

fn interface(number: u8) -> InterfaceDescription {
    let private = [10, 0, 1, 10 + number].into();
    InterfaceDescription {
        id: InterfaceId::from_bits(0xa0 + u64::from(number)),
        mac: kiln_model::MacAddr::new([2, 0, 10, 0, 1, 10 + number]),
        device_number: number.into(),
        private_ipv4: vec![private],
        ipv6: Vec::new(),
        public_ipv4: Vec::new(),
        local_hostname: private_host_name(private, Some("us-east-1")),
        subnet_id: SubnetId::from_bits(0x5),
        subnet_cidr: "10.0.1.0/24".parse().unwrap(),
        subnet_ipv6_cidrs: Vec::new(),
        vpc_id: VpcId::from_bits(0x7),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        vpc_ipv6_cidrs: Vec::new(),
        security_groups: vec![SecurityGroupName { id: "sg-1".into(), name: "default".into() }],
        source_dest_check: true,
    }
}

fn facts() -> InstanceFacts {
    InstanceFacts {
        generation: 3,
        published: 1_688_152_002,
        options: MetadataOptions::default(),
        instance_id: InstanceId::from_bits(0xbb),
        ami_id: Some(ImageId::from_bits(0xaa)),
        instance_type: "t3.micro".into(),
        reservation_id: ReservationId::from_bits(0xcc),
        launch_index: 0,
        account_id: "123456789012".into(),
        launched: 1_688_152_002,
        placement: Placement {
            region: "us-east-1".into(),
            zone: "us-east-1a".into(),
            zone_id: "use1-az1".into(),
        },
        interfaces: vec![interface(0)],
        root_device: "/dev/xvda".into(),
        data_devices: Vec::new(),
        key: None,
        tags: vec![Tag::new("Name", "web 1").unwrap(), Tag::new("a=b", "").unwrap()],
        user_data: None,
        role: None,
        instance_credentials: None,
        identity: None,
        monitoring: false,
        host_names: BTreeMap::new(),
    }
}

fn key() -> KeyPair {
    let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@host";
    KeyPair { name: "my-key".into(), public_key: line.parse().unwrap() }
}

fn text<'a>(snapshot: &'a MetadataSnapshot, path: &str) -> Option<&'a str> {
    snapshot.leaves.get(path).map(|value| std::str::from_utf8(value.as_bytes()).unwrap())
}

/// Names of the top level.
fn top(snapshot: &MetadataSnapshot) -> BTreeSet<&str> {
    let below = snapshot.leaves.keys().filter_map(|path| path.strip_prefix("meta-data/"));
    below.map(|path| path.split_inclusive('/').next().unwrap()).collect()
}

#[test]
fn plain_instance_has_this_tree() {
    let snapshot = build(&facts()).unwrap();
    let m = "meta-data/network/interfaces/macs/02:00:0a:00:01:0a";
    let expected: BTreeMap<String, &str> = [
        ("dynamic/fws/instance-monitoring", "disabled"),
        ("meta-data/ami-id", "ami-000000000000000aa"),
        ("meta-data/ami-launch-index", "0"),
        ("meta-data/ami-manifest-path", "(unknown)"),
        ("meta-data/block-device-mapping/ami", "/dev/xvda"),
        ("meta-data/block-device-mapping/root", "/dev/xvda"),
        ("meta-data/events/maintenance/history", "[]"),
        ("meta-data/events/maintenance/scheduled", "[]"),
        ("meta-data/hibernation/configured", "false"),
        ("meta-data/hostname", "ip-10-0-1-10.ec2.internal"),
        (
            "meta-data/identity-credentials/ec2/info",
            "{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"2023-06-30T19:06:42Z\",\n  \"AccountId\" : \"123456789012\"\n}",
        ),
        ("meta-data/instance-action", "none"),
        ("meta-data/instance-id", "i-000000000000000bb"),
        ("meta-data/instance-life-cycle", "on-demand"),
        ("meta-data/instance-type", "t3.micro"),
        ("meta-data/local-hostname", "ip-10-0-1-10.ec2.internal"),
        ("meta-data/local-ipv4", "10.0.1.10"),
        ("meta-data/mac", "02:00:0a:00:01:0a"),
        ("meta-data/placement/availability-zone", "us-east-1a"),
        ("meta-data/placement/availability-zone-id", "use1-az1"),
        ("meta-data/placement/region", "us-east-1"),
        ("meta-data/profile", "default-hvm"),
        ("meta-data/reservation-id", "r-000000000000000cc"),
        ("meta-data/security-groups", "default"),
        ("meta-data/services/domain", "amazonaws.com"),
        ("meta-data/services/partition", "aws"),
        ("meta-data/system", "nitro"),
        (&format!("{m}/device-number"), "0"),
        (&format!("{m}/interface-id"), "eni-000000000000000a0"),
        (&format!("{m}/local-hostname"), "ip-10-0-1-10.ec2.internal"),
        (&format!("{m}/local-ipv4s"), "10.0.1.10"),
        (&format!("{m}/mac"), "02:00:0a:00:01:0a"),
        (&format!("{m}/owner-id"), "123456789012"),
        (&format!("{m}/security-group-ids"), "sg-1"),
        (&format!("{m}/security-groups"), "default"),
        (&format!("{m}/subnet-id"), "subnet-00000000000000005"),
        (&format!("{m}/subnet-ipv4-cidr-block"), "10.0.1.0/24"),
        (&format!("{m}/vpc-id"), "vpc-00000000000000007"),
        (&format!("{m}/vpc-ipv4-cidr-block"), "10.0.0.0/16"),
        (&format!("{m}/vpc-ipv4-cidr-blocks"), "10.0.0.0/16"),
        (
            "dynamic/instance-identity/document",
            "{\n  \"accountId\" : \"123456789012\",\n  \"architecture\" : \"x86_64\",\n  \
             \"availabilityZone\" : \"us-east-1a\",\n  \"billingProducts\" : null,\n  \
             \"devpayProductCodes\" : null,\n  \"marketplaceProductCodes\" : null,\n  \
             \"imageId\" : \"ami-000000000000000aa\",\n  \"instanceId\" : \"i-000000000000000bb\",\n  \
             \"instanceType\" : \"t3.micro\",\n  \"kernelId\" : null,\n  \
             \"pendingTime\" : \"2023-06-30T19:06:42Z\",\n  \"privateIp\" : \"10.0.1.10\",\n  \
             \"ramdiskId\" : null,\n  \"region\" : \"us-east-1\",\n  \"version\" : \"2017-09-30\"\n}",
        ),
    ]
    .map(|(path, value)| (path.to_owned(), value))
    .into();
    let got: BTreeMap<String, &str> =
        snapshot.leaves.keys().map(|path| (path.clone(), text(&snapshot, path).unwrap())).collect();
    assert_eq!(got, expected);
    assert!(snapshot.listings.is_empty());
    assert_eq!(snapshot.host_names["ip-10-0-1-10.ec2.internal"], [IpAddr::from([10, 0, 1, 10])]);
}

#[test]
fn key_user_data_and_tags_are_there_when_given() {
    let mut facts = facts();
    facts.key = Some(key());
    facts.user_data = Some(UserData::new(vec![0x1f, 0x8b, 0]).unwrap());
    facts.options.tags_enabled = true;
    let snapshot = build(&facts).unwrap();
    assert!(text(&snapshot, "meta-data/public-keys/0/openssh-key").unwrap().starts_with("ssh-ed25519 AAAA"));
    assert_eq!(snapshot.listings["meta-data/public-keys"], "0=my-key");
    assert_eq!(snapshot.leaves["user-data"].as_bytes(), [0x1f, 0x8b, 0]);
    assert_eq!(text(&snapshot, "meta-data/tags/instance/Name"), Some("web 1"));
    assert_eq!(text(&snapshot, "meta-data/tags/instance/a=b"), Some(""));
    facts.options.tags_enabled = false;
    facts.user_data = Some(UserData::new(Vec::new()).unwrap());
    let snapshot = build(&facts).unwrap();
    assert!(!top(&snapshot).contains("tags/") && !snapshot.leaves.contains_key("user-data"));
}

#[test]
fn tag_that_cannot_be_shown_is_refused_only_when_tags_are_shown() {
    let mut facts = facts();
    facts.tags.push(Tag::new("has space", "v").unwrap());
    assert!(build(&facts).is_ok());
    facts.options.tags_enabled = true;
    assert!(matches!(build(&facts), Err(BuildError::Tag(InvalidMetadataTag::Alphabet(_)))));
}

#[test]
fn role_comes_and_goes_whole() {
    let mut facts = facts();
    assert!(!top(&build(&facts).unwrap()).contains("iam/"));
    facts.role = Some(InstanceRole {
        profile_arn: "arn:aws:iam::123456789012:instance-profile/web".into(),
        profile_id: "AIPA0123456789ABCDEF0".into(),
        role_name: "web-role".into(),
        updated: 1_688_152_002,
        credentials: LeafValue::from("{\"SecretAccessKey\" : \"hunter2\"}"),
    });
    let snapshot = build(&facts).unwrap();
    assert!(top(&snapshot).contains("iam/"));
    assert_eq!(
        text(&snapshot, "meta-data/iam/info").unwrap(),
        "{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"2023-06-30T19:06:42Z\",\n  \"InstanceProfileArn\" : \
         \"arn:aws:iam::123456789012:instance-profile/web\",\n  \"InstanceProfileId\" : \"AIPA0123456789ABCDEF0\"\n}"
    );
    assert!(snapshot.leaves.contains_key("meta-data/iam/security-credentials/web-role"));
    assert!(!format!("{snapshot:?}{facts:?}").contains("hunter2"));
    facts.role.as_mut().unwrap().role_name.clear();
    assert!(matches!(build(&facts), Err(BuildError::Inconsistent(_))));
}

#[test]
fn several_interfaces_and_addresses() {
    let mut facts = facts();
    let mut second = interface(1);
    second.private_ipv4 = vec![[10, 0, 1, 11].into(), [10, 0, 1, 99].into()];
    second.ipv6 = vec!["2001:db8::11".parse().unwrap()];
    second.subnet_ipv6_cidrs = vec!["2001:db8::/64".into()];
    second.public_ipv4 = vec![PublicAddress {
        public: [198, 51, 100, 7].into(),
        private: [10, 0, 1, 11].into(),
        hostname: Some(public_host_name([198, 51, 100, 7].into(), "us-east-1")),
    }];
    second.security_groups.push(SecurityGroupName { id: "sg-2".into(), name: "web".into() });
    let mut third = interface(2);
    third.private_ipv4.clear();
    third.ipv6 = vec!["2001:db8::12".parse().unwrap()];
    third.source_dest_check = false;
    facts.interfaces.extend([second, third]);
    let snapshot = build(&facts).unwrap();
    let at = |number: u8, name: &str| {
        text(
            &snapshot,
            &format!("meta-data/network/interfaces/macs/02:00:0a:00:01:{:02x}/{name}", 10 + number),
        )
    };
    assert_eq!(at(1, "local-ipv4s"), Some("10.0.1.11\n10.0.1.99"));
    assert_eq!(at(1, "device-number"), Some("1"));
    assert_eq!(at(1, "ipv6s"), Some("2001:db8::11"));
    assert_eq!(at(1, "ipv4-associations/198.51.100.7"), Some("10.0.1.11"));
    assert_eq!(at(1, "public-ipv4s"), Some("198.51.100.7"));
    assert_eq!(at(1, "public-hostname"), Some("ec2-198-51-100-7.compute-1.amazonaws.com"));
    assert_eq!(at(1, "security-groups"), Some("default\nweb"));
    assert_eq!((at(2, "local-ipv4s"), at(2, "subnet-ipv4-cidr-block")), (None, None));
    assert_eq!(text(&snapshot, "meta-data/public-ipv4"), None);
    // That of a secondary address is not that of the instance.
    let private = [10, 0, 1, 100].into();
    facts.interfaces[0].private_ipv4.push(private);
    facts.interfaces[0].public_ipv4 =
        vec![PublicAddress { public: [198, 51, 100, 8].into(), private, hostname: None }];
    let snapshot = build(&facts).unwrap();
    assert_eq!(text(&snapshot, "meta-data/public-ipv4"), None);
    let of = "meta-data/network/interfaces/macs/02:00:0a:00:01:0a/ipv4-associations/198.51.100.8";
    assert_eq!(text(&snapshot, of), Some("10.0.1.100"));
    assert_eq!(text(&snapshot, "meta-data/mac"), Some("02:00:0a:00:01:0a"));
    let third = &snapshot.interfaces[&facts.interfaces[2].mac];
    assert!(!third.source_dest_check);
    assert_eq!(third.addresses, ["2001:db8::12".parse::<IpAddr>().unwrap()]);
}

#[test]
fn signed_identity_is_served_as_it_was_signed() {
    let mut facts = facts();
    let document = identity_document(&facts);
    facts.identity = Some(SignedIdentity {
        document: document.clone(),
        rsa2048: Some("MIAG".into()),
        ..SignedIdentity::default()
    });
    facts.interfaces[0].private_ipv4[0] = [10, 0, 1, 200].into();
    let snapshot = build(&facts).unwrap();
    assert_eq!(text(&snapshot, "dynamic/instance-identity/document"), Some(document.as_str()));
    assert_eq!(text(&snapshot, "dynamic/instance-identity/rsa2048"), Some("MIAG"));
    assert_eq!(text(&snapshot, "dynamic/instance-identity/signature"), None);
}

/// The example that the clients are tested with, in `src/linklocal/tests/clients`.
fn example() -> InstanceFacts {
    let mut facts = facts();
    facts.options.tokens = HttpTokens::Required;
    facts.options.tags_enabled = true;
    facts.tags = vec![Tag::new("Name", "web-1").unwrap(), Tag::new("a=b", "c d").unwrap()];
    facts.key = Some(key());
    facts.data_devices = vec!["/dev/sdf".into()];
    facts.user_data = Some(UserData::new(b"#!/bin/sh\nprintf '\\0\xff'\n".to_vec()).unwrap());
    let credentials = |key: &str| {
        LeafValue::from(format!(
            "{{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"2023-06-30T19:06:42Z\",\n  \
             \"Type\" : \"AWS-HMAC\",\n  \"AccessKeyId\" : \"{key}\",\n  \
             \"SecretAccessKey\" : \"c2VjcmV0\",\n  \"Token\" : \"dG9rZW4=\",\n  \
             \"Expiration\" : \"2099-01-01T00:00:00Z\"\n}}"
        ))
    };
    facts.instance_credentials = Some(credentials("ASIAINSTANCE00000000"));
    facts.role = Some(InstanceRole {
        profile_arn: "arn:aws:iam::123456789012:instance-profile/web".into(),
        profile_id: "AIPA0123456789ABCDEF0".into(),
        role_name: "web-role".into(),
        updated: 1_688_152_002,
        credentials: credentials("ASIAROLE000000000000"),
    });
    let mut second = interface(1);
    second.public_ipv4 = vec![PublicAddress {
        public: [198, 51, 100, 7].into(),
        private: [10, 0, 1, 11].into(),
        hostname: Some(public_host_name([198, 51, 100, 7].into(), "us-east-1")),
    }];
    facts.interfaces.push(second);
    facts
}

#[test]
fn clients_were_tested_with_what_is_built_here() {
    let golden = include_str!("../../linklocal/tests/clients/instance.json");
    let built = build(&example()).unwrap();
    if std::env::var_os("KILN_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../linklocal/tests/clients/instance.json");
        std::fs::write(path, serde_json::to_string_pretty(&built).unwrap() + "\n").unwrap();
        return;
    }
    assert_eq!(
        serde_json::from_str::<MetadataSnapshot>(golden).unwrap(),
        built,
        "run again with KILN_BLESS=1"
    );
}

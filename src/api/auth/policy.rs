//! Whether a caller may: the policies of a role or a user against an action and the resources it names.
//!
//! The account may do everything. A user, and a session of a role, may do what the policies allow that
//! the user or role has, on all of the resources that the request means. Resources are known by their
//! ids in the parameters, those of IAM by their names, and the rest the action tells; one that means none is on
//! `*`, as the describing actions of EC2 always are. Who somebody is may be asked by everybody.
//!
//! Who gives a role to an instance gets at what the role may do. So that takes leave of its own:
//! `iam:PassRole` on the role.

use std::net::IpAddr;

use kiln_controlplane::credentials::{Policy, RequestContext, RoleError, Roles, Verdict};
use kiln_controlplane::metadata::{ACCOUNT, REGION};
use serde_json::{Value, json};

use super::{Caller, Kind};
use crate::error::ApiError;

/// Resources of EC2 by the beginning of their ids.
const KINDS: [(&str, &str); 20] = [
    ("i-", "instance"),
    ("ami-", "image"),
    ("vol-", "volume"),
    ("snap-", "snapshot"),
    ("sg-", "security-group"),
    ("sgr-", "security-group-rule"),
    ("vpc-", "vpc"),
    ("subnet-", "subnet"),
    ("eni-", "network-interface"),
    ("eipalloc-", "elastic-ip"),
    ("eipassoc-", "elastic-ip-association"),
    ("key-", "key-pair"),
    ("lt-", "launch-template"),
    ("pl-", "prefix-list"),
    ("acl-", "network-acl"),
    ("rtb-", "route-table"),
    ("igw-", "internet-gateway"),
    ("nat-", "natgateway"),
    ("dopt-", "dhcp-options"),
    ("iip-assoc-", "iam-instance-profile-association"),
];

/// No action of its own, but part of those that give a role away.
const PASS_ROLE: &str = "PassRole";

/// What is to be decided.
pub(crate) struct Request<'a> {
    /// Such as `ec2`.
    pub service: &'a str,
    /// Such as `StartInstances`.
    pub action: &'a str,
    /// Its parameters.
    pub input: &'a Value,
    /// ARNs of resources that it means besides those whose ids are in the parameters.
    pub meant: &'a [String],
    /// Adds what is known of a resource, by its ARN.
    pub about: &'a About<'a>,
    /// Where it comes from; `None` by the Unix socket.
    pub source: Option<IpAddr>,
    /// Unix seconds.
    pub now: u64,
}

/// Adds to what conditions know of a request what they may know of one of its resources.
pub(crate) type About<'a> = dyn Fn(&str, RequestContext) -> Result<RequestContext, ApiError> + 'a;

/// Of resources that have nothing that conditions know.
pub(crate) fn nothing(_: &str, context: RequestContext) -> Result<RequestContext, ApiError> {
    Ok(context)
}

/// Kind of a resource with that id.
pub(crate) fn kind_of(id: &str) -> Option<&'static str> {
    let hex = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    KINDS.iter().find(|(prefix, _)| id.strip_prefix(prefix).is_some_and(hex)).map(|(_, kind)| *kind)
}

/// ARN of a resource of EC2, as policies have it: images and snapshots are of a region, not of an account.
pub(crate) fn resource_arn(kind: &str, id: &str) -> String {
    let account = if matches!(kind, "image" | "snapshot") { "" } else { ACCOUNT };
    format!("arn:aws:ec2:{REGION}:{account}:{kind}/{id}")
}

/// Decides; the error is that of the service.
pub(crate) fn permits(roles: &Roles<'_>, caller: &Caller, request: &Request<'_>) -> Result<(), ApiError> {
    if caller.kind == Kind::Root || request.action == "GetCallerIdentity" {
        return Ok(());
    }
    let documents = match &caller.kind {
        Kind::Root => return Ok(()),
        Kind::Role(role) => roles.documents(role),
        // Those of GetSessionToken are of no use to IAM, nor to STS but to assume a role.
        Kind::User { temporary: true, .. } if not_by_session(request) => Ok(Vec::new()),
        Kind::User { name, .. } => roles.user_documents(name, &caller.id),
    };
    let documents = match documents {
        Ok(documents) => documents,
        // The role or user went; its sessions may do nothing any more.
        Err(RoleError::NoSuchRole { .. } | RoleError::NoSuchUser(_)) => Vec::new(),
        Err(e) => return Err(e.into()),
    };
    // Checked when they were set; one that does not parse allows nothing, and must not hide a denial.
    let policies: Result<Vec<_>, _> = documents.iter().map(|document| Policy::parse(document)).collect();
    // A user needs no leave for a session of its own.
    if request.action == "GetSessionToken" && matches!(caller.kind, Kind::User { temporary: false, .. }) {
        return Ok(());
    }
    let action = format!("{}:{}", request.service, request.action);
    let resources = resources(caller, request);
    let mut context = caller.context(request.source, request.now);
    if request.action == PASS_ROLE {
        context = context.with("iam:PassedToService", "ec2.amazonaws.com");
    }
    let mut denied = None;
    for resource in &resources {
        let context = (request.about)(resource, context.clone())?;
        if !policies.as_ref().is_ok_and(|all| allowed(all, &action, resource, &context)) {
            denied = Some(resource);
            break;
        }
    }
    match denied {
        None => Ok(()),
        Some(resource) => {
            let message = format!("{} is not authorized to perform {action} on {resource}", caller.arn);
            let code = if request.service == "ec2" { "UnauthorizedOperation" } else { "AccessDenied" };
            Err(ApiError::new(code, message))
        }
    }
}

/// Decides about a request of `service` that gives `role` to an instance or puts it into an instance profile.
pub(crate) fn permits_passing(
    roles: &Roles<'_>,
    caller: &Caller,
    role: &str,
    service: &str,
    (source, now): (Option<IpAddr>, u64),
) -> Result<(), ApiError> {
    let input = &json!({"RoleName": role});
    let request =
        Request { service: "iam", action: PASS_ROLE, input, meant: &[], about: &nothing, source, now };
    permits(roles, caller, &request).map_err(|error| match (service, error.code.as_ref()) {
        ("ec2", "AccessDenied") => ApiError::new("UnauthorizedOperation", error.message),
        _ => error,
    })
}

fn not_by_session(request: &Request<'_>) -> bool {
    request.service == "iam" && request.action != PASS_ROLE
        || request.service == "sts" && request.action != "AssumeRole"
}

fn allowed(policies: &[Policy], action: &str, resource: &str, context: &RequestContext) -> bool {
    let verdicts = || policies.iter().map(|policy| policy.judge(action, resource, context));
    verdicts().any(|v| v == Verdict::Allow) && !verdicts().any(|v| v == Verdict::Deny)
}

/// Actions of IAM that are on the caller's own user when they name none.
const OWN_USER: &[&str] = &[
    "CreateAccessKey",
    "DeleteAccessKey",
    "DeleteLoginProfile",
    "GetLoginProfile",
    "GetUser",
    "ListAccessKeys",
    "ListMFADevices",
    "ListSSHPublicKeys",
    "ListServiceSpecificCredentials",
    "ListSigningCertificates",
    "UpdateAccessKey",
];

fn resources(caller: &Caller, request: &Request<'_>) -> Vec<String> {
    let mut found = Vec::new();
    match request.service {
        "ec2" if !request.action.starts_with("Describe") => {
            found.extend_from_slice(request.meant);
            ids(request.input, &mut found);
        }
        "ebs" => {
            let members = ["SnapshotId", "FirstSnapshotId", "SecondSnapshotId", "ParentSnapshotId"];
            let named = members.iter().filter_map(|member| request.input.get(member)?.as_str());
            let new = (request.action == "StartSnapshot").then_some("*");
            found.extend(named.chain(new).map(|id| resource_arn("snapshot", id)));
        }
        "iam" => {
            let get = |member: &str| request.input.get(member).and_then(Value::as_str);
            // Who comes into a group or goes from it, the group's resource decides.
            let kinds: &[_] = match get("GroupName") {
                Some(_) => &[("GroupName", "group")],
                None => {
                    &[("RoleName", "role"), ("InstanceProfileName", "instance-profile"), ("UserName", "user")]
                }
            };
            for (member, kind) in kinds {
                if let Some(name) = get(member) {
                    found.push(format!("arn:aws:iam::{ACCOUNT}:{kind}/{name}"));
                }
            }
            if found.is_empty() {
                // What a policy is attached to is the resource, if there is such a thing.
                found.extend(get("PolicyArn").map(str::to_owned));
                if request.action == "CreatePolicy" {
                    found.extend(
                        get("PolicyName").map(|name| format!("arn:aws:iam::{ACCOUNT}:policy/{name}")),
                    );
                }
                if OWN_USER.contains(&request.action) {
                    found.push(caller.arn.clone());
                }
            }
        }
        "sts" => found.extend(request.input.get("RoleArn").and_then(Value::as_str).map(str::to_owned)),
        _ => {}
    }
    if found.is_empty() {
        found.push("*".to_owned());
    }
    found
}

/// Every text that looks like an id, wherever it is. User data and tags of a form that looks like one
/// can only narrow what is allowed.
fn ids(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            if let Some(kind) = kind_of(text) {
                found.push(resource_arn(kind, text));
            }
        }
        Value::Array(all) => all.iter().for_each(|value| ids(value, found)),
        Value::Object(members) => members.values().for_each(|value| ids(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_the_ids_that_a_request_names() {
        let caller = Caller {
            arn: "arn:aws:iam::000000000000:user/ann".into(),
            id: "AIDA".into(),
            kind: Kind::User { name: "ann".into(), temporary: false },
        };
        let of = |service, action, input: &Value| {
            let request =
                Request { service, action, input, meant: &[], about: &nothing, source: None, now: 0 };
            resources(&caller, &request)
        };
        let input = json!({"InstanceIds": ["i-0a"], "Nested": [{"GroupId": "sg-01", "Key": "i-am not one"}]});
        let named = |service, action| of(service, action, &input);
        let arn = |rest: &str| format!("arn:aws:ec2:us-east-1:000000000000:{rest}");
        assert_eq!(named("ec2", "StartInstances"), [arn("instance/i-0a"), arn("security-group/sg-01")]);
        assert_eq!(named("ec2", "DescribeInstances"), ["*"]);
        let of_iam = |action, input: Value| of("iam", action, &input);
        let arn = |rest: &str| vec![format!("arn:aws:iam::000000000000:{rest}")];
        assert_eq!(of_iam("GetRole", json!({"RoleName": "web"})), arn("role/web"));
        assert_eq!(of_iam("AttachUserPolicy", json!({"UserName": "bob", "PolicyArn": "x"})), arn("user/bob"));
        assert_eq!(of_iam("GetPolicy", json!({"PolicyArn": "x"})), ["x"]);
        assert_eq!(of_iam("CreatePolicy", json!({"PolicyName": "p"})), arn("policy/p"));
        assert_eq!(of_iam("CreateAccessKey", json!({})), arn("user/ann"));
        assert_eq!(of_iam("ListUsers", json!({})), ["*"]);
        assert_eq!(of_iam("AddUserToGroup", json!({"GroupName": "g", "UserName": "ann"})), arn("group/g"));
        let of_ebs = |action, input: Value| of("ebs", action, &input);
        let arn = |id: &str| format!("arn:aws:ec2:us-east-1::snapshot/{id}");
        let tag = json!([{"Key": "snap-03"}]);
        assert_eq!(of_ebs("StartSnapshot", json!({"VolumeSize": 1, "Tags": tag})), [arn("*")]);
        let over = json!({"ParentSnapshotId": "snap-01"});
        assert_eq!(of_ebs("StartSnapshot", over), [arn("snap-01"), arn("*")]);
        let two = json!({"FirstSnapshotId": "snap-01", "SecondSnapshotId": "snap-02"});
        assert_eq!(of_ebs("ListChangedBlocks", two), [arn("snap-01"), arn("snap-02")]);
        assert_eq!(of_ebs("PutSnapshotBlock", json!({"SnapshotId": "snap-01"})), [arn("snap-01")]);
    }
}

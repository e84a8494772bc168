//! What each action does: from checked parameters to the services of the control plane and back.
//!
//! An action is a function of a [`Context`] and the few parameters that it serves, and answers a value
//! in the shape of the model. A parameter that is in the model but not in its struct is refused.

#![expect(clippy::needless_pass_by_value, reason = "all actions have one signature and own their parameters")]

mod acls;
mod addresses;
mod attributes;
mod blocks;
mod devices;
mod gateways;
mod groups;
mod iam;
mod ids;
mod image_attributes;
mod images;
mod instances;
mod interfaces;
mod key_pairs;
mod launch;
mod launch_templates;
mod lifecycle;
mod listing;
mod managed_policies;
mod metadata_options;
mod nat_gateways;
mod places;
mod prefix_lists;
mod profiles;
mod resources;
mod routes;
mod rules;
mod sign_in;
mod sts;
mod subnets;
mod tagging;
mod template_data;
mod tokens;
mod types;
mod user_groups;
mod users;
mod volumes;
mod vpcs;

use std::net::IpAddr;

use kiln_controlplane::instances::{ControlPlane, Supervisor};
use kiln_controlplane::metadata::{ACCOUNT, REGION};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::auth::{Authenticator, BlockTokens, Caller};
use crate::error::ApiError;

/// Answer of an action.
type Answer = Result<Value, ApiError>;
pub(crate) use blocks::BlockAction;
pub(crate) use launch_templates::expand;
pub(crate) use profiles::passed_role;
pub(crate) use resources::{about, meant, tagged};
/// An action on checked parameters.
pub(crate) type Action = fn(&Context<'_>, Value) -> Answer;

/// What an action has at hand.
pub(crate) struct Context<'a> {
    /// The lives of instances.
    pub supervisor: &'a Supervisor,
    /// All other services.
    pub plane: &'a ControlPlane,
    /// What issues credentials.
    pub auth: &'a Authenticator,
    /// What gives tokens for blocks of snapshots.
    pub block_tokens: &'a BlockTokens,
    /// Who asks.
    pub caller: &'a Caller,
    /// Where the request comes from; `None` by the Unix socket.
    pub source: Option<IpAddr>,
    /// Unix seconds.
    pub now: u64,
    /// The parameters as they were sent, where a launch template has added to them.
    pub asked: Option<Value>,
}

/// The parameters that an action serves, by the names of the model.
macro_rules! input {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
        pub(super) struct $name { $($(#[$field_meta])* pub(super) $field: $kind),* }
    };
}
pub(crate) use input;

/// The parameters that an action serves, of all that the model has.
fn parse<I: DeserializeOwned>(input: Value) -> Result<I, ApiError> {
    serde_json::from_value(input).map_err(|e| {
        let text = e.to_string();
        match text.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
            Some((name, _)) => ApiError::unsupported(format!("Kiln does not support the parameter {name}")),
            None => ApiError::value(text),
        }
    })
}

fn run<I: DeserializeOwned>(
    context: &Context<'_>,
    input: Value,
    act: fn(&Context<'_>, I) -> Answer,
) -> Answer {
    act(context, parse(input)?)
}

macro_rules! actions {
    ($service:ident: $($name:ident => $act:path),* $(,)?) => {
        &[$((stringify!($name), (|context, input| run(context, input, $act)) as Action)),*]
    };
}

/// Actions of EC2 by name.
static EC2: &[(&str, Action)] = actions! { ec2:
    AllocateAddress => addresses::allocate,
    AssignPrivateIpAddresses => interfaces::assign,
    AssociateAddress => addresses::associate,
    AssociateIamInstanceProfile => profiles::associate,
    AssociateRouteTable => routes::associate,
    AttachInternetGateway => gateways::attach,
    AttachNetworkInterface => interfaces::attach,
    AttachVolume => volumes::attach,
    AuthorizeSecurityGroupEgress => rules::authorize_egress,
    AuthorizeSecurityGroupIngress => rules::authorize_ingress,
    CopyImage => images::copy,
    CopySnapshot => volumes::copy_snapshot,
    CreateImage => images::create,
    CreateInternetGateway => gateways::create,
    CreateKeyPair => key_pairs::create,
    CreateLaunchTemplate => launch_templates::create,
    CreateLaunchTemplateVersion => launch_templates::create_version,
    CreateManagedPrefixList => prefix_lists::create,
    CreateNatGateway => nat_gateways::create,
    CreateNetworkAcl => acls::create,
    CreateNetworkAclEntry => acls::create_entry,
    CreateNetworkInterface => interfaces::create,
    CreateRoute => routes::create_route,
    CreateRouteTable => routes::create_table,
    CreateSecurityGroup => groups::create,
    CreateSnapshot => volumes::create_snapshot,
    CreateSubnet => subnets::create,
    CreateTags => tagging::create,
    CreateVolume => volumes::create,
    CreateVpc => vpcs::create,
    DeleteInternetGateway => gateways::delete,
    DeleteKeyPair => key_pairs::delete,
    DeleteLaunchTemplate => launch_templates::delete,
    DeleteLaunchTemplateVersions => launch_templates::delete_versions,
    DeleteManagedPrefixList => prefix_lists::delete,
    DeleteNatGateway => nat_gateways::delete,
    DeleteNetworkAcl => acls::delete,
    DeleteNetworkAclEntry => acls::delete_entry,
    DeleteNetworkInterface => interfaces::delete,
    DeleteRoute => routes::delete_route,
    DeleteRouteTable => routes::delete_table,
    DeleteSecurityGroup => groups::delete,
    DeleteSnapshot => volumes::delete_snapshot,
    DeleteSubnet => subnets::delete,
    DeleteTags => tagging::delete,
    DeleteVolume => volumes::delete,
    DeleteVpc => vpcs::delete,
    DeregisterImage => images::deregister,
    DescribeAccountAttributes => places::account_attributes,
    DescribeAddresses => addresses::describe,
    DescribeAddressesAttribute => addresses::describe_attribute,
    DescribeAvailabilityZones => places::zones,
    DescribeDhcpOptions => routes::dhcp_options,
    DescribeIamInstanceProfileAssociations => profiles::describe,
    DescribeImageAttribute => image_attributes::describe,
    DescribeImages => images::describe,
    DescribeInstanceAttribute => attributes::describe,
    DescribeInstanceCreditSpecifications => instances::describe_credits,
    DescribeInstanceStatus => instances::describe_status,
    DescribeInstanceTypeOfferings => types::offerings,
    DescribeInstanceTypes => types::describe,
    DescribeInstances => instances::describe,
    DescribeInternetGateways => gateways::describe,
    DescribeKeyPairs => key_pairs::describe,
    DescribeLaunchTemplateVersions => launch_templates::describe_versions,
    DescribeLaunchTemplates => launch_templates::describe,
    DescribeManagedPrefixLists => prefix_lists::describe,
    DescribeNatGateways => nat_gateways::describe,
    DescribeNetworkAcls => acls::describe,
    DescribeNetworkInterfaceAttribute => interfaces::describe_attribute,
    DescribeNetworkInterfaces => interfaces::describe,
    DescribeRegions => places::regions,
    DescribeRouteTables => routes::route_tables,
    DescribeSecurityGroupRules => rules::describe,
    DescribeSecurityGroups => groups::describe,
    DescribeSnapshotAttribute => volumes::describe_snapshot_attribute,
    DescribeSnapshots => volumes::describe_snapshots,
    DescribeSubnets => subnets::describe,
    DescribeTags => tagging::describe,
    DescribeVolumes => volumes::describe,
    DescribeVolumesModifications => volumes::describe_modifications,
    DescribeVpcAttribute => vpcs::describe_attribute,
    DescribeVpcs => vpcs::describe,
    DetachInternetGateway => gateways::detach,
    DetachNetworkInterface => interfaces::detach,
    DetachVolume => volumes::detach,
    DisassociateAddress => addresses::disassociate,
    DisassociateIamInstanceProfile => profiles::disassociate,
    DisassociateRouteTable => routes::disassociate,
    GetConsoleOutput => attributes::console,
    GetInstanceUefiData => attributes::uefi_data,
    GetLaunchTemplateData => launch_templates::of_instance,
    GetManagedPrefixListEntries => prefix_lists::get_entries,
    GetPasswordData => attributes::password,
    ImportKeyPair => key_pairs::import,
    ModifyImageAttribute => image_attributes::modify,
    ModifyInstanceAttribute => attributes::modify,
    ModifyInstanceCreditSpecification => attributes::modify_credits,
    ModifyInstanceMetadataOptions => metadata_options::modify,
    ModifyLaunchTemplate => launch_templates::modify,
    ModifyManagedPrefixList => prefix_lists::modify,
    ModifyNetworkInterfaceAttribute => interfaces::modify,
    ModifySecurityGroupRules => rules::modify,
    ModifySubnetAttribute => subnets::modify,
    ModifyVolume => volumes::modify,
    ModifyVpcAttribute => vpcs::modify_attribute,
    MonitorInstances => attributes::monitor,
    RebootInstances => lifecycle::reboot,
    RegisterImage => images::register,
    ReleaseAddress => addresses::release,
    ReplaceIamInstanceProfileAssociation => profiles::replace,
    ReplaceNetworkAclAssociation => acls::replace_association,
    ReplaceNetworkAclEntry => acls::replace_entry,
    ReplaceRoute => routes::replace_route,
    ReplaceRouteTableAssociation => routes::replace_association,
    RevokeSecurityGroupEgress => rules::revoke_egress,
    RevokeSecurityGroupIngress => rules::revoke_ingress,
    RunInstances => launch::run,
    StartInstances => lifecycle::start,
    StopInstances => lifecycle::stop,
    TerminateInstances => lifecycle::terminate,
    UnassignPrivateIpAddresses => interfaces::unassign,
    UnmonitorInstances => attributes::unmonitor,
    UpdateSecurityGroupRuleDescriptionsEgress => rules::describe_egress,
    UpdateSecurityGroupRuleDescriptionsIngress => rules::describe_ingress,
};

/// Actions of IAM by name.
static IAM: &[(&str, Action)] = actions! { iam:
    AddRoleToInstanceProfile => iam::add_role,
    AddUserToGroup => user_groups::add_user,
    AttachGroupPolicy => user_groups::attach,
    AttachRolePolicy => managed_policies::attach_to_role,
    AttachUserPolicy => managed_policies::attach_to_user,
    CreateAccessKey => users::create_key,
    CreateGroup => user_groups::create,
    CreateInstanceProfile => iam::create_profile,
    CreatePolicy => managed_policies::create,
    CreatePolicyVersion => managed_policies::create_version,
    CreateRole => iam::create_role,
    CreateUser => users::create,
    DeleteAccessKey => users::delete_key,
    DeleteGroup => user_groups::delete,
    DeleteGroupPolicy => user_groups::delete_policy,
    DeleteInstanceProfile => iam::delete_profile,
    DeleteLoginProfile => sign_in::login_profile,
    DeletePolicy => managed_policies::delete,
    DeletePolicyVersion => managed_policies::delete_version,
    DeleteRole => iam::delete_role,
    DeleteRolePolicy => iam::delete_policy,
    DeleteUser => users::delete,
    DeleteUserPolicy => users::delete_policy,
    DetachGroupPolicy => user_groups::detach,
    DetachRolePolicy => managed_policies::detach_from_role,
    DetachUserPolicy => managed_policies::detach_from_user,
    GetAccessKeyLastUsed => users::key_last_used,
    GetGroup => user_groups::get,
    GetGroupPolicy => user_groups::get_policy,
    GetInstanceProfile => iam::get_profile,
    GetLoginProfile => sign_in::login_profile,
    GetPolicy => managed_policies::get,
    GetPolicyVersion => managed_policies::get_version,
    GetRole => iam::get_role,
    GetRolePolicy => iam::get_policy,
    GetUser => users::get,
    GetUserPolicy => users::get_policy,
    ListAccessKeys => users::list_keys,
    ListAttachedGroupPolicies => user_groups::list_attached,
    ListAttachedRolePolicies => managed_policies::of_role,
    ListAttachedUserPolicies => managed_policies::of_user,
    ListEntitiesForPolicy => managed_policies::holders,
    ListGroupPolicies => user_groups::list_policies,
    ListGroups => user_groups::list,
    ListGroupsForUser => user_groups::of_user,
    ListInstanceProfileTags => iam::list_profile_tags,
    ListInstanceProfiles => iam::list_profiles,
    ListInstanceProfilesForRole => iam::list_profiles_for_role,
    ListMFADevices => sign_in::list_devices,
    ListPolicies => managed_policies::list,
    ListPolicyTags => managed_policies::list_tags,
    ListPolicyVersions => managed_policies::list_versions,
    ListRolePolicies => iam::list_policies,
    ListRoleTags => iam::list_role_tags,
    ListRoles => iam::list_roles,
    ListSSHPublicKeys => sign_in::list_ssh_keys,
    ListServiceSpecificCredentials => sign_in::list_service_credentials,
    ListSigningCertificates => sign_in::list_certificates,
    ListUserPolicies => users::list_policies,
    ListUserTags => users::list_tags,
    ListUsers => users::list,
    ListVirtualMFADevices => sign_in::list_virtual_devices,
    PutGroupPolicy => user_groups::put_policy,
    PutRolePolicy => iam::put_policy,
    PutUserPolicy => users::put_policy,
    RemoveRoleFromInstanceProfile => iam::remove_role,
    RemoveUserFromGroup => user_groups::remove_user,
    SetDefaultPolicyVersion => managed_policies::set_default_version,
    TagInstanceProfile => iam::tag_profile,
    TagPolicy => managed_policies::tag,
    TagRole => iam::tag_role,
    TagUser => users::tag,
    UntagInstanceProfile => iam::untag_profile,
    UntagPolicy => managed_policies::untag,
    UntagRole => iam::untag_role,
    UntagUser => users::untag,
    UpdateAccessKey => users::update_key,
    UpdateAssumeRolePolicy => iam::set_trust,
    UpdateRole => iam::update_role,
};

/// Actions of STS by name.
static STS: &[(&str, Action)] = actions! { sts:
    AssumeRole => sts::assume_role,
    GetCallerIdentity => sts::identity,
    GetSessionToken => sts::session_token,
};

/// The action of a service by name.
pub(crate) fn find(service: &str, name: &str) -> Option<Action> {
    let table = match service {
        "ec2" => EC2,
        "iam" => IAM,
        _ => STS,
    };
    table.iter().find(|(other, _)| *other == name).map(|(_, action)| *action)
}

/// The action of the EBS direct APIs by name.
pub(crate) fn find_block_action(name: &str) -> Option<BlockAction> {
    blocks::ACTIONS.iter().find(|(other, _)| *other == name).map(|(_, action)| *action)
}

/// ARN of a resource of EC2.
fn arn(kind: &str, id: &impl std::fmt::Display) -> String {
    format!("arn:aws:ec2:{REGION}:{ACCOUNT}:{kind}/{id}")
}

/// There is nothing to say but that it is done, which the protocol does.
fn done() -> Answer {
    Ok(serde_json::json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{EBS, EBS_ROUTES, SERVICES};

    #[test]
    fn every_operation_of_the_model_has_an_action_and_every_action_a_model() {
        for (service, table) in SERVICES.iter().zip([EC2, IAM, STS]) {
            let model: Vec<_> = service.operations.iter().map(|operation| operation.name).collect();
            let mut actions: Vec<_> = table.iter().map(|(name, _)| *name).collect();
            actions.sort_unstable();
            assert_eq!(model, actions, "{}", service.name);
        }
        for operation in EBS.operations {
            assert!(find_block_action(operation.name).is_some(), "{}", operation.name);
            assert!(EBS_ROUTES.iter().any(|route| route.operation == operation.name), "{}", operation.name);
        }
    }
}

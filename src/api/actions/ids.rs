//! Ids in requests: well formed or not, and the code of EC2 for each kind that is missing.

use std::str::FromStr;

use crate::error::ApiError;

/// A kind of id.
#[derive(Debug, Clone, Copy)]
pub(super) struct IdKind {
    prefix: &'static str,
    malformed: &'static str,
    missing: &'static str,
}

macro_rules! kind {
    ($name:ident, $prefix:literal, $malformed:literal, $missing:literal) => {
        pub(super) const $name: IdKind = IdKind { prefix: $prefix, malformed: $malformed, missing: $missing };
    };
}

kind!(VPC, "vpc-", "InvalidVpcID.Malformed", "InvalidVpcID.NotFound");
kind!(SUBNET, "subnet-", "InvalidSubnetID.Malformed", "InvalidSubnetID.NotFound");
kind!(GROUP, "sg-", "InvalidGroupId.Malformed", "InvalidGroup.NotFound");
kind!(RULE, "sgr-", "InvalidSecurityGroupRuleId.Malformed", "InvalidSecurityGroupRuleId.NotFound");
kind!(INTERFACE, "eni-", "InvalidNetworkInterfaceID.Malformed", "InvalidNetworkInterfaceID.NotFound");
kind!(ALLOCATION, "eipalloc-", "InvalidAllocationID.Malformed", "InvalidAllocationID.NotFound");
kind!(ASSOCIATION, "eipassoc-", "InvalidAssociationID.Malformed", "InvalidAssociationID.NotFound");
kind!(KEY_PAIR, "key-", "InvalidKeyPairId.Malformed", "InvalidKeyPair.NotFound");
kind!(LAUNCH_TEMPLATE, "lt-", "InvalidLaunchTemplateId.Malformed", "InvalidLaunchTemplateId.NotFound");
kind!(INSTANCE, "i-", "InvalidInstanceID.Malformed", "InvalidInstanceID.NotFound");
kind!(IMAGE, "ami-", "InvalidAMIID.Malformed", "InvalidAMIID.NotFound");
kind!(VOLUME, "vol-", "InvalidVolumeID.Malformed", "InvalidVolume.NotFound");
kind!(SNAPSHOT, "snap-", "InvalidSnapshotID.Malformed", "InvalidSnapshot.NotFound");
kind!(ROUTE_TABLE, "rtb-", "InvalidRouteTableId.Malformed", "InvalidRouteTableID.NotFound");
kind!(GATEWAY, "igw-", "InvalidInternetGatewayId.Malformed", "InvalidInternetGatewayID.NotFound");
kind!(TABLE_ASSOCIATION, "rtbassoc-", "InvalidAssociationID.Malformed", "InvalidAssociationID.NotFound");
kind!(NAT_GATEWAY, "nat-", "NatGatewayMalformed", "NatGatewayNotFound");
kind!(NETWORK_ACL, "acl-", "InvalidNetworkAclId.Malformed", "InvalidNetworkAclID.NotFound");
kind!(ACL_ASSOCIATION, "aclassoc-", "InvalidAssociationID.Malformed", "InvalidAssociationID.NotFound");
kind!(PREFIX_LIST, "pl-", "InvalidPrefixListID.Malformed", "InvalidPrefixListID.NotFound");
kind!(ATTACHMENT, "eni-attach-", "InvalidAttachmentID.Malformed", "InvalidAttachmentID.NotFound");
kind!(DHCP_OPTIONS, "dopt-", "InvalidDhcpOptionsId.Malformed", "InvalidDhcpOptionID.NotFound");

impl IdKind {
    /// No resource has this id.
    pub(super) fn missing(self, id: &str) -> ApiError {
        ApiError::new(self.missing, format!("The ID '{id}' does not exist"))
    }

    /// Whether it looks like an id of this kind: 8 or 17 hexadecimal digits.
    pub(super) fn check(self, id: &str) -> Result<(), ApiError> {
        let hex = |digits: &str| digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match id.strip_prefix(self.prefix) {
            Some(digits) if matches!(digits.len(), 8 | 17) && hex(digits) => Ok(()),
            _ => Err(ApiError::new(
                self.malformed,
                format!("Invalid id: \"{id}\" (expecting \"{}...\")", self.prefix),
            )),
        }
    }

    /// The id, if there can be one like it.
    pub(super) fn parse<T: FromStr>(self, id: &str) -> Result<T, ApiError> {
        self.check(id)?;
        // Well formed as of long ago: none of ours.
        id.parse().map_err(|_| self.missing(id))
    }
}

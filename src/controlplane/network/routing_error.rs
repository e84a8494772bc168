//! Why a request about route tables and gateways is refused, with the code that EC2 has for it.

use kiln_model::{Ipv4Cidr, NatGatewayId, RouteTableId, SubnetId, VpcId};

/// A request about ways out of a VPC cannot be carried out. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// No such table.
    #[error("there is no route table {0}")]
    NoTable(RouteTableId),
    /// Subnets go by it.
    #[error("{table} is in use: {by}")]
    TableInUse {
        /// The table.
        table: RouteTableId,
        /// What goes by it.
        by: String,
    },
    /// No such association.
    #[error("there is no route table association {0}")]
    NoAssociation(String),
    /// Every VPC has a main table.
    #[error("{0} is the association of a main route table, which is replaced but never taken away")]
    MainAssociation(String),
    /// It has an association.
    #[error("{subnet} goes by {table} already; replace the association")]
    AlreadyAssociated {
        /// The subnet.
        subnet: SubnetId,
        /// Its table.
        table: RouteTableId,
    },
    /// They have nothing to do with each other.
    #[error("{what} is not of {vpc}")]
    OtherVpc {
        /// The subnet, gateway or interface.
        what: String,
        /// The VPC of the table.
        vpc: VpcId,
    },
    /// A second route to the same range.
    #[error("{table} has a route to {destination} already")]
    RouteExists {
        /// The table.
        table: RouteTableId,
        /// The range.
        destination: Ipv4Cidr,
    },
    /// No such route.
    #[error("{table} has no route to {destination}")]
    NoRoute {
        /// The table.
        table: RouteTableId,
        /// The range.
        destination: Ipv4Cidr,
    },
    /// The VPC's own range is always reached directly.
    #[error("{destination} is in the range of the VPC, {vpc_cidr}, whose local route cannot be changed")]
    LocalRoute {
        /// Asked for.
        destination: Ipv4Cidr,
        /// The VPC's range.
        vpc_cidr: Ipv4Cidr,
    },
    /// No such gateway.
    #[error("there is no internet gateway {0}")]
    NoGateway(String),
    /// It has a VPC, or the VPC has one.
    #[error("{what} is attached to {to} already")]
    GatewayAttached {
        /// The gateway or the VPC.
        what: String,
        /// The other.
        to: String,
    },
    /// They do not belong together.
    #[error("{gateway} is not attached to {vpc}")]
    GatewayNotAttached {
        /// The gateway.
        gateway: String,
        /// The VPC.
        vpc: VpcId,
    },
    /// Something needs it.
    #[error("{what} is in use: {by}")]
    GatewayInUse {
        /// The gateway.
        what: String,
        /// What needs it.
        by: String,
    },
    /// No such NAT gateway.
    #[error("there is no NAT gateway {0}")]
    NoNat(NatGatewayId),
}

impl RoutingError {
    /// What EC2 calls it.
    pub fn code(&self) -> &'static str {
        use RoutingError as E;
        match self {
            E::NoTable(_) => "InvalidRouteTableID.NotFound",
            E::TableInUse { .. } | E::GatewayInUse { .. } => "DependencyViolation",
            E::NoAssociation(_) => "InvalidAssociationID.NotFound",
            E::MainAssociation(_) | E::OtherVpc { .. } | E::LocalRoute { .. } => "InvalidParameterValue",
            E::AlreadyAssociated { .. } | E::GatewayAttached { .. } => "Resource.AlreadyAssociated",
            E::RouteExists { .. } => "RouteAlreadyExists",
            E::NoRoute { .. } => "InvalidRoute.NotFound",
            E::NoGateway(_) => "InvalidInternetGatewayID.NotFound",
            E::GatewayNotAttached { .. } => "Gateway.NotAttached",
            E::NoNat(_) => "NatGatewayNotFound",
        }
    }
}

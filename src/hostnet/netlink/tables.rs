//! Routes in tables of their own, and rules that say who goes by them.

use std::net::Ipv4Addr;

use kiln_model::Ipv4Cidr;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::{Link, Netlink};
use crate::error::HostNetError;

/// Where a route of a table leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hop {
    /// To a router that is on the link, whatever ranges the link has.
    Router(Link, Ipv4Addr),
    /// Nowhere: packets are dropped in silence.
    Blackhole,
}

/// A route is found by these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    /// Id of the table.
    pub table: u32,
    /// Destinations.
    pub to: Ipv4Cidr,
    /// Of several to the same destinations the one with the smallest is taken.
    pub priority: u32,
}

/// What a rule looks at, and where its packets go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Policy {
    /// All packets by the main table, but not by its default route.
    MainButDefault,
    /// Packets with this mark by the table of this id.
    Marked(u32),
}

fn route(Entry { table, to, priority }: Entry) -> RouteMessageBuilder<Ipv4Addr> {
    let message = RouteMessageBuilder::<Ipv4Addr>::new();
    message.destination_prefix(to.network(), to.prefix_len()).table_id(table).priority(priority)
}

fn rule(priority: u32, policy: Policy) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.extend(match policy {
        Policy::MainButDefault => vec![RuleAttribute::Table(MAIN), RuleAttribute::SuppressPrefixLen(0)],
        Policy::Marked(mark) => vec![RuleAttribute::FwMark(mark), RuleAttribute::Table(mark)],
    });
    message
}

/// The table that there always is.
const MAIN: u32 = 254;

impl Netlink {
    /// Adds or replaces a route of a table.
    pub fn ensure_table_route(&self, entry: Entry, hop: Hop) -> Result<(), HostNetError> {
        let builder = route(entry);
        let message = match hop {
            Hop::Router(link, router) => builder.output_interface(link.0).gateway(router).onlink(),
            Hop::Blackhole => builder.kind(RouteType::BlackHole),
        };
        self.tell(self.handle.route().add(message.build()).replace().execute(), || {
            format!("adding the route to {} in table {}", entry.to, entry.table)
        })
    }

    /// Removes a route of a table; succeeds when there is none.
    pub fn remove_table_route(&self, entry: Entry) -> Result<(), HostNetError> {
        let mut message: RouteMessage = route(entry).build();
        // Of every scope and kind.
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        match self.wait(self.handle.route().del(message).execute()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => Err(HostNetError::Netlink {
                action: format!("removing the route to {} in table {}", entry.to, entry.table),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Adds a rule, if it is not there.
    pub fn ensure_rule(&self, priority: u32, policy: Policy) -> Result<(), HostNetError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule(priority, policy);
        match self.wait(request.execute()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EEXIST) => {
                Err(HostNetError::Netlink { action: format!("adding rule {priority}"), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Removes a rule; succeeds when there is none.
    pub fn remove_rule(&self, priority: u32, policy: Policy) -> Result<(), HostNetError> {
        match self.wait(self.handle.rule().del(rule(priority, policy)).execute()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::ENOENT) => {
                Err(HostNetError::Netlink { action: format!("removing rule {priority}"), source: error })
            }
            _ => Ok(()),
        }
    }
}

//! Links, addresses, routes and neighbours of the calling thread's network namespace.
//!
//! A socket belongs to the namespace of the thread that opened it. So each value lives on a helper
//! thread of [`crate::netns`] and has a small runtime of its own; its methods block.

mod tables;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use kiln_model::MacAddr;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::Runtime;

use crate::error::HostNetError;
use crate::netns::NetNs;

pub(crate) use tables::{Entry, Hop, Policy};

/// An open route socket.
pub(crate) struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

/// Index of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link(u32);

/// Where a route leads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Via {
    /// The neighbour is on the link.
    Link(Link),
    /// Through a router on the link, with this source address for the host's own packets.
    Router { link: Link, router: IpAddr, source: Option<IpAddr> },
    /// Nowhere: packets are dropped in silence.
    Blackhole,
}

impl Netlink {
    /// Opens a socket in the thread's namespace.
    pub fn open() -> Result<Self, HostNetError> {
        let failed = |source| HostNetError::Netlink { action: "opening a route socket".to_owned(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Netlink { runtime, handle })
    }

    /// Finds a link by name.
    pub fn find(&self, name: &str) -> Result<Option<Link>, HostNetError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match self.wait(links.try_next()) {
            Ok(link) => Ok(link.map(|link| Link(link.header.index))),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(source) => Err(HostNetError::Netlink { action: format!("looking for link {name}"), source }),
        }
    }

    /// As [`Netlink::find`], for a link that must be there.
    pub fn require(&self, name: &str) -> Result<Link, HostNetError> {
        self.find(name)?.ok_or_else(|| HostNetError::Netlink {
            action: format!("looking for link {name}"),
            source: io::Error::from_raw_os_error(nix::libc::ENODEV),
        })
    }

    /// Names of all links.
    pub fn links(&self) -> Result<Vec<String>, HostNetError> {
        let links = self.handle.link().get().execute().try_collect::<Vec<LinkMessage>>();
        let links = self.tell(links, || "listing links".to_owned())?;
        let name = |link: LinkMessage| {
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        };
        Ok(links.into_iter().filter_map(name).collect())
    }

    /// Makes a pair of links, `name` here and `peer` in `there`, if `name` does not exist.
    pub fn ensure_veth(&self, name: &str, peer: &str, there: &NetNs, mtu: u16) -> Result<Link, HostNetError> {
        if let Some(link) = self.find(name)? {
            return Ok(link);
        }
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .mtu(u32::from(mtu))
            .setns_by_fd(there.raw_fd())
            .build();
        let message = LinkVeth::new(name, "")
            .mtu(u32::from(mtu))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.tell(self.handle.link().add(message).execute(), || {
            format!("making link {name} to {}", there.name())
        })?;
        self.require(name)
    }

    /// Switches a link on.
    pub fn up(&self, link: Link) -> Result<(), HostNetError> {
        let message = LinkUnspec::new_with_index(link.0).up().build();
        self.tell(self.handle.link().change(message).execute(), || format!("switching on link {}", link.0))
    }

    /// Sets hardware address and MTU of a link that is off.
    pub fn set(&self, link: Link, mac: MacAddr, mtu: u16) -> Result<(), HostNetError> {
        let message =
            LinkUnspec::new_with_index(link.0).address(mac.octets().to_vec()).mtu(u32::from(mtu)).build();
        self.tell(self.handle.link().change(message).execute(), || format!("setting up link {}", link.0))
    }

    /// Removes a link; succeeds when there is none.
    pub fn remove(&self, name: &str) -> Result<(), HostNetError> {
        let Some(link) = self.find(name)? else { return Ok(()) };
        match self.wait(self.handle.link().del(link.0).execute()) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
            Err(source) => Err(HostNetError::Netlink { action: format!("removing link {name}"), source }),
            Ok(()) => Ok(()),
        }
    }

    /// Gives a link an address.
    pub fn ensure_address(
        &self,
        link: Link,
        address: impl Into<IpAddr>,
        prefix_len: u8,
    ) -> Result<(), HostNetError> {
        let address = address.into();
        let mut request = self.handle.address().add(link.0, address, prefix_len).replace();
        if address.is_ipv6() {
            // At once, without asking the link whether somebody has it.
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.tell(request.execute(), || format!("adding address {address}/{prefix_len}"))
    }

    /// All IPv4 addresses with their links.
    pub fn addresses(&self) -> Result<Vec<(Link, Ipv4Addr)>, HostNetError> {
        let all = self.handle.address().get().execute().try_collect::<Vec<_>>();
        let all = self.tell(all, || "listing addresses".to_owned())?;
        let local = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        };
        let address = |message: rtnetlink::packet_route::address::AddressMessage| {
            Some((Link(message.header.index), message.attributes.iter().find_map(local)?))
        };
        Ok(all.into_iter().filter_map(address).collect())
    }

    /// Adds or replaces a route.
    pub fn ensure_route(&self, to: impl Into<IpAddr>, prefix_len: u8, via: Via) -> Result<(), HostNetError> {
        let to = to.into();
        let message = route(to, prefix_len, via);
        self.tell(self.handle.route().add(message).replace().execute(), || {
            format!("adding the route to {to}/{prefix_len}")
        })
    }

    /// Adds a route unless there is one to the same addresses; false if there is.
    pub fn add_route(&self, to: impl Into<IpAddr>, prefix_len: u8, via: Via) -> Result<bool, HostNetError> {
        let to = to.into();
        let message = route(to, prefix_len, via);
        match self.wait(self.handle.route().add(message).execute()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::EEXIST) => Ok(false),
            Err(source) => Err(HostNetError::Netlink {
                action: format!("adding the route to {to}/{prefix_len}"),
                source,
            }),
        }
    }

    /// Removes the route to `to` over `link`; succeeds when there is none.
    pub fn remove_route(
        &self,
        to: impl Into<IpAddr>,
        prefix_len: u8,
        link: Link,
    ) -> Result<(), HostNetError> {
        let to = to.into();
        let mut message = route(to, prefix_len, Via::Link(link));
        // "Nowhere" matches routes of every scope.
        message.header.scope = RouteScope::NoWhere;
        match self.wait(self.handle.route().del(message).execute()) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
            Err(source) => Err(HostNetError::Netlink {
                action: format!("removing the route to {to}/{prefix_len}"),
                source,
            }),
            Ok(()) => Ok(()),
        }
    }

    /// Fixes the hardware address of a neighbour for good.
    pub fn ensure_neighbour(
        &self,
        link: Link,
        address: impl Into<IpAddr>,
        mac: MacAddr,
    ) -> Result<(), HostNetError> {
        let address = address.into();
        let request =
            self.handle.neighbours().add(link.0, address).link_layer_address(&mac.octets()).replace();
        self.tell(request.execute(), || format!("fixing the hardware address of {address}"))
    }

    fn tell<T>(
        &self,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
        action: impl FnOnce() -> String,
    ) -> Result<T, HostNetError> {
        self.wait(request).map_err(|source| HostNetError::Netlink { action: action(), source })
    }

    fn wait<T>(&self, request: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
        self.runtime.block_on(request).map_err(|error| match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        })
    }
}

/// A route to a range; both addresses of `via` are of the family of `to`.
fn route(to: IpAddr, prefix_len: u8, via: Via) -> RouteMessage {
    /// The same for both families, whose builders have nothing in common but their names.
    macro_rules! fill {
        ($builder:ty, $family:path, $to:expr) => {{
            let route = <$builder>::new().destination_prefix($to, prefix_len);
            match via {
                Via::Link(link) => route.output_interface(link.0).scope(RouteScope::Link),
                Via::Router { link, router, source } => {
                    let mut route = route.output_interface(link.0);
                    if let $family(router) = router {
                        route = route.gateway(router);
                    }
                    match source {
                        Some($family(source)) => route.pref_source(source),
                        _ => route,
                    }
                }
                Via::Blackhole => route.kind(RouteType::BlackHole),
            }
            .build()
        }};
    }
    match to {
        IpAddr::V4(to) => fill!(RouteMessageBuilder<Ipv4Addr>, IpAddr::V4, to),
        IpAddr::V6(to) => fill!(RouteMessageBuilder<Ipv6Addr>, IpAddr::V6, to),
    }
}

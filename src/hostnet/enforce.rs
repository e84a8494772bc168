//! Making a VPC's packet filter what its policy says, in place.
//!
//! ```text
//!  begin(change) ─▶ one transaction ─▶ addresses, settings ─▶ cut what ended ─▶ done
//! ```
//! `begin` and `done` are in the note ([`crate::note`]). Whoever finds a change begun and not done
//! carries it out again first: the kernel has it wholly or not at all, and doing it twice is the same
//! as once. So the filter is at any moment that of the old policy or of the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kiln_model::security::{Member, NetworkPolicy, Rule, Traffic};
use kiln_model::{InterfaceId, VpcId};

use crate::change::Change;
use crate::error::HostNetError;
use crate::netlink::{Netlink, Via};
use crate::netns::NetNs;
use crate::nft::{self, Filter, Outcome};
use crate::note::Note;
use crate::record::Records;
use crate::routing::Surroundings;
use crate::{batch, conntrack, names, routing, sysctl};

/// The filter of one VPC.
pub(crate) struct Enforced<'a> {
    records: &'a Records,
    vpc: VpcId,
    /// The host's namespace.
    host: NetNs,
    note: Note,
}

impl<'a> Enforced<'a> {
    /// Looks what is enforced. The calling thread's namespace is that of the host.
    pub fn open(records: &'a Records, vpc: VpcId) -> Result<Self, HostNetError> {
        let path = records.dir().join("vpc").join(vpc.to_string());
        Ok(Enforced { records, vpc, host: NetNs::current()?, note: Note::open(&path)? })
    }

    /// What is enforced.
    pub fn policy(&self) -> &NetworkPolicy {
        self.note.applied()
    }

    fn around(&self) -> Surroundings<'_> {
        Surroundings { records: self.records, vpc: self.vpc, host: &self.host }
    }

    /// Interfaces that the filter knows or is about to; `None` where that is not known.
    pub fn interfaces(&self) -> Option<BTreeSet<InterfaceId>> {
        let note = self.note.is_known().then_some(&self.note)?;
        let mut all: BTreeSet<_> = note.applied().interfaces.keys().copied().collect();
        for (id, member) in note.pending().into_iter().flat_map(|change| &change.interfaces) {
            if member.is_some() {
                all.insert(*id)
            } else {
                all.remove(id)
            };
        }
        Some(all)
    }

    /// Makes `target` hold, in the calling thread's network namespace, which is that of the VPC.
    /// False if it held already.
    pub fn change(&mut self, target: NetworkPolicy) -> Result<bool, HostNetError> {
        self.finish()?;
        let change = Change::between(self.note.applied(), &target);
        self.carry_out(change, target)
    }

    /// As [`Enforced::change`], where one interface changes or goes. Answers what it was.
    pub fn change_interface(
        &mut self,
        id: InterfaceId,
        member: Option<Member>,
    ) -> Result<Option<Member>, HostNetError> {
        self.finish()?;
        let before = self.note.applied().interfaces.get(&id).cloned();
        if before != member {
            let change = Change { interfaces: [(id, member)].into(), ..Change::default() };
            let mut target = self.note.applied().clone();
            change.apply(&mut target);
            self.carry_out(change, target)?;
        }
        Ok(before)
    }

    /// Carries out what another process has begun.
    fn finish(&mut self) -> Result<(), HostNetError> {
        let Some(change) = self.note.pending() else { return Ok(()) };
        let mut target = self.note.applied().clone();
        change.apply(&mut target);
        transition(&self.around(), self.note.applied(), &target, change, Time::Again)?;
        self.note.done(target)
    }

    fn carry_out(&mut self, change: Change, target: NetworkPolicy) -> Result<bool, HostNetError> {
        if change.is_empty() {
            return Ok(false);
        }
        self.note.begin(change)?;
        if let Some(change) = self.note.pending() {
            transition(&self.around(), self.note.applied(), &target, change, Time::First)?;
        }
        self.note.done(target)?;
        Ok(true)
    }

    /// Forgets a VPC that is gone.
    pub fn forget(self) -> Result<(), HostNetError> {
        self.note.forget()
    }
}

/// Whether a change is perhaps in the kernel already. Then it is not enough to send what differs: a
/// script has the same result either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Time {
    First,
    Again,
}

/// Carries out a change that perhaps was carried out already.
fn transition(
    around: &Surroundings<'_>,
    old: &NetworkPolicy,
    new: &NetworkPolicy,
    change: &Change,
    time: Time,
) -> Result<(), HostNetError> {
    routing::open(around, new, change)?;
    filter(around.records, old, new, change, time)?;
    routing::close(around, old, new, change)?;
    for id in change.interfaces.keys() {
        if let (Some(before), Some(after)) = (old.interfaces.get(id), new.interfaces.get(id)) {
            move_addresses(*id, before, after)?;
        }
    }
    cut(old, new, change);
    Ok(())
}

fn filter(
    records: &Records,
    old: &NetworkPolicy,
    new: &NetworkPolicy,
    change: &Change,
    time: Time,
) -> Result<(), HostNetError> {
    let (from, to) = Filter::around(old, new, change);
    if time == Time::First
        && let Some(edits) = from.edits(&to)
        && batch::apply(&edits)? == batch::Outcome::Done
    {
        return Ok(());
    }
    let (held, place) = (Some(records.held()), "the VPC");
    match nft::run(held, &from.script(&to), place)? {
        Outcome::Done => Ok(()),
        // There is no table yet, or not any more: this is the first interface of the VPC.
        Outcome::Missing => {
            let everything = Filter::default().script(&Filter::of(new));
            nft::apply(held, &(nft::vpc_base() + &everything), place)
        }
        Outcome::Exists => nft::apply(held, &from.script(&to), place),
    }
}

/// Routes and settings of an interface that stays.
fn move_addresses(id: InterfaceId, before: &Member, after: &Member) -> Result<(), HostNetError> {
    let same = before.all_addresses().eq(after.all_addresses());
    if same && before.source_dest_check == after.source_dest_check {
        return Ok(());
    }
    let netlink = Netlink::open()?;
    // An interface whose tap is gone is about to be detached.
    let Some(link) = netlink.find(&names::tap(id))? else { return Ok(()) };
    for address in before.all_addresses().filter(|address| !after.has(*address)) {
        netlink.remove_route(address, bits(address), link)?;
        forget_connections(address);
    }
    place_addresses(&netlink, id, after)
}

/// The way from the router to the interface, and what it may send.
pub(crate) fn place_addresses(
    netlink: &Netlink,
    id: InterfaceId,
    member: &Member,
) -> Result<(), HostNetError> {
    let tap = names::tap(id);
    let link = netlink.require(&tap)?;
    let strict = if member.source_dest_check { "1" } else { "0" };
    sysctl::set(&format!("ipv4/conf/{tap}/rp_filter"), strict)?;
    for address in member.all_addresses() {
        netlink.ensure_neighbour(link, address, member.mac)?;
        netlink.ensure_route(address, bits(address), Via::Link(link))?;
    }
    Ok(())
}

/// Length of the route to one address.
pub(crate) fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Ends what was let pass without tracking and is not let pass any more. New packets are judged by
/// the new policy already.
fn cut(old: &NetworkPolicy, new: &NetworkPolicy, change: &Change) {
    let changed = changed_addresses(old, new, change);
    if changed.is_empty() {
        return;
    }
    let ends = |connection: &conntrack::Connection| {
        let begun = connection.begun;
        let at = |end: IpAddr| changed.contains(&end);
        (at(begun.source) || at(begun.destination)) && old.cut_by(new, begun)
    };
    match conntrack::forget_all("that a rule allowed", ends) {
        Ok(count) => tracing::debug!(count, "cut connections of rules that are gone"),
        Err(error) => tracing::warn!(%error, "connections of rules that are gone may go on"),
    }
}

/// Addresses of interfaces that something may be denied which was allowed before without tracking:
/// what a rule allows with everybody.
fn changed_addresses(old: &NetworkPolicy, new: &NetworkPolicy, change: &Change) -> BTreeSet<IpAddr> {
    let untracked = |rule: &Rule| {
        rule.peer.is_anywhere() && matches!(rule.traffic, Traffic::All | Traffic::Tcp(_) | Traffic::Udp(_))
    };
    let loses = |id: &_| {
        let after = new.groups.get(id).map(Vec::as_slice).unwrap_or_default();
        let before = old.groups.get(id).map(Vec::as_slice).unwrap_or_default();
        before.iter().any(|rule| untracked(rule) && !after.contains(rule))
    };
    let losers: BTreeSet<_> = change.groups.keys().copied().filter(loses).collect();
    let leaves = |(id, member): &(&InterfaceId, &Member)| {
        let after = new.interfaces.get(id).map(|after| &after.groups);
        let left = member.groups.iter().filter(|group| after.is_some_and(|after| !after.contains(group)));
        left.filter_map(|group| old.groups.get(group)).flatten().any(untracked)
    };
    let by_leaving =
        change.interfaces.keys().filter_map(|id| old.interfaces.get_key_value(id)).filter(leaves);
    let by_rules = old
        .interfaces
        .iter()
        .filter(|(id, member)| new.interfaces.contains_key(id) && !losers.is_disjoint(&member.groups));
    let all: BTreeMap<_, _> = by_leaving.chain(by_rules).collect();
    all.values().flat_map(|member| member.all_addresses()).collect()
}

/// Leaves nothing of the address's connections to whoever gets it next. A kernel without this part
/// of conntrack is no reason to keep the rest.
pub(crate) fn forget_connections(address: impl Into<IpAddr>) {
    let address = address.into();
    match conntrack::forget(address) {
        Ok(count) => tracing::debug!(%address, count, "forgot connections"),
        Err(error) => tracing::warn!(%address, %error, "connections of the address may outlive it"),
    }
}

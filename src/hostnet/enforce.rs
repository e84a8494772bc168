//! Making a VPC's packet filter what its policy says, in place.
//!
//! ```text
//!  note {applied, target} ─▶ one transaction ─▶ addresses, settings ─▶ cut what ended ─▶ note {applied: target}
//! ```
//! The note is a file beside the records. Whoever finds one with a target (its writer was killed)
//! carries the change out again first: the kernel has it wholly or not at all, and doing it twice is
//! the same as once. So the filter is at any moment that of the old policy or of the new one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use kiln_model::security::{Member, NetworkPolicy};
use kiln_model::{InterfaceId, SecurityGroupId, VpcId};
use serde::{Deserialize, Serialize};

use crate::error::HostNetError;
use crate::netlink::{Netlink, Via};
use crate::nft::{self, Filter, Outcome};
use crate::record::Records;
use crate::{conntrack, elements, names, sysctl};

/// What is known of a VPC's filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// In the kernel.
    applied: NetworkPolicy,
    /// Perhaps in the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<NetworkPolicy>,
}

/// The note of one VPC.
pub(crate) struct Enforced<'a> {
    records: &'a Records,
    path: PathBuf,
    note: Note,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostNetError {
    let path = path.to_owned();
    move |source| HostNetError::Record { action, path, source }
}

impl<'a> Enforced<'a> {
    /// Reads the note; without one nothing is enforced yet.
    pub fn open(records: &'a Records, vpc: VpcId) -> Result<Self, HostNetError> {
        let path = records.dir().join("vpc").join(vpc.to_string());
        let note = match File::open(&path) {
            // A damaged one is that of a disk that was full: everything is written anew.
            Ok(file) => serde_json::from_reader(BufReader::new(file)).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Note::default(),
            Err(error) => return Err(failed("reading", &path)(error)),
        };
        Ok(Enforced { records, path, note })
    }

    /// What holds, or is about to.
    pub fn policy(&self) -> &NetworkPolicy {
        self.note.target.as_ref().unwrap_or(&self.note.applied)
    }

    /// Makes `target` hold, in the calling thread's network namespace, which is that of the VPC.
    /// False if it held already.
    pub fn change(&mut self, target: NetworkPolicy) -> Result<bool, HostNetError> {
        if let Some(interrupted) = self.note.target.take() {
            transition(self.records, &self.note.applied, &interrupted)?;
            self.note.applied = interrupted;
        }
        if self.note.applied == target {
            self.write()?;
            return Ok(false);
        }
        self.note.target = Some(target.clone());
        self.write()?;
        transition(self.records, &self.note.applied, &target)?;
        self.note = Note { applied: target, target: None };
        self.write()?;
        Ok(true)
    }

    /// Forgets the note of a VPC that is gone.
    pub fn forget(self) -> Result<(), HostNetError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("removing", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    fn write(&self) -> Result<(), HostNetError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let temporary = self.path.with_extension("new");
        let write = || {
            fs::create_dir_all(dir)?;
            let mut file = BufWriter::new(File::create(&temporary)?);
            serde_json::to_writer(&mut file, &self.note)?;
            file.flush()?;
            fs::rename(&temporary, &self.path)
        };
        write().map_err(failed("writing", &self.path))
    }
}

/// Carries out a change that perhaps was carried out already.
fn transition(records: &Records, from: &NetworkPolicy, to: &NetworkPolicy) -> Result<(), HostNetError> {
    filter(records, &Filter::of(from), &Filter::of(to))?;
    for (id, member) in &to.interfaces {
        if let Some(before) = from.interfaces.get(id) {
            move_addresses(*id, before, member)?;
        }
    }
    cut(from, to);
    Ok(())
}

fn filter(records: &Records, from: &Filter, to: &Filter) -> Result<(), HostNetError> {
    if let Some(moves) = from.moves(to)
        && elements::apply(&moves)? == elements::Outcome::Done
    {
        return Ok(());
    }
    let (held, place) = (Some(records.held()), "the VPC");
    match nft::run(held, &from.script(to), place)? {
        Outcome::Done => Ok(()),
        // There is no table yet, or not any more: this is the first interface of the VPC.
        Outcome::Missing => nft::apply(held, &(nft::vpc_base() + &Filter::default().script(to)), place),
        Outcome::Exists => nft::apply(held, &from.script(to), place),
    }
}

/// Routes and settings of an interface that stays.
fn move_addresses(id: InterfaceId, before: &Member, after: &Member) -> Result<(), HostNetError> {
    if before.addresses == after.addresses && before.source_dest_check == after.source_dest_check {
        return Ok(());
    }
    let netlink = Netlink::open()?;
    // An interface whose tap is gone is about to be detached.
    let Some(link) = netlink.find(&names::tap(id))? else { return Ok(()) };
    for address in before.addresses.iter().filter(|address| !after.addresses.contains(*address)) {
        netlink.remove_route(*address, 32, link)?;
        forget_connections(*address);
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
    for address in &member.addresses {
        netlink.ensure_neighbour(link, *address, member.mac)?;
        netlink.ensure_route(*address, 32, Via::Link(link))?;
    }
    Ok(())
}

/// Ends what was let pass without tracking and is not let pass any more. New packets are judged by
/// the new policy already.
fn cut(from: &NetworkPolicy, to: &NetworkPolicy) {
    let changed = changed_addresses(from, to);
    if changed.is_empty() {
        return;
    }
    let ends = |connection: &conntrack::Connection| {
        let begun = connection.begun;
        let at = |end: IpAddr| matches!(end, IpAddr::V4(end) if changed.contains(&end));
        (at(begun.source) || at(begun.destination)) && from.cut_by(to, begun)
    };
    match conntrack::forget_all("that a rule allowed", ends) {
        Ok(count) => tracing::debug!(count, "cut connections of rules that are gone"),
        Err(error) => tracing::warn!(%error, "connections of rules that are gone may go on"),
    }
}

/// Addresses of interfaces that something may be denied which was allowed before.
fn changed_addresses(from: &NetworkPolicy, to: &NetworkPolicy) -> BTreeSet<Ipv4Addr> {
    let lost_rules = |id: &SecurityGroupId| {
        let after = to.groups.get(id).map(Vec::as_slice).unwrap_or_default();
        from.groups.get(id).is_some_and(|rules| rules.iter().any(|rule| !after.contains(rule)))
    };
    let changed = |(id, member): (&InterfaceId, &Member)| {
        to.interfaces.get(id).is_some_and(|after| !after.groups.is_superset(&member.groups))
            || member.groups.iter().any(lost_rules)
    };
    from.interfaces
        .iter()
        .filter(|(id, member)| changed((id, member)))
        .flat_map(|(_, member)| member.addresses.iter().copied())
        .collect()
}

/// Leaves nothing of the address's connections to whoever gets it next. A kernel without this part
/// of conntrack is no reason to keep the rest.
pub(crate) fn forget_connections(address: Ipv4Addr) {
    match conntrack::forget(address) {
        Ok(count) => tracing::debug!(%address, count, "forgot connections"),
        Err(error) => tracing::warn!(%address, %error, "connections of the address may outlive it"),
    }
}

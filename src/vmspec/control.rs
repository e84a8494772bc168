//! Messages on the control socket.

use kiln_model::MacAddr;
use serde::{Deserialize, Serialize};

use crate::{DiskSpec, LeafValue, MetadataSnapshot, NicSpec, VmSpec};

/// What a client may ask of a VMM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Command {
    /// Assemble and boot. Accepted once; carries the descriptors that the spec names.
    Start(Box<VmSpec>),
    /// Stop all vCPUs, drain all devices and write out what disks hold back. Until `Resume` the image files
    /// are whole and do not change.
    Pause,
    /// Undo `Pause`, if there was one.
    Resume,
    /// Press the ACPI power button.
    PowerButton,
    /// Press the ACPI power button, and start the machine again when the guest has powered off.
    Reboot,
    /// Reset the machine as its reset line would.
    Reset,
    /// End the VMM at once; the guest gets no notice.
    Kill,
    /// From now on this connection receives `Event::Console`. `replay` first sends what the
    /// scroll-back buffer holds.
    AttachConsole {
        /// Send the scroll-back first.
        replay: bool,
    },
    /// Bytes typed by the user.
    ConsoleInput {
        /// Raw bytes, at most 4096.
        bytes: Vec<u8>,
    },
    /// Ask for `Reply::Stats`.
    Stats,
    /// Plug in a disk; carries the descriptors that the spec names, from 0. It has one queue, whatever the
    /// spec says, and stays over restarts of the guest. Refused when one with this serial number is there.
    AttachDisk(Box<DiskSpec>),
    /// Ask the guest to let go of a disk that is not the first; may be asked again. `Event::DiskDetached`
    /// follows when it has, or when it restarts.
    DetachDisk {
        /// Serial number of the disk.
        serial: String,
        /// Do not wait for the guest: the disk is closed, and its device answers with errors until the guest lets
        /// go of that.
        force: bool,
    },
    /// Make a disk larger, and tell the guest. A size that it has already changes nothing.
    ResizeDisk {
        /// Serial number of the disk.
        serial: String,
        /// Bytes from now on.
        size: u64,
    },
    /// Ask for `Reply::Disks`.
    ListDisks,
    /// Plug in a network interface; carries the descriptors that the spec names, from 0. Its services say what the
    /// metadata of the moment say. It stays over restarts of the guest. Refused when one with this hardware
    /// address is there.
    AttachNic(Box<NicSpec>),
    /// Ask the guest to let go of an interface that is not the first; may be asked again. `Event::NicDetached`
    /// follows when it has, or when it restarts.
    DetachNic {
        /// Hardware address of the interface.
        mac: MacAddr,
        /// Do not wait for the guest: its tap is closed, and its device has no link until the guest lets go of
        /// that.
        force: bool,
    },
    /// Ask for `Reply::Nics`.
    ListNics,
    /// Swap the metadata whole.
    UpdateMetadata(Box<MetadataSnapshot>),
    /// Ask for `Reply::Metadata`: what the metadata service would answer a guest with a good token.
    ReadMetadata {
        /// Path of the request, version first, such as `/latest/meta-data/`.
        path: String,
    },
}

impl Command {
    /// Number of descriptors that travel with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Command::AttachDisk(disk) => disk.layers.len(),
            Command::AttachNic(nic) => nic.tap_queues.len(),
            // Its descriptors are taken by whoever waits for it.
            _ => 0,
        }
    }
}

/// One command with the number its reply repeats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// Answer to one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// Done.
    Ok,
    /// Refused or failed; the message is one line for a person.
    Error {
        /// What is wrong and what to do.
        message: String,
    },
    /// Answer to `Command::Stats`.
    Stats(Box<Stats>),
    /// Answer to `Command::ListDisks`.
    Disks {
        /// Those that the guest has, in the order in which they came.
        disks: Vec<AttachedDisk>,
        /// How many more can be attached before one is detached.
        spare: usize,
    },
    /// Answer to `Command::ListNics`.
    Nics {
        /// Those that the guest has, in the order in which they came.
        nics: Vec<AttachedNic>,
        /// How many more can be attached before one is detached.
        spare: usize,
    },
    /// Answer to `Command::ReadMetadata`.
    Metadata {
        /// The body; `None` where a guest would get 404.
        found: Option<LeafValue>,
    },
}

/// A disk of a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedDisk {
    /// Its serial number.
    pub serial: String,
    /// Its size in bytes.
    pub size: u64,
    /// The guest has been asked to let go of it.
    pub leaving: bool,
}

/// A network interface of a machine that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedNic {
    /// Its hardware address.
    pub mac: MacAddr,
    /// The guest has been asked to let go of it.
    pub leaving: bool,
}

/// What the VMM says.
///
/// The tags of this enum and of those it holds directly, and the names of their fields, lie in one
/// JSON object: none may occur twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Message {
    /// Answer to the request with this id.
    Reply {
        /// Id of the request.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something happened; sent to every connection.
    Event(Event),
}

/// Unasked-for news.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// vCPUs run. `booted` says what was booted, for people.
    Running {
        /// For example `/boot/vmlinuz-6.1.0-53-cloud-amd64 from partition 1 (ext4), grub.cfg entry "Debian GNU/Linux"`.
        booted: String,
    },
    /// The guest printed this (only to connections that attached).
    Console {
        /// Raw bytes.
        bytes: Vec<u8>,
    },
    /// The guest has let go of a disk, or it was taken: its files are whole and closed.
    DiskDetached {
        /// Serial number of the disk.
        serial: String,
    },
    /// The guest has let go of a network interface, or it was taken: its tap is closed.
    NicDetached {
        /// Hardware address of the interface.
        mac: MacAddr,
    },
    /// The guest reset itself; it starts again from its root volume in the same process.
    Rebooting,
    /// The machine has ended; the process exits after this.
    Exited(ExitReason),
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum ExitReason {
    /// The guest entered S5.
    PowerOff,
    /// `Command::Kill`.
    Killed,
    /// The guest could not be started or could not go on.
    Failed {
        /// One line: what is wrong and what to do.
        message: String,
    },
}

/// Counters since start. Device counters are named `device.counter`, such as `blk0.read_bytes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// All counters.
    pub counters: std::collections::BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_wire() {
        let failed = ExitReason::Failed { message: "no kernel".into() };
        let events = [
            Event::Running { booted: "vmlinuz".into() },
            Event::Console { bytes: vec![0, 0xff] },
            Event::Rebooting,
            Event::DiskDetached { serial: "vol0".into() },
            Event::NicDetached { mac: MacAddr::BROADCAST },
            Event::Exited(ExitReason::PowerOff),
            Event::Exited(ExitReason::Killed),
            Event::Exited(failed),
        ];
        let stats = Stats { counters: [("blk0.read_bytes".to_owned(), 512)].into() };
        let found = Reply::Metadata { found: Some(vec![0, 0xff].into()) };
        let replies = [
            Reply::Ok,
            Reply::Error { message: "no".into() },
            Reply::Stats(Box::new(stats)),
            found,
            Reply::Metadata { found: None },
            Reply::Disks {
                disks: vec![AttachedDisk { serial: "vol0".into(), size: 512, leaving: true }],
                spare: 3,
            },
            Reply::Nics { nics: vec![AttachedNic { mac: MacAddr::BROADCAST, leaving: true }], spare: 3 },
        ];
        let events = events.into_iter().map(Message::Event);
        let replies = replies.into_iter().map(|reply| Message::Reply { id: 7, reply });
        for message in events.chain(replies) {
            let json = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<Message>(&json).expect(&json), message);
        }
    }
}

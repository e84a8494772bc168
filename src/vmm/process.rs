//! The life of one `kiln-vmm` process.
//!
//! ```text
//!  listening ─ first client sends Start ─▶ open host resources ─▶ ┌ assemble ─▶ run ─┐
//!                                                                 │   reset: wipe    │
//!                                                                 └──────◀───────────┘
//!                                                     power-off, kill or failure ─▶ Exited ─▶ end
//! ```
//!
//! The control thread, which runs this, owns the life-cycle: vCPUs and devices only report to it.
//! Before it looks at the first byte of an image it has opened all that it will ever need from the host,
//! has started all threads, and confines itself like them; see [`crate::confined`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use kiln_devices::virtio::WorkerHost;
use kiln_sandbox::seccomp::ThreadKind;
use kiln_sandbox::{jail, last_words};
use kiln_vmspec::frame::{Connection, FrameError};
use kiln_vmspec::{Command, Event, ExitReason, MetadataSnapshot, Reply, Request, Stats, VmSpec};
use vmm_sys_util::eventfd::EventFd;

use crate::confined::{Confinement, Crew};
use crate::console::Console;
use crate::control::{ControlServer, Incoming};
use crate::host::{Detached, Host};
use crate::machine::{Machine, Surroundings};
use crate::memory;
use crate::vcpu::{MachineEvent, MachineEvents, install_handler};
use crate::workers::Workers;
use crate::{disks, nics};

/// The process could not even listen to its control plane.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The first client did not send a usable `Start`.
    #[error("no machine was described on the control socket")]
    NoStart(#[source] FrameError),
    /// The first command was another one.
    #[error("the first command was not `start`")]
    NotStarted,
    /// The host failed.
    #[error("{action} failed")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

fn host(action: &'static str) -> impl FnOnce(io::Error) -> ProcessError {
    move |source| ProcessError::Host { action, source }
}

/// Address space of a VMM besides guest memory: program, stacks and heap take a fraction of it.
const OWN_ADDRESS_SPACE: u64 = 1 << 30;

/// What makes last words an [`ExitReason`].
const LAST_WORDS: [&str; 2] = [r#"{"reason":"failed","message":""#, r#""}"#];

/// Keys of the control thread's own descriptors.
const MACHINE: u32 = 0;
const CONSOLE: u32 = 1;

/// Serves one machine on `listener` and returns why it ended. Its threads stay; the caller ends the
/// process.
pub fn run(listener: UnixListener, confinement: Confinement) -> Result<ExitReason, ProcessError> {
    let (stream, _) = listener.accept().map_err(host("accepting the control plane"))?;
    let connection = Connection::new(stream.try_clone().map_err(host("cloning a socket"))?);
    let (request, fds) = connection.receive::<Request>().map_err(ProcessError::NoStart)?;
    let Command::Start(spec) = request.command else { return Err(ProcessError::NotStarted) };
    drop(connection);
    install_handler().map_err(host("installing a signal handler"))?;

    let mut server = ControlServer::new(listener).map_err(host("serving the control socket"))?;
    let starter = server.adopt(stream).map_err(host("serving the control plane"))?;
    if spec.console.to_starter {
        server.attach(starter, Vec::new());
    }
    let mut process = Process::new(server, *spec, confinement)?;
    let reason = process.live(fds, starter, request.id);
    process.forward_console();
    process.write_down(&reason);
    process.server.broadcast(&Event::Exited(reason.clone()));
    process.server.finish();
    Ok(reason)
}

struct Process {
    server: ControlServer,
    spec: VmSpec,
    /// What the link-local services say now.
    metadata: Arc<MetadataSnapshot>,
    confinement: Confinement,
    console: Console,
    log: Option<ConsoleLog>,
    ending: Option<File>,
    /// The guest was asked to power off in order to start again.
    reboots: bool,
    paused: bool,
    events: MachineEvents,
    reported: Receiver<MachineEvent>,
    machine_wake: Arc<EventFd>,
    console_wake: Arc<EventFd>,
    resets: u64,
}

/// Why the control loop of one machine ended.
enum Outcome {
    Reset,
    Exit(ExitReason),
}

impl Process {
    fn new(server: ControlServer, spec: VmSpec, confinement: Confinement) -> Result<Self, ProcessError> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let machine_wake = event().map_err(host("making an event descriptor"))?;
        let console_wake = event().map_err(host("making an event descriptor"))?;
        for (fd, key) in [(machine_wake.as_raw_fd(), MACHINE), (console_wake.as_raw_fd(), CONSOLE)] {
            server.watch(fd, key).map_err(host("waiting for events"))?;
        }
        let (sender, reported) = channel();
        let events = MachineEvents::new(sender, Arc::clone(&machine_wake));
        let console = Console::new(Arc::clone(&console_wake));
        Ok(Process {
            server,
            metadata: Arc::new(spec.metadata.clone()),
            spec,
            confinement,
            console,
            log: None,
            ending: None,
            reboots: false,
            paused: false,
            events,
            reported,
            machine_wake,
            console_wake,
            resets: 0,
        })
    }

    /// From `Start` to the end; the answer to `Start` goes out when the vCPUs run, or fail to.
    fn live(&mut self, fds: Vec<OwnedFd>, starter: u64, request: u64) -> ExitReason {
        let opened = Host::open(&self.spec, fds).map_err(|e| chain(&e));
        let opened = opened.and_then(|host| match self.threads(&host) {
            Ok((workers, vcpus)) => Ok((host, workers, vcpus)),
            Err(e) => Err(format!("starting the threads failed: {e}")),
        });
        let (mut host, workers, vcpus) = match opened {
            Ok(opened) => opened,
            Err(message) => return self.fail(Some((starter, request)), message),
        };
        self.ending = host.ending.take();
        if let Some(file) = &self.ending {
            let [before, after] = LAST_WORDS;
            last_words::keep_in(file.as_fd(), before, after);
        }
        self.log =
            host.console_log.take().map(|file| ConsoleLog::new(file, self.spec.console.log_limit_bytes));
        let mut unanswered = Some((starter, request));
        loop {
            let around = Surroundings {
                host: &host,
                console: &self.console,
                workers: &workers,
                vcpus: &vcpus,
                events: &self.events,
            };
            let mut machine = match Machine::assemble(&self.spec, &around) {
                Ok(machine) => machine,
                Err(e) => return self.fail(unanswered, chain(&e)),
            };
            machine.start();
            tracing::info!(instance = self.spec.instance_id, "booting {}", machine.booted);
            if let Some((client, request)) = unanswered.take() {
                self.server.reply(client, request, Reply::Ok);
            }
            self.server.broadcast(&Event::Running { booted: machine.booted.clone() });
            let outcome = self.serve(&mut machine, &mut host);
            machine.stop();
            match outcome {
                Outcome::Exit(reason) => return reason,
                Outcome::Reset => {
                    self.resets = self.resets.saturating_add(1);
                    self.reboots = false;
                    self.paused = false;
                    self.forward_console();
                    self.server.broadcast(&Event::Rebooting);
                    if let Err(e) = memory::wipe(&host.memory) {
                        return self.fail(None, format!("wiping guest memory for the restart failed: {e}"));
                    }
                    // What the old machine still reported means nothing to the new one. Disks and interfaces
                    // that its guest was to let go of, and those that it has, do not come back.
                    self.reported.try_iter().for_each(drop);
                    for slot in host.leaving() {
                        let gone = host.detach(slot);
                        self.tell_detached(gone);
                    }
                }
            }
        }
    }

    /// Starts every thread that the machine can need, and confines this one.
    fn threads(&self, host: &Host) -> io::Result<(Arc<dyn WorkerHost>, Crew)> {
        if self.confinement == Confinement::On {
            jail::limit_address_space(memory::total(&host.memory).saturating_add(OWN_ADDRESS_SPACE))?;
        }
        // One for each engine, whichever disk it serves.
        let disk_queues: usize = host.disks.iter().map(|disk| usize::from(disk.engines.queues())).sum();
        let workers = Workers::new(disk_queues.saturating_add(host.spares.len()), self.confinement)?;
        let vcpus = Crew::new(ThreadKind::Vcpu, usize::from(self.spec.vcpus), "vcpu", self.confinement)?;
        self.confinement.apply(ThreadKind::Control)?;
        Ok((Arc::new(workers), vcpus))
    }

    fn fail(&mut self, unanswered: Option<(u64, u64)>, message: String) -> ExitReason {
        if let Some((client, request)) = unanswered {
            self.server.reply(client, request, Reply::Error { message: message.clone() });
        }
        ExitReason::Failed { message }
    }

    /// Serves clients and the machine until it ends.
    fn serve(&mut self, machine: &mut Machine, host: &mut Host) -> Outcome {
        loop {
            let incoming = match self.server.wait() {
                Ok(incoming) => incoming,
                Err(e) => {
                    let message = format!("waiting on the control socket failed: {e}");
                    return Outcome::Exit(ExitReason::Failed { message });
                }
            };
            for one in incoming {
                match one {
                    Incoming::Ready(CONSOLE) => {
                        let _ = self.console_wake.read();
                        self.forward_console();
                        machine.feed_console(&self.console);
                    }
                    Incoming::Ready(_) => {
                        let _ = self.machine_wake.read();
                    }
                    Incoming::Request { client, request, fds } => {
                        let id = request.id;
                        let outcome = self.obey(machine, host, client, request, fds);
                        if let Some(outcome) = outcome {
                            self.server.reply(client, id, Reply::Ok);
                            return outcome;
                        }
                    }
                }
            }
            while let Ok(event) = self.reported.try_recv() {
                match event {
                    MachineEvent::PowerOff if self.reboots => return Outcome::Reset,
                    MachineEvent::PowerOff => return Outcome::Exit(ExitReason::PowerOff),
                    MachineEvent::Reset => return Outcome::Reset,
                    MachineEvent::Failed(message) => return Outcome::Exit(ExitReason::Failed { message }),
                    MachineEvent::Ejected(slot) => {
                        machine.forget(slot);
                        self.tell_detached(host.detach(slot));
                    }
                }
            }
        }
    }

    /// Carries out one command. `Some` ends the machine; otherwise the command has been answered.
    fn obey(
        &mut self,
        machine: &mut Machine,
        host: &mut Host,
        client: u64,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Option<Outcome> {
        let reply = match request.command {
            Command::Start(_) => Reply::Error { message: "the machine has been started already".into() },
            Command::Pause => {
                if !self.paused {
                    machine.pause();
                    self.paused = true;
                }
                // What is held back of tables reaches the files, so that they are whole by themselves.
                match host.disks.iter().try_for_each(|disk| disk.disk.flush()) {
                    Ok(()) => Reply::Ok,
                    Err(e) => {
                        Reply::Error { message: format!("the disks could not be flushed: {}", chain(&e)) }
                    }
                }
            }
            Command::Resume => {
                if self.paused {
                    machine.resume();
                    self.paused = false;
                }
                Reply::Ok
            }
            Command::PowerButton => {
                self.reboots = false;
                machine.press_power_button();
                Reply::Ok
            }
            Command::Reboot => {
                self.reboots = true;
                machine.press_power_button();
                Reply::Ok
            }
            Command::Reset => return Some(Outcome::Reset),
            Command::Kill => return Some(Outcome::Exit(ExitReason::Killed)),
            Command::AttachConsole { replay } => {
                // What is in the scroll-back already must not come a second time.
                self.forward_console();
                let first = if replay { self.console.scrollback() } else { Vec::new() };
                self.server.attach(client, first);
                Reply::Ok
            }
            Command::ConsoleInput { bytes } => {
                self.console.type_in(&bytes);
                machine.feed_console(&self.console);
                Reply::Ok
            }
            Command::Stats => {
                let mut stats = Stats::default();
                machine.stats(&mut stats);
                for nic in &host.nics {
                    nic.backend.stats(&nic.name, &mut stats.counters);
                }
                stats.counters.insert("machine.resets".into(), self.resets);
                stats.counters.insert("metadata.generation".into(), self.metadata.generation);
                stats.counters.insert("console.dropped_bytes".into(), self.console.dropped());
                Reply::Stats(Box::new(stats))
            }
            Command::AttachDisk(spec) => answer(disks::attach(machine, host, *spec, fds)),
            Command::DetachDisk { serial, force } => {
                let how = force.then_some(disks::Force { paused: self.paused });
                self.detached(disks::detach(machine, host, &serial, how))
            }
            Command::ResizeDisk { serial, size } => answer(disks::resize(machine, host, &serial, size)),
            Command::ListDisks => disks::list(host),
            Command::AttachNic(spec) => answer(nics::attach(machine, host, *spec, fds, &self.metadata)),
            Command::DetachNic { mac, force } => {
                let how = force.then_some(disks::Force { paused: self.paused });
                self.detached(nics::detach(machine, host, mac, how))
            }
            Command::ListNics => nics::list(host),
            Command::UpdateMetadata(snapshot) => match self.update_metadata(host, *snapshot) {
                Ok(()) => Reply::Ok,
                Err(message) => Reply::Error { message },
            },
            Command::ReadMetadata { path } => {
                Reply::Metadata { found: kiln_linklocal::read_metadata(&self.metadata, &path) }
            }
        };
        self.server.reply(client, request.id, reply);
        None
    }

    /// Swaps the metadata of all interfaces, unless a newer snapshot is there already or the new one
    /// holds what could not be served.
    fn update_metadata(&mut self, host: &Host, snapshot: MetadataSnapshot) -> Result<(), String> {
        if snapshot.generation <= self.metadata.generation {
            return Err(format!(
                "metadata of generation {} come after those of generation {}",
                snapshot.generation, self.metadata.generation
            ));
        }
        snapshot.check().map_err(|e| e.to_string())?;
        self.metadata = Arc::new(snapshot);
        host.nics.iter().for_each(|nic| nic.backend.update_metadata(Arc::clone(&self.metadata)));
        Ok(())
    }

    /// The answer to whoever wanted something taken from the guest; tells others what has been closed.
    fn detached(&mut self, result: Result<Option<Detached>, String>) -> Reply {
        match result {
            Ok(taken) => {
                self.tell_detached(taken);
                Reply::Ok
            }
            Err(message) => Reply::Error { message },
        }
    }

    /// Tells what has been closed, if anything has.
    fn tell_detached(&mut self, detached: Option<Detached>) {
        match detached {
            Some(Detached::Disk(serial)) => self.server.broadcast(&Event::DiskDetached { serial }),
            Some(Detached::Nic(mac)) => self.server.broadcast(&Event::NicDetached { mac }),
            None => {}
        }
    }

    /// Leaves the reason of the end to whoever comes later.
    fn write_down(&mut self, reason: &ExitReason) {
        // Another thread may be writing there why it ends the process.
        let Some(mut file) = self.ending.take().filter(|_| last_words::claim()) else { return };
        let written =
            serde_json::to_vec(reason).map_err(io::Error::from).and_then(|text| file.write_all(&text));
        if let Err(e) = written {
            tracing::warn!("the reason of the end could not be written: {e}");
        }
    }

    /// Carries what the guest printed to the log and to attached clients.
    fn forward_console(&mut self) {
        let bytes = self.console.take_output();
        if bytes.is_empty() {
            return;
        }
        if let Some(log) = &mut self.log {
            log.append(&bytes);
        }
        self.server.console(&bytes);
    }
}

fn answer(result: Result<(), String>) -> Reply {
    match result {
        Ok(()) => Reply::Ok,
        Err(message) => Reply::Error { message },
    }
}

/// The console log, bounded so that a guest cannot fill the host.
struct ConsoleLog {
    file: File,
    left: u64,
}

impl ConsoleLog {
    fn new(file: File, limit: u64) -> Self {
        ConsoleLog { file, left: limit }
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let piece = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        self.left = self.left.saturating_sub(piece.len() as u64);
        if let Err(e) = self.file.write_all(piece) {
            tracing::warn!("writing the console log failed, it ends here: {e}");
            self.left = 0;
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string().replace('\n', " "));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_reason_of_an_end() {
        let message = "the disk worker thread made the forbidden system call open and was ended";
        let text = LAST_WORDS.join(message);
        assert_eq!(
            serde_json::from_str::<ExitReason>(&text).unwrap(),
            ExitReason::Failed { message: message.to_owned() }
        );
    }
}

//! One sitting at a console.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use kiln_controlplane::instances::RunningInstance;
use kiln_controlplane::printable;
use kiln_controlplane::vmm_process::{Commands, VmmEvent};
use kiln_vmspec::{Command, Reply};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::escape::{Action, Escape, HELP};
use super::terminal::RawMode;
use crate::error::Failure;
use crate::progress::Spinner;

/// Most bytes in one message to the VMM.
const INPUT_PIECE: usize = 4096;
/// Pieces of output that may wait for the terminal; then the VMM is not read.
const OUTPUT_BACKLOG: usize = 64;
/// At the end, a reader that does not read has this long to take what is left.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(5);
/// A machine that is told to end at once has this long before its process is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Where typed bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The terminal, in raw mode, with keys of our own.
    Terminal,
    /// Whatever standard input is, byte for byte.
    Stream,
    /// Nowhere: standard input is left alone.
    None,
}

impl Input {
    /// What there is: the terminal, if we may have it; else the stream, if it is wanted.
    pub fn choose(stream_wanted: bool) -> Self {
        match (RawMode::is_possible(), stream_wanted) {
            (true, _) => Input::Terminal,
            (false, true) => Input::Stream,
            (false, false) => Input::None,
        }
    }
}

/// What quitting means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quit {
    /// The machine ends.
    Machine,
    /// Only the session ends.
    Session,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The machine ended, or its VMM did.
    Ended,
    /// The user left.
    Left,
}

/// Where events come from.
#[derive(Debug)]
pub enum Events<'a> {
    /// An instance that this process runs, and whose output it gets from the start.
    Own(&'a mut RunningInstance),
    /// One that another process runs.
    Other(mpsc::Receiver<VmmEvent>),
}

impl Events<'_> {
    /// May be dropped at any await and asked again.
    async fn next(&mut self) -> Option<VmmEvent> {
        match self {
            Events::Own(run) => run.next_event().await,
            Events::Other(events) => events.recv().await,
        }
    }
}

/// A console attached to this terminal.
pub struct Session<'a> {
    commands: Arc<dyn Commands>,
    events: Events<'a>,
    quit: Quit,
    input: mpsc::Receiver<Vec<u8>>,
    output: Output,
    raw: Option<RawMode>,
    escape: Option<Escape>,
    waiting: Option<Spinner>,
    /// Requests to end so far: the second one is meant.
    asked_to_end: u32,
    deadline: Option<Instant>,
}

/// Signals that ask us to end, or to stop.
pub struct Signals {
    end: [Signal; 4],
    stop: Signal,
}

/// A signal as far as we tell them apart.
enum Caught {
    End,
    Stop,
}

impl Signals {
    /// Catches them from now on. Inside of a runtime only.
    pub fn new() -> io::Result<Self> {
        let end = [
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ];
        // SIGTSTP has no name there.
        Ok(Signals { end, stop: signal(SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw()))? })
    }

    async fn next(&mut self) -> Caught {
        let [a, b, c, d] = &mut self.end;
        tokio::select! {
            _ = a.recv() => Caught::End,
            _ = b.recv() => Caught::End,
            _ = c.recv() => Caught::End,
            _ = d.recv() => Caught::End,
            _ = self.stop.recv() => Caught::Stop,
        }
    }
}

/// Standard output behind a thread, so that a terminal that does not read holds up nothing else.
struct Output {
    sender: Option<mpsc::Sender<Vec<u8>>>,
    /// Closes when the thread is done.
    done: std::sync::mpsc::Receiver<()>,
}

impl Output {
    fn new() -> io::Result<Self> {
        let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(OUTPUT_BACKLOG);
        let (closes_at_end, done) = std::sync::mpsc::channel::<()>();
        let write = move || {
            let _closes_at_end = closes_at_end;
            let mut stdout = io::stdout().lock();
            while let Some(bytes) = receiver.blocking_recv() {
                if stdout.write_all(&bytes).and_then(|()| stdout.flush()).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("stdout".to_owned()).spawn(write)?;
        Ok(Output { sender: Some(sender), done })
    }

    /// Waits until a piece can be taken. `false`: nobody reads any more.
    async fn ready(&mut self) -> bool {
        match &self.sender {
            Some(sender) => sender.reserve().await.is_ok(),
            None => true,
        }
    }

    fn write(&mut self, bytes: Vec<u8>) {
        if let Some(sender) = &self.sender {
            // There is room: `ready` said so, and nobody else writes.
            let _ = sender.try_send(bytes);
        }
    }

    /// Waits until everything is written, or nobody takes it.
    fn finish(&mut self) {
        self.sender = None;
        let _ = self.done.recv_timeout(OUTPUT_PATIENCE);
    }
}

fn read_stdin() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(16);
    let read = move || {
        let mut buf = [0; INPUT_PIECE];
        loop {
            match io::stdin().lock().read(&mut buf) {
                Ok(0) => return,
                Ok(n) => {
                    if sender.blocking_send(buf.get(..n).unwrap_or_default().to_vec()).is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    };
    // The thread ends with the process; there is no way to wake it from a blocking read.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
    Ok(receiver)
}

impl<'a> Session<'a> {
    /// Prepares terminal and threads. `title` names the machine to the user.
    pub fn new(
        title: &str,
        commands: Arc<dyn Commands>,
        events: Events<'a>,
        input: Input,
        quit: Quit,
    ) -> Result<Self, Failure> {
        let receiver = if input == Input::None { mpsc::channel(1).1 } else { read_stdin()? };
        if input == Input::Terminal {
            let meaning = if quit == Quit::Machine { "ends the machine" } else { "leaves it" };
            eprintln!("Console of {title}. Ctrl-] then q {meaning}, Ctrl-] then ? shows all keys.");
        }
        let raw = if input == Input::Terminal { Some(RawMode::enter()?) } else { None };
        Ok(Session {
            commands,
            events,
            quit,
            input: receiver,
            output: Output::new()?,
            escape: raw.as_ref().map(|_| Escape::default()),
            raw,
            waiting: (quit == Quit::Machine).then(|| Spinner::new(format!("Starting {title}"))),
            asked_to_end: 0,
            deadline: None,
        })
    }

    /// Runs until the machine ends or the user leaves.
    pub async fn run(mut self, mut signals: Signals) -> Result<Outcome, Failure> {
        if matches!(self.events, Events::Other(_)) {
            self.send(Command::AttachConsole { replay: true });
        }
        let mut input_open = true;
        let outcome = loop {
            let deadline = self.deadline;
            tokio::select! {
                event = next_event(&mut self.output, &mut self.events) => match event {
                    Taken::Event(event) => if !self.handle_event(event) { break Outcome::Ended },
                    Taken::OutputClosed => {
                        self.output.sender = None;
                        if self.end_requested() { break Outcome::Left }
                    }
                    Taken::Nothing => break Outcome::Ended,
                },
                bytes = self.input.recv(), if input_open => match bytes {
                    Some(bytes) => if self.handle_input(&bytes).await { break Outcome::Left },
                    None => input_open = false,
                },
                caught = signals.next() => match caught {
                    Caught::End => if self.end_requested() { break Outcome::Left },
                    Caught::Stop => self.stop_process(),
                },
                () = at(deadline) => break Outcome::Ended,
            }
        };
        self.waiting = None;
        self.output.finish();
        Ok(outcome)
    }

    /// `false` after the last event.
    fn handle_event(&mut self, event: VmmEvent) -> bool {
        match event {
            VmmEvent::Console(bytes) => {
                self.waiting = None;
                self.output.write(bytes);
            }
            VmmEvent::Running { booted } => {
                tracing::info!("booted {}", printable(&booted));
                if let Some(spinner) = &self.waiting {
                    spinner.say(format!("Booting {}", printable(&booted)));
                }
            }
            VmmEvent::DiskDetached { serial } => tracing::info!("the guest has let go of {serial}"),
            VmmEvent::NicDetached { mac } => tracing::info!("the guest has let go of the interface {mac}"),
            VmmEvent::Rebooting => tracing::info!("the guest reboots"),
            VmmEvent::Exited(_) | VmmEvent::Lost { .. } => return false,
        }
        true
    }

    /// `true` when the user leaves.
    async fn handle_input(&mut self, bytes: &[u8]) -> bool {
        let actions = match &mut self.escape {
            Some(escape) => escape.feed(bytes),
            None => vec![Action::Send(bytes.to_vec())],
        };
        for action in actions {
            match action {
                Action::Send(bytes) => {
                    for piece in bytes.chunks(INPUT_PIECE) {
                        self.send(Command::ConsoleInput { bytes: piece.to_vec() });
                    }
                }
                Action::PowerButton => {
                    self.notice("power button pressed");
                    self.send(Command::PowerButton);
                }
                Action::Reset => {
                    self.notice("reset");
                    self.send(Command::Reset);
                }
                Action::Quit if self.quit == Quit::Session => return true,
                Action::Quit => self.kill(),
                Action::Stats => self.show_stats().await,
                Action::Help => {
                    for (keys, meaning) in HELP {
                        self.notice(&format!("{keys:14} {meaning}"));
                    }
                }
            }
        }
        false
    }

    /// Somebody wants an end: first the guest is asked, then it is not. `true` when we just leave.
    fn end_requested(&mut self) -> bool {
        if self.quit == Quit::Session {
            return true;
        }
        self.asked_to_end += 1;
        if self.asked_to_end == 1 {
            self.notice("pressing the power button; once more ends the machine at once");
            self.send(Command::PowerButton);
        } else {
            self.kill();
        }
        false
    }

    fn kill(&mut self) {
        self.send(Command::Kill);
        self.deadline.get_or_insert_with(|| Instant::now() + KILL_PATIENCE);
    }

    fn send(&self, command: Command) {
        if let Err(e) = self.commands.send(command) {
            // The end of the VMM shows as an event.
            tracing::debug!("a command was not sent: {e}");
        }
    }

    async fn show_stats(&mut self) {
        match self.commands.request(Command::Stats).await {
            Ok(Reply::Stats(stats)) => {
                for (name, value) in &stats.counters {
                    self.notice(&format!("{name} {value}"));
                }
            }
            Ok(_) => {}
            Err(e) => self.notice(&e.to_string()),
        }
    }

    fn stop_process(&mut self) {
        match &self.raw {
            Some(raw) => raw.stop_process(),
            None => {
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
            }
        }
    }

    /// A line of our own beside the guest's.
    fn notice(&mut self, text: &str) {
        self.waiting = None;
        // Raw mode leaves the carriage where it is.
        let end = if self.raw.is_some() { "\r\n" } else { "\n" };
        let _ = write!(io::stderr(), "{}[kiln] {}{end}", end.trim_end_matches('\n'), printable(text));
    }
}

enum Taken {
    Event(VmmEvent),
    OutputClosed,
    Nothing,
}

/// The next event, once its output can be taken.
async fn next_event(output: &mut Output, events: &mut Events<'_>) -> Taken {
    if !output.ready().await {
        return Taken::OutputClosed;
    }
    match events.next().await {
        Some(event) => Taken::Event(event),
        None => Taken::Nothing,
    }
}

/// Waits until then; for ever without.
async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

//! Threads, each with the system calls of its kind and no others.
//!
//! All threads of a process are made before its control thread gives up the right to make any. They
//! never end: a thread without work waits for some, and goes when the process goes.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use kiln_sandbox::seccomp::{Filter, ThreadKind};

/// Whether threads are confined to the system calls of their kind. Without, for measuring what that
/// costs and for tests that are not about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// Filters are installed.
    On,
    /// No filter is.
    Off,
}

impl Confinement {
    /// Confines the calling thread.
    pub fn apply(self, kind: ThreadKind) -> io::Result<()> {
        match self {
            Confinement::On => Filter::new(kind).and_then(|f| f.install()).map_err(io::Error::other),
            Confinement::Off => Ok(()),
        }
    }
}

/// Starts a thread that confines itself and then does `work`; waits until it is confined.
pub fn spawn(
    name: &str,
    kind: ThreadKind,
    confinement: Confinement,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (ready, confined) = sync_channel(1);
    let body = move || {
        let result = confinement.apply(kind);
        let go = result.is_ok();
        let _ = ready.send(result);
        if go {
            work();
            // The end of a thread takes calls that no list has.
            loop {
                std::thread::park();
            }
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
    confined.recv().map_err(io::Error::other)??;
    Ok(thread)
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads of one kind that wait for jobs.
pub struct Crew {
    idle: Arc<Mutex<Vec<Hand>>>,
}

/// One of them.
struct Hand {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

impl Crew {
    /// `count` threads named `name` with a number.
    pub fn new(kind: ThreadKind, count: usize, name: &str, confinement: Confinement) -> io::Result<Self> {
        let hand = |number: usize| {
            let (jobs, work) = channel::<Job>();
            let thread = spawn(&format!("{name}{number}"), kind, confinement, move || {
                work.iter().for_each(|job| job());
            })?;
            Ok(Hand { jobs, thread })
        };
        // The first is the last of the list, from where they are taken.
        let idle = (0..count).rev().map(hand).collect::<io::Result<Vec<_>>>()?;
        Ok(Crew { idle: Arc::new(Mutex::new(idle)) })
    }

    /// Has an idle thread do `work`.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Busy<T>> {
        let hand = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let hand = hand.ok_or_else(|| io::Error::other("all threads of this kind are busy"))?;
        let (done, result) = sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = done.send(work());
        });
        hand.jobs.send(job).map_err(|_| io::Error::other("the thread has ended"))?;
        Ok(Busy { hand: Some(hand), result, idle: Arc::clone(&self.idle) })
    }
}

/// A thread at work. Dropping it waits for the end of the work.
pub struct Busy<T> {
    hand: Option<Hand>,
    result: Receiver<T>,
    idle: Arc<Mutex<Vec<Hand>>>,
}

impl<T> Busy<T> {
    /// The thread, to send signals to.
    pub fn thread(&self) -> Option<&JoinHandle<()>> {
        self.hand.as_ref().map(|hand| &hand.thread)
    }

    /// Waits for the end of the work and answers its result, once.
    pub fn wait(&mut self) -> Option<T> {
        let hand = self.hand.take()?;
        let result = self.result.recv().ok();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(hand);
        result
    }
}

impl<T> Drop for Busy<T> {
    fn drop(&mut self) {
        self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_serves_one_job_after_the_other_and_no_more_than_there_are() {
        let crew = Crew::new(ThreadKind::Vcpu, 1, "hand", Confinement::Off).unwrap();
        let (go, wait) = channel::<()>();
        let mut first = crew.run(move || wait.recv().is_err()).unwrap();
        assert!(crew.run(|| ()).is_err());
        drop(go);
        assert_eq!(first.wait(), Some(true));
        assert_eq!(first.wait(), None);
        let mut name = crew.run(|| std::thread::current().name().map(str::to_owned)).unwrap();
        assert_eq!(name.wait(), Some(Some("hand0".to_owned())));
    }
}

//! Which interfaces are attached, as files, and the lock that makes changes one after another.
//!
//! ```text
//!  <dir>/lock              held while the host's network is changed
//!  <dir>/nic/<interface>   what was attached, on a line (below): written before the first effect, removed after the last
//!  <dir>/vpc/<vpc>         policy of a VPC as it is in the kernel (see [`crate::enforce`])
//!  <dir>/forwarding        there while IPv4 forwarding of the host is on because of us
//!  <dir>/forwarding6       as above for IPv6; the links whose setting was changed for it, a line each
//! ```
//! A line is `<vpc> <mac> <address>[,<IPv6 address>][,<secondary address>=<its public one>…] [<public address> <port> …]`.
//!
//! The kernel holds no trace of an interface whose tap has vanished with its VMM; the record does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use kiln_model::{InterfaceId, MacAddr, VpcId};
use nix::fcntl::{Flock, FlockArg};

use crate::error::HostNetError;
use crate::publish::{OneToOne, Published};

/// The directory, locked.
pub(crate) struct Records {
    dir: PathBuf,
    lock: Flock<File>,
}

/// What was attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Which interface.
    pub interface: InterfaceId,
    /// Its network.
    pub vpc: VpcId,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its public address.
    pub public: Option<Ipv4Addr>,
    /// Ports of the host that lead to it.
    pub ports: Vec<Published>,
    /// Public addresses of secondary private ones.
    pub more_public: Vec<OneToOne>,
}

impl Record {
    /// The same interface with nothing public.
    pub fn without_publics(&self) -> Self {
        Record { public: None, ports: Vec::new(), more_public: Vec::new(), ..self.clone() }
    }

    /// All its public addresses and what they are of.
    pub fn publics(&self) -> impl Iterator<Item = OneToOne> {
        let primary = self.public.map(|public| OneToOne { private: self.address, public });
        primary.into_iter().chain(self.more_public.iter().copied())
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostNetError {
    let path = path.to_owned();
    move |source| HostNetError::Record { action, path, source }
}

impl Records {
    /// Waits for the lock. `dir` is made if needed.
    pub fn lock(dir: &Path) -> Result<Self, HostNetError> {
        let nics = dir.join("nic");
        fs::create_dir_all(&nics).map_err(failed("making directory", &nics))?;
        let path = dir.join("lock");
        let file = File::create(&path).map_err(failed("opening", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("locking", &path)(errno.into()))?;
        Ok(Records { dir: dir.to_owned(), lock })
    }

    /// The lock, for programs that finish what was begun under it.
    pub fn held(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, interface: InterfaceId) -> PathBuf {
        self.dir.join("nic").join(interface.to_string())
    }

    /// Remembers an interface.
    pub fn put(&self, record: &Record) -> Result<(), HostNetError> {
        let path = self.path(record.interface);
        let temporary = path.with_extension("new");
        let mut text = format!("{} {} {}", record.vpc, record.mac, record.address);
        if let Some(ipv6) = record.ipv6 {
            text += &format!(",{ipv6}");
        }
        for OneToOne { private, public } in &record.more_public {
            text += &format!(",{private}={public}");
        }
        if let Some(public) = record.public {
            text += &format!(" {public}");
            record.ports.iter().for_each(|port| text += &format!(" {port}"));
        }
        text += "\n";
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(failed("writing", &path))
    }

    /// What is remembered of an interface.
    pub fn get(&self, interface: InterfaceId) -> Result<Option<Record>, HostNetError> {
        let path = self.path(interface);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(parse(interface, &text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Forgets an interface.
    pub fn remove(&self, interface: InterfaceId) -> Result<(), HostNetError> {
        remove(&self.path(interface))
    }

    /// All that are remembered.
    pub fn list(&self) -> Result<Vec<Record>, HostNetError> {
        let dir = self.dir.join("nic");
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed("reading", &dir))? {
            let entry = entry.map_err(failed("reading", &dir))?;
            // A file that is not ours, or half-written, names no interface.
            if let Some(interface) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                && let Some(record) = self.get(interface)?
            {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Notes that we are about to switch on IPv6 forwarding on the host, and which links will be told to go
    /// on listening to routers.
    pub fn note_forwarding_ipv6(&self, links: &[String]) -> Result<(), HostNetError> {
        let path = self.dir.join("forwarding6");
        let temporary = path.with_extension("new");
        fs::write(&temporary, links.iter().map(|link| format!("{link}\n")).collect::<String>())
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(failed("writing", &path))
    }

    /// What was noted, if that was.
    pub fn forwarding_ipv6_noted(&self) -> Result<Option<Vec<String>>, HostNetError> {
        let path = self.dir.join("forwarding6");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.lines().map(str::to_owned).collect())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Forgets it.
    pub fn forget_forwarding_ipv6(&self) -> Result<(), HostNetError> {
        remove(&self.dir.join("forwarding6"))
    }

    /// Notes that we have switched on forwarding on the host.
    pub fn note_forwarding(&self) -> Result<(), HostNetError> {
        let path = self.dir.join("forwarding");
        File::create(&path).map(drop).map_err(failed("writing", &path))
    }

    /// Whether that was noted.
    pub fn forwarding_noted(&self) -> bool {
        self.dir.join("forwarding").exists()
    }

    /// Forgets it.
    pub fn forget_forwarding(&self) -> Result<(), HostNetError> {
        remove(&self.dir.join("forwarding"))
    }
}

fn remove(path: &Path) -> Result<(), HostNetError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

fn parse(interface: InterfaceId, text: &str) -> Option<Record> {
    let mut words = text.trim_end().split(' ');
    let (vpc, mac, address) = (words.next()?, words.next()?, words.next()?);
    let public = words.next().map(|word| word.parse().ok());
    let public = match public {
        Some(parsed) => Some(parsed?),
        None => None,
    };
    let mut addresses = address.split(',');
    let address = addresses.next()?;
    let (mut ipv6, mut more_public) = (None, Vec::new());
    for more in addresses {
        match more.split_once('=') {
            Some((private, public)) => {
                more_public.push(OneToOne { private: private.parse().ok()?, public: public.parse().ok()? });
            }
            None => ipv6 = Some(more.parse().ok()?),
        }
    }
    let ports = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let (vpc, mac, address) = (vpc.parse().ok()?, mac.parse().ok()?, address.parse().ok()?);
    Some(Record { interface, vpc, mac, address, ipv6, public, ports, more_public })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_until_removed() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::lock(&dir.path().join("net")).unwrap();
        let record = Record {
            interface: InterfaceId::from_bits(7),
            vpc: VpcId::from_bits(8),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            address: Ipv4Addr::new(10, 0, 0, 4),
            ipv6: Some("fd00::4".parse().unwrap()),
            public: Some(Ipv4Addr::new(198, 18, 0, 4)),
            ports: vec!["8080:80".parse().unwrap(), "53:53/udp".parse().unwrap()],
            more_public: vec![OneToOne { private: [10, 0, 0, 5].into(), public: [198, 19, 0, 5].into() }],
        };
        assert_eq!(records.get(record.interface).unwrap(), None);
        records.put(&record).unwrap();
        assert_eq!(records.get(record.interface).unwrap(), Some(record.clone()));
        assert_eq!(records.list().unwrap(), std::slice::from_ref(&record));
        records.remove(record.interface).unwrap();
        records.remove(record.interface).unwrap();
        assert!(records.list().unwrap().is_empty());
    }

    #[test]
    fn damaged_record_is_no_record() {
        let id = InterfaceId::from_bits(1);
        for text in [
            "",
            "vpc-1 02:00:00:00:00:01 10.0.0.4",
            "vpc-00000000000000008 02:00:00:00:00:01 10.0.0.400\n",
            "vpc-00000000000000008 02:00:00:00:00:01 10.0.0.4,fd\n",
            "vpc-00000000000000008 02:00:00:00:00:01 10.0.0.4,10.0.0.5=\n",
        ] {
            assert_eq!(parse(id, text), None, "{text:?}");
        }
    }

    #[test]
    fn second_lock_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Records::lock(dir.path()).unwrap();
        let path = dir.path().join("lock");
        let file = File::open(&path).unwrap();
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => panic!("locked twice"),
            Err((file, _)) => file,
        };
        drop(first);
        assert!(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok());
    }
}

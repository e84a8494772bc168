//! Waits for clients and for whatever else the control thread serves.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use kiln_vmspec::{Event, Message, Reply, Request};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::client::Client;

/// Most clients at once.
const MOST_CLIENTS: usize = 16;
/// Epoll keys below this are descriptors that the owner watches.
const FIRST_CLIENT: u64 = 1 << 32;
const LISTENER: u64 = FIRST_CLIENT - 1;

/// Something for the control thread to do.
#[derive(Debug)]
pub enum Incoming {
    /// A client asks for something.
    Request {
        /// For [`ControlServer::reply`].
        client: u64,
        /// What it asks.
        request: Request,
        /// Descriptors that the request names.
        fds: Vec<OwnedFd>,
    },
    /// A descriptor given to [`ControlServer::watch`] is readable.
    Ready(u32),
}

/// Listens on the control socket.
pub struct ControlServer {
    epoll: Epoll,
    listener: UnixListener,
    clients: BTreeMap<u64, Client>,
    next: u64,
}

impl ControlServer {
    /// Serves `listener`.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(EventSet::IN, LISTENER))?;
        Ok(ControlServer { epoll, listener, clients: BTreeMap::new(), next: FIRST_CLIENT })
    }

    /// Also waits for `fd`, which stays open as long as the server, and tells its `key`.
    pub fn watch(&self, fd: RawFd, key: u32) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, u64::from(key)))
    }

    /// Serves an accepted connection; returns its number.
    pub fn adopt(&mut self, stream: UnixStream) -> io::Result<u64> {
        let client = Client::new(stream)?;
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(FIRST_CLIENT);
        self.epoll.ctl(ControlOperation::Add, client.fd(), EpollEvent::new(EventSet::IN, id))?;
        self.clients.insert(id, client);
        Ok(id)
    }

    /// Waits until there is something to do.
    pub fn wait(&mut self) -> io::Result<Vec<Incoming>> {
        let mut events = [EpollEvent::default(); 32];
        let ready = match self.epoll.wait(-1, &mut events) {
            Ok(ready) => ready,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        let mut incoming = Vec::new();
        for event in events.iter().take(ready) {
            match event.data() {
                LISTENER => self.accept(),
                id if id >= FIRST_CLIENT => self.serve(id, event.event_set(), &mut incoming),
                key => incoming.push(Incoming::Ready(u32::try_from(key).unwrap_or(u32::MAX))),
            }
        }
        Ok(incoming)
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if self.clients.len() < MOST_CLIENTS => {
                if let Err(e) = self.adopt(stream) {
                    tracing::warn!("a control client cannot be served: {e}");
                }
            }
            // Closing it tells the client; it may try again.
            Ok(_) => tracing::warn!("more than {MOST_CLIENTS} control clients: one was turned away"),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => tracing::warn!("accepting a control client failed: {e}"),
        }
    }

    fn serve(&mut self, id: u64, set: EventSet, incoming: &mut Vec<Incoming>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if set.contains(EventSet::OUT) && client.flush().is_err() {
            self.forget(id);
            return;
        }
        if set.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            match client.read() {
                Ok(requests) => {
                    incoming.extend(requests.into_iter().map(|(request, fds)| Incoming::Request {
                        client: id,
                        request,
                        fds,
                    }));
                }
                Err(_) => {
                    self.forget(id);
                    return;
                }
            }
        }
        self.watch_again(id);
    }

    fn watch_again(&self, id: u64) {
        let Some(client) = self.clients.get(&id) else { return };
        let mut set = EventSet::IN;
        set.set(EventSet::OUT, client.wants_to_write());
        let _ = self.epoll.ctl(ControlOperation::Modify, client.fd(), EpollEvent::new(set, id));
    }

    fn forget(&mut self, id: u64) {
        if let Some(client) = self.clients.remove(&id) {
            let _ = self.epoll.ctl(ControlOperation::Delete, client.fd(), EpollEvent::default());
        }
    }

    fn send(&mut self, id: u64, message: &Message) {
        match self.clients.get_mut(&id).map(|client| client.send(message)) {
            Some(Ok(())) => self.watch_again(id),
            Some(Err(_)) => self.forget(id),
            None => {}
        }
    }

    /// Answers a request.
    pub fn reply(&mut self, client: u64, request: u64, reply: Reply) {
        self.send(client, &Message::Reply { id: request, reply });
    }

    /// Tells every client.
    pub fn broadcast(&mut self, event: &Event) {
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        for id in ids {
            self.send(id, &Message::Event(event.clone()));
        }
    }

    /// From now on `client` gets console output, after `first` if there is any.
    pub fn attach(&mut self, client: u64, first: Vec<u8>) {
        if let Some(entry) = self.clients.get_mut(&client) {
            entry.attached = true;
        }
        if !first.is_empty() {
            self.send(client, &Message::Event(Event::Console { bytes: first }));
        }
    }

    /// Sends console output to the clients that attached.
    pub fn console(&mut self, bytes: &[u8]) {
        let attached: Vec<u64> = self.clients.iter().filter(|(_, c)| c.attached).map(|(id, _)| *id).collect();
        if attached.is_empty() {
            return;
        }
        let message = Message::Event(Event::Console { bytes: bytes.to_vec() });
        for id in attached {
            self.send(id, &message);
        }
    }

    /// Sends what is left to all clients and closes.
    pub fn finish(self) {
        self.clients.into_values().for_each(Client::finish);
    }
}

#[cfg(test)]
mod tests {
    use kiln_vmspec::Command;
    use kiln_vmspec::frame::Connection;

    use super::*;

    fn server() -> (ControlServer, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control")).unwrap();
        (ControlServer::new(listener).unwrap(), dir)
    }

    fn connect(dir: &tempfile::TempDir) -> Connection {
        Connection::new(UnixStream::connect(dir.path().join("control")).unwrap())
    }

    fn next_request(server: &mut ControlServer) -> (u64, Request) {
        loop {
            for incoming in server.wait().unwrap() {
                if let Incoming::Request { client, request, .. } = incoming {
                    return (client, request);
                }
            }
        }
    }

    #[test]
    fn requests_are_answered_on_their_own_connection() {
        let (mut server, dir) = server();
        let (one, two) = (connect(&dir), connect(&dir));
        one.send(&Request { id: 1, command: Command::Pause }, &[]).unwrap();
        let (client, request) = next_request(&mut server);
        assert_eq!(request.command, Command::Pause);
        server.reply(client, request.id, Reply::Ok);
        assert_eq!(one.receive::<Message>().unwrap().0, Message::Reply { id: 1, reply: Reply::Ok });
        two.send(&Request { id: 9, command: Command::Stats }, &[]).unwrap();
        let (client, request) = next_request(&mut server);
        server.reply(client, request.id, Reply::Error { message: "no".into() });
        let (message, _) = two.receive::<Message>().unwrap();
        assert!(matches!(message, Message::Reply { id: 9, reply: Reply::Error { .. } }));
    }

    #[test]
    fn console_goes_to_attached_clients_only_and_a_stuck_one_holds_up_nobody() {
        let (mut server, dir) = server();
        let (stuck, other) = (connect(&dir), connect(&dir));
        for connection in [&stuck, &other] {
            connection
                .send(&Request { id: 1, command: Command::AttachConsole { replay: true } }, &[])
                .unwrap();
            let (client, _) = next_request(&mut server);
            server.attach(client, b"before ".to_vec());
        }
        for _ in 0..200 {
            server.console(&[b'x'; 8192]);
            let (message, _) = other.receive::<Message>().unwrap();
            assert!(matches!(message, Message::Event(Event::Console { .. })));
        }
    }

    fn disk(layers: u32) -> kiln_vmspec::DiskSpec {
        let layer = |n| kiln_vmspec::ImageLayer {
            file: kiln_vmspec::FdIndex(n),
            format: kiln_vmspec::DiskFormat::Raw,
        };
        kiln_vmspec::DiskSpec {
            serial: "vol1".into(),
            layers: (0..layers).map(layer).collect(),
            read_only: false,
            queues: 1,
            limits: Default::default(),
        }
    }

    #[test]
    fn descriptors_go_to_the_request_that_names_them_and_no_other() {
        use std::io::{Read, Seek, Write};
        use std::os::fd::AsFd;
        let (mut server, dir) = server();
        let client = connect(&dir);
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            file
        };
        let attach = |layers| Command::AttachDisk(Box::new(disk(layers)));
        // All sent before any is read. The first carries one that it does not name.
        let stray = file("stray");
        client.send(&Request { id: 1, command: Command::Pause }, &[stray.as_fd()]).unwrap();
        let next = |server: &mut ControlServer| loop {
            for incoming in server.wait().unwrap() {
                if let Incoming::Request { request, fds, .. } = incoming {
                    return (request.id, fds);
                }
            }
        };
        assert!(matches!(next(&mut server), (1, fds) if fds.is_empty()));
        let files = [file("a"), file("b"), file("c")];
        client.send(&Request { id: 2, command: attach(2) }, &[files[0].as_fd(), files[1].as_fd()]).unwrap();
        let (id, fds) = next(&mut server);
        let texts = fds.into_iter().map(|fd| std::io::read_to_string(std::fs::File::from(fd)).unwrap());
        assert_eq!((id, texts.collect::<Vec<_>>()), (2, vec!["a".to_owned(), "b".to_owned()]));
        client.send(&Request { id: 3, command: attach(1) }, &[files[2].as_fd()]).unwrap();
        let (id, mut fds) = next(&mut server);
        let mut text = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
        assert_eq!((id, text.as_str()), (3, "c"));
        // One that names what it does not send is shown the door.
        client.send(&Request { id: 4, command: attach(1) }, &[]).unwrap();
        while !server.clients.is_empty() {
            server.wait().unwrap();
        }
    }

    #[test]
    fn rubbish_costs_a_client_its_connection_and_no_other() {
        use std::io::Write;
        let (mut server, dir) = server();
        let (bad, good) = (connect(&dir), connect(&dir));
        bad.stream().write_all(&[4, 0, 0, 0, b'r', b'u', b'b', b'b']).unwrap();
        good.send(&Request { id: 2, command: Command::Stats }, &[]).unwrap();
        let (client, request) = next_request(&mut server);
        assert_eq!(request.id, 2);
        server.reply(client, 2, Reply::Ok);
        assert!(good.receive::<Message>().is_ok());
        while server.clients.len() > 1 {
            server.wait().unwrap();
        }
        assert!(bad.receive::<Message>().is_err());
    }
}

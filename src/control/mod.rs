//! The control socket (`--conf-path`): `pesto` reads the forwarding rules of a daemon that runs,
//! and replaces them. The bytes are those of [`crate::config::rules_wire`].
//!
//! One client is served at a time, as it reads the tables, changes them, and sends them back: a
//! second one would undo what the first did. The others wait in the socket's backlog. Nothing here
//! ever waits for a client: what it sends is taken as it comes, what it does not read is kept, and
//! both are bounded. A client may be silent for ever as long as nobody else wants to be served;
//! then it has `PATIENCE`.
//!
//! Knows tables and sockets of clients, and nothing of who listens where: an update that is sound
//! is handed out, and its outcome comes back. Who may connect is decided by the mode of the socket
//! in the file system.

mod session;
#[cfg(test)]
mod tests;

use crate::config::ports::{self, Context, DEFAULT_EPHEMERAL};
use crate::config::rules_wire::{About, Caps, HOST, Outcome, SPLICE, Table};
use crate::config::{self, Network, Protocols};
use crate::flow::Protocol;
use crate::flow::rules::{Rules, Tables};
use crate::log::limited;
use crate::sys::epoll::Epoll;
use crate::time::{Duration, Instant};
use crate::token::{Interest, Token};
use log::Level;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use session::{News, Session};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

/// How long a client is served while another one waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// When to try again, if a client cannot be accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// Clients that one call takes at most: those that come only to go again must not hold it up.
const MAX_ADMITTED: usize = 8;

/// The listening socket's [`Token::Runtime`].
const LISTENER: u32 = 16;

/// That of the client.
const CLIENT: u32 = 17;

/// What clients may ask for.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What rules for ports of the host may be.
    pub outside: Context,
    /// The same for ports of the namespace, where there is one.
    pub inside: Option<Context>,
    /// Which protocols are on.
    pub protocols: Protocols,
}

impl Policy {
    /// What goes with `network`; `namespace` says that there is one on the other side.
    pub fn new(network: &Network, namespace: bool) -> Self {
        let outside = Context {
            v4: network.guest.v4.is_some(),
            v6: network.guest.v6.is_some(),
            ephemeral: DEFAULT_EPHEMERAL, // rules name their ports: nothing is left out of them
            auto_allowed: namespace,
            listen_allowed: true,
        };
        let inside = namespace.then(|| Context { listen_allowed: false, ..outside.clone() });
        Self { outside, inside, protocols: network.protocols }
    }

    /// The tables as a client sees them.
    fn describe(&self, tables: Tables) -> Vec<Table<About>> {
        let table = |pif, name: &str, context: &Context, rules| Table {
            pif,
            about: About { name: name.to_owned(), caps: self.caps(context) },
            rules,
        };
        let outside = table(HOST, "HOST", &self.outside, tables.outside);
        let inside = self.inside.as_ref().map(|c| table(SPLICE, "SPLICE", c, tables.inside));
        std::iter::once(outside).chain(inside).collect()
    }

    const fn caps(&self, context: &Context) -> Caps {
        let Protocols { tcp, udp, .. } = self.protocols;
        let Context { v4, v6, auto_allowed: scan, .. } = *context;
        Caps { v4, v6, tcp, udp, scan, ifname: true }
    }

    /// The tables that a client has sent, as the command line could have asked for them. One that
    /// it left out is empty.
    fn check(&self, sent: Vec<Table>) -> Result<Tables, String> {
        let mut tables = Tables::default();
        for Table { pif, rules, .. } in sent {
            let (into, context) = match (pif, &self.inside) {
                (HOST, _) => (&mut tables.outside, &self.outside),
                (SPLICE, Some(context)) => (&mut tables.inside, context),
                _ => return Err(format!("No forwarding table {pif}")),
            };
            for (protocol, on) in
                [(Protocol::Tcp, self.protocols.tcp), (Protocol::Udp, self.protocols.udp)]
            {
                if !on && rules.iter().any(|rule| rule.protocol == protocol) {
                    return Err(config::Error::ProtocolDisabled(protocol).to_string());
                }
            }
            *into = ports::check(rules, context).map_err(|e| e.to_string())?;
        }
        Ok(tables)
    }
}

/// The client that is served.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    session: Session,
    since: Instant,
    /// What its descriptor is watched for.
    interest: Interest,
}

/// The control socket and its client.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    epoll: Rc<Epoll>,
    policy: Policy,
    client: Option<Client>,
    /// Tables are handed out: until they are settled, nobody else is served.
    busy: bool,
    /// When to look at the listener again: somebody waits there.
    due: Option<Instant>,
}

impl Server {
    /// Serves clients of `listener`, with events from `epoll`.
    ///
    /// # Errors
    /// What epoll or fcntl say.
    pub fn new(listener: UnixListener, epoll: Rc<Epoll>, policy: Policy) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        // Edge-triggered: one that waits must not be reported for ever.
        let interest = Interest { readable: true, edge: true, ..Interest::default() };
        epoll.add(listener.as_fd(), Token::Runtime(LISTENER), interest)?;
        Ok(Self { listener, epoll, policy, client: None, busy: false, due: None })
    }

    /// Whether events of `number` ([`Token::Runtime`]) are for [`Server::on_event`].
    pub const fn owns(number: u32) -> bool {
        matches!(number, LISTENER | CLIENT)
    }

    /// When [`Server::on_deadline`] wants to be called.
    pub const fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Something has happened under `number`. `rules` are those in force. Returns what the client
    /// wants to have instead: the outcome is waited for by [`Server::settle`].
    pub fn on_event(&mut self, number: u32, rules: &Rules, now: Instant) -> Option<Tables> {
        if number == CLIENT {
            return if self.busy { None } else { self.serve(rules, now) };
        }
        match &self.client {
            None => self.admit(rules, now),
            // Not put off by those who come later.
            Some(client) => self.due = self.due.or(Some(client.since + PATIENCE)),
        }
        None
    }

    /// Sends away a client that has had its time, or tries again to accept one.
    pub fn on_deadline(&mut self, rules: &Rules, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        if self.busy {
            self.due = Some(now + PAUSE); // it is we who take so long
            return;
        }
        self.due = None;
        if self.client.is_some() && !self.somebody_waits() {
            return; // who came has gone again
        }
        if let Some(mut client) = self.client.take() {
            limited!(now, Level::Warn, "Client of the control socket took too long");
            client.session.finish(&Err("Took too long while others waited".to_owned()));
            // Whether it reads that is up to it.
            let _ = client.session.send(&client.stream);
        }
        self.admit(rules, now);
    }

    /// What became of the tables that were handed out. `rules` are those in force now.
    pub fn settle(&mut self, outcome: &Outcome, rules: &Rules, now: Instant) {
        self.busy = false;
        match outcome {
            Ok(_) => limited!(now, Level::Info, "Forwarding rules replaced"),
            Err(why) => limited!(now, Level::Warn, "Forwarding rules kept as they were: {why}"),
        }
        if let Some(client) = &mut self.client {
            client.session.finish(outcome);
        }
        self.push(rules, now);
    }

    fn serve(&mut self, rules: &Rules, now: Instant) -> Option<Tables> {
        let client = self.client.as_mut()?;
        match client.session.receive(&client.stream) {
            News::None => {}
            News::Gone => {
                self.close(rules, now);
                return None;
            }
            News::Update(tables) => match self.policy.check(tables) {
                Ok(tables) => {
                    self.busy = true;
                    return Some(tables);
                }
                Err(why) => self.settle(&Err(why), rules, now),
            },
            News::Malformed(why) => self.settle(&Err(format!("Bad update: {why}")), rules, now),
        }
        self.push(rules, now);
        None
    }

    /// Sends what the client takes, watches it for what is next, and closes it when it has all.
    fn push(&mut self, rules: &Rules, now: Instant) {
        let Some(client) = &mut self.client else { return };
        let sent = client.session.send(&client.stream);
        if sent.is_err() || client.session.is_over() {
            return self.close(rules, now);
        }
        let interest = client.session.interest();
        if interest != client.interest {
            client.interest = interest;
            let token = Token::Runtime(CLIENT);
            if self.epoll.modify(client.stream.as_fd(), token, interest).is_err() {
                self.close(rules, now);
            }
        }
    }

    /// The client is gone: the next one's turn.
    fn close(&mut self, rules: &Rules, now: Instant) {
        self.client = None;
        self.admit(rules, now);
    }

    /// Accepts the next client, if one waits.
    fn admit(&mut self, rules: &Rules, now: Instant) {
        self.due = None;
        for _ in 0..MAX_ADMITTED {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if self.greet(stream, rules, now) {
                        // Those behind it have been reported already.
                        self.due = self.somebody_waits().then(|| now + PATIENCE);
                        return;
                    }
                }
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        self.due = Some(now + PAUSE);
                        return;
                    }
                },
            }
        }
        self.due = Some(now);
    }

    fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(1)
    }

    /// Tells a new client what there is; `false` when it has gone already.
    fn greet(&mut self, stream: UnixStream, rules: &Rules, now: Instant) -> bool {
        let Ok(()) = stream.set_nonblocking(true) else { return false };
        if let Ok(peer) = getsockopt(&stream, PeerCredentials) {
            let (pid, uid, gid) = (peer.pid(), peer.uid(), peer.gid());
            limited!(
                now,
                Level::Debug,
                "Client of the control socket: process {pid}, user {uid}, group {gid}"
            );
        }
        let mut session = Session::new(&self.policy.describe(rules.tables()));
        if session.send(&stream).is_err() {
            return false;
        }
        let interest = session.interest();
        if self.epoll.add(stream.as_fd(), Token::Runtime(CLIENT), interest).is_err() {
            return false;
        }
        self.client = Some(Client { stream, session, since: now, interest });
        true
    }
}

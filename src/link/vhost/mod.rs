//! The vhost-user net device: a guest's rings, read and written in its own memory.
//!
//! One queue pair, single-threaded. The link owns a listener (or one connected socket), at most
//! one client, and the halves with their queues. All of its descriptors are in the epoll that it
//! was given, as [`Token::Link`].
//!
//! - `gate` looks at each message before it is taken; `session` is the request handler.
//! - `memory` maps and translates; `ring` sees a ring in it; `queue` keeps a ring's state.
//! - `source` and `sink` are the halves; `header` knows the virtio-net header.
//!
//! Flows are no business of the link's: they survive a client's going.

pub mod features;
mod gate;
mod header;
mod memory;
mod queue;
mod ring;
mod session;
mod sink;
mod source;
mod stats;

pub use memory::MAX_REGIONS;
pub use ring::Malformed;
pub use sink::VhostSink;
pub use source::VhostSource;
pub use stats::Stats;

use super::door::{self, Door};
use super::{Control, LinkEvents, Parts, Source};
use crate::sys::epoll::Epoll;
use crate::sys::fault;
use crate::token::{Interest, Readiness, Token};
use gate::Step;
use session::Session;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserProtocolFeatures};

/// [`Token::Link`] of the listener.
const LISTENER: u32 = 0;
/// [`Token::Link`] of the kick of ring 0; that of ring 1 follows.
const KICK: u32 = 1;
/// [`Token::Link`] of the control socket: plus the client's number, so that an event of a client
/// that has gone does not touch the next.
const CONTROL: u32 = 0x100;

/// What the control socket is watched for.
const CONTROL_INTEREST: Interest =
    Interest { readable: true, writable: false, read_closed: true, edge: true };

/// Messages handled in a row before others get their turn.
const MESSAGES_PER_EVENT: usize = 64;

/// Complaints of one kind about one client that are logged.
const LOGGED: u64 = 8;

/// Complaints of one kind about one client, of which the first few are logged: a guest that starts
/// and breaks its rings again and again is not to fill the log.
#[derive(Clone, Copy, Debug, Default)]
struct Complaints(u64);

impl Complaints {
    /// Counts one; whether it is to be logged.
    const fn admit(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        self.0 <= LOGGED
    }
}

/// What the device offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Mask over [`features::ALL`]: bits to offer. Without [`features::VERSION_1`] no driver works.
    pub features: u64,
    /// Mask over the protocol features that we know.
    pub protocol_features: u64,
    /// The MTU to tell the driver; `None` tells none.
    pub mtu: Option<u16>,
}

impl Settings {
    /// For a socket that the front-end has made and handed over, as QEMU does for `-netdev passt`.
    ///
    /// Without the channel for requests of ours, of which we make none: QEMU (10.1 to 11.1, at
    /// least) closes its copy of our end of the socket twice, and when it has made the channel in
    /// between, that is what it closes. Without CONFIG, which its network devices do not use but
    /// warn of.
    #[must_use]
    pub const fn handed_over(mut self) -> Self {
        let unwanted =
            VhostUserProtocolFeatures::BACKEND_REQ.union(VhostUserProtocolFeatures::CONFIG);
        self.protocol_features &= !unwanted.bits();
        self
    }
}

impl Default for Settings {
    /// All that we can.
    fn default() -> Self {
        Self { features: features::ALL, protocol_features: u64::MAX, mtu: None }
    }
}

/// The link to a guest whose virtio-net device ends in this process.
pub type VhostLink = Parts<VhostControl>;

impl VhostLink {
    /// Serves one client after the other that connects to `listener`; with `one_off` just one.
    ///
    /// # Errors
    /// What epoll or fcntl say.
    pub fn listen(
        listener: UnixListener,
        one_off: bool,
        epoll: Rc<Epoll>,
        settings: Settings,
    ) -> io::Result<Self> {
        let door = Door::new(listener, &epoll, Token::Link(LISTENER))?;
        Ok(Self::new(VhostControl::new(door, one_off, epoll, settings)))
    }

    /// Serves the client at the other end of `stream`, and no other.
    ///
    /// # Errors
    /// What epoll or fcntl say.
    pub fn connected(stream: UnixStream, epoll: Rc<Epoll>, settings: Settings) -> io::Result<Self> {
        let mut control = VhostControl::new(Door::default(), true, epoll, settings);
        control.connect(stream)?;
        Ok(Self::new(control))
    }

    fn new(control: VhostControl) -> Self {
        Self { control, source: VhostSource::default(), sink: VhostSink::default() }
    }

    /// What guests and VMMs have done wrong.
    pub fn stats(&self) -> Stats {
        self.control.stats.plus(&self.source.stats).plus(&self.sink.stats)
    }

    /// The feature bits in force; 0 while no driver has taken any.
    pub const fn features(&self) -> u64 {
        self.source.features
    }

    /// Whether a client is connected.
    pub const fn is_connected(&self) -> bool {
        self.control.client.is_some()
    }
}

/// A client.
struct Client {
    session: Arc<Mutex<Session>>,
    handler: BackendReqHandler<Mutex<Session>>,
    /// The same socket as the handler's.
    stream: UnixStream,
    /// The front-end will send no more.
    finished: bool,
    refusals: Complaints,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The control side: who is connected.
#[derive(Debug)]
pub struct VhostControl {
    door: Door,
    one_off: bool,
    epoll: Rc<Epoll>,
    settings: Settings,
    client: Option<Client>,
    /// It came while messages of the one before it, which has hung up, were still to be handled.
    next: Option<UnixStream>,
    /// Number of the current client, or of the last.
    number: u32,
    /// How often memory had been lost in this process when we last looked.
    losses: u64,
    stats: Stats,
}

/// What became of a message.
enum Handled {
    Next,
    Wait,
    Gone,
}

impl VhostControl {
    fn new(door: Door, one_off: bool, epoll: Rc<Epoll>, settings: Settings) -> Self {
        let stats = Stats::default();
        let losses = fault::count();
        Self { door, one_off, epoll, settings, client: None, next: None, number: 0, losses, stats }
    }

    const fn control_token(&self) -> Token {
        Token::Link(CONTROL.wrapping_add(self.number & 0xff_ffff))
    }

    /// Accepts all that wait.
    fn accept(&mut self) {
        while let Some(stream) = self.door.accept() {
            self.admit(stream);
        }
    }

    /// The first becomes the client if there is none, or the next one if ours has hung up; others
    /// are sent away.
    fn admit(&mut self, stream: UnixStream) {
        match &self.client {
            None => self.serve(stream),
            Some(client)
                if self.next.is_none() && !self.one_off && door::is_hung_up(&client.stream) =>
            {
                self.next = Some(stream);
            }
            Some(_) => {
                self.stats.dropped_clients += 1;
                log::debug!("vhost-user: sent a second client away");
            }
        }
    }

    fn serve(&mut self, stream: UnixStream) {
        if let Err(e) = self.connect(stream) {
            log::warn!("vhost-user: cannot serve a client: {e}");
        }
    }

    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "the vhost crate wants an Arc; all of this stays in one thread"
    )]
    fn connect(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        let ours = stream.try_clone()?;
        self.number = self.number.wrapping_add(1);
        self.epoll.add(ours.as_fd(), self.control_token(), CONTROL_INTEREST)?;
        let session = Arc::new(Mutex::new(Session::new(Rc::clone(&self.epoll), self.settings)));
        let handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        self.client = Some(Client {
            session,
            handler,
            stream: ours,
            finished: false,
            refusals: Complaints::default(),
        });
        log::info!("vhost-user: client connected");
        Ok(())
    }

    fn on_control(
        &mut self,
        source: &mut VhostSource,
        sink: &mut VhostSink,
        ready: Readiness,
    ) -> io::Result<LinkEvents> {
        let token = self.control_token();
        let Some(client) = &mut self.client else { return Ok(LinkEvents::default()) };
        client.finished |= ready.read_closed || ready.hung_up || ready.error;
        source.release();
        source.signal(false);
        sink.settle();
        let (was_up, was_open) = (sink.queue.is_running(), source.queue.is_running());
        client.lend(source, sink);
        let outcome = client.handle_messages(&mut self.stats);
        client.take_back(source, sink);
        sink.mtu = self.settings.mtu.map_or(0, usize::from);
        match outcome {
            Handled::Gone => self.disconnect(source, sink),
            // Edge-triggered: what is left must raise an event of its own.
            Handled::Next => {
                self.epoll.modify(client.stream.as_fd(), token, CONTROL_INTEREST)?;
            }
            Handled::Wait => {}
        }
        let up = sink.queue.take_fresh() || sink.queue.is_running() && !was_up;
        // A ring that was disabled may still hold frames, which are to be discarded.
        let disabled = was_open && !source.queue.enabled;
        let open = source.queue.take_fresh() || source.queue.is_running() && !was_open || disabled;
        if up {
            log::debug!("vhost-user: driver ready, features {:#x}", sink.features);
        }
        Ok(LinkEvents { frames: open, room: up, up, ended: self.client.is_none() && self.one_off })
    }

    /// Ends a client that has taken memory away from under its rings: what we have seen since is
    /// zeros, and what we have written is gone.
    fn on_memory_loss(
        &mut self,
        source: &mut VhostSource,
        sink: &mut VhostSink,
    ) -> Option<LinkEvents> {
        let losses = fault::count();
        if std::mem::replace(&mut self.losses, losses) == losses {
            return None;
        }
        self.client.as_ref().filter(|client| client.session().has_lost_memory())?;
        log::warn!("vhost-user: client has taken its memory away");
        source.release();
        sink.settle();
        self.disconnect(source, sink);
        Some(LinkEvents { ended: self.one_off, ..LinkEvents::default() })
    }

    /// Takes leave of the client: device reset, memory unmapped. Turns to the next one if it is here
    /// already.
    fn disconnect(&mut self, source: &mut VhostSource, sink: &mut VhostSink) {
        let Some(client) = self.client.take() else { return };
        if let Err(e) = self.epoll.delete(client.stream.as_fd()) {
            log::debug!("vhost-user: control socket was not watched: {e}");
        }
        source.queue = queue::Queue::default();
        sink.queue = queue::Queue::default();
        (source.features, sink.features) = (0, 0);
        source.rebind();
        sink.rebind();
        log::info!("vhost-user: client disconnected");
        if let Some(next) = self.next.take() {
            self.serve(next);
        }
    }
}

impl Control for VhostControl {
    type Source = VhostSource;
    type Sink = VhostSink;

    fn on_event(
        &mut self,
        source: &mut VhostSource,
        sink: &mut VhostSink,
        which: u32,
        ready: Readiness,
    ) -> io::Result<LinkEvents> {
        const RX_KICK: u32 = KICK;
        const TX_KICK: u32 = KICK + 1;
        if let Some(ended) = self.on_memory_loss(source, sink) {
            return Ok(ended);
        }
        match which {
            LISTENER => {
                self.accept();
                Ok(LinkEvents::default())
            }
            RX_KICK => {
                sink.on_kick();
                Ok(LinkEvents { room: true, ..LinkEvents::default() })
            }
            TX_KICK => Ok(LinkEvents { frames: true, ..LinkEvents::default() }),
            n if Token::Link(n) == self.control_token() => self.on_control(source, sink, ready),
            _ => Ok(LinkEvents::default()),
        }
    }

    fn counters(
        &self,
        source: &VhostSource,
        sink: &VhostSink,
        tell: &mut dyn FnMut(&'static str, u64),
    ) {
        self.stats.plus(&source.stats).plus(&sink.stats).counters(tell);
    }
}

impl Client {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends the queues to the session.
    fn lend(&self, source: &mut VhostSource, sink: &mut VhostSink) {
        let mut session = self.session();
        let [rx, tx] = &mut session.queues;
        std::mem::swap(rx, &mut sink.queue);
        std::mem::swap(tx, &mut source.queue);
    }

    /// Takes them back, with what was negotiated.
    fn take_back(&self, source: &mut VhostSource, sink: &mut VhostSink) {
        self.lend(source, sink);
        let features = self.session().features();
        (source.features, sink.features) = (features, features);
        source.rebind();
        sink.rebind();
    }

    fn handle_messages(&mut self, stats: &mut Stats) -> Handled {
        for _ in 0..MESSAGES_PER_EVENT {
            match self.handle_message(stats) {
                Handled::Next => {}
                Handled::Wait if self.finished => return Handled::Gone,
                outcome => return outcome,
            }
        }
        Handled::Next
    }

    fn handle_message(&mut self, stats: &mut Stats) -> Handled {
        let step = gate::step(&self.stream, &mut self.session());
        match step {
            Step::Wait => Handled::Wait,
            Step::Close => Handled::Gone,
            Step::Done { refused: false } => Handled::Next,
            Step::Done { refused: true } => {
                self.refuse(&Error::InvalidOperation("unknown request"), stats);
                Handled::Next
            }
            Step::Handle => match self.handler.handle_request() {
                Ok(()) => Handled::Next,
                Err(e) => {
                    self.refuse(&e, stats);
                    if is_fatal(&e) { Handled::Gone } else { Handled::Next }
                }
            },
        }
    }

    /// Counts a message that was refused, and logs the first few.
    fn refuse(&mut self, error: &Error, stats: &mut Stats) {
        stats.refused_messages += 1;
        if self.refusals.admit() {
            log::warn!("vhost-user: message refused: {error}");
        }
    }
}

/// Whether the stream can be read on after an error: the message was taken in full, and refused if
/// an answer was asked for.
const fn is_fatal(error: &Error) -> bool {
    !matches!(
        error,
        Error::InvalidParam
            | Error::InvalidOperation(_)
            | Error::InactiveFeature(_)
            | Error::InactiveOperation(_)
            | Error::ReqHandlerError(_)
            | Error::IncorrectFds
            | Error::InvalidSocketFd(_)
            | Error::NotUnixSocket
            | Error::NotStreamSocket
    )
}

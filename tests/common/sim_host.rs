//! The host of the simulation: sockets in memory, each with a peer that follows a load.

use super::sim::{
    Chance, Fate, GUEST_PORT, GUEST_V4, GUEST_V6, Last, Load, OpenedBy, Weather, byte,
};
use passt::flow::{Endpoint, FlowId, Protocol, Side};
use passt::host::{Accepted, Batch, Connect, Host, Outbound, SocketError, StreamInfo};
use passt::span::{Span, SpanMut, scatter};
use passt::time::{Duration, Instant};
use passt::token::{Interest, Readiness, Token};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::rc::Rc;

/// A peer, and the socket that leads to it.
#[derive(Debug)]
pub struct Peer {
    name: u64,
    load: Load,
    at: Endpoint,
    stage: Stage,
    /// Its next move.
    next: Instant,
    socket: Socket,
    /// Bytes that it has got, and sent.
    got: usize,
    sent: usize,
    got_fin: bool,
    limit: usize,
    /// It has reset the connection; it was reset.
    broken: bool,
    was_reset: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The guest opens, or we have still to.
    Idle,
    /// In the listener's queue.
    Knocking,
    Connecting,
    Connected,
    /// The socket was closed.
    Closed,
}

/// What the kernel keeps for a connection. What the peer has sent is not stored: it is known.
#[derive(Debug, Default)]
struct Socket {
    token: Option<Token>,
    interest: Interest,
    /// Events since the last report.
    pending: Readiness,
    /// Bytes on their way to the peer.
    out: VecDeque<u8>,
    /// The send buffer was full.
    no_space: bool,
    shut: bool,
    /// Bytes of the peer's that were discarded, and that arrived, and whether its FIN did.
    discarded: usize,
    arrived: usize,
    fin: bool,
    keepalive: bool,
}

impl Peer {
    pub fn new(name: u64, load: Load, at: Endpoint) -> Self {
        Self {
            name,
            load,
            at,
            stage: Stage::Idle,
            next: Instant::ZERO,
            socket: Socket::default(),
            got: 0,
            sent: 0,
            got_fin: false,
            limit: 0,
            broken: false,
            was_reset: false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.stage == Stage::Closed
            && match self.load.fate {
                Fate::Well => self.has_all(),
                Fate::GuestResets(_) => self.was_reset,
                Fate::Refused | Fate::PeerResets(_) => self.broken,
            }
    }

    /// Whether all that the guest has for it has come.
    pub fn has_all(&self) -> bool {
        self.got_fin && self.got == self.load.up
    }

    /// Whether it was reset though all was well.
    pub fn was_reset_without_reason(&self) -> bool {
        self.was_reset && self.load.fate == Fate::Well
    }

    fn break_off(&mut self) {
        self.broken = true;
        self.socket.pending = Readiness {
            readable: true,
            writable: true,
            error: true,
            hung_up: true,
            read_closed: true,
            urgent: false,
        };
    }

    /// When it acts next.
    pub fn next(&self) -> Option<Instant> {
        let idle = self.got_fin && self.socket.fin;
        (!self.is_done() && !idle).then_some(self.next)
    }

    /// Reads a little, writes a little, now and then.
    pub fn act(&mut self, now: Instant, chance: &mut Chance) {
        if now < self.next {
            return;
        }
        self.next = now + Duration::from_micros(50 + chance.next() % 2000);
        match self.stage {
            Stage::Idle if self.load.opened_by == OpenedBy::Peer => self.stage = Stage::Knocking,
            Stage::Idle | Stage::Knocking => {}
            Stage::Connecting if self.load.fate == Fate::Refused => self.break_off(),
            Stage::Connecting => {
                self.stage = Stage::Connected;
                self.socket.pending.writable = true;
            }
            Stage::Connected | Stage::Closed if self.broken => {}
            Stage::Connected | Stage::Closed => {
                if matches!(self.load.fate, Fate::PeerResets(n) if self.got + self.sent >= n) {
                    return self.break_off();
                }
                self.read(chance.below(100_000));
                self.write(chance.below(100_000));
            }
        }
        if self.stage == Stage::Knocking {
            self.write(chance.below(10_000));
        }
    }

    fn read(&mut self, most: usize) {
        let n = most.min(self.socket.out.len());
        for got in self.socket.out.drain(..n) {
            assert_eq!(got, byte(self.name * 2, self.got), "byte {} from the guest", self.got);
            self.got += 1;
        }
        assert!(self.got <= self.load.up, "more bytes than the guest sent");
        if self.socket.no_space && self.socket.out.len() < self.limit {
            self.socket.no_space = false;
            self.socket.pending.writable = true;
        }
        self.got_fin |= self.socket.shut && self.socket.out.is_empty();
    }

    fn write(&mut self, most: usize) {
        let unread = self.socket.arrived - self.socket.discarded;
        let n = most.min(self.load.down - self.sent).min(self.limit.saturating_sub(unread));
        if n > 0 {
            self.sent += n;
            self.socket.arrived += n;
            self.socket.pending.readable = true;
        }
        let may_end = self.load.last != Last::Peer || self.got_fin;
        if self.sent == self.load.down && may_end && !self.socket.fin {
            self.socket.fin = true;
            self.socket.pending.readable = true;
            self.socket.pending.read_closed = true;
        }
    }
}

impl Socket {
    /// Readiness as it stands, for a mask that has just been set.
    fn level(&self, limit: usize) -> Readiness {
        Readiness {
            readable: self.arrived > self.discarded || self.fin,
            writable: self.out.len() < limit,
            read_closed: self.fin,
            ..Readiness::default()
        }
    }
}

pub struct SimHost {
    peers: Rc<RefCell<Vec<Peer>>>,
    weather: Weather,
    chance: Chance,
}

/// A socket: closed when dropped.
pub struct SimStream {
    peers: Rc<RefCell<Vec<Peer>>>,
    index: usize,
}

impl std::fmt::Debug for SimStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimStream({})", self.index)
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.with(|peer| {
            peer.stage = Stage::Closed;
            peer.socket.token = None;
            // Closing sends a FIN behind the data.
            peer.socket.shut = true;
        });
    }
}

impl SimStream {
    fn with<R>(&self, f: impl FnOnce(&mut Peer) -> R) -> R {
        f(&mut self.peers.borrow_mut()[self.index])
    }
}

impl SimHost {
    pub fn new(peers: Rc<RefCell<Vec<Peer>>>, weather: Weather, seed: u64) -> Self {
        Self { peers, weather, chance: Chance::new(seed ^ 0xface) }
    }

    /// What epoll would report now.
    pub fn events(&mut self) -> Vec<(Token, Readiness)> {
        let mut events = Vec::new();
        let mut knocking = false;
        for peer in self.peers.borrow_mut().iter_mut() {
            knocking |= peer.stage == Stage::Knocking;
            let socket = &mut peer.socket;
            let Some(token) = socket.token else { continue };
            let pending = std::mem::take(&mut socket.pending);
            let ready = Readiness {
                readable: pending.readable && socket.interest.readable,
                writable: pending.writable && socket.interest.writable,
                read_closed: pending.read_closed && socket.interest.read_closed,
                error: pending.error,
                hung_up: pending.hung_up,
                urgent: pending.urgent,
            };
            if ready != Readiness::default() {
                events.push((token, ready));
            }
        }
        if knocking {
            events.push((Token::Listener(0), Readiness { readable: true, ..Readiness::default() }));
        }
        events
    }

    fn stream(&self, index: usize) -> SimStream {
        let stream = SimStream { peers: self.peers.clone(), index };
        stream.with(|peer| peer.limit = self.weather.socket);
        stream
    }
}

impl Host for SimHost {
    type Stream = SimStream;
    type Datagram = ();
    type Pipe = ();

    fn connect(
        &mut self,
        _side: Side,
        to: Endpoint,
        token: Token,
        interest: Interest,
    ) -> io::Result<(SimStream, Connect)> {
        let index = self.peers.borrow().iter().position(|peer| {
            peer.at == to && peer.load.opened_by == OpenedBy::Guest && peer.stage == Stage::Idle
        });
        let Some(index) = index else { return Err(ErrorKind::ConnectionRefused.into()) };
        let stream = self.stream(index);
        stream.with(|peer| {
            peer.stage = Stage::Connecting;
            peer.socket.token = Some(token);
            peer.socket.interest = interest;
        });
        Ok((stream, Connect::InProgress))
    }

    fn connect_result(&mut self, stream: &SimStream) -> io::Result<()> {
        stream.with(|peer| match peer.broken {
            true => Err(ErrorKind::ConnectionRefused.into()),
            false => Ok(()),
        })
    }

    fn accept(&mut self, _listener: u32) -> io::Result<Accepted<SimStream>> {
        let index = self.peers.borrow().iter().position(|peer| peer.stage == Stage::Knocking);
        let Some(index) = index else { return Err(ErrorKind::WouldBlock.into()) };
        let stream = self.stream(index);
        let (peer, v6) = stream.with(|peer| {
            peer.stage = Stage::Connected;
            (peer.at, peer.load.v6)
        });
        let local = if v6 { GUEST_V6.into() } else { GUEST_V4.into() };
        Ok(Accepted { stream, peer, local: Endpoint::new(local, GUEST_PORT), rule: 0 })
    }

    fn watch(
        &mut self,
        stream: &mut SimStream,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        let limit = self.weather.socket;
        stream.with(|peer| {
            let socket = &mut peer.socket;
            if socket.token != Some(token) || socket.interest != interest {
                socket.token = Some(token);
                socket.interest = interest;
                if peer.stage == Stage::Connected {
                    socket.pending = socket.level(limit);
                }
            }
        });
        Ok(())
    }

    fn send(&mut self, stream: &mut SimStream, payload: &[Span<'_>]) -> io::Result<usize> {
        let short = self.chance.percent(self.weather.short_write);
        let part = self.chance.below(2000);
        let limit = self.weather.socket;
        stream.with(|peer| {
            assert!(peer.stage == Stage::Connected && !peer.socket.shut, "sent at a bad time");
            if peer.broken {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let socket = &mut peer.socket;
            let mut room = limit.saturating_sub(socket.out.len());
            if short {
                room = room.min(part);
            }
            let mut taken = 0;
            for span in payload {
                let mut bytes = vec![0; span.len().min(room - taken)];
                span.read(0, &mut bytes);
                taken += bytes.len();
                socket.out.extend(bytes);
            }
            let asked: usize = payload.iter().map(Span::len).sum();
            socket.no_space |= taken < asked;
            if taken == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
        })
    }

    fn peek(
        &mut self,
        stream: &mut SimStream,
        skip: usize,
        room: &[SpanMut<'_>],
    ) -> io::Result<usize> {
        let asked: usize = room.iter().map(SpanMut::len).sum();
        assert!(asked > 0, "a peek into nothing");
        stream.with(|peer| {
            if peer.broken {
                return Err(ErrorKind::ConnectionReset.into());
            }
            let at = peer.socket.discarded + skip;
            assert!(at <= peer.socket.arrived, "skipped more than there is");
            let n = asked.min(peer.socket.arrived - at);
            let bytes: Vec<u8> = (at..at + n).map(|i| byte(peer.name * 2 + 1, i)).collect();
            scatter(room, 0, &bytes);
            if n == 0 && !peer.socket.fin { Err(ErrorKind::WouldBlock.into()) } else { Ok(n) }
        })
    }

    fn discard(&mut self, stream: &mut SimStream, n: usize) -> io::Result<usize> {
        stream.with(|peer| {
            let n = n.min(peer.socket.arrived - peer.socket.discarded);
            peer.socket.discarded += n;
            Ok(n)
        })
    }

    fn shutdown(&mut self, stream: &mut SimStream) -> io::Result<()> {
        stream.with(|peer| {
            assert!(!peer.socket.shut, "shut down twice");
            peer.socket.shut = true;
        });
        Ok(())
    }

    fn reset(&mut self, stream: SimStream) {
        stream.with(|peer| peer.was_reset = true);
        drop(stream);
    }

    fn keepalive(&mut self, stream: &mut SimStream) {
        stream.with(|peer| peer.socket.keepalive = true);
    }

    fn hurry(&mut self, _: &mut SimStream) {}

    fn widen(&mut self, _: &mut SimStream) {}

    fn info(&mut self, stream: &SimStream) -> io::Result<StreamInfo> {
        let limit = self.weather.socket;
        stream.with(|peer| {
            let room = limit.saturating_sub(peer.socket.out.len());
            Ok(StreamInfo {
                peer_window: Some(limit as u32),
                rtt: Duration::from_micros(100),
                send_room: room as u32,
                established: true,
                ..StreamInfo::default()
            })
        })
    }

    fn is_starved(&self) -> bool {
        false
    }

    fn feed(&mut self) {}

    // The simulated network carries TCP only, and only through the link.

    fn listener_side(&self, _listener: u32) -> Side {
        Side::Outside
    }

    fn open_udp(
        &mut self,
        _side: Side,
        _local: Endpoint,
        _remote: Endpoint,
        _token: Token,
    ) -> io::Result<((), Endpoint)> {
        Err(ErrorKind::Unsupported.into())
    }

    fn open_echo(&mut self, _remote: IpAddr, _identifier: u16, _flow: FlowId) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn send_messages(
        &mut self,
        (): &mut (),
        _messages: &[Outbound],
        _spans: &[Span<'_>],
        _ttl: u8,
    ) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    fn receive_messages(
        &mut self,
        (): &mut (),
        _batch: &mut Batch,
        _coalesce: bool,
    ) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    fn receive_listener(&mut self, _: u32, _batch: &mut Batch) -> io::Result<(usize, usize)> {
        Err(ErrorKind::Unsupported.into())
    }

    fn pause(&mut self, (): &mut (), _paused: bool) {}

    fn pause_listener(&mut self, _listener: u32, _paused: bool) {}

    fn next_error(&mut self, (): &mut ()) -> Option<SocketError> {
        None
    }

    fn pipe(&mut self) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    fn give_back(&mut self, (): ()) {}

    fn fill(&mut self, (): &mut (), _: &mut SimStream, _: usize) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    fn fill_one(&mut self, (): &mut (), _: &mut SimStream) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    fn drain(&mut self, (): &mut (), _: &mut SimStream, _: usize) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    fn relisten(
        &mut self,
        _: &passt::flow::rules::Rules,
    ) -> Result<passt::host::Relisten, passt::host::Failure> {
        Ok(passt::host::Relisten::Done(passt::host::Changes::default()))
    }

    fn scan(&mut self, _: &passt::flow::rules::Rules) -> passt::host::Scan {
        passt::host::Scan::Off
    }

    fn listener_protocol(&self, _listener: u32) -> Option<Protocol> {
        Some(Protocol::Tcp)
    }

    fn take_error(&mut self, stream: &SimStream) -> Option<io::Error> {
        stream.with(|peer| peer.broken.then(|| ErrorKind::ConnectionReset.into()))
    }
}

//! qemu's stream socket: frames on a Unix stream socket, each behind its length in 32 bits, big
//! endian (qemu's `-netdev stream`, and others that speak it).
//!
//! One client at a time. Its frames are read many at once into one buffer and handled where they
//! stand; frames to it wait in an `Arena` and go out many at once. The socket is never waited
//! for: what it does not take stays in the arena, the rest of a half-written frame first, and goes
//! on when the socket is writable; meanwhile the arena fills and gives no more room.
//!
//! Watches are level-triggered: a socket that was left with something in it raises another event,
//! so that no call is spent on finding out that it is empty. Whatever ends a client also shuts its
//! socket down, which raises the event that [`StreamControl`] takes leave of it by. Flows are no
//! business of the link's: they survive a client's going.

use super::arena::{Arena, Shape};
use super::door::{self, Door};
use super::{Control, ETHERNET_HEADER, Frame, LinkCaps, LinkEvents, Offload, Parts, Refused};
use super::{Sink, Slot, Source};
use crate::span::{self, Buffer, Span};
use crate::sys::epoll::Epoll;
use crate::sys::socket;
use crate::token::{Interest, Readiness, Token};
use nix::sys::socket::{setsockopt, sockopt};
use std::cell::Cell;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

/// [`Token::Link`] of the listener.
const LISTENER: u32 = 0;
/// [`Token::Link`] of a client: plus its number, so that an event of one that has gone does not
/// touch the next.
const CLIENT: u32 = 0x100;

/// Bytes of the length in front of each frame.
const LENGTH: usize = 4;

/// The longest frame, either way.
const MAX_LENGTH: usize = 65_535;

/// Bytes for frames from the client.
const SOURCE_BUFFER: usize = 1 << 20;

/// When less than this is left behind a partial frame, it moves to the start of the buffer.
const LEAST_ROOM: usize = 256 << 10;

/// Frames of one batch at most.
const BATCH: usize = 512;

/// Bytes of frames that wait for the client, or are being made for it.
const SINK_BUFFER: usize = 1 << 20;

/// Frames to the client: each behind its length, padded, without gaps.
const SHAPE: Shape = Shape { headroom: LENGTH, min_frame: 60, align: 1 };

/// Runs of bytes that one system call takes (IOV_MAX).
const MAX_RUNS: usize = 1024;

/// What we ask the kernel to buffer towards us and away from us; it gives what it allows.
const RECEIVE_BUFFER: usize = 2 << 20;
const SEND_BUFFER: usize = 4 << 20;

/// Clients with a bad length that are logged as such.
const LOGGED_LENGTHS: u64 = 8;

/// What clients have done wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Clients that were sent away because there was one already.
    pub refused_clients: u64,
    /// Clients that lost the connection for a length that no frame has.
    pub bad_lengths: u64,
}

/// The link to a guest at the other end of a stream socket.
pub type StreamLink = Parts<StreamControl>;

impl StreamLink {
    /// Serves one client after the other that connects to `listener`; with `one_off` just one.
    ///
    /// # Errors
    /// What epoll or fcntl say.
    pub fn listen(listener: UnixListener, one_off: bool, epoll: Rc<Epoll>) -> io::Result<Self> {
        let door = Door::new(listener, &epoll, Token::Link(LISTENER))?;
        Ok(Self::new(StreamControl::new(door, one_off, epoll)))
    }

    /// Serves the client at the other end of `stream`, and no other.
    ///
    /// # Errors
    /// What epoll says.
    pub fn connected(stream: UnixStream, epoll: Rc<Epoll>) -> io::Result<Self> {
        let mut link = Self::new(StreamControl::new(Door::default(), true, epoll));
        link.control.connect(stream, &mut link.source, &mut link.sink)?;
        Ok(link)
    }

    fn new(control: StreamControl) -> Self {
        Self { control, source: StreamSource::new(), sink: StreamSink::new() }
    }

    /// What clients have done wrong.
    pub const fn stats(&self) -> Stats {
        Stats { bad_lengths: self.source.bad_lengths, ..self.control.stats }
    }

    /// Whether a client is connected.
    pub const fn is_connected(&self) -> bool {
        self.control.client.is_some()
    }
}

/// A client, shared by those who deal with it.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    epoll: Rc<Epoll>,
    token: Token,
    /// Whether the socket is watched for room to write.
    watches_room: Cell<bool>,
    /// All that it will ever send has been read.
    ended: Cell<bool>,
}

impl Client {
    const fn interest(room: bool) -> Interest {
        Interest { readable: true, writable: room, read_closed: true, edge: false }
    }

    /// Watches for room to write, or no longer.
    fn watch_room(&self, on: bool) {
        if self.watches_room.replace(on) != on {
            let watched = self.epoll.modify(self.stream.as_fd(), self.token, Self::interest(on));
            if let Err(e) = watched {
                log::debug!("stream: cannot watch a client: {e}");
                self.hang_up();
            }
        }
    }

    /// Nothing more is to be read or written; what has arrived already is still there to be read.
    fn hang_up(&self) {
        // Fails only if the other end has been quicker.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Nothing more is wanted from it.
    fn end(&self) {
        self.ended.set(true);
        self.hang_up();
    }

    /// Whether the other end, or we, have closed the connection.
    fn is_hung_up(&self) -> bool {
        door::is_hung_up(&self.stream)
    }
}

/// The control side: who is connected.
#[derive(Debug)]
pub struct StreamControl {
    door: Door,
    one_off: bool,
    epoll: Rc<Epoll>,
    client: Option<Rc<Client>>,
    /// Number of the current client, or of the last.
    number: u32,
    /// The client has not been reported yet.
    fresh: bool,
    /// It came while the one before it was still being read to its end.
    next: Option<UnixStream>,
    stats: Stats,
}

impl StreamControl {
    fn new(door: Door, one_off: bool, epoll: Rc<Epoll>) -> Self {
        Self {
            door,
            one_off,
            epoll,
            client: None,
            number: 0,
            fresh: false,
            next: None,
            stats: Stats::default(),
        }
    }

    /// Accepts all that wait.
    fn accept(&mut self, source: &mut StreamSource, sink: &mut StreamSink) {
        while let Some(stream) = self.door.accept() {
            self.admit(stream, source, sink);
        }
    }

    /// The first becomes the client if there is none, or the next one if ours has hung up; others
    /// are sent away.
    fn admit(&mut self, stream: UnixStream, source: &mut StreamSource, sink: &mut StreamSink) {
        match &self.client {
            None => self.serve(stream, source, sink),
            Some(client) if self.next.is_none() && !self.one_off && client.is_hung_up() => {
                self.next = Some(stream);
            }
            Some(_) => {
                self.stats.refused_clients += 1;
                log::debug!("stream: sent a second client away");
            }
        }
    }

    fn serve(&mut self, stream: UnixStream, source: &mut StreamSource, sink: &mut StreamSink) {
        if let Err(e) = self.connect(stream, source, sink) {
            log::warn!("stream: cannot serve a client: {e}");
        }
    }

    fn connect(
        &mut self,
        stream: UnixStream,
        source: &mut StreamSource,
        sink: &mut StreamSink,
    ) -> io::Result<()> {
        // As much as is allowed; less is no error, and an error no reason not to serve.
        let _ = setsockopt(&stream, sockopt::RcvBuf, &RECEIVE_BUFFER);
        let _ = setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER);
        self.number = self.number.wrapping_add(1) & 0xff_ffff;
        let token = Token::Link(CLIENT + self.number);
        // Its first event, which comes at once, reports it.
        self.epoll.add(stream.as_fd(), token, Client::interest(true))?;
        self.fresh = true;
        let client = Rc::new(Client {
            stream,
            epoll: Rc::clone(&self.epoll),
            token,
            watches_room: Cell::new(true),
            ended: Cell::new(false),
        });
        source.connect(&client);
        sink.connect(&client);
        self.client = Some(client);
        log::info!("Client connected");
        Ok(())
    }

    /// Takes leave of the client, and turns to the next one if it is here already.
    fn disconnect(&mut self, source: &mut StreamSource, sink: &mut StreamSink) {
        let Some(client) = self.client.take() else { return };
        if let Err(e) = self.epoll.delete(client.stream.as_fd()) {
            log::debug!("stream: a client was not watched: {e}");
        }
        source.disconnect();
        sink.disconnect();
        log::info!("Client disconnected");
        if let Some(next) = self.next.take() {
            self.serve(next, source, sink);
        }
    }

    fn on_client(
        &mut self,
        source: &mut StreamSource,
        sink: &mut StreamSink,
        ready: Readiness,
    ) -> LinkEvents {
        let Some(client) = &self.client else { return LinkEvents::default() };
        if client.ended.get() {
            self.disconnect(source, sink);
            let ended = self.client.is_none() && self.one_off;
            return LinkEvents { ended, ..LinkEvents::default() };
        }
        LinkEvents {
            // An end is found by reading up to it.
            frames: ready.readable || ready.read_closed || ready.hung_up || ready.error,
            room: ready.writable && sink.on_writable(),
            up: std::mem::take(&mut self.fresh),
            ended: false,
        }
    }
}

impl Control for StreamControl {
    type Source = StreamSource;
    type Sink = StreamSink;

    fn on_event(
        &mut self,
        source: &mut StreamSource,
        sink: &mut StreamSink,
        which: u32,
        ready: Readiness,
    ) -> io::Result<LinkEvents> {
        match which {
            LISTENER => self.accept(source, sink),
            n if n == CLIENT + self.number => return Ok(self.on_client(source, sink, ready)),
            _ => {}
        }
        Ok(LinkEvents::default())
    }

    fn counters(
        &self,
        source: &StreamSource,
        sink: &StreamSink,
        tell: &mut dyn FnMut(&'static str, u64),
    ) {
        let _ = sink;
        tell("clients sent away", self.stats.refused_clients);
        tell("frames of bad length", source.bad_lengths);
    }
}

/// The half of the link that takes frames from the client.
#[derive(Debug)]
pub struct StreamSource {
    client: Option<Rc<Client>>,
    /// The frames of the batch are marked in it.
    buffer: Buffer,
    /// Where the bytes that no batch has had yet begin and end.
    start: usize,
    end: usize,
    /// The last read has emptied the socket: another event will come when there is more.
    emptied: bool,
    bad_lengths: u64,
}

impl StreamSource {
    fn new() -> Self {
        let buffer = Buffer::new(SOURCE_BUFFER);
        Self { client: None, buffer, start: 0, end: 0, emptied: false, bad_lengths: 0 }
    }

    fn connect(&mut self, client: &Rc<Client>) {
        self.client = Some(Rc::clone(client));
    }

    /// A partial frame goes with its sender.
    fn disconnect(&mut self) {
        self.release();
        self.client = None;
        (self.start, self.end, self.emptied) = (0, 0, false);
    }

    /// Reads what the socket has, as far as there is room.
    fn fill(&mut self) {
        let Some(client) = &self.client else { return };
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < LEAST_ROOM {
            self.buffer.bytes().copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.buffer.span_mut(self.end, usize::MAX);
        match socket::receive(client.stream.as_fd(), &[room]) {
            Ok(0) => client.end(),
            Ok(n) => {
                self.end += n;
                self.emptied = n < room.len();
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                log::debug!("stream: cannot read from the client: {e}");
                client.end();
            }
        }
    }

    /// Marks the complete frames among the bytes that were read.
    fn mark_frames(&mut self) {
        while self.buffer.marked().len() < BATCH {
            let unread = self.buffer.bytes().get(self.start..self.end).unwrap_or_default();
            let Some((length, rest)) = unread.split_first_chunk::<LENGTH>() else { return };
            let length = u32::from_be_bytes(*length) as usize;
            if !(ETHERNET_HEADER..=MAX_LENGTH).contains(&length) {
                return self.lose_track(length);
            }
            if rest.len() < length {
                return;
            }
            self.buffer.mark(self.start + LENGTH, length);
            self.start += LENGTH + length;
        }
    }

    /// The client speaks another protocol: nothing that it says can be understood from here on.
    fn lose_track(&mut self, length: usize) {
        self.start = self.end;
        self.bad_lengths += 1;
        let level =
            if self.bad_lengths <= LOGGED_LENGTHS { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "Client sends a frame of {length} bytes: disconnecting it");
        if let Some(client) = &self.client {
            client.end();
        }
    }

    fn is_ended(&self) -> bool {
        self.client.as_ref().is_none_or(|client| client.ended.get())
    }
}

impl Source for StreamSource {
    fn receive(&mut self) -> io::Result<usize> {
        self.release();
        if self.is_ended() {
            return Ok(0);
        }
        self.mark_frames();
        if self.buffer.marked().is_empty() && !std::mem::take(&mut self.emptied) {
            self.fill();
            self.mark_frames();
            self.emptied &= !self.buffer.marked().is_empty();
        }
        Ok(self.buffer.marked().len())
    }

    fn frame(&self, index: usize) -> Frame<'_> {
        let spans = self.buffer.marked().get(index..=index).unwrap_or_default();
        Frame { spans, len: span::total(spans), offload: Offload::default() }
    }

    fn release(&mut self) {
        self.buffer.unmark();
    }
}

/// The half of the link that gives frames to the client.
#[derive(Debug)]
pub struct StreamSink {
    client: Option<Rc<Client>>,
    arena: Arena,
    /// The socket has taken less than it was given: an event will come when it takes more.
    blocked: bool,
    /// The socket takes nothing any more.
    broken: bool,
    runs: Vec<Span<'static>>,
}

impl StreamSink {
    fn new() -> Self {
        let arena = Arena::new(SINK_BUFFER, SHAPE);
        Self { client: None, arena, blocked: false, broken: false, runs: Vec::new() }
    }

    fn connect(&mut self, client: &Rc<Client>) {
        self.client = Some(Rc::clone(client));
    }

    fn disconnect(&mut self) {
        self.client = None;
        self.arena.clear();
        (self.blocked, self.broken) = (false, false);
    }

    fn send_all(&mut self) {
        while !self.blocked && self.send() {}
    }

    /// Gives the socket what is committed, as much as one call takes; whether there may be more.
    fn send(&mut self) -> bool {
        let Some(client) = self.client.as_ref().filter(|_| !self.broken) else {
            self.arena.clear();
            return false;
        };
        let mut runs = span::recycle(std::mem::take(&mut self.runs));
        self.arena.runs(MAX_RUNS, &mut runs);
        let total = span::total(&runs);
        if total == 0 {
            self.runs = span::recycle(runs);
            return false;
        }
        let sent = socket::send(client.stream.as_fd(), &runs);
        self.runs = span::recycle(runs);
        match sent {
            Ok(n) => {
                self.arena.advance(n);
                self.blocked = n < total;
            }
            // Short of memory, the kernel has none to tell us when it is not.
            Err(e) if is_transient(&e) => self.blocked = true,
            Err(e) => {
                log::debug!("stream: cannot write to the client: {e}");
                self.broken = true;
                client.hang_up();
            }
        }
        if self.blocked {
            client.watch_room(true);
        }
        true
    }

    /// The socket takes something again; returns whether others may do so, too.
    fn on_writable(&mut self) -> bool {
        self.blocked = false;
        self.send_all();
        if let Some(client) = self.client.as_ref().filter(|_| !self.blocked) {
            client.watch_room(false);
        }
        self.arena.load() <= SINK_BUFFER / 2
    }
}

fn is_transient(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

impl Sink for StreamSink {
    fn caps(&self) -> LinkCaps {
        LinkCaps { max_frame: MAX_LENGTH, ..LinkCaps::default() }
    }

    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        if len > MAX_LENGTH {
            return Err(Refused::TooLarge);
        }
        if self.client.is_none() || self.broken {
            return Err(Refused::Down);
        }
        if let Some(slot) = self.arena.reserve(len) {
            return Ok(slot);
        }
        self.send_all();
        let slot = self.arena.reserve(len);
        if let (None, Some(client)) = (&slot, &self.client) {
            client.watch_room(true);
        }
        slot.ok_or(Refused::Full)
    }

    fn room<'a>(&'a self, slot: &Slot, skip: usize, out: &mut Vec<span::SpanMut<'a>>) {
        self.arena.append_room(slot, skip, out);
    }

    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]) {
        self.arena.write(slot, offset, bytes);
    }

    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        self.arena.read(slot, offset, into)
    }

    fn bytes(&mut self, slot: &Slot, offset: usize, len: usize) -> Option<&[u8]> {
        self.arena.bytes(slot, offset, len)
    }

    fn commit(&mut self, slot: Slot, len: usize, _: Offload) {
        // Frames are far shorter than 32 bits can say.
        self.arena.commit(&slot, len, |len| (len as u32).to_be_bytes());
    }

    fn cancel(&mut self, slot: Slot) {
        self.arena.cancel(&slot);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! A host whose sockets do what a test says, and note what was done to them.

use super::sim::Chance;
use passt::flow::{Endpoint, FlowId, Protocol, Side};
use passt::host::{
    Accepted, Batch, Connect, Host, MAX_ROOM, Message, Outbound, Scan, SocketError, StreamInfo,
};
use passt::span::{Span, SpanMut, gather, scatter};
use passt::time::Duration;
use passt::token::{Interest, Readiness, Token};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::rc::Rc;

/// Everything that a test may set and look at.
#[derive(Default)]
pub struct State {
    /// TCP sockets, in the order of their making.
    pub socks: Vec<Sock>,
    /// How the next connects go; [`Connect::Done`] when there are no more.
    pub connects: VecDeque<io::Result<Connect>>,
    /// What the next accepts give; `WouldBlock` when there is no more.
    pub backlog: VecDeque<io::Result<(Endpoint, Endpoint, usize)>>,
    pub starved: bool,
    /// What the next looks at services find; `Off` when there are no more.
    pub scans: VecDeque<Scan>,
    pub fed: usize,
    /// UDP and ping sockets, in the order of their making.
    pub datagrams: Vec<Datagrams>,
    /// Which sockets calls were made for, TCP ones and others, in order.
    pub calls: (Vec<usize>, Vec<usize>),
    /// What the next opens of such sockets fail with.
    pub open_errors: VecDeque<i32>,
    /// What the next watches of TCP sockets fail with.
    pub watch_errors: VecDeque<i32>,
    /// What waits at the UDP listener: payload, sender, and address of ours.
    pub listener: VecDeque<(Vec<u8>, Endpoint, Endpoint)>,
    pub listener_paused: bool,
    /// Pipes, in the order of their making.
    pub pipes: Vec<Pipe>,
    /// What the next makings of pipes fail with.
    pub pipe_errors: VecDeque<i32>,
    /// Bytes that a pipe holds.
    pub pipe_size: usize,
    /// Makes transfers short, or block for no reason that a script would have.
    pub chance: Option<Chance>,
}

/// A UDP or ping socket.
#[derive(Debug)]
pub struct Datagrams {
    /// Our end, as it was wished for; `None` for a ping socket.
    pub local: Option<Endpoint>,
    pub side: Side,
    pub remote: Endpoint,
    pub token: Token,
    /// Datagrams that were sent, and with which TTL.
    pub sent: Vec<(Vec<u8>, u8)>,
    pub incoming: VecDeque<(Vec<u8>, Option<u16>)>,
    pub errors: VecDeque<SocketError>,
    /// What all sends fail with.
    pub refusing: Option<i32>,
    /// How often something was to be sent.
    pub calls: usize,
    pub paused: bool,
    pub closed: bool,
}

/// A TCP socket.
#[derive(Debug)]
pub struct Sock {
    pub side: Side,
    pub to: Endpoint,
    pub token: Option<Token>,
    pub interest: Interest,
    /// How the connect ends.
    pub connect: Result<(), i32>,
    /// Received and not discarded.
    pub incoming: VecDeque<u8>,
    pub fin: bool,
    /// An urgent byte is so far from the front: a peek that starts before it ends there, and so does
    /// what goes to a pipe.
    pub mark: Option<usize>,
    /// Peeks start at the front and read what they are to skip, too.
    pub from_front: bool,
    /// What peeks fail with, behind all that was received.
    pub error: Option<i32>,
    /// Bytes that the socket takes before it is full.
    pub room: usize,
    /// What sends fail with.
    pub send_error: Option<i32>,
    /// What shutdowns fail with.
    pub shutdown_error: Option<i32>,
    pub sent: Vec<u8>,
    /// The counts of all sends.
    pub sends: Vec<usize>,
    pub peeks: usize,
    pub shut: bool,
    pub keepalive: bool,
    /// How often the stream was widened.
    pub widened: usize,
    /// How often it was told to hurry.
    pub hurried: usize,
    pub closed: bool,
    pub reset: bool,
    /// A call has said that it would block, and an event has to follow.
    pub owes: Readiness,
    pub info: StreamInfo,
    pub infos: std::cell::Cell<usize>,
}

impl Sock {
    fn new(to: Endpoint, token: Option<Token>) -> Self {
        Self {
            side: Side::Outside,
            to,
            token,
            interest: Interest::default(),
            connect: Ok(()),
            incoming: VecDeque::new(),
            fin: false,
            mark: None,
            from_front: false,
            error: None,
            room: usize::MAX,
            send_error: None,
            shutdown_error: None,
            sent: Vec::new(),
            sends: Vec::new(),
            peeks: 0,
            shut: false,
            keepalive: false,
            widened: 0,
            hurried: 0,
            closed: false,
            reset: false,
            owes: Readiness::default(),
            info: StreamInfo {
                send_room: 200_000,
                peer_window: Some(1 << 20),
                rtt: Duration::from_millis(1),
                established: true,
                ..StreamInfo::default()
            },
            infos: std::cell::Cell::new(0),
        }
    }
}

/// A pipe.
#[derive(Debug, Default)]
pub struct Pipe {
    /// What is in it.
    pub bytes: VecDeque<u8>,
    /// It was given back.
    pub free: bool,
    pub closed: bool,
}

pub struct ScriptHost {
    state: Rc<RefCell<State>>,
}

/// A handle: closed when dropped.
pub struct ScriptStream {
    state: Rc<RefCell<State>>,
    index: usize,
}

impl std::fmt::Debug for ScriptStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScriptStream({})", self.index)
    }
}

impl ScriptStream {
    fn with<R>(&self, f: impl FnOnce(&mut Sock) -> R) -> R {
        let mut state = self.state.borrow_mut();
        state.calls.0.push(self.index);
        f(&mut state.socks[self.index])
    }
}

impl Drop for ScriptStream {
    fn drop(&mut self) {
        self.with(|sock| sock.closed = true);
    }
}

impl ScriptHost {
    pub fn new() -> Self {
        let state = State { pipe_size: 1 << 16, ..State::default() };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    pub fn state(&self) -> &RefCell<State> {
        &self.state
    }

    fn open(&mut self, to: Endpoint, token: Option<Token>) -> ScriptStream {
        let socks = &mut self.state.borrow_mut().socks;
        socks.push(Sock::new(to, token));
        ScriptStream { state: Rc::clone(&self.state), index: socks.len() - 1 }
    }
}

/// A handle: closed when dropped.
pub struct ScriptPipe {
    state: Rc<RefCell<State>>,
    index: usize,
}

impl std::fmt::Debug for ScriptPipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScriptPipe({})", self.index)
    }
}

impl Drop for ScriptPipe {
    fn drop(&mut self) {
        self.state.borrow_mut().pipes[self.index].closed = true;
    }
}

impl State {
    /// How much of `n` a transfer moves; `None` is a call that would block.
    fn some_of(&mut self, n: usize) -> Option<usize> {
        match &mut self.chance {
            Some(chance) if n > 0 => match chance.below(4) {
                0 => None,
                1 => Some(1 + chance.below(n)),
                _ => Some(n),
            },
            _ => Some(n),
        }
    }
}

/// A handle: closed when dropped.
pub struct ScriptDatagram {
    state: Rc<RefCell<State>>,
    index: usize,
}

impl std::fmt::Debug for ScriptDatagram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScriptDatagram({})", self.index)
    }
}

impl ScriptDatagram {
    fn with<R>(&self, f: impl FnOnce(&mut Datagrams) -> R) -> R {
        let mut state = self.state.borrow_mut();
        state.calls.1.push(self.index);
        f(&mut state.datagrams[self.index])
    }
}

impl Drop for ScriptDatagram {
    fn drop(&mut self) {
        self.with(|socket| socket.closed = true);
    }
}

impl ScriptHost {
    fn open_datagrams(
        &mut self,
        local: Option<Endpoint>,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<ScriptDatagram> {
        let mut state = self.state.borrow_mut();
        if let Some(number) = state.open_errors.pop_front() {
            return Err(errno(number));
        }
        state.datagrams.push(Datagrams {
            local,
            side: Side::Outside,
            remote,
            token,
            sent: Vec::new(),
            incoming: VecDeque::new(),
            errors: VecDeque::new(),
            refusing: None,
            calls: 0,
            paused: false,
            closed: false,
        });
        Ok(ScriptDatagram { state: Rc::clone(&self.state), index: state.datagrams.len() - 1 })
    }
}

/// Puts a message into the next place of a batch.
fn put(batch: &mut Batch, payload: &[u8], message: Message) {
    let at = batch.messages.len() * Batch::STRIDE;
    batch.bytes[at..at + payload.len()].copy_from_slice(payload);
    batch.messages.push(message);
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Host for ScriptHost {
    type Stream = ScriptStream;
    type Datagram = ScriptDatagram;
    type Pipe = ScriptPipe;

    fn connect(
        &mut self,
        side: Side,
        to: Endpoint,
        token: Token,
        interest: Interest,
    ) -> io::Result<(ScriptStream, Connect)> {
        let how = self.state.borrow_mut().connects.pop_front().unwrap_or(Ok(Connect::Done))?;
        let stream = self.open(to, Some(token));
        stream.with(|sock| (sock.side, sock.interest) = (side, interest));
        Ok((stream, how))
    }

    fn connect_result(&mut self, stream: &ScriptStream) -> io::Result<()> {
        stream.with(|sock| sock.connect.map_err(errno))
    }

    fn accept(&mut self, _listener: u32) -> io::Result<Accepted<ScriptStream>> {
        let next = self.state.borrow_mut().backlog.pop_front();
        let (peer, local, rule) = next.unwrap_or_else(|| Err(ErrorKind::WouldBlock.into()))?;
        Ok(Accepted { stream: self.open(peer, None), peer, local, rule })
    }

    fn watch(
        &mut self,
        stream: &mut ScriptStream,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        if let Some(number) = self.state.borrow_mut().watch_errors.pop_front() {
            return Err(errno(number));
        }
        stream.with(|sock| {
            sock.token = Some(token);
            sock.interest = interest;
        });
        Ok(())
    }

    fn send(&mut self, stream: &mut ScriptStream, payload: &[Span<'_>]) -> io::Result<usize> {
        stream.with(|sock| {
            assert!(!sock.shut && !payload.is_empty(), "a send that makes no sense");
            if let Some(number) = sock.send_error {
                return Err(errno(number));
            }
            let mut taken = 0;
            for span in payload {
                let mut bytes = vec![0; span.len().min(sock.room - taken)];
                span.read(0, &mut bytes);
                taken += bytes.len();
                sock.sent.extend(bytes);
            }
            sock.room -= taken;
            sock.sends.push(taken);
            if taken == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
        })
    }

    fn peek(
        &mut self,
        stream: &mut ScriptStream,
        skip: usize,
        room: &[SpanMut<'_>],
    ) -> io::Result<usize> {
        let room = &room[..room.len().min(MAX_ROOM)];
        let asked: usize = room.iter().map(SpanMut::len).sum();
        assert!(asked > 0, "a peek into nothing");
        stream.with(|sock| {
            sock.peeks += 1;
            assert!(skip <= sock.incoming.len(), "skipped more than there is");
            let start = if sock.from_front { 0 } else { skip };
            let end = sock.mark.filter(|&mark| mark > start).unwrap_or(usize::MAX);
            let most = asked.min(end.saturating_sub(skip));
            let bytes: Vec<u8> = sock.incoming.iter().skip(skip).take(most).copied().collect();
            scatter(room, 0, &bytes);
            match (bytes.len(), sock.error, sock.fin) {
                (0, ..) if end <= skip => Err(ErrorKind::WouldBlock.into()),
                (0, Some(number), _) => Err(errno(number)),
                (0, None, false) => Err(ErrorKind::WouldBlock.into()),
                (n, ..) => Ok(n),
            }
        })
    }

    fn discard(&mut self, stream: &mut ScriptStream, n: usize) -> io::Result<usize> {
        stream.with(|sock| {
            assert!(n > 0 && n <= sock.incoming.len(), "discarded what is not there");
            // In two steps, as a kernel may.
            let n = n.div_ceil(2).min(sock.mark.filter(|&mark| mark > 0).unwrap_or(usize::MAX));
            sock.incoming.drain(..n);
            sock.mark = sock.mark.and_then(|mark| mark.checked_sub(n));
            Ok(n)
        })
    }

    fn shutdown(&mut self, stream: &mut ScriptStream) -> io::Result<()> {
        stream.with(|sock| {
            assert!(!sock.shut, "shut down twice");
            sock.shut = true;
            sock.shutdown_error.map_or(Ok(()), |number| Err(errno(number)))
        })
    }

    fn reset(&mut self, stream: ScriptStream) {
        stream.with(|sock| sock.reset = true);
    }

    fn keepalive(&mut self, stream: &mut ScriptStream) {
        stream.with(|sock| sock.keepalive = true);
    }

    fn hurry(&mut self, stream: &mut ScriptStream) {
        stream.with(|sock| sock.hurried += 1);
    }

    fn widen(&mut self, stream: &mut ScriptStream) {
        stream.with(|sock| sock.widened += 1);
    }

    fn info(&mut self, stream: &ScriptStream) -> io::Result<StreamInfo> {
        stream.with(|sock| {
            sock.infos.set(sock.infos.get() + 1);
            Ok(StreamInfo {
                send_room: sock.info.send_room.min(u32::try_from(sock.room).unwrap_or(u32::MAX)),
                ..sock.info
            })
        })
    }

    fn take_error(&mut self, stream: &ScriptStream) -> Option<io::Error> {
        stream.with(|sock| sock.error.take().map(errno))
    }

    fn is_starved(&self) -> bool {
        self.state.borrow().starved
    }

    fn feed(&mut self) {
        let mut state = self.state.borrow_mut();
        state.starved = false;
        state.fed += 1;
    }

    fn relisten(
        &mut self,
        _: &passt::flow::rules::Rules,
    ) -> Result<passt::host::Relisten, passt::host::Failure> {
        Ok(passt::host::Relisten::Done(passt::host::Changes::default()))
    }

    fn scan(&mut self, _: &passt::flow::rules::Rules) -> Scan {
        self.state.borrow_mut().scans.pop_front().unwrap_or(Scan::Off)
    }

    fn listener_protocol(&self, listener: u32) -> Option<Protocol> {
        match listener {
            0 | 2 => Some(Protocol::Tcp),
            1 | 3 => Some(Protocol::Udp),
            _ => None,
        }
    }

    fn listener_side(&self, listener: u32) -> Side {
        match listener {
            2 | 3 => Side::Inside,
            _ => Side::Outside,
        }
    }

    fn open_udp(
        &mut self,
        side: Side,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<(ScriptDatagram, Endpoint)> {
        let socket = self.open_datagrams(Some(local), remote, token)?;
        socket.with(|socket| socket.side = side);
        Ok((socket, local))
    }

    fn open_echo(
        &mut self,
        remote: IpAddr,
        identifier: u16,
        flow: FlowId,
    ) -> io::Result<ScriptDatagram> {
        self.open_datagrams(None, Endpoint::new(remote, identifier), Token::Datagram(flow))
    }

    fn send_messages(
        &mut self,
        socket: &mut ScriptDatagram,
        messages: &[Outbound],
        spans: &[Span<'_>],
        ttl: u8,
    ) -> io::Result<usize> {
        assert!(!messages.is_empty(), "nothing to send");
        socket.with(|socket| socket.calls += 1);
        if let Some(number) = socket.with(|socket| socket.refusing) {
            return Err(errno(number));
        }
        let mut spans = spans;
        for message in messages {
            let (mine, rest) = spans.split_at(message.spans);
            spans = rest;
            let mut bytes = vec![0; mine.iter().map(Span::len).sum()];
            gather(mine, 0, &mut bytes);
            let size = message.segment.map_or(bytes.len(), usize::from).max(1);
            assert!(bytes.len().div_ceil(size) <= 128, "more than the kernel takes");
            socket.with(|socket| match bytes.len() {
                0 => socket.sent.push((bytes, ttl)),
                _ => socket.sent.extend(bytes.chunks(size).map(|part| (part.to_vec(), ttl))),
            });
        }
        Ok(messages.len())
    }

    fn receive_messages(
        &mut self,
        socket: &mut ScriptDatagram,
        batch: &mut Batch,
        _coalesce: bool,
    ) -> io::Result<usize> {
        batch.messages.clear();
        socket.with(|socket| {
            while batch.messages.len() < Batch::MESSAGES
                && let Some((payload, segment)) = socket.incoming.pop_front()
            {
                let message = Message { len: payload.len(), segment, from: None, to: None };
                put(batch, &payload, message);
            }
        });
        match batch.messages.len() {
            0 => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }

    fn receive_listener(&mut self, listener: u32, batch: &mut Batch) -> io::Result<(usize, usize)> {
        assert!(matches!(listener, 1 | 3));
        batch.messages.clear();
        let waiting = &mut self.state.borrow_mut().listener;
        while batch.messages.len() < Batch::MESSAGES
            && let Some((payload, from, to)) = waiting.pop_front()
        {
            let (len, from, to) = (payload.len(), Some(from), Some(to));
            put(batch, &payload, Message { len, segment: None, from, to });
        }
        match batch.messages.len() {
            0 => Err(ErrorKind::WouldBlock.into()),
            n => Ok((1, n)),
        }
    }

    fn pause(&mut self, socket: &mut ScriptDatagram, paused: bool) {
        socket.with(|socket| socket.paused = paused);
    }

    fn pause_listener(&mut self, _listener: u32, paused: bool) {
        self.state.borrow_mut().listener_paused = paused;
    }

    fn next_error(&mut self, socket: &mut ScriptDatagram) -> Option<SocketError> {
        socket.with(|socket| socket.errors.pop_front())
    }

    fn pipe(&mut self) -> io::Result<ScriptPipe> {
        let mut state = self.state.borrow_mut();
        if let Some(number) = state.pipe_errors.pop_front() {
            return Err(errno(number));
        }
        let index = match state.pipes.iter().position(|pipe| pipe.free) {
            Some(index) => index,
            None => {
                state.pipes.push(Pipe::default());
                state.pipes.len() - 1
            }
        };
        state.pipes[index] = Pipe::default();
        Ok(ScriptPipe { state: Rc::clone(&self.state), index })
    }

    fn give_back(&mut self, pipe: ScriptPipe) {
        let index = pipe.index;
        drop(pipe);
        let pipe = &mut self.state.borrow_mut().pipes[index];
        assert!(pipe.bytes.is_empty(), "a pipe that is not empty was given back");
        (pipe.free, pipe.closed) = (true, false);
    }

    fn fill(
        &mut self,
        pipe: &mut ScriptPipe,
        stream: &mut ScriptStream,
        max: usize,
    ) -> io::Result<usize> {
        let state = &mut *self.state.borrow_mut();
        assert!(max > 0 && state.pipes[pipe.index].bytes.is_empty(), "a fill that makes no sense");
        let sock = &state.socks[stream.index];
        let end = sock.mark.unwrap_or(usize::MAX);
        let there = sock.incoming.len().min(end).min(max).min(state.pipe_size);
        let some = state.some_of(there);
        let sock = &mut state.socks[stream.index];
        match (some, sock.error, sock.fin) {
            (Some(0), Some(number), _) => Err(errno(number)),
            (Some(0), None, true) => Ok(0),
            (None | Some(0), ..) => {
                sock.owes.readable = there > 0;
                Err(ErrorKind::WouldBlock.into())
            }
            (Some(n), ..) => {
                sock.mark = sock.mark.map(|mark| mark - n);
                state.pipes[pipe.index].bytes.extend(sock.incoming.drain(..n));
                Ok(n)
            }
        }
    }

    fn fill_one(&mut self, pipe: &mut ScriptPipe, stream: &mut ScriptStream) -> io::Result<usize> {
        let mark = stream.with(|sock| sock.mark.take());
        let filled = self.fill(pipe, stream, 1);
        let n = *filled.as_ref().unwrap_or(&0);
        stream.with(|sock| sock.mark = mark.and_then(|mark| mark.checked_sub(n)));
        filled
    }

    fn drain(
        &mut self,
        pipe: &mut ScriptPipe,
        stream: &mut ScriptStream,
        n: usize,
    ) -> io::Result<usize> {
        let state = &mut *self.state.borrow_mut();
        assert!(n > 0 && n <= state.pipes[pipe.index].bytes.len(), "a drain that makes no sense");
        assert!(!state.socks[stream.index].shut, "a drain behind the FIN");
        if let Some(number) = state.socks[stream.index].send_error {
            return Err(errno(number));
        }
        let room = state.socks[stream.index].room.min(n);
        let some = state.some_of(room);
        let sock = &mut state.socks[stream.index];
        match some {
            None | Some(0) => {
                sock.owes.writable = room > 0;
                Err(ErrorKind::WouldBlock.into())
            }
            Some(n) => {
                sock.room -= n;
                sock.sends.push(n);
                sock.sent.extend(state.pipes[pipe.index].bytes.drain(..n));
                Ok(n)
            }
        }
    }
}

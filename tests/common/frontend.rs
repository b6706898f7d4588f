//! A vhost-user front-end that says what it is told to, byte by byte if need be, and a machine
//! around it: link, memory and both rings. One thread, nothing blocks: after each message
//! [`Machine::pump`] lets the link work off its events.

use super::driver::{DriverRing, Memory, VMM};
use passt::link::vhost::{Settings, VhostLink, features};
use passt::link::{Link, LinkEvents};
use passt::sys::epoll::{Epoll, Events};
use passt::time::Duration;
use passt::token::Token;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SEND_RARP: u32 = 19;
pub const NET_SET_MTU: u32 = 20;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

/// Flags of a message: version 1, and the wish for a reply.
pub const PLAIN: u32 = 1;
pub const NEED_REPLY: u32 = 1 | 8;

/// Protocol features.
pub const REPLY_ACK: u64 = 1 << 3;
pub const CONFIG: u64 = 1 << 9;
pub const BACKEND_REQ: u64 = 1 << 5;
pub const RESET: u64 = 1 << 13;
pub const MEM_SLOTS: u64 = 1 << 15;

/// A message, as bytes.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, flags, body.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(body);
    bytes
}

/// A body of u64s.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// A body of two u32s: index and number.
pub fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_ne_bytes(), num.to_ne_bytes()].concat()
}

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub request: u32,
    pub flags: u32,
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as one u64.
    #[track_caller]
    pub fn value(&self) -> u64 {
        u64::from_ne_bytes(self.body[..].try_into().expect("a u64"))
    }
}

/// The VMM's end of the control socket.
pub struct FrontEnd {
    pub stream: UnixStream,
}

impl FrontEnd {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).expect("nonblocking");
        Self { stream }
    }

    /// Sends bytes and descriptors as they are.
    pub fn send_raw(&self, bytes: &[u8], fds: &[RawFd]) {
        let sent = self.stream.send_with_fds(&[bytes], fds).expect("sent");
        assert_eq!(sent, bytes.len());
    }

    /// Sends a message.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[RawFd]) {
        self.send_raw(&message(request, flags, body), fds);
    }

    /// The next reply, if one is there.
    pub fn reply(&mut self) -> Option<Reply> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).ok()?;
        let word = |n: usize| u32::from_ne_bytes(header[4 * n..4 * n + 4].try_into().expect("u32"));
        let mut body = vec![0; word(2) as usize];
        self.stream.read_exact(&mut body).expect("a whole reply");
        Some(Reply { request: word(0), flags: word(1), body })
    }

    /// Whether the link has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(n) => n == 0,
            // Reset, when it went without reading all that we sent.
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// How a [`Machine`] is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Feature bits that the driver takes, if they are offered.
    pub features: u64,
    /// Entries of the rings.
    pub size: u16,
    pub settings: Settings,
    /// Guest memory.
    pub regions: Vec<(u64, u64)>,
    /// Announce memory by ADD_MEM_REG.
    pub slots: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: features::ALL,
            size: 256,
            settings: Settings { mtu: Some(65_520), ..Settings::default() },
            regions: vec![(0, 8 << 20), (8 << 20, 8 << 20), (32 << 20, 8 << 20)],
            slots: false,
        }
    }
}

/// Where rings lie.
pub const RX_RING: u64 = 0x1_0000;
pub const TX_RING: u64 = 0x8_0000;
/// Where buffers may lie, up to the end of the first region.
pub const BUFFERS: u64 = 0x20_0000;

/// A link and all that is on its other side.
pub struct Machine {
    pub epoll: Rc<Epoll>,
    pub link: VhostLink,
    pub front: FrontEnd,
    pub memory: &'static Memory,
    pub rx: DriverRing,
    pub tx: DriverRing,
    pub options: Options,
}

impl Machine {
    /// A link with a front-end connected, and nothing said yet.
    pub fn silent(options: Options) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let epoll = Rc::new(Epoll::new().expect("epoll"));
        let link = VhostLink::connected(theirs, Rc::clone(&epoll), options.settings);
        let memory = Memory::new(&options.regions);
        let mut rx = DriverRing::new(memory, RX_RING, options.size);
        let mut tx = DriverRing::new(memory, TX_RING, options.size);
        rx.event_idx = options.features & features::EVENT_IDX != 0;
        tx.event_idx = rx.event_idx;
        let front = FrontEnd::new(ours);
        Self { epoll, link: link.expect("link"), front, memory, rx, tx, options }
    }

    /// A machine whose driver has started both rings.
    pub fn new(options: Options) -> Self {
        let mut machine = Self::silent(options);
        machine.boot();
        machine
    }

    /// Lets the link work off all its events; returns what it said of them.
    pub fn pump(&mut self) -> LinkEvents {
        pump(&self.epoll, &mut self.link)
    }

    /// Sends a message and lets the link work.
    pub fn say(&mut self, request: u32, body: &[u8], fds: &[RawFd]) -> LinkEvents {
        self.front.send(request, PLAIN, body, fds);
        self.pump()
    }

    /// Sends a message that asks for an answer, and returns it.
    #[track_caller]
    pub fn ask(&mut self, request: u32, body: &[u8], fds: &[RawFd]) -> u64 {
        self.front.send(request, NEED_REPLY, body, fds);
        self.pump();
        self.front.reply().expect("a reply").value()
    }

    /// Sends a request that always has a reply, and returns it.
    #[track_caller]
    pub fn get(&mut self, request: u32, body: &[u8]) -> Reply {
        self.say(request, body, &[]);
        let reply = self.front.reply().expect("a reply");
        assert_eq!((reply.request, reply.flags), (request, 5));
        reply
    }

    /// All that a front-end says up to running rings.
    pub fn boot(&mut self) -> LinkEvents {
        self.negotiate();
        self.share_memory();
        self.start_rings()
    }

    /// Features.
    pub fn negotiate(&mut self) {
        let offered = self.get(GET_FEATURES, &[]).value();
        let features = self.options.features & offered;
        if features & features::PROTOCOL_FEATURES != 0 {
            let offered = self.get(GET_PROTOCOL_FEATURES, &[]).value();
            self.say(SET_PROTOCOL_FEATURES, &words(&[offered]), &[]);
        }
        self.say(SET_OWNER, &[], &[]);
        self.say(SET_FEATURES, &words(&[features]), &[]);
    }

    /// The memory table.
    pub fn share_memory(&mut self) {
        let fd = self.memory.file.as_raw_fd();
        if self.options.slots {
            for region in &self.memory.regions {
                let body =
                    words(&[0, region.guest, region.size, region.guest + VMM, region.offset]);
                assert_eq!(self.front_ask(ADD_MEM_REG, &body, &[fd]), 0);
            }
            return;
        }
        let mut body = words(&[self.memory.regions.len() as u64]);
        for r in &self.memory.regions {
            body.extend(words(&[r.guest, r.size, r.guest + VMM, r.offset]));
        }
        self.say(SET_MEM_TABLE, &body, &vec![fd; self.memory.regions.len()]);
    }

    fn front_ask(&mut self, request: u32, body: &[u8], fds: &[RawFd]) -> u64 {
        self.front.send(request, NEED_REPLY, body, fds);
        pump(&self.epoll, &mut self.link);
        self.front.reply().expect("a reply").value()
    }

    /// Sets up and starts both rings, from their present indices on.
    pub fn start_rings(&mut self) -> LinkEvents {
        let mut all = LinkEvents::default();
        for index in 0..2 {
            all = merge(all, self.start_ring(index));
        }
        for index in 0..2 {
            if self.options.features & features::PROTOCOL_FEATURES != 0 {
                all = merge(all, self.say(SET_VRING_ENABLE, &state(index, 1), &[]));
            }
        }
        all
    }

    /// Sets up and starts one ring.
    pub fn start_ring(&mut self, index: u32) -> LinkEvents {
        let ring = if index == 0 { &self.rx } else { &self.tx };
        let (size, base) = (u32::from(ring.size), u32::from(ring.seen));
        let fds = [ring.err.as_raw_fd(), ring.call.as_raw_fd(), ring.kick.as_raw_fd()];
        let addr = ring_addr(index, ring);
        let which = words(&[u64::from(index)]);
        let mut all = self.say(SET_VRING_NUM, &state(index, size), &[]);
        all = merge(all, self.say(SET_VRING_BASE, &state(index, base), &[]));
        all = merge(all, self.say(SET_VRING_ADDR, &addr, &[]));
        all = merge(all, self.say(SET_VRING_ERR, &which, &fds[..1]));
        all = merge(all, self.say(SET_VRING_CALL, &which, &fds[1..2]));
        merge(all, self.say(SET_VRING_KICK, &which, &fds[2..]))
    }

    /// Stops a ring; returns its base.
    pub fn stop_ring(&mut self, index: u32) -> u32 {
        let reply = self.get(GET_VRING_BASE, &state(index, 0));
        assert_eq!(reply.body[..4], index.to_ne_bytes());
        u32::from_ne_bytes(reply.body[4..].try_into().expect("u32"))
    }
}

/// The body of SET_VRING_ADDR.
pub fn ring_addr(index: u32, ring: &DriverRing) -> Vec<u8> {
    let mut body = state(index, 0);
    body.extend(words(&[ring.descriptors + VMM, ring.used + VMM, ring.available + VMM, 0]));
    body
}

/// Lets a link work off all its events.
pub fn pump(epoll: &Epoll, link: &mut VhostLink) -> LinkEvents {
    let mut events = Events::with_capacity(8);
    let mut all = LinkEvents::default();
    while epoll.wait(&mut events, Some(Duration::ZERO)).expect("epoll") > 0 {
        for (token, ready) in events.iter() {
            let Token::Link(which) = token else { panic!("a token of the link's: {token:?}") };
            all = merge(all, link.on_event(which, ready).expect("on_event"));
        }
    }
    all
}

/// What either says.
pub fn merge(a: LinkEvents, b: LinkEvents) -> LinkEvents {
    LinkEvents {
        frames: a.frames | b.frames,
        room: a.room | b.room,
        up: a.up | b.up,
        ended: a.ended | b.ended,
    }
}

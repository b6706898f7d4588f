//! A network in memory: a virtual clock, chance from a seed, and the two far sides of the engine,
//! [`super::sim_link`] and [`super::sim_host`], with a TCP that is not ours, [`super::smol`], as
//! the guest. To look into a seed, set SIM_TRACE: every segment is printed.

use super::sim_host::{Peer, SimHost};
use super::sim_link::SimLink;
use super::smol::Guest;
use passt::config::guest::{Dns, GuestV4, GuestV6, GuestView, Services, Translation};
use passt::config::ports::Rule;
use passt::engine::{Engine, Protocols, Settings};
use passt::flow::forward::Splicing;
use passt::flow::{Endpoint, Protocol};
use passt::link::{Link, Sink};
use passt::time::{Duration, Instant};
use passt::translate::datagram::Timeouts;
use passt::translate::tcp::Patience;
use passt::wire::MacAddr;
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

pub const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub const PEER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
pub const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 80);

/// The port that the guest listens on.
pub const GUEST_PORT: u16 = 8080;

/// The port of the first peer that opens a connection; the others' follow.
pub const PEER_PORT: u16 = 40_000;

/// Chance: SplitMix64.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Whether something of `percent` happens.
    pub fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < usize::from(percent)
    }
}

/// The byte at `at` of a stream with this name. Another stream's bytes are others.
pub fn byte(stream: u64, at: usize) -> u8 {
    let x = (at as u64 ^ (stream << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 56) as u8
}

/// What goes wrong, in percent, and how tight things are.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Frames lost, in each direction.
    pub loss: u8,
    pub duplicate: u8,
    /// Frames that are overtaken by later ones.
    pub reorder: u8,
    /// Frames that the guest's receive ring holds.
    pub ring: usize,
    /// Wake-ups of the guest that it sleeps through, for up to this long.
    pub sleep: Duration,
    /// Sends that the socket takes only a part of.
    pub short_write: u8,
    /// What the socket's buffers hold, each way.
    pub socket: usize,
    /// The guest's buffers, each way.
    pub guest: usize,
    pub mtu: u16,
    /// Whether the link segments and the guest does not sum.
    pub offload: bool,
}

impl Weather {
    /// Nothing goes wrong and there is room for everything.
    pub const FAIR: Self = Self {
        loss: 0,
        duplicate: 0,
        reorder: 0,
        ring: 256,
        sleep: Duration::ZERO,
        short_write: 0,
        socket: 1 << 20,
        guest: 1 << 18,
        mtu: 1500,
        offload: false,
    };
}

/// What one flow carries.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub opened_by: OpenedBy,
    pub v6: bool,
    /// Bytes from the guest, then its FIN.
    pub up: usize,
    /// Bytes to the guest, then the peer's FIN.
    pub down: usize,
    /// Who waits for the other's FIN before its own.
    pub last: Last,
    pub fate: Fate,
}

/// How a flow ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All bytes cross, then both FINs.
    Well,
    /// Nobody listens where the guest wants to connect.
    Refused,
    /// The peer resets the connection after so many bytes both ways.
    PeerResets(usize),
    /// The guest does.
    GuestResets(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedBy {
    Guest,
    Peer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    Guest,
    Peer,
    Nobody,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Data segments to the guest that had been sent before.
    pub resent_to_guest: u64,
    /// Data segments from the guest that had been sent before.
    pub resent_by_guest: u64,
    /// Resets seen by the guest.
    pub resets: u64,
    pub steps: usize,
    pub time: Duration,
}

pub struct World {
    pub now: Instant,
    weather: Weather,
    chance: Chance,
    pub engine: Engine<SimHost>,
    pub link: SimLink,
    pub guest: Guest,
    pub peers: Rc<RefCell<Vec<Peer>>>,
    /// The guest looks at its rings again then.
    awake_at: Instant,
}

fn view(mtu: u16) -> GuestView {
    GuestView {
        our_mac: MacAddr([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]),
        mtu: Some(mtu),
        v4: Some(GuestV4 {
            addr: GUEST_V4,
            prefix_len: 24,
            gateway: Some(GATEWAY_V4),
            our_addr: GATEWAY_V4,
            fixed: false,
        }),
        v6: Some(GuestV6 {
            addr: Some(GUEST_V6),
            prefix_len: 64,
            gateway: Some(GATEWAY_V6),
            our_link_local: GATEWAY_V6,
            fixed: false,
        }),
        dns: Dns::default(),
        services: Services { dhcp: false, dhcpv6: false, ndp: true, ra: false },
    }
}

/// Connections from outside are taken by one rule, whose listener is number 0.
fn rule() -> Rule {
    Rule {
        listen: None,
        ifname: None,
        protocol: Protocol::Tcp,
        first: GUEST_PORT,
        last: GUEST_PORT,
        target: None,
        to: GUEST_PORT,
        weak: false,
        auto: false,
    }
}

impl World {
    pub fn new(seed: u64, weather: Weather, loads: &[Load]) -> Self {
        let now = Instant::ZERO + Duration::from_secs(3600);
        let peers = Rc::new(RefCell::new(Vec::new()));
        let host = SimHost::new(peers.clone(), weather, seed);
        let settings = Settings {
            view: view(weather.mtu),
            translation: Translation::default(),
            rules: vec![rule()].into(),
            protocols: Protocols { tcp: true, udp: false, icmp: false },
            max_flows: 1000,
            timeouts: Timeouts::default(),
            patience: Patience::DEFAULT,
            guest_mac: None,
            splicing: Splicing::default(),
            hash_key: seed.to_le_bytes().repeat(2).try_into().expect("16 bytes"),
        };
        let engine = Engine::new(host, settings, now);
        let link = SimLink::new(weather, seed);
        let mut guest = Guest::new(weather, now);
        for (index, load) in loads.iter().enumerate() {
            let port = match load.opened_by {
                OpenedBy::Guest => 1000 + index as u16,
                OpenedBy::Peer => PEER_PORT + index as u16,
            };
            let addr: IpAddr = if load.v6 { PEER_V6.into() } else { PEER_V4.into() };
            peers.borrow_mut().push(Peer::new(index as u64, *load, Endpoint::new(addr, port)));
            guest.add(index, *load, Endpoint::new(addr, port), weather.guest);
        }
        let chance = Chance::new(seed);
        Self { now, weather, chance, engine, link, guest, peers, awake_at: now }
    }

    /// Runs until all flows are done.
    pub fn run(&mut self) -> Report {
        const STEPS: usize = 400_000;
        let start = self.now;
        for steps in 0..STEPS {
            self.step();
            let wrong = self.peers.borrow().iter().any(|peer| {
                // A guest whose last ACKs are lost forgets in the end: a reset answers our FIN then.
                let at_the_end = self.weather.loss > 0 && peer.has_all() && self.guest.is_done();
                peer.was_reset_without_reason() && !at_the_end
            });
            assert!(!wrong, "a peer was reset: {}", self.describe());
            if self.is_done() {
                return Report {
                    resent_to_guest: self.link.twice_to_guest(),
                    resent_by_guest: self.link.twice_from_guest(),
                    resets: self.link.resets(),
                    steps,
                    time: self.now.since(start),
                };
            }
            self.advance();
        }
        panic!("not done at {:?}: {}", self.now.since(start), self.describe());
    }

    fn is_done(&self) -> bool {
        self.peers.borrow().iter().all(Peer::is_done)
            && self.guest.is_done()
            && self.engine.tcp_flows() == 0
    }

    fn describe(&self) -> String {
        let peers = self.peers.borrow();
        let open: Vec<_> = peers.iter().filter(|peer| !peer.is_done()).collect();
        format!(
            "{} flows, peers {open:?}, guest {}",
            self.engine.tcp_flows(),
            self.guest.describe()
        )
    }

    /// Everything that happens at this instant.
    fn step(&mut self) {
        let now = self.now;
        if now >= self.awake_at {
            if !self.weather.sleep.is_zero() && self.chance.percent(2) {
                let nanos = self.chance.next() % self.weather.sleep.as_nanos() as u64;
                self.awake_at = now + Duration::from_nanos(nanos);
            }
            self.link.give_to_guest(self.guest.device(), now);
            self.guest.poll(now);
            self.link.take_from_guest(self.guest.device(), now);
        }
        for peer in self.peers.borrow_mut().iter_mut() {
            peer.act(now, &mut self.chance);
        }
        let room = self.link.room_has_come();
        let (source, sink) = self.link.halves();
        if room {
            self.engine.on_room(sink, now);
        }
        source.now = now;
        while self.engine.ingress(source, sink, now).expect("memory does not fail") > 0 {}
        let events = self.engine.host_mut().events();
        for (token, ready) in events {
            self.engine.on_socket(token, ready, sink, now);
        }
        self.engine.on_deadlines(sink, now);
        for _ in 0..100 {
            if !self.engine.has_ready() {
                break;
            }
            self.engine.run_ready(sink, now);
        }
        sink.flush().expect("memory does not fail");
    }

    /// Time moves on to whatever comes next, but a little at least.
    fn advance(&mut self) {
        let mut next = self.now + Duration::from_secs(1);
        let mut consider = |at: Option<Instant>| {
            if let Some(at) = at {
                next = next.min(at);
            }
        };
        consider(self.engine.next_deadline());
        consider(self.link.next_arrival());
        if self.awake_at > self.now {
            consider(Some(self.awake_at));
        } else {
            consider(self.guest.poll_at(self.now));
            if self.link.has_for_guest() {
                consider(Some(self.now));
            }
        }
        let peers = self.peers.borrow();
        peers.iter().for_each(|peer| consider(peer.next()));
        self.now = next.max(self.now + Duration::from_micros(10));
    }
}

//! The engine between a scripted link and a scripted host: no sockets, no clock, no chance.

use super::script_host::{Datagrams, ScriptHost, Sock};
use super::script_link::ScriptLink;
use passt::config::guest::{Dns, GuestV4, GuestV6, GuestView, Nat, Services, Translation};
use passt::config::ports::Rule;
use passt::engine::counters::DropReason;
use passt::engine::{Engine, Protocols, Settings};
use passt::flow::forward::Splicing;
use passt::flow::{FlowId, Protocol};
use passt::link::{Link, Offload, Sink};
use passt::time::{Duration, Instant};
use passt::token::{Readiness, Token};
use passt::translate::datagram::Timeouts;
use passt::translate::tcp::Patience;
use passt::wire::MacAddr;
use std::cell::RefMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const OUR_MAC: [u8; 6] = [0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];
pub const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
pub const GUEST_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));
pub const GUEST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5));
pub const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
pub const PEER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80));
pub const PEER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 80));

/// The port that rules 0 (TCP) and 1 (UDP) take from outside; the guest sees [`GUEST_PORT`].
pub const HOST_PORT: u16 = 2222;
pub const GUEST_PORT: u16 = 22;

pub struct Rig {
    pub engine: Engine<ScriptHost>,
    pub link: ScriptLink,
    pub now: Instant,
}

pub fn view() -> GuestView {
    let IpAddr::V4(addr) = GUEST_V4 else { unreachable!() };
    let IpAddr::V4(gateway) = GATEWAY_V4 else { unreachable!() };
    let IpAddr::V6(addr6) = GUEST_V6 else { unreachable!() };
    let IpAddr::V6(gateway6) = GATEWAY_V6 else { unreachable!() };
    GuestView {
        our_mac: MacAddr(OUR_MAC),
        mtu: Some(1500),
        v4: Some(GuestV4 {
            addr,
            prefix_len: 24,
            gateway: Some(gateway),
            our_addr: gateway,
            fixed: false,
        }),
        v6: Some(GuestV6 {
            addr: Some(addr6),
            prefix_len: 64,
            gateway: Some(gateway6),
            our_link_local: gateway6,
            fixed: false,
        }),
        dns: Dns::default(),
        services: Services { dhcp: true, dhcpv6: true, ndp: true, ra: true },
    }
}

fn rule(protocol: Protocol) -> Rule {
    Rule {
        listen: None,
        ifname: None,
        protocol,
        first: HOST_PORT,
        last: HOST_PORT,
        target: None,
        to: GUEST_PORT,
        weak: false,
        auto: false,
    }
}

pub fn settings() -> Settings {
    let IpAddr::V4(gateway) = GATEWAY_V4 else { unreachable!() };
    Settings {
        view: view(),
        translation: Translation {
            v4: Nat { host_loopback: Some(gateway), ..Nat::default() },
            v6: Nat::default(),
        },
        rules: vec![rule(Protocol::Tcp), rule(Protocol::Udp)].into(),
        protocols: Protocols { tcp: true, udp: true, icmp: true },
        max_flows: 1000,
        timeouts: Timeouts::default(),
        patience: Patience::DEFAULT,
        guest_mac: None,
        splicing: Splicing::default(),
        hash_key: *b"sixteen bytes ok",
    }
}

impl Rig {
    /// A link without offloads and with ample buffers, at MTU 1500.
    pub fn new() -> Self {
        Self::with(settings())
    }

    pub fn with(settings: Settings) -> Self {
        let now = Instant::ZERO + Duration::from_secs(3600);
        let engine = Engine::new(ScriptHost::new(), settings, now);
        Self { engine, link: ScriptLink::new(), now }
    }

    /// The guest sends these frames in one batch; what it gets in return.
    pub fn offer(&mut self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        for frame in frames {
            self.link.source.push(frame.clone(), Offload::default());
        }
        self.turn()
    }

    /// The guest sends one frame with an offload header.
    pub fn send_with(&mut self, frame: Vec<u8>, offload: Offload) -> Vec<Vec<u8>> {
        self.link.source.push(frame, offload);
        self.turn()
    }

    /// The guest sends one frame.
    pub fn send(&mut self, frame: Vec<u8>) -> Vec<Vec<u8>> {
        self.offer(&[frame])
    }

    /// Takes what the guest has queued; what it gets in return.
    pub fn turn(&mut self) -> Vec<Vec<u8>> {
        let (source, sink) = self.link.halves();
        while self.engine.ingress(source, sink, self.now).expect("memory does not fail") > 0 {}
        self.flush()
    }

    /// What the guest gets, without its offloads.
    pub fn flush(&mut self) -> Vec<Vec<u8>> {
        self.flush_with_offloads().into_iter().map(|(frame, _)| frame).collect()
    }

    pub fn flush_with_offloads(&mut self) -> Vec<(Vec<u8>, Offload)> {
        let sink = self.link.halves().1;
        sink.flush().expect("memory does not fail");
        sink.take()
    }

    /// A socket is ready; what the guest gets of it.
    pub fn ready(&mut self, token: Token, ready: Readiness) -> Vec<Vec<u8>> {
        self.engine.on_socket(token, ready, self.link.halves().1, self.now);
        self.flush()
    }

    /// Listener 0 (TCP) has connections.
    pub fn knock(&mut self) -> Vec<Vec<u8>> {
        self.ready(Token::Listener(0), READABLE)
    }

    /// The guest has given buffers, as far as the test has said so to the sink.
    pub fn room(&mut self) -> Vec<Vec<u8>> {
        self.engine.on_room(self.link.halves().1, self.now);
        self.flush()
    }

    /// Flows that have used up their share go on, once.
    pub fn run_ready(&mut self) -> Vec<Vec<u8>> {
        self.engine.run_ready(self.link.halves().1, self.now);
        self.flush()
    }

    /// Time passes.
    pub fn after(&mut self, time: Duration) -> Vec<Vec<u8>> {
        self.now = self.now + time;
        self.engine.on_deadlines(self.link.halves().1, self.now);
        self.flush()
    }

    /// Socket number `index`, in the order of their making.
    pub fn sock(&mut self, index: usize) -> RefMut<'_, Sock> {
        let state = self.engine.host_mut().state().borrow_mut();
        RefMut::map(state, |state| &mut state.socks[index])
    }

    /// UDP or ping socket number `index`, in the order of their making.
    pub fn datagrams(&mut self, index: usize) -> RefMut<'_, Datagrams> {
        let state = self.engine.host_mut().state().borrow_mut();
        RefMut::map(state, |state| &mut state.datagrams[index])
    }

    /// The remote end of datagram socket `index` sends.
    pub fn remote_sends(&mut self, index: usize, payloads: &[&[u8]]) -> Vec<Vec<u8>> {
        let token = self.datagrams(index).token;
        let messages = payloads.iter().map(|payload| (payload.to_vec(), None));
        self.datagrams(index).incoming.extend(messages);
        self.ready(token, READABLE)
    }

    /// The flow that socket `index` reports for.
    pub fn flow(&mut self, index: usize) -> FlowId {
        match self.sock(index).token {
            Some(Token::Tcp(flow)) => flow,
            other => panic!("socket {index} is watched as {other:?}"),
        }
    }

    /// The TCP socket `index` is ready.
    pub fn tcp_ready(&mut self, index: usize, ready: Readiness) -> Vec<Vec<u8>> {
        let token = Token::Tcp(self.flow(index));
        self.ready(token, ready)
    }

    /// The peer of socket `index` sends.
    pub fn peer_sends(&mut self, index: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.sock(index).incoming.extend(bytes);
        self.tcp_ready(index, READABLE)
    }

    /// The peer of socket `index` has sent its FIN.
    pub fn peer_ends(&mut self, index: usize) -> Vec<Vec<u8>> {
        self.sock(index).fin = true;
        self.tcp_ready(index, Readiness { readable: true, read_closed: true, ..NOT_READY })
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.engine.drops().get(reason)
    }

    pub fn all_drops(&self) -> Vec<(DropReason, u64)> {
        self.engine.drops().iter().collect()
    }
}

pub const NOT_READY: Readiness = Readiness {
    readable: false,
    writable: false,
    read_closed: false,
    hung_up: false,
    error: false,
    urgent: false,
};
pub const READABLE: Readiness = Readiness { readable: true, ..NOT_READY };
pub const WRITABLE: Readiness = Readiness { writable: true, ..NOT_READY };

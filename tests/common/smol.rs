//! smoltcp as the guest: a TCP that is not ours.

use super::sim::{
    Fate, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, GUEST_PORT, GUEST_V4, GUEST_V6, Last, Load, OpenedBy,
    PEER_PORT, Weather, byte,
};
use passt::flow::Endpoint;
use passt::time::{Duration, Instant};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};
use std::collections::VecDeque;

/// The guest's network device: frames to it and from it.
pub struct Wire {
    pub rx: VecDeque<Vec<u8>>,
    pub tx: VecDeque<Vec<u8>>,
    mtu: usize,
}

pub struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub struct Place<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Place<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Place<'a>;

    fn receive(&mut self, _now: SmolInstant) -> Option<(Frame, Place<'_>)> {
        Some((Frame(self.rx.pop_front()?), Place(&mut self.tx)))
    }

    fn transmit(&mut self, _now: SmolInstant) -> Option<Place<'_>> {
        Some(Place(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + 14;
        caps
    }
}

pub struct Guest {
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    flows: Vec<Flow>,
    loads: Vec<Load>,
    /// Resets may be lost: an idle guest has to ask.
    keep_alive: bool,
}

struct Flow {
    /// Its number among all flows; for a listener, known once someone has come.
    name: usize,
    peer: Endpoint,
    handle: SocketHandle,
    opened: bool,
    sent: usize,
    got: usize,
    closed: bool,
    got_fin: bool,
}

fn smol(at: Instant) -> SmolInstant {
    SmolInstant::from_micros((at.as_nanos() / 1000) as i64)
}

impl Guest {
    pub fn new(weather: Weather, now: Instant) -> Self {
        let mut wire = Wire { rx: VecDeque::new(), tx: VecDeque::new(), mtu: weather.mtu.into() };
        let mac = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC));
        let mut iface = Interface::new(Config::new(mac), &mut wire, smol(now));
        iface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(GUEST_V4.into(), 24)).expect("room for addresses");
            addrs.push(IpCidr::new(GUEST_V6.into(), 64)).expect("room for addresses");
        });
        iface.routes_mut().add_default_ipv4_route(GATEWAY_V4).expect("room for routes");
        iface.routes_mut().add_default_ipv6_route(GATEWAY_V6).expect("room for routes");
        Self {
            wire,
            iface,
            sockets: SocketSet::new(Vec::new()),
            flows: Vec::new(),
            loads: Vec::new(),
            keep_alive: weather.loss > 0,
        }
    }

    /// A socket with buffers of `size` bytes for one more flow.
    pub fn add(&mut self, name: usize, load: Load, peer: Endpoint, size: usize) {
        let buffer = || SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(), buffer());
        if self.keep_alive {
            socket.set_keep_alive(Some(smoltcp::time::Duration::from_secs(10)));
        }
        if load.opened_by == OpenedBy::Peer {
            socket.listen(GUEST_PORT).expect("the port is not 0");
        }
        let handle = self.sockets.add(socket);
        self.loads.push(load);
        self.flows.push(Flow {
            name,
            peer,
            handle,
            opened: false,
            sent: 0,
            got: 0,
            closed: false,
            got_fin: false,
        });
    }

    pub fn device(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Lets the stack and the programs on it run.
    pub fn poll(&mut self, now: Instant) {
        self.iface.poll(smol(now), &mut self.wire, &mut self.sockets);
        for flow in &mut self.flows {
            flow.run(&mut self.iface, self.sockets.get_mut(flow.handle), &self.loads);
        }
        self.iface.poll(smol(now), &mut self.wire, &mut self.sockets);
    }

    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.iface.poll_at(smol(now), &self.sockets)?;
        Some(Instant::ZERO + Duration::from_micros(at.total_micros() as u64))
    }

    /// Whether every flow that is to go well has, and no other is left.
    pub fn is_done(&self) -> bool {
        let well = |(name, load): (usize, &Load)| {
            load.fate != Fate::Well
                || self.flows.iter().any(|flow| {
                    flow.opened
                        && flow.name == name
                        && flow.got_fin
                        && (flow.got, flow.sent) == (load.down, load.up)
                })
        };
        let over = |flow: &Flow| {
            let state = self.sockets.get::<Socket<'_>>(flow.handle).state();
            matches!(state, State::Closed | State::TimeWait | State::Listen)
        };
        self.loads.iter().enumerate().all(well) && self.flows.iter().all(over)
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for flow in &self.flows {
            let state = self.sockets.get::<Socket<'_>>(flow.handle).state();
            let Flow { name, sent, got, .. } = flow;
            text += &format!("[{name} {state}: sent {sent}, got {got}] ");
        }
        text
    }
}

impl Flow {
    fn run(&mut self, iface: &mut Interface, socket: &mut Socket<'_>, loads: &[Load]) {
        if socket.state() == State::Listen {
            // Whoever came was reset before the handshake ended.
            self.opened = false;
        }
        let opened_by = loads[self.name].opened_by;
        if !self.opened {
            match opened_by {
                OpenedBy::Guest => {
                    let to = IpEndpoint::new(self.peer.addr.into(), self.peer.port);
                    let port = 50_000 + self.name as u16;
                    socket.connect(iface.context(), to, port).expect("a fresh socket");
                    self.opened = true;
                }
                OpenedBy::Peer => {
                    let Some(remote) = socket.remote_endpoint() else { return };
                    self.name = usize::from(remote.port - PEER_PORT);
                    self.opened = true;
                }
            }
        }
        let load = loads[self.name];
        if matches!(load.fate, Fate::GuestResets(n) if self.got + self.sent >= n) && !self.closed {
            self.closed = true;
            return socket.abort();
        }
        while socket.can_recv() {
            let start = self.got;
            let name = self.name as u64;
            let check = |bytes: &mut [u8]| {
                for (i, got) in bytes.iter().enumerate() {
                    assert_eq!(*got, byte(name * 2 + 1, start + i), "byte {} to it", start + i);
                }
                (bytes.len(), bytes.len())
            };
            self.got += socket.recv(check).expect("it said it can");
        }
        self.got_fin |= matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        while socket.can_send() && self.sent < load.up {
            let to = load.up.min(self.sent + 16_384);
            let bytes: Vec<u8> = (self.sent..to).map(|i| byte(self.name as u64 * 2, i)).collect();
            self.sent += socket.send_slice(&bytes).expect("it said it can");
        }
        let may_end = load.last != Last::Guest || self.got_fin;
        if self.sent == load.up && may_end && socket.may_send() && !self.closed {
            self.closed = true;
            socket.close();
        }
    }
}

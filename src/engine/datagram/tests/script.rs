//! A guest and a host by script: frames and messages in and out, room and errors on demand.

use crate::config::guest::{DEFAULT_MAC, Dns, GuestV4, GuestV6, GuestView, Services, Translation};
use crate::config::ports::Rule;
use crate::engine::{Engine, Protocols, Settings};
use crate::flow::forward::Splicing;
use crate::flow::{Endpoint, FlowId, Protocol, Side};
use crate::host::{Accepted, Batch, Connect, Host, Message, Outbound, SocketError, StreamInfo};
use crate::link::{Frame, LinkCaps, Offload, Refused, Sink, Slot, Source};
use crate::span::{Span, SpanMut, gather, total};
use crate::time::Instant;
use crate::token::{Interest, Readiness, Token};
use crate::translate::datagram::Timeouts;
use crate::translate::tcp::Patience;
use crate::wire::{MacAddr, checksum, ethernet, ipv4, ipv6, udp};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;

/// The guest's Ethernet address.
pub(super) const GUEST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// A batch of frames from the guest.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    frames: Vec<([Span<'a>; 1], Offload)>,
    taken: bool,
}

impl<'a> Frames<'a> {
    pub(super) fn new(frames: &'a [(Vec<u8>, Offload)]) -> Self {
        let spans =
            |(bytes, offload): &'a (Vec<u8>, Offload)| ([Span::from_slice(bytes)], *offload);
        Self { frames: frames.iter().map(spans).collect(), taken: false }
    }
}

impl Source for Frames<'_> {
    fn receive(&mut self) -> io::Result<usize> {
        let first = !std::mem::replace(&mut self.taken, true);
        Ok(if first { self.frames.len() } else { 0 })
    }

    fn frame(&self, index: usize) -> Frame<'_> {
        let (spans, offload) = &self.frames[index];
        Frame { spans, len: total(spans), offload: *offload }
    }

    fn release(&mut self) {}
}

/// The guest's receiving side.
#[derive(Debug)]
pub(super) struct Guest {
    /// Frames that it takes before it is full.
    pub(super) room: usize,
    pub(super) caps: LinkCaps,
    pub(super) frames: VecDeque<(Vec<u8>, Offload)>,
    /// Slots by their index, which is never used again.
    open: BTreeMap<u32, Vec<u8>>,
    next: u32,
}

impl Sink for Guest {
    fn caps(&self) -> LinkCaps {
        self.caps
    }

    fn reserve(&mut self, len: usize) -> Result<Slot, Refused> {
        if len > self.caps.max_frame {
            return Err(Refused::TooLarge);
        }
        if self.room == 0 {
            return Err(Refused::Full);
        }
        self.room -= 1;
        let index = self.next;
        self.next += 1;
        self.open.insert(index, vec![0; len]);
        Ok(Slot { index })
    }

    fn room<'a>(&'a self, _: &Slot, _: usize, _: &mut Vec<SpanMut<'a>>) {}

    fn write(&mut self, slot: &Slot, offset: usize, bytes: &[u8]) {
        let frame = self.open.get_mut(&slot.index).unwrap();
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> usize {
        let frame = &self.open[&slot.index][offset..];
        let n = frame.len().min(into.len());
        into[..n].copy_from_slice(&frame[..n]);
        n
    }

    fn commit(&mut self, slot: Slot, len: usize, offload: Offload) {
        let (first, mut frame) = self.open.pop_first().unwrap();
        assert_eq!(first, slot.index, "committed out of order");
        frame.truncate(len);
        self.frames.push_back((frame, offload));
    }

    fn cancel(&mut self, slot: Slot) {
        self.open.remove(&slot.index).unwrap();
        self.room += 1;
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One socket of the scripted host.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) token: Token,
    pub(super) echo: bool,
    pub(super) paused: bool,
    pub(super) sent: Vec<Sent>,
    /// What the next sends come to; when empty, everything is taken.
    pub(super) outcomes: VecDeque<Result<usize, i32>>,
    /// What all sends fail with, once they have run out.
    pub(super) refusing: Option<i32>,
    /// Calls that were to send, and the messages that they were given.
    pub(super) calls: usize,
    pub(super) offered: usize,
    pub(super) inbox: VecDeque<(Vec<u8>, Message)>,
    pub(super) errors: VecDeque<SocketError>,
    pub(super) coalesce: bool,
}

/// One message as it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    pub(super) segment: Option<u16>,
    pub(super) ttl: u8,
}

/// The host by script.
#[derive(Debug, Default)]
pub(super) struct Native {
    pub(super) sockets: Vec<Socket>,
    /// The error that opening a socket comes to.
    pub(super) refuse: Option<i32>,
    pub(super) listener: VecDeque<(Vec<u8>, Message)>,
    pub(super) listener_paused: bool,
    /// Calls that received, to see that a full guest costs none.
    pub(super) receives: usize,
}

/// A handle of the scripted host's.
pub(super) type Handle = usize;

impl Native {
    fn open(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
        echo: bool,
    ) -> io::Result<Handle> {
        if let Some(errno) = self.refuse {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.sockets.push(Socket {
            local,
            remote,
            token,
            echo,
            paused: false,
            sent: Vec::new(),
            outcomes: VecDeque::new(),
            refusing: None,
            calls: 0,
            offered: 0,
            inbox: VecDeque::new(),
            errors: VecDeque::new(),
            coalesce: false,
        });
        Ok(self.sockets.len() - 1)
    }
}

fn fill(batch: &mut Batch, inbox: &mut VecDeque<(Vec<u8>, Message)>) -> io::Result<usize> {
    batch.messages.clear();
    while batch.messages.len() < Batch::MESSAGES {
        let Some((bytes, message)) = inbox.pop_front() else { break };
        let at = batch.messages.len() * Batch::STRIDE;
        batch.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        batch.messages.push(message);
    }
    match batch.messages.len() {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        n => Ok(n),
    }
}

impl Host for Native {
    type Stream = ();
    type Datagram = Handle;
    type Pipe = ();

    fn is_starved(&self) -> bool {
        false
    }

    fn feed(&mut self) {}

    fn relisten(
        &mut self,
        _: &crate::flow::rules::Rules,
    ) -> Result<crate::host::Relisten, crate::host::Failure> {
        Ok(crate::host::Relisten::Done(crate::host::Changes::default()))
    }

    fn scan(&mut self, _: &crate::flow::rules::Rules) -> crate::host::Scan {
        crate::host::Scan::Off
    }

    fn listener_protocol(&self, _: u32) -> Option<Protocol> {
        Some(Protocol::Udp)
    }

    fn listener_side(&self, _: u32) -> Side {
        Side::Outside
    }

    fn open_udp(
        &mut self,
        _: Side,
        local: Endpoint,
        remote: Endpoint,
        token: Token,
    ) -> io::Result<(Handle, Endpoint)> {
        Ok((self.open(local, remote, token, false)?, local))
    }

    fn open_echo(&mut self, remote: IpAddr, identifier: u16, flow: FlowId) -> io::Result<Handle> {
        let remote = Endpoint::new(remote, identifier);
        self.open(remote, remote, Token::Datagram(flow), true)
    }

    fn send_messages(
        &mut self,
        socket: &mut Handle,
        messages: &[Outbound],
        mut spans: &[Span<'_>],
        ttl: u8,
    ) -> io::Result<usize> {
        let socket = &mut self.sockets[*socket];
        socket.calls += 1;
        socket.offered += messages.len();
        let outcome = socket.outcomes.pop_front().or_else(|| socket.refusing.map(Err));
        let n = match outcome {
            Some(Ok(n)) => n.min(messages.len()),
            Some(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            None => messages.len(),
        };
        for message in &messages[..n] {
            let (own, rest) = spans.split_at(message.spans);
            spans = rest;
            let mut bytes = vec![0; total(own)];
            gather(own, 0, &mut bytes);
            socket.sent.push(Sent { bytes, segment: message.segment, ttl });
        }
        Ok(n)
    }

    fn receive_messages(
        &mut self,
        socket: &mut Handle,
        batch: &mut Batch,
        coalesce: bool,
    ) -> io::Result<usize> {
        self.receives += 1;
        let socket = &mut self.sockets[*socket];
        socket.coalesce = coalesce;
        fill(batch, &mut socket.inbox)
    }

    fn receive_listener(&mut self, _: u32, batch: &mut Batch) -> io::Result<(usize, usize)> {
        self.receives += 1;
        Ok((0, fill(batch, &mut self.listener)?))
    }

    fn pause(&mut self, socket: &mut Handle, paused: bool) {
        self.sockets[*socket].paused = paused;
    }

    fn pause_listener(&mut self, _: u32, paused: bool) {
        self.listener_paused = paused;
    }

    fn next_error(&mut self, socket: &mut Handle) -> Option<SocketError> {
        self.sockets[*socket].errors.pop_front()
    }

    fn connect(
        &mut self,
        _: Side,
        _: Endpoint,
        _: Token,
        _: Interest,
    ) -> io::Result<((), Connect)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn connect_result(&mut self, (): &()) -> io::Result<()> {
        Ok(())
    }

    fn accept(&mut self, _: u32) -> io::Result<Accepted<()>> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn watch(&mut self, (): &mut (), _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, (): &mut (), _: &[Span<'_>]) -> io::Result<usize> {
        Ok(0)
    }

    fn peek(&mut self, (): &mut (), _: usize, _: &[SpanMut<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn discard(&mut self, (): &mut (), _: usize) -> io::Result<usize> {
        Ok(0)
    }

    fn shutdown(&mut self, (): &mut ()) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self, (): ()) {}

    fn keepalive(&mut self, (): &mut ()) {}

    fn widen(&mut self, (): &mut ()) {}

    fn hurry(&mut self, (): &mut ()) {}

    fn info(&mut self, (): &()) -> io::Result<StreamInfo> {
        Ok(StreamInfo::default())
    }

    fn take_error(&mut self, (): &()) -> Option<io::Error> {
        None
    }

    fn pipe(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn give_back(&mut self, (): ()) {}

    fn fill(&mut self, (): &mut (), (): &mut (), _: usize) -> io::Result<usize> {
        Ok(0)
    }

    fn fill_one(&mut self, (): &mut (), (): &mut ()) -> io::Result<usize> {
        Ok(0)
    }

    fn drain(&mut self, (): &mut (), (): &mut (), _: usize) -> io::Result<usize> {
        Ok(0)
    }
}

/// An engine between both.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) engine: Engine<Native>,
    pub(super) guest: Guest,
    pub(super) now: Instant,
}

/// An address in words.
pub(super) fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An endpoint in words.
pub(super) fn end(text: &str, port: u16) -> Endpoint {
    Endpoint::new(addr(text), port)
}

impl Net {
    /// Guest 192.0.2.10 and 2001:db8::10, gateway .1 and fe80::1, which is also the name of the
    /// host's loopback; UDP ports 8000 to 8009 of the host are the guest's 5000 to 5009.
    pub(super) fn new(mtu: u16) -> Self {
        Self::with(mtu, |_| {})
    }

    /// The same with other settings.
    pub(super) fn with(mtu: u16, change: impl FnOnce(&mut Settings)) -> Self {
        let view = GuestView {
            our_mac: DEFAULT_MAC,
            mtu: Some(mtu),
            v4: Some(GuestV4 {
                addr: "192.0.2.10".parse().unwrap(),
                prefix_len: 24,
                gateway: Some("192.0.2.1".parse().unwrap()),
                our_addr: "192.0.2.1".parse().unwrap(),
                fixed: false,
            }),
            v6: Some(GuestV6 {
                addr: Some("2001:db8::10".parse().unwrap()),
                prefix_len: 64,
                gateway: Some("fe80::1".parse().unwrap()),
                our_link_local: "fe80::1".parse().unwrap(),
                fixed: false,
            }),
            dns: Dns::default(),
            services: Services { dhcp: false, dhcpv6: false, ndp: false, ra: false },
        };
        let mut translation = Translation::default();
        translation.v4.host_loopback = Some("192.0.2.1".parse().unwrap());
        translation.v4.dns_forward = Some("192.0.2.53".parse().unwrap());
        translation.v4.dns_host = Some("127.0.0.53".parse().unwrap());
        translation.v6.host_loopback = Some("fe80::1".parse().unwrap());
        let rule = Rule {
            listen: None,
            ifname: None,
            protocol: Protocol::Udp,
            first: 8000,
            last: 8009,
            target: None,
            to: 5000,
            weak: false,
            auto: false,
        };
        let mut settings = Settings {
            view,
            translation,
            rules: vec![rule].into(),
            protocols: Protocols { tcp: true, udp: true, icmp: true },
            max_flows: 4,
            timeouts: Timeouts::default(),
            patience: Patience::DEFAULT,
            guest_mac: None,
            splicing: Splicing::default(),
            hash_key: [7; 16],
        };
        change(&mut settings);
        let caps = LinkCaps { max_frame: 14 + 65_535, ..LinkCaps::default() };
        Self {
            engine: Engine::new(Native::default(), settings, Instant::ZERO),
            guest: Guest {
                room: 100,
                caps,
                frames: VecDeque::new(),
                open: BTreeMap::new(),
                next: 0,
            },
            now: Instant::ZERO,
        }
    }

    /// The guest sends a batch of frames.
    pub(super) fn frames(&mut self, frames: &[(Vec<u8>, Offload)]) {
        let mut source = Frames::new(frames);
        let n = self.engine.ingress(&mut source, &mut self.guest, self.now).unwrap();
        assert_eq!(n, frames.len());
    }

    /// The guest sends one frame.
    pub(super) fn frame(&mut self, frame: Vec<u8>) {
        self.frames(&[(frame, Offload::default())]);
    }

    pub(super) fn host(&mut self) -> &mut Native {
        self.engine.host_mut()
    }

    /// A message arrives at socket `index`; its event is handled.
    pub(super) fn arrive(&mut self, index: usize, bytes: &[u8]) {
        let message = Message { len: bytes.len(), segment: None, from: None, to: None };
        self.host().sockets[index].inbox.push_back((bytes.to_vec(), message));
        self.event(index);
    }

    /// Socket `index` is readable.
    pub(super) fn event(&mut self, index: usize) {
        let token = self.host().sockets[index].token;
        let ready = Readiness { readable: true, ..Readiness::default() };
        self.engine.on_socket(token, ready, &mut self.guest, self.now);
    }

    /// An error waits on socket `index`.
    pub(super) fn error(&mut self, index: usize, error: SocketError) {
        let socket = &mut self.host().sockets[index];
        socket.errors.push_back(error);
        let token = socket.token;
        let ready = Readiness { error: true, ..Readiness::default() };
        self.engine.on_socket(token, ready, &mut self.guest, self.now);
    }

    /// Messages arrive at the listener for `to`; its event is handled.
    pub(super) fn knock(&mut self, from: Endpoint, to: Endpoint, bytes: &[u8]) {
        let message = Message { len: bytes.len(), segment: None, from: Some(from), to: Some(to) };
        self.host().listener.push_back((bytes.to_vec(), message));
        self.listener_event();
    }

    pub(super) fn listener_event(&mut self) {
        let ready = Readiness { readable: true, ..Readiness::default() };
        self.engine.on_socket(Token::Listener(0), ready, &mut self.guest, self.now);
    }

    /// The next frame to the guest, taken apart and checked.
    #[track_caller]
    pub(super) fn received(&mut self) -> Packet {
        let (frame, offload) = self.guest.frames.pop_front().expect("a frame to the guest");
        Packet::parse(&frame, offload)
    }

    #[track_caller]
    pub(super) fn nothing_more(&self) {
        assert!(self.guest.frames.is_empty(), "{:?}", self.guest.frames);
    }
}

/// A frame to the guest, taken apart.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: u8,
    /// Identification, offset in bytes and more-fragments flag.
    pub(super) fragment: Option<(u32, usize, bool)>,
    /// What stands behind the IP headers.
    pub(super) body: Vec<u8>,
    pub(super) offload: Offload,
}

impl Packet {
    #[track_caller]
    fn parse(frame: &[u8], offload: Offload) -> Self {
        let eth = ethernet::Header::parse(frame).unwrap();
        assert_eq!((eth.src, eth.dst), (DEFAULT_MAC, GUEST_MAC));
        let bytes = &frame[ethernet::LEN..];
        if eth.ether_type == ethernet::EtherType::Ipv4 {
            let ip = ipv4::Header::parse(bytes, bytes.len()).unwrap();
            assert_eq!(checksum::checksum(&bytes[..ip.header_len]), 0, "IPv4 header checksum");
            assert_eq!(ip.header_len + usize::from(ip.payload_len), bytes.len());
            let fragment = ip.is_fragment().then(|| {
                (u32::from(ip.identification), usize::from(ip.fragment_offset), ip.more_fragments)
            });
            return Self {
                src: ip.src.into(),
                dst: ip.dst.into(),
                protocol: ip.protocol,
                fragment,
                body: bytes[ip.header_len..].to_vec(),
                offload,
            };
        }
        let ip = ipv6::Header::parse(bytes, bytes.len()).unwrap();
        assert_eq!(ipv6::LEN + usize::from(ip.payload_len), bytes.len());
        let rest = &bytes[ipv6::LEN..];
        let found = ipv6::walk_extensions(rest, ip.next_header, rest.len()).unwrap();
        Self {
            src: ip.src.into(),
            dst: ip.dst.into(),
            protocol: found.protocol,
            fragment: found.fragment.map(|f| (f.id, usize::from(f.offset), f.more)),
            body: rest[found.offset..].to_vec(),
            offload,
        }
    }

    /// Ports and payload of a UDP datagram with a checksum that is right.
    #[track_caller]
    pub(super) fn udp(&self) -> (Endpoint, Endpoint, &[u8]) {
        assert_eq!(self.protocol, 17);
        let header = udp::Header::parse(&self.body, self.body.len()).unwrap();
        assert_eq!(usize::from(header.len), self.body.len());
        if self.offload.checksum.is_none() {
            assert_ne!(header.checksum, 0);
            let len = u32::try_from(self.body.len()).unwrap();
            let mut sum = checksum::pseudo(self.src, self.dst, 17, len).unwrap();
            sum.add_bytes(&self.body);
            assert_eq!(sum.finish(), 0, "UDP checksum");
        }
        let from = Endpoint::new(self.src, header.src_port);
        (from, Endpoint::new(self.dst, header.dst_port), &self.body[udp::LEN..])
    }

    /// An ICMP or ICMPv6 message with a checksum that is right.
    #[track_caller]
    pub(super) fn icmp(&self) -> &[u8] {
        let len = u32::try_from(self.body.len()).unwrap();
        let mut sum = match self.protocol {
            1 => checksum::Sum::new(),
            58 => checksum::pseudo(self.src, self.dst, 58, len).unwrap(),
            other => panic!("protocol {other}"),
        };
        sum.add_bytes(&self.body);
        assert_eq!(sum.finish(), 0, "ICMP checksum");
        &self.body
    }
}

/// A frame of the guest's: `body` of `protocol` with this TTL.
pub(super) fn ip(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap();
    let (ether_type, header) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = ipv4::Header { ttl, ..ipv4::Header::new(src, dst, protocol, len) };
            (ethernet::EtherType::Ipv4, header.to_bytes().to_vec())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = ipv6::Header {
                src,
                dst,
                next_header: protocol,
                hop_limit: ttl,
                flow_label: 0,
                payload_len: len,
            };
            (ethernet::EtherType::Ipv6, header.to_bytes().to_vec())
        }
        _ => panic!("one family"),
    };
    let eth = ethernet::Header { dst: DEFAULT_MAC, src: GUEST_MAC, ether_type };
    [&eth.to_bytes()[..], &header, body].concat()
}

/// A UDP datagram of the guest's with TTL 64.
pub(super) fn datagram(from: Endpoint, to: Endpoint, payload: &[u8]) -> Vec<u8> {
    datagram_with(from, to, payload, 64)
}

/// A UDP datagram of the guest's.
pub(super) fn datagram_with(from: Endpoint, to: Endpoint, payload: &[u8], ttl: u8) -> Vec<u8> {
    let len = u16::try_from(udp::LEN + payload.len()).unwrap();
    let header = udp::Header { src_port: from.port, dst_port: to.port, len, checksum: 0 };
    ip(from.addr, to.addr, 17, ttl, &[&header.to_bytes()[..], payload].concat())
}

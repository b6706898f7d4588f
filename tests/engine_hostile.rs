//! The engine between a guest that sends anything and a host of which any call may fail: millions
//! of frames from seeds, and as much from socket to socket. Nothing panics, nothing spins, nothing
//! grows without bound, and when all is over nothing is left.

mod common;

use common::packets::*;
use common::rig::{GATEWAY_V4, GUEST_V4, GUEST_V6, HOST_PORT, PEER_V4, PEER_V6, settings};
use common::script_link::ScriptLink;
use common::sim::Chance;
use passt::engine::counters::DropReason;
use passt::engine::{Engine, Settings};
use passt::flow::forward::Splicing;
use passt::flow::{Endpoint, FlowId, Protocol, Side};
use passt::host::{
    Accepted, Batch, Connect, Host, IcmpCause, Message, Outbound, SocketError, StreamInfo,
};
use passt::link::{
    Link, LinkCaps, MAX_FRAME, Offload, PartialChecksum, Segmentation, SegmentationKind, Sink,
};
use passt::span::{Span, SpanMut, total, total_mut};
use passt::time::{Duration, Instant};
use passt::token::{Interest, Readiness, Token};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

const MAX_FLOWS: usize = 40;

/// Listeners of both protocols on both sides, and one that is gone.
const LISTENERS: [Option<(Protocol, Side)>; 5] = [
    Some((Protocol::Tcp, Side::Outside)),
    Some((Protocol::Udp, Side::Outside)),
    None,
    Some((Protocol::Tcp, Side::Inside)),
    Some((Protocol::Udp, Side::Inside)),
];

/// What is known of a socket: enough to hold the engine to the rules of [`Host`].
#[derive(Debug, Default)]
struct Known {
    incoming: usize,
    fin: bool,
    shut: bool,
}

#[derive(Debug)]
struct Shared {
    chance: Chance,
    streams: BTreeMap<u64, (Option<Token>, Known)>,
    datagrams: BTreeMap<u64, Token>,
    next: u64,
    /// How often calls fail, in percent.
    trouble: u8,
    /// Bytes of TCP from the guest and to it.
    carried: (usize, usize),
    /// Bytes of spliced connections that have gone through pipes.
    spliced: usize,
    /// Messages that went out on sockets of spliced exchanges.
    relayed: usize,
    /// Pipes that are in the engine's hands.
    pipes: usize,
}

#[derive(Debug)]
struct Handle {
    shared: Rc<RefCell<Shared>>,
    name: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.streams.remove(&self.name);
        shared.datagrams.remove(&self.name);
    }
}

/// A pipe: so many bytes are in it.
#[derive(Debug)]
struct Pipe {
    shared: Rc<RefCell<Shared>>,
    len: usize,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.shared.borrow_mut().pipes -= 1;
    }
}

struct ChaosHost(Rc<RefCell<Shared>>);

const ERRORS: [i32; 14] = [
    libc::EMFILE,
    libc::ENOBUFS,
    libc::EPERM,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ECONNREFUSED,
    libc::ECONNRESET,
    libc::EPIPE,
    libc::ENOTCONN,
    libc::EINVAL,
    libc::EMSGSIZE,
    libc::ENOMEM,
    libc::EACCES,
    libc::EADDRINUSE,
];

impl Shared {
    fn trouble(&mut self) -> io::Result<()> {
        if self.chance.percent(self.trouble) {
            let number = ERRORS[self.chance.below(ERRORS.len())];
            return Err(io::Error::from_raw_os_error(number));
        }
        Ok(())
    }

    fn some_addr(&mut self, v6: bool) -> IpAddr {
        let n = self.chance.below(4) as u8;
        if v6 {
            [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, n].into()
        } else {
            [198, 51, 100, n].into()
        }
    }

    fn some_endpoint(&mut self) -> Endpoint {
        let v6 = self.chance.percent(50);
        let addr = self.some_addr(v6);
        Endpoint::new(addr, self.chance.below(5) as u16)
    }

    /// Who knocks, and where: between loopback addresses, or not.
    fn arrival(&mut self) -> (Endpoint, Endpoint) {
        let peer = self.some_endpoint();
        let (lo, local) = if peer.is_ipv4() {
            (IpAddr::V4(Ipv4Addr::LOCALHOST), GUEST_V4)
        } else {
            (IpAddr::V6(Ipv6Addr::LOCALHOST), GUEST_V6)
        };
        if self.chance.percent(40) {
            (Endpoint::new(lo, peer.port), Endpoint::new(lo, HOST_PORT))
        } else {
            (peer, Endpoint::new(local, HOST_PORT))
        }
    }

    fn fill(&mut self, batch: &mut Batch) -> io::Result<usize> {
        batch.messages.clear();
        self.trouble()?;
        let count = self.chance.below(Batch::MESSAGES + 1);
        if count == 0 || self.chance.percent(30) {
            return Err(ErrorKind::WouldBlock.into());
        }
        for _ in 0..count {
            let most = [1, 100, 2000, Batch::STRIDE][self.chance.below(4)];
            let len = self.chance.below(most + 1);
            let segment = self.chance.percent(20).then(|| self.chance.below(3000) as u16);
            let (from, to) = self.chance.percent(40).then(|| self.arrival()).unzip();
            batch.messages.push(Message { len, segment, from, to });
        }
        Ok(count)
    }
}

impl ChaosHost {
    fn stream(&mut self, token: Option<Token>) -> Handle {
        let mut shared = self.0.borrow_mut();
        shared.next += 1;
        let name = shared.next;
        shared.streams.insert(name, (token, Known::default()));
        Handle { shared: Rc::clone(&self.0), name }
    }

    fn datagram(&mut self, token: Token) -> io::Result<Handle> {
        let mut shared = self.0.borrow_mut();
        shared.trouble()?;
        shared.next += 1;
        let name = shared.next;
        shared.datagrams.insert(name, token);
        Ok(Handle { shared: Rc::clone(&self.0), name })
    }

    fn with<R>(&mut self, stream: &Handle, f: impl FnOnce(&mut Chance, &mut Known) -> R) -> R {
        let shared = &mut *self.0.borrow_mut();
        f(&mut shared.chance, &mut shared.streams.get_mut(&stream.name).expect("open").1)
    }
}

impl Host for ChaosHost {
    type Stream = Handle;
    type Datagram = Handle;
    type Pipe = Pipe;

    fn connect(
        &mut self,
        _: Side,
        _to: Endpoint,
        token: Token,
        _: Interest,
    ) -> io::Result<(Handle, Connect)> {
        self.0.borrow_mut().trouble()?;
        let done = self.0.borrow_mut().chance.percent(50);
        let how = if done { Connect::Done } else { Connect::InProgress };
        Ok((self.stream(Some(token)), how))
    }

    fn connect_result(&mut self, _stream: &Handle) -> io::Result<()> {
        self.0.borrow_mut().trouble()
    }

    fn accept(&mut self, _listener: u32) -> io::Result<Accepted<Handle>> {
        let mut shared = self.0.borrow_mut();
        shared.trouble()?;
        if shared.chance.percent(70) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let (peer, local) = shared.arrival();
        let rule = shared.chance.below(3);
        drop(shared);
        Ok(Accepted { stream: self.stream(None), peer, local, rule })
    }

    fn watch(&mut self, stream: &mut Handle, token: Token, _: Interest) -> io::Result<()> {
        let mut shared = self.0.borrow_mut();
        if shared.streams.get(&stream.name).expect("open").0.is_none() {
            shared.trouble()?;
        }
        shared.streams.get_mut(&stream.name).expect("open").0 = Some(token);
        Ok(())
    }

    fn send(&mut self, stream: &mut Handle, payload: &[Span<'_>]) -> io::Result<usize> {
        self.0.borrow_mut().trouble()?;
        let all = total(payload);
        assert!(all > 0, "an empty send");
        let sent = self.with(stream, |chance, known| {
            assert!(!known.shut, "a send behind the FIN");
            match chance.below(4) {
                0 => Err(io::Error::from(ErrorKind::WouldBlock)),
                1 => Ok(1 + chance.below(all)),
                _ => Ok(all),
            }
        })?;
        self.0.borrow_mut().carried.0 += sent;
        Ok(sent)
    }

    fn peek(
        &mut self,
        stream: &mut Handle,
        skip: usize,
        room: &[SpanMut<'_>],
    ) -> io::Result<usize> {
        self.0.borrow_mut().trouble()?;
        let asked = total_mut(room);
        assert!(asked > 0, "a peek into nothing");
        self.with(stream, |chance, known| {
            assert!(skip <= known.incoming, "skipped more than there is");
            if chance.percent(40) && !known.fin {
                known.incoming += chance.below(100_000);
            }
            match (known.incoming - skip).min(asked) {
                0 if known.fin => Ok(0),
                0 => Err(ErrorKind::WouldBlock.into()),
                n if chance.percent(10) => Ok(1 + chance.below(n)),
                n => Ok(n),
            }
        })
    }

    fn discard(&mut self, stream: &mut Handle, n: usize) -> io::Result<usize> {
        self.0.borrow_mut().trouble()?;
        let n = self.with(stream, |chance, known| {
            assert!(n > 0 && n <= known.incoming, "discarded what is not there");
            let n = if chance.percent(10) { 1 + chance.below(n) } else { n };
            known.incoming -= n;
            n
        });
        self.0.borrow_mut().carried.1 += n;
        Ok(n)
    }

    fn shutdown(&mut self, stream: &mut Handle) -> io::Result<()> {
        self.0.borrow_mut().trouble()?;
        self.with(stream, |_, known| {
            assert!(!known.shut, "shut down twice");
            known.shut = true;
        });
        Ok(())
    }

    fn reset(&mut self, _stream: Handle) {}

    fn keepalive(&mut self, _stream: &mut Handle) {}

    fn hurry(&mut self, _: &mut Handle) {}

    fn widen(&mut self, _stream: &mut Handle) {}

    fn feed(&mut self) {}

    fn pause(&mut self, _socket: &mut Handle, _paused: bool) {}

    fn pause_listener(&mut self, _listener: u32, _paused: bool) {}

    fn info(&mut self, _stream: &Handle) -> io::Result<StreamInfo> {
        let shared = &mut *self.0.borrow_mut();
        shared.trouble()?;
        let chance = &mut shared.chance;
        let number = |chance: &mut Chance| [0, 1, 1000, 100_000, u32::MAX][chance.below(5)];
        Ok(StreamInfo {
            bytes_acked: None,
            peer_window: chance.percent(70).then(|| number(chance)),
            rtt: Duration::from_micros(number(chance).into()),
            peer_mss: number(chance) as u16,
            send_room: number(chance),
            unacked: number(chance),
            established: true,
        })
    }

    fn take_error(&mut self, _stream: &Handle) -> Option<io::Error> {
        self.0.borrow_mut().trouble().err()
    }

    fn is_starved(&self) -> bool {
        self.0.borrow_mut().chance.percent(5)
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

    fn listener_protocol(&self, listener: u32) -> Option<Protocol> {
        LISTENERS[listener as usize].map(|(protocol, _)| protocol)
    }

    fn listener_side(&self, listener: u32) -> Side {
        LISTENERS[listener as usize].map_or(Side::Outside, |(_, side)| side)
    }

    fn open_udp(
        &mut self,
        _: Side,
        local: Endpoint,
        _remote: Endpoint,
        token: Token,
    ) -> io::Result<(Handle, Endpoint)> {
        Ok((self.datagram(token)?, local))
    }

    fn open_echo(&mut self, _: IpAddr, _: u16, flow: FlowId) -> io::Result<Handle> {
        self.datagram(Token::Datagram(flow))
    }

    fn send_messages(
        &mut self,
        socket: &mut Handle,
        messages: &[Outbound],
        spans: &[Span<'_>],
        _ttl: u8,
    ) -> io::Result<usize> {
        assert!(!messages.is_empty(), "nothing to send");
        assert_eq!(messages.iter().map(|m| m.spans).sum::<usize>(), spans.len());
        let shared = &mut *self.0.borrow_mut();
        shared.trouble()?;
        let taken = match shared.chance.below(5) {
            0 => return Err(ErrorKind::WouldBlock.into()),
            1 => shared.chance.below(messages.len() + 1),
            _ => messages.len(),
        };
        if matches!(shared.datagrams.get(&socket.name), Some(Token::Relay(..))) {
            shared.relayed += taken;
        }
        Ok(taken)
    }

    fn receive_messages(
        &mut self,
        _: &mut Handle,
        batch: &mut Batch,
        _: bool,
    ) -> io::Result<usize> {
        self.0.borrow_mut().fill(batch)
    }

    fn receive_listener(&mut self, _: u32, batch: &mut Batch) -> io::Result<(usize, usize)> {
        let shared = &mut *self.0.borrow_mut();
        let rule = shared.chance.below(3);
        shared.fill(batch).map(|n| (rule, n))
    }

    fn next_error(&mut self, _: &mut Handle) -> Option<SocketError> {
        let shared = &mut *self.0.borrow_mut();
        if shared.chance.percent(30) {
            return None;
        }
        let v6 = shared.chance.percent(50);
        let icmp = shared.chance.percent(70).then(|| IcmpCause {
            offender: shared.some_addr(v6),
            kind: shared.chance.below(20) as u8,
            code: shared.chance.below(20) as u8,
            info: shared.chance.next() as u32,
        });
        let quoted = vec![7; shared.chance.below(1233)];
        let errno = ERRORS[shared.chance.below(ERRORS.len())];
        Some(SocketError { errno, icmp, quoted })
    }

    fn pipe(&mut self) -> io::Result<Pipe> {
        let shared = &mut *self.0.borrow_mut();
        shared.trouble()?;
        shared.pipes += 1;
        Ok(Pipe { shared: Rc::clone(&self.0), len: 0 })
    }

    fn give_back(&mut self, pipe: Pipe) {
        assert_eq!(pipe.len, 0, "the next one would get what is in it");
    }

    fn fill(&mut self, pipe: &mut Pipe, from: &mut Handle, max: usize) -> io::Result<usize> {
        assert!(max > 0 && pipe.len == 0, "there may be no room");
        self.0.borrow_mut().trouble()?;
        pipe.len = self.with(from, |chance, known| match known.incoming.min(max) {
            0 if known.fin => Ok(0),
            0 => Err(io::Error::from(ErrorKind::WouldBlock)),
            n => {
                let n = if chance.percent(20) { 1 + chance.below(n) } else { n };
                known.incoming -= n;
                Ok(n)
            }
        })?;
        Ok(pipe.len)
    }

    fn fill_one(&mut self, pipe: &mut Pipe, from: &mut Handle) -> io::Result<usize> {
        self.fill(pipe, from, 1)
    }

    fn drain(&mut self, pipe: &mut Pipe, to: &mut Handle, n: usize) -> io::Result<usize> {
        assert_eq!(n, pipe.len, "it would wait for more, or forget some");
        assert!(n > 0, "nothing to drain");
        self.0.borrow_mut().trouble()?;
        let moved = self.with(to, |chance, known| {
            assert!(!known.shut, "bytes behind the FIN");
            match chance.below(4) {
                0 => Err(io::Error::from(ErrorKind::WouldBlock)),
                1 => Ok(1 + chance.below(n)),
                _ => Ok(n),
            }
        })?;
        pipe.len -= moved;
        self.0.borrow_mut().spliced += moved;
        Ok(moved)
    }
}

/// A guest that knows enough of TCP to get far before it misbehaves.
struct Mallory {
    chance: Chance,
    /// By ports: the next number to send and to expect.
    flows: BTreeMap<(u16, u16, bool), (u32, u32)>,
}

impl Mallory {
    /// Learns from a frame to the guest.
    fn look(&mut self, frame: &[u8]) {
        let (v6, at) = match frame.get(12..14) {
            Some([8, 0]) if frame.get(23) == Some(&6) => (false, 34),
            Some([0x86, 0xdd]) if frame.get(20) == Some(&6) => (true, 54),
            _ => return,
        };
        let long = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("4"));
        let port = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().expect("2"));
        let flags = frame[at + 13];
        let header = usize::from(frame[at + 12] >> 4) * 4;
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let end = long(at + 4).wrapping_add((frame.len() - at - header) as u32 + control);
        let entry = self.flows.entry((port(at + 2), port(at), v6)).or_insert((1, end));
        entry.1 = end;
        if flags & ACK != 0 {
            entry.0 = long(at + 8);
        }
    }

    fn payload(&mut self, most: usize) -> Vec<u8> {
        vec![self.chance.next() as u8; self.chance.below(most + 1)]
    }

    fn ends(&mut self) -> (IpAddr, IpAddr) {
        match self.chance.below(20) {
            0..10 => (GUEST_V4, PEER_V4),
            10..18 => (GUEST_V6, PEER_V6),
            18 => (GUEST_V4, GATEWAY_V4),
            _ => {
                ([10, 0, 0, self.chance.next() as u8].into(), [self.chance.next() as u8; 4].into())
            }
        }
    }

    fn frame(&mut self) -> (Vec<u8>, Offload) {
        let mut frame = match self.chance.below(20) {
            0..12 => self.tcp(),
            12..15 => self.udp(),
            15 => self.echo(),
            16 => self.fragment(),
            17 => self.neighbour(),
            18 => self.extended(),
            _ => {
                let n = self.chance.below(300);
                (0..n).map(|_| self.chance.next() as u8).collect()
            }
        };
        if self.chance.percent(15) {
            self.mutate(&mut frame);
        }
        (frame, self.offload())
    }

    fn mutate(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..1 + self.chance.below(4) {
            match self.chance.below(8) {
                0 => frame.truncate(self.chance.below(frame.len() + 1)),
                1 => frame.extend(self.payload(200)),
                _ if frame.is_empty() => {}
                _ => {
                    // Headers, mostly.
                    let at = self.chance.below(frame.len().min(100));
                    frame[at] = self.chance.next() as u8;
                }
            }
        }
    }

    fn tcp(&mut self) -> Vec<u8> {
        let (src, dst) = self.ends();
        let v6 = src.is_ipv6();
        let known = self.flows.len();
        let (ports, numbers) = if known > 0 && self.chance.percent(80) {
            let (key, numbers) =
                self.flows.iter().nth(self.chance.below(known)).expect("one of them");
            (*key, *numbers)
        } else {
            let port = self.chance.below(60) as u16;
            ((port, 80, v6), (self.chance.next() as u32, 0))
        };
        let (guest, remote, v6) = ports;
        let (src, dst) = if v6 { (GUEST_V6, PEER_V6) } else { (src, dst) };
        // Inbound flows have other peers: their addresses end like those of `some_addr`.
        let n = self.chance.below(4) as u8;
        let dst = match (guest == 22, v6) {
            (true, true) => [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, n].into(),
            (true, false) => [198, 51, 100, n].into(),
            _ => dst,
        };
        let flags = match self.chance.below(30) {
            0..16 => ACK,
            16..19 => ACK | PSH,
            19..21 => SYN,
            21 => SYN | ACK,
            22 => FIN | ACK,
            23 => RST,
            24 => RST | ACK,
            _ => self.chance.next() as u8,
        };
        let jitter = |chance: &mut Chance| match chance.below(12) {
            0 => chance.below(70_000) as u32,
            1 => 0u32.wrapping_sub(chance.below(3000) as u32),
            2 => chance.next() as u32,
            _ => 0,
        };
        let options = match self.chance.below(6) {
            0 if flags & SYN == 0 => vec![],
            0..4 if flags & SYN != 0 => {
                let scale = self.chance.below(20) as u8;
                let mss = [0u16, 1, 536, 1460, 9000, u16::MAX][self.chance.below(6)].to_be_bytes();
                vec![2, 4, mss[0], mss[1], 1, 3, 3, scale]
            }
            4 => (0..4 * self.chance.below(11)).map(|_| self.chance.next() as u8).collect(),
            _ => vec![],
        };
        let most = [0, 1, 1460, 1460, 20_000, 65_000][self.chance.below(6)];
        Tcp {
            src: (src, guest),
            dst: (dst, remote),
            seq: numbers.0.wrapping_add(jitter(&mut self.chance)),
            ack: numbers.1.wrapping_add(jitter(&mut self.chance)),
            flags,
            window: [0, 1, 100, 0xffff][self.chance.below(4)],
            options,
            payload: self.payload(most),
        }
        .frame()
    }

    fn udp(&mut self) -> Vec<u8> {
        let (src, dst) = self.ends();
        let sport = self.chance.below(60) as u16;
        let dport = [53, 67, 547, 9, 0, 1][self.chance.below(6)];
        let most = [0, 10, 1400, 60_000][self.chance.below(4)];
        udp((src, sport), (dst, dport), &self.payload(most))
    }

    fn echo(&mut self) -> Vec<u8> {
        let (src, dst) = self.ends();
        let (kind, protocol) = if src.is_ipv4() { (8, 1) } else { (128, 58) };
        let mut message = vec![kind, 0, 0, 0, 0, self.chance.below(9) as u8, 0, 1];
        message.extend(self.payload(1400));
        ip(src, dst, protocol, self.chance.next() as u8, &message)
    }

    fn fragment(&mut self) -> Vec<u8> {
        let id = self.chance.below(100) as u8;
        let offset = [0, 8, 16, 1480, 65_528][self.chance.below(5)] as u16;
        let more = self.chance.percent(50);
        let len = [8, 8, 1480, 7][self.chance.below(4)];
        let part = vec![id; len];
        if self.chance.percent(50) {
            let mut frame = ip(GUEST_V4, PEER_V4, [17, 17, 1, 6][self.chance.below(4)], 9, &part);
            frame[19] = id;
            frame[20..22]
                .copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
            frame
        } else {
            let [o0, o1] = (offset | u16::from(more)).to_be_bytes();
            let header = [17, 0, o0, o1, 0, 0, 0, id];
            ip(GUEST_V6, PEER_V6, 44, 9, &[&header[..], &part].concat())
        }
    }

    fn neighbour(&mut self) -> Vec<u8> {
        if self.chance.percent(50) {
            let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
            packet.extend((0..20).map(|_| self.chance.next() as u8));
            return ethernet(0x0806, &packet);
        }
        let mut message = vec![133 + self.chance.below(5) as u8, 0, 0, 0, 0, 0, 0, 0];
        message.extend(self.payload(60));
        let dst = "ff02::1".parse().expect("an address");
        ip(GUEST_V6, dst, 58, 255, &sum(GUEST_V6, dst, 58, 2, message))
    }

    fn extended(&mut self) -> Vec<u8> {
        let kinds = [0u8, 43, 44, 51, 60, 17, 6, 59];
        let mut payload = Vec::new();
        let first = kinds[self.chance.below(8)];
        for _ in 0..self.chance.below(12) {
            payload.push(kinds[self.chance.below(8)]);
            payload.push(self.chance.below(3) as u8);
            payload.extend([0; 6]);
        }
        payload.extend(udp_message((GUEST_V6, 1), (PEER_V6, 9), b"x"));
        ip(GUEST_V6, PEER_V6, first, 64, &payload)
    }

    fn offload(&mut self) -> Offload {
        if self.chance.percent(70) {
            return Offload::default();
        }
        let short = |chance: &mut Chance| [0u16, 1, 16, 34, 54, 1448, u16::MAX][chance.below(7)];
        let kinds = [SegmentationKind::Tcp4, SegmentationKind::Tcp6, SegmentationKind::Udp];
        Offload {
            checksum: self.chance.percent(50).then(|| PartialChecksum {
                start: short(&mut self.chance),
                offset: short(&mut self.chance),
            }),
            segmentation: self.chance.percent(50).then(|| Segmentation {
                kind: kinds[self.chance.below(3)],
                size: short(&mut self.chance).max(1),
                header_len: short(&mut self.chance),
            }),
        }
    }
}

struct World {
    engine: Engine<ChaosHost>,
    link: ScriptLink,
    shared: Rc<RefCell<Shared>>,
    mallory: Mallory,
    now: Instant,
    frames: u64,
}

impl World {
    fn new(seed: u64, trouble: u8) -> Self {
        let now = Instant::ZERO + Duration::from_secs(1000);
        let shared = Rc::new(RefCell::new(Shared {
            chance: Chance::new(seed),
            streams: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            next: 0,
            trouble,
            carried: (0, 0),
            spliced: 0,
            relayed: 0,
            pipes: 0,
        }));
        let splicing = Splicing { inwards: true, lo_to_lo: seed % 2 == 1, only: false };
        let settings = Settings { max_flows: MAX_FLOWS, splicing, ..settings() };
        Self {
            engine: Engine::new(ChaosHost(Rc::clone(&shared)), settings, now),
            link: ScriptLink::new(),
            shared,
            mallory: Mallory { chance: Chance::new(!seed), flows: BTreeMap::new() },
            now,
            frames: 0,
        }
    }

    /// The link as chance wants it.
    fn change_link(&mut self) {
        let chance = &mut self.mallory.chance;
        let sink = &mut self.link.sink;
        sink.down = chance.percent(5);
        sink.mergeable = chance.percent(50);
        sink.size = [20, 70, 600, 1526, 2048, MAX_FRAME][chance.below(6)];
        sink.free = [0, 1, 3, 50, 300][chance.below(5)];
        let offload = chance.percent(50);
        sink.caps = LinkCaps {
            checksum: offload,
            tcp4_segmentation: offload && chance.percent(70),
            tcp6_segmentation: offload && chance.percent(70),
            udp4_segmentation: offload && chance.percent(70),
            udp6_segmentation: offload && chance.percent(70),
            max_frame: if offload || chance.percent(30) { MAX_FRAME } else { 1514 },
        };
        self.link.source.piece = [1, 7, 100, usize::MAX][chance.below(4)];
    }

    fn turn(&mut self) {
        let chance = &mut self.mallory.chance;
        match chance.below(100) {
            0 => self.change_link(),
            1..20 => self.link.sink.free += chance.below(40),
            20 => self.now = self.now + Duration::from_secs(chance.below(100) as u64),
            _ => self.now = self.now + Duration::from_micros(chance.below(1000) as u64),
        }
        for _ in 0..self.mallory.chance.below(12) {
            let (frame, offload) = self.mallory.frame();
            self.frames += 1;
            self.link.source.push(frame, offload);
        }
        let (source, sink) = self.link.halves();
        self.engine.ingress(source, sink, self.now).expect("memory does not fail");
        while self.engine.ingress(source, sink, self.now).expect("memory does not fail") > 0 {}
        self.sockets();
        let sink = self.link.halves().1;
        match self.mallory.chance.below(10) {
            0 => self.engine.on_link_up(sink, self.now),
            1..4 => self.engine.on_room(sink, self.now),
            _ => {}
        }
        self.engine.on_deadlines(sink, self.now);
        assert!(self.engine.next_deadline().is_none_or(|at| at > self.now), "it would spin");
        self.engine.run_ready(sink, self.now);
        sink.flush().expect("memory does not fail");
        for (frame, _) in sink.take() {
            self.mallory.look(&frame);
        }
        if self.mallory.flows.len() > 100 {
            self.mallory.flows.clear();
        }
        self.check();
    }

    /// Sockets become ready, and some that are gone.
    fn sockets(&mut self) {
        let mut tokens = Vec::new();
        {
            let shared = &mut *self.shared.borrow_mut();
            for (token, known) in shared.streams.values_mut() {
                if shared.chance.percent(15) {
                    known.incoming += shared.chance.below(100_000);
                    known.fin |= shared.chance.percent(2);
                    tokens.extend(*token);
                }
            }
            for token in shared.datagrams.values() {
                if shared.chance.percent(10) {
                    tokens.push(*token);
                }
            }
            if shared.chance.percent(10) {
                tokens.push(Token::Listener(shared.chance.below(LISTENERS.len()) as u32));
            }
            if shared.chance.percent(10) {
                let id = FlowId::new(shared.chance.below(50) as u32, shared.chance.below(9) as u32);
                let side = [Side::Outside, Side::Inside][shared.chance.below(2)];
                tokens.extend([Token::Tcp(id), Token::Datagram(id)]);
                tokens.extend([Token::Splice(id, side), Token::Relay(id, side)]);
            }
        }
        for token in tokens {
            let mut flip = |percent| self.mallory.chance.percent(percent);
            let ready = Readiness {
                readable: flip(70),
                writable: flip(40),
                read_closed: flip(5),
                hung_up: flip(1),
                error: flip(2),
                urgent: flip(2),
            };
            self.engine.on_socket(token, ready, self.link.halves().1, self.now);
        }
    }

    fn check(&self) {
        let (tcp, datagrams) = (self.engine.tcp_flows(), self.engine.datagram_flows());
        let (splices, relays) =
            (self.engine.spliced_connections(), self.engine.spliced_exchanges());
        let all = [tcp, datagrams, splices, relays];
        assert!(all.iter().all(|&flows| flows <= MAX_FLOWS));
        // Each flow once in either line, the listeners, and the greeting.
        let most = all.iter().sum::<usize>() + LISTENERS.len() + 1;
        assert!(self.engine.waiting() <= 2 * most, "lines grow");
        let shared = self.shared.borrow();
        assert_eq!(shared.streams.len(), tcp + 2 * splices);
        assert_eq!(shared.datagrams.len(), datagrams + 2 * relays);
        assert!(shared.pipes <= 2 * splices, "a pipe outlives its connection");
        assert!(self.engine.staged() <= MAX_FLOWS * (17 << 20));
        if tcp == 0 {
            assert_eq!(self.engine.staged(), 0, "the budget is not returned");
        }
    }

    /// Both ends of each spliced connection say that they are done, and take what is left.
    fn finish_splices(&mut self) {
        let mut tokens = Vec::new();
        for (token, known) in self.shared.borrow_mut().streams.values_mut() {
            if let Some(token @ Token::Splice(..)) = *token {
                known.fin = true;
                tokens.push(token);
            }
        }
        for token in tokens {
            let ready = Readiness {
                readable: true,
                writable: true,
                read_closed: true,
                ..Readiness::default()
            };
            self.engine.on_socket(token, ready, self.link.halves().1, self.now);
        }
    }

    /// Everything ends: the guest says nothing more, for a long time.
    fn end(&mut self) {
        self.link.sink.down = false;
        (self.link.sink.size, self.link.sink.free) = (MAX_FRAME, usize::MAX / 2);
        self.link.sink.caps = LinkCaps { max_frame: 1514, ..LinkCaps::default() };
        // Kernels give connects up in the end.
        let streams: Vec<_> =
            self.shared.borrow().streams.values().map(|(token, _)| *token).collect();
        for token in streams.into_iter().flatten() {
            let ready = Readiness { writable: true, ..Readiness::default() };
            self.engine.on_socket(token, ready, self.link.halves().1, self.now);
        }
        for _ in 0..400 {
            self.finish_splices();
            let sink = self.link.halves().1;
            self.engine.on_room(sink, self.now);
            for _ in 0..1000 {
                self.engine.run_ready(sink, self.now);
            }
            self.now = self.now + Duration::from_secs(60);
            self.engine.on_deadlines(sink, self.now);
            sink.flush().expect("memory does not fail");
            sink.take();
            self.check();
        }
        assert_eq!((self.engine.tcp_flows(), self.engine.datagram_flows()), (0, 0));
        assert_eq!((self.engine.spliced_connections(), self.engine.spliced_exchanges()), (0, 0));
        assert_eq!((self.engine.staged(), self.engine.waiting()), (0, 0));
    }
}

fn run(seed: u64, trouble: u8, turns: usize) -> World {
    eprintln!("seed {seed}, trouble {trouble}");
    let mut world = World::new(seed, trouble);
    for _ in 0..turns {
        world.turn();
    }
    world
}

#[test]
fn no_guest_and_no_host_brings_the_engine_down() {
    let seeds = std::env::var("HOSTILE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    for seed in 0..seeds {
        let mut world = run(seed, [0, 1, 5, 30][seed as usize % 4], 20_000);
        assert!(world.frames > 100_000);
        let (sent, got) = world.shared.borrow().carried;
        assert!(sent > 100_000 && got > 100_000, "they get nowhere: {sent}, {got}");
        let (spliced, relayed) = (world.shared.borrow().spliced, world.shared.borrow().relayed);
        assert!(spliced > 100_000 && relayed > 1000, "nor there: {spliced}, {relayed}");
        world.end();
    }
}

#[test]
fn a_frame_is_counted_once_at_most() {
    let mut world = World::new(77, 0);
    // Nothing but its own fate can be counted: there is room for all, and the host never fails.
    world.link.sink.caps.max_frame = MAX_FRAME;
    for _ in 0..50_000 {
        // A fragment or a new exchange may cost others their place.
        let other = |reason| matches!(reason, DropReason::Fragment | DropReason::MadeWay);
        let counted = |(reason, n)| if other(reason) { 0 } else { n };
        let total = |world: &World| world.engine.drops().iter().map(counted).sum::<u64>();
        let before = total(&world);
        let (frame, offload) = world.mallory.frame();
        let segments = offload.segmentation.map_or(1, |_| 130);
        world.link.source.push(frame, offload);
        let (source, sink) = world.link.halves();
        world.engine.ingress(source, sink, world.now).expect("memory does not fail");
        source_is_empty(&mut world);
        assert!(total(&world) - before <= segments, "{:?}", world.engine.drops());
    }
}

fn source_is_empty(world: &mut World) {
    let (source, sink) = world.link.halves();
    assert_eq!(world.engine.ingress(source, sink, world.now).expect("memory does not fail"), 0);
    sink.flush().expect("memory does not fail");
    for (frame, _) in sink.take() {
        world.mallory.look(&frame);
    }
    world.link.sink.free = 1 << 20;
}

#[test]
fn a_seed_decides_everything() {
    let drops = |seed| {
        let world = run(seed, 5, 2000);
        (world.frames, format!("{:?}", world.engine.drops()), world.engine.staged())
    };
    assert_eq!(drops(5), drops(5));
    assert_ne!(drops(5), drops(6));
}

//! Frames as a guest makes and reads them, by code that shares nothing with ours.

use super::rig::{GUEST_MAC, OUR_MAC};
use std::net::IpAddr;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;

/// The Internet checksum of some pieces, each but the last of even length.
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = [octets(src), octets(dst)].concat();
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&OUR_MAC[..], &GUEST_MAC, &ether_type.to_be_bytes(), payload].concat()
}

/// A frame with an IP packet of either family.
pub fn ip(src: IpAddr, dst: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    match src {
        IpAddr::V4(_) => {
            let len = (20 + payload.len()) as u16;
            let mut header = vec![0x45, 0];
            header.extend(len.to_be_bytes());
            header.extend([0, 1, 0x40, 0, ttl, protocol, 0, 0]);
            header.extend(octets(src));
            header.extend(octets(dst));
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            ethernet(0x0800, &[&header, payload].concat())
        }
        IpAddr::V6(_) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((payload.len() as u16).to_be_bytes());
            header.extend([protocol, ttl]);
            header.extend(octets(src));
            header.extend(octets(dst));
            ethernet(0x86dd, &[&header, payload].concat())
        }
    }
}

/// Fills in the checksum at `at` of a transport message.
pub fn sum(src: IpAddr, dst: IpAddr, protocol: u8, at: usize, mut message: Vec<u8>) -> Vec<u8> {
    let pseudo = if protocol == 1 { Vec::new() } else { pseudo(src, dst, protocol, message.len()) };
    let sum = checksum(&[&pseudo, &message]);
    message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    message
}

pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    ip(src.0, dst.0, 17, 64, &udp_message(src, dst, payload))
}

pub fn udp_message(src: (IpAddr, u16), dst: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut message =
        [src.1.to_be_bytes(), dst.1.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    message.extend(payload);
    sum(src.0, dst.0, 17, 6, message)
}

/// A TCP segment, sent or received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub src: (IpAddr, u16),
    pub dst: (IpAddr, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Tcp {
    pub fn message(&self) -> Vec<u8> {
        let mut message = [self.src.1.to_be_bytes(), self.dst.1.to_be_bytes()].concat();
        message.extend(self.seq.to_be_bytes());
        message.extend(self.ack.to_be_bytes());
        message.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
        message.extend(self.window.to_be_bytes());
        message.extend([0; 4]);
        message.extend(&self.options);
        message.extend(&self.payload);
        sum(self.src.0, self.dst.0, 6, 16, message)
    }

    pub fn frame(&self) -> Vec<u8> {
        ip(self.src.0, self.dst.0, 6, 64, &self.message())
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Sequence numbers that it takes up.
    pub fn len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }
}

/// An IP packet to the guest, taken apart and found to be right as far as IP goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    /// IPv4: identification, and the word of flags and offset.
    pub fragment: (u16, u16),
    /// IPv6.
    pub flow_label: u32,
    pub payload: Vec<u8>,
}

fn v4(bytes: &[u8]) -> IpAddr {
    <[u8; 4]>::try_from(bytes).expect("4 bytes").into()
}

fn v6(bytes: &[u8]) -> IpAddr {
    <[u8; 16]>::try_from(bytes).expect("16 bytes").into()
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a frame to the guest.
#[track_caller]
pub fn read_ip(frame: &[u8]) -> Packet {
    let (dst, src) = (&frame[..6], &frame[6..12]);
    // Everyone's, before the guest has sent anything.
    assert!((dst == GUEST_MAC || dst == [0xff; 6]) && src == OUR_MAC, "{dst:x?} {src:x?}");
    let packet = &frame[14..];
    match word(frame, 12) {
        0x0800 => {
            assert_eq!(packet[0], 0x45);
            assert_eq!(checksum(&[&packet[..20]]), 0, "IPv4 header checksum");
            assert_eq!(usize::from(word(packet, 2)), packet.len(), "total length");
            Packet {
                src: v4(&packet[12..16]),
                dst: v4(&packet[16..20]),
                protocol: packet[9],
                ttl: packet[8],
                fragment: (word(packet, 4), word(packet, 6)),
                flow_label: 0,
                payload: packet[20..].to_vec(),
            }
        }
        0x86dd => {
            assert_eq!(packet[0] >> 4, 6);
            assert_eq!(usize::from(word(packet, 4)), packet.len() - 40, "payload length");
            let [_, a, b, c] = <[u8; 4]>::try_from(&packet[..4]).expect("4 bytes");
            Packet {
                src: v6(&packet[8..24]),
                dst: v6(&packet[24..40]),
                protocol: packet[6],
                ttl: packet[7],
                fragment: (0, 0),
                flow_label: u32::from_be_bytes([0, a & 0xf, b, c]),
                payload: packet[40..].to_vec(),
            }
        }
        other => panic!("not IP: {other:#x}"),
    }
}

/// Reads a TCP segment to the guest; `partial` says that its checksum is that of the pseudo-header.
#[track_caller]
pub fn read_tcp_with(frame: &[u8], partial: bool) -> Tcp {
    let ip = read_ip(frame);
    assert_eq!((ip.protocol, ip.ttl), (6, 255));
    let bytes = &ip.payload;
    let pseudo = pseudo(ip.src, ip.dst, 6, bytes.len());
    if partial {
        assert_eq!(!checksum(&[&pseudo]), word(bytes, 16), "partial checksum");
    } else {
        assert_eq!(checksum(&[&pseudo, bytes]), 0, "TCP checksum");
    }
    let header = usize::from(bytes[12] >> 4) * 4;
    let long = |at| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    Tcp {
        src: (ip.src, word(bytes, 0)),
        dst: (ip.dst, word(bytes, 2)),
        seq: long(4),
        ack: long(8),
        flags: bytes[13],
        window: word(bytes, 14),
        options: bytes[20..header].to_vec(),
        payload: bytes[header..].to_vec(),
    }
}

#[track_caller]
pub fn read_tcp(frame: &[u8]) -> Tcp {
    read_tcp_with(frame, false)
}

/// The only segment among `frames`, which must be one.
#[track_caller]
pub fn only_tcp(frames: &[Vec<u8>]) -> Tcp {
    assert_eq!(frames.len(), 1, "one frame is expected: {frames:?}");
    read_tcp(&frames[0])
}

/// The guest's end of a connection, as far as a script needs it.
#[derive(Clone, Debug)]
pub struct End {
    pub guest: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    /// The next byte that we send, and that we expect.
    pub snd: u32,
    pub rcv: u32,
    pub window: u16,
}

impl End {
    pub fn new(guest: (IpAddr, u16), remote: (IpAddr, u16)) -> Self {
        Self { guest, remote, snd: 1000, rcv: 0, window: 0xffff }
    }

    pub fn segment(&self, flags: u8, payload: &[u8]) -> Tcp {
        Tcp {
            src: self.guest,
            dst: self.remote,
            seq: self.snd,
            ack: if flags & ACK == 0 { 0 } else { self.rcv },
            flags,
            window: self.window,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    /// A SYN with MSS 1460 and a shift of 7.
    pub fn syn(&mut self) -> Vec<u8> {
        let options = vec![2, 4, 0x05, 0xb4, 1, 3, 3, 7];
        let frame = Tcp { options, ..self.segment(SYN, b"") }.frame();
        self.snd += 1;
        frame
    }

    /// The next segment: with ACK, and these flags besides.
    pub fn next(&mut self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let segment = self.segment(flags | ACK, payload);
        self.snd = self.snd.wrapping_add(segment.len());
        segment.frame()
    }

    pub fn ack(&mut self) -> Vec<u8> {
        self.next(0, b"")
    }

    /// Takes a segment that is next in order.
    #[track_caller]
    pub fn take(&mut self, segment: &Tcp) {
        assert_eq!((segment.src, segment.dst), (self.remote, self.guest));
        if segment.has(SYN) {
            self.rcv = segment.seq;
        }
        assert_eq!(segment.seq, self.rcv, "in order");
        self.rcv = self.rcv.wrapping_add(segment.len());
    }
}

//! ICMPv6: echo messages and the errors that we report (RFC 4443). Neighbour discovery has a
//! module of its own.

pub use super::icmpv4::EchoKind;
use super::{Error, Result, array_at, checksum, protocol, put, u8_at, u32_at};
use std::net::Ipv6Addr;

/// Bytes of a header, the word behind the checksum included.
pub const LEN: usize = 8;

/// The most bytes of a packet that an error quotes, so that the whole message fits 1280 bytes
/// (RFC 4443 2.4 c).
pub const MAX_QUOTE: usize = 1232;

const UNREACHABLE: u8 = 1;
const PACKET_TOO_BIG: u8 = 2;
const TIME_EXCEEDED: u8 = 3;
const PARAMETER_PROBLEM: u8 = 4;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// The header of an echo message; the payload follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Request or reply.
    pub kind: EchoKind,
    /// The code: 0 by the book, but never looked at.
    pub code: u8,
    /// The checksum as it stands there; the caller's when written.
    pub checksum: u16,
    /// The identifier.
    pub id: u16,
    /// The sequence number.
    pub seq: u16,
}

impl Echo {
    /// Reads the header behind an IPv6 header.
    ///
    /// # Errors
    /// [`Error::Truncated`] below [`LEN`] bytes, [`Error::Malformed`] for other types.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let [kind, code, c0, c1, i0, i1, s0, s1] = array_at::<LEN>(bytes, 0)?;
        let kind = match kind {
            ECHO_REQUEST => EchoKind::Request,
            ECHO_REPLY => EchoKind::Reply,
            _ => return Err(Error::Malformed),
        };
        Ok(Self {
            kind,
            code,
            checksum: u16::from_be_bytes([c0, c1]),
            id: u16::from_be_bytes([i0, i1]),
            seq: u16::from_be_bytes([s0, s1]),
        })
    }

    /// The header as bytes.
    pub const fn to_bytes(&self) -> [u8; LEN] {
        let kind = match self.kind {
            EchoKind::Request => ECHO_REQUEST,
            EchoKind::Reply => ECHO_REPLY,
        };
        let [c0, c1] = self.checksum.to_be_bytes();
        let [i0, i1] = self.id.to_be_bytes();
        let [s0, s1] = self.seq.to_be_bytes();
        [kind, self.code, c0, c1, i0, i1, s0, s1]
    }

    /// The sum over pseudo-header and header with a checksum field of 0, for a message with
    /// `payload_len` bytes behind the header: add those, then finish.
    pub fn sum(&self, src: Ipv6Addr, dst: Ipv6Addr, payload_len: usize) -> checksum::Sum {
        let mut sum = pseudo(src, dst, payload_len.saturating_add(LEN));
        sum.add_bytes(&Self { checksum: 0, ..*self }.to_bytes());
        sum
    }

    /// Writes the header to the start of `out`, which has room for [`LEN`] bytes.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, 0, &self.to_bytes());
    }
}

/// The pseudo-header of an ICMPv6 message of `len` bytes.
fn pseudo(src: Ipv6Addr, dst: Ipv6Addr, len: usize) -> checksum::Sum {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    checksum::pseudo_v6(src, dst, protocol::ICMPV6, len)
}

/// The checksum of a whole message; 0 when its checksum field is right.
pub fn checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = pseudo(src, dst, message.len());
    sum.add_bytes(message);
    sum.finish()
}

/// An error about a packet that is quoted behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Destination unreachable.
    Unreachable {
        /// No route, prohibited, address, port, ... (RFC 4443 3.1).
        code: u8,
    },
    /// Packet too big.
    PacketTooBig {
        /// The next hop's MTU.
        mtu: u32,
    },
    /// Time exceeded.
    TimeExceeded {
        /// In transit (0) or in reassembly (1).
        code: u8,
    },
    /// Parameter problem.
    ParameterProblem {
        /// What is wrong.
        code: u8,
        /// Which byte of the quoted packet.
        pointer: u32,
    },
}

impl Report {
    /// The report of a given type and code; `info` is the MTU or the pointer, as a socket's error
    /// queue tells it (`ee_info`). `None` for types that are no error.
    pub const fn new(kind: u8, code: u8, info: u32) -> Option<Self> {
        match kind {
            UNREACHABLE => Some(Self::Unreachable { code }),
            PACKET_TOO_BIG => Some(Self::PacketTooBig { mtu: info }),
            TIME_EXCEEDED => Some(Self::TimeExceeded { code }),
            PARAMETER_PROBLEM => Some(Self::ParameterProblem { code, pointer: info }),
            _ => None,
        }
    }

    /// Reads an error and the packet that it quotes.
    ///
    /// # Errors
    /// [`Error::Truncated`] below [`LEN`] bytes, [`Error::Malformed`] for other types.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let (header, quoted) = bytes.split_at_checked(LEN).ok_or(Error::Truncated)?;
        let (kind, code, info) = (u8_at(header, 0)?, u8_at(header, 1)?, u32_at(header, 4)?);
        Self::new(kind, code, info).map(|report| (report, quoted)).ok_or(Error::Malformed)
    }

    /// Bytes that [`Self::emit`] writes for a quote of `quoted` bytes.
    pub fn len(quoted: usize) -> usize {
        LEN + quoted.min(MAX_QUOTE)
    }

    /// Writes the message with checksum to the start of `out`, which has room for [`Self::len`]
    /// bytes. Of `quoted`, which begins with an IPv6 header, at most [`MAX_QUOTE`] bytes count.
    /// `src` and `dst` are those of the message itself.
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr, quoted: &[u8], out: &mut [u8]) {
        let quoted = quoted.get(..MAX_QUOTE).unwrap_or(quoted);
        let (kind, code, info) = match *self {
            Self::Unreachable { code } => (UNREACHABLE, code, 0),
            Self::PacketTooBig { mtu } => (PACKET_TOO_BIG, 0, mtu),
            Self::TimeExceeded { code } => (TIME_EXCEEDED, code, 0),
            Self::ParameterProblem { code, pointer } => (PARAMETER_PROBLEM, code, pointer),
        };
        let [w0, w1, w2, w3] = info.to_be_bytes();
        let mut sum = pseudo(src, dst, LEN + quoted.len());
        sum.add_bytes(&[kind, code, 0, 0, w0, w1, w2, w3]);
        sum.add_bytes(quoted);
        let [c0, c1] = sum.finish().to_be_bytes();
        put(out, 0, &[kind, code, c0, c1, w0, w1, w2, w3]);
        put(out, LEN, quoted);
    }
}

/// Whether a message of this type is an error (RFC 4443 2.1): never answered with an error.
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Ipv6Addr = Ipv6Addr::LOCALHOST;
    const B: Ipv6Addr = Ipv6Addr::from_bits(0xfe80 << 112 | 0xabc);

    #[test]
    fn an_echo_reply_sums_up_with_its_pseudo_header() {
        let echo = Echo { kind: EchoKind::Reply, code: 0, checksum: 0, id: 0x1234, seq: 7 };
        let payload = [1, 2, 3];
        let mut sum = echo.sum(A, B, payload.len());
        sum.add_bytes(&payload);
        let mut message = Echo { checksum: sum.finish(), ..echo }.to_bytes().to_vec();
        message.extend(payload);
        assert_eq!(message[0], 129);
        assert_eq!(checksum(A, B, &message), 0);
        assert_eq!(Echo::parse(&message).unwrap().id, 0x1234);
    }

    #[test]
    fn reports_quote_at_most_1232_bytes_and_sum_up() {
        let quoted: Vec<u8> = (0..2000u16).map(|n| n as u8).collect();
        for (kind, code, info, word) in
            [(1, 4, 99, 0u32), (2, 0, 1280, 1280), (3, 1, 99, 0), (4, 1, 40, 40)]
        {
            let report = Report::new(kind, code, info).unwrap();
            let mut out = vec![0; Report::len(quoted.len())];
            report.emit(A, B, &quoted, &mut out);
            assert_eq!((out.len(), out[0], out[1]), (1240, kind, code));
            assert_eq!(out[4..8], word.to_be_bytes());
            assert_eq!(checksum(A, B, &out), 0);
            assert_eq!(Report::parse(&out), Ok((report, &quoted[..1232])));
        }
        assert_eq!(Report::new(128, 0, 0), None);
        assert!(is_error(1) && is_error(127) && !is_error(128));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(echo) = Echo::parse(&bytes) {
                prop_assert_eq!(&echo.to_bytes()[..], &bytes[..LEN]);
            }
            if let Ok((report, quoted)) = Report::parse(&bytes) {
                let mut out = vec![0; Report::len(quoted.len())];
                report.emit(A, B, quoted, &mut out);
                prop_assert_eq!(Report::parse(&out), Ok((report, quoted)));
            }
        }
    }
}

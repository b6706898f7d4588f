//! ICMP: echo messages and the errors that we report (RFC 792, RFC 1191).

use super::{Error, Result, array_at, checksum, put, u8_at, u16_at};

/// Bytes of a header, the word behind the checksum included.
pub const LEN: usize = 8;

/// The most bytes of a packet that an error quotes, so that the whole message fits 576 bytes (RFC
/// 1812 4.3.2.3).
pub const MAX_QUOTE: usize = 548;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const REDIRECT: u8 = 5;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

/// Code of "destination unreachable": fragmentation needed, whose second word carries the MTU.
pub const FRAGMENTATION_NEEDED: u8 = 4;

/// Which way an echo goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoKind {
    /// Asks for a reply.
    Request,
    /// Answers.
    Reply,
}

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
    /// Reads the header behind an IPv4 header.
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

    /// The sum over the header with a checksum field of 0: add the payload, then finish.
    pub fn sum(&self) -> checksum::Sum {
        let mut sum = checksum::Sum::new();
        sum.add_bytes(&Self { checksum: 0, ..*self }.to_bytes());
        sum
    }

    /// Writes the header to the start of `out`, which has room for [`LEN`] bytes.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, 0, &self.to_bytes());
    }
}

/// An error about a packet that is quoted behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Destination unreachable.
    Unreachable {
        /// Net, host, protocol, port, ... (RFC 792, RFC 1812 5.2.7.1).
        code: u8,
        /// The next hop's MTU; only with [`FRAGMENTATION_NEEDED`], else 0.
        mtu: u16,
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
        pointer: u8,
    },
}

impl Report {
    /// The report of a given type and code; `info` is the MTU or the pointer, as a socket's error
    /// queue tells it (`ee_info`). `None` for types that are no such error.
    pub fn new(kind: u8, code: u8, info: u32) -> Option<Self> {
        match kind {
            UNREACHABLE => {
                let mtu = if code == FRAGMENTATION_NEEDED {
                    u16::try_from(info).unwrap_or(u16::MAX)
                } else {
                    0
                };
                Some(Self::Unreachable { code, mtu })
            }
            TIME_EXCEEDED => Some(Self::TimeExceeded { code }),
            PARAMETER_PROBLEM => {
                Some(Self::ParameterProblem { code, pointer: u8::try_from(info).unwrap_or(0) })
            }
            _ => None,
        }
    }

    /// Reads an error and the packet that it quotes.
    ///
    /// # Errors
    /// [`Error::Truncated`] below [`LEN`] bytes, [`Error::Malformed`] for other types.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let (header, quoted) = bytes.split_at_checked(LEN).ok_or(Error::Truncated)?;
        let (kind, code) = (u8_at(header, 0)?, u8_at(header, 1)?);
        let info = match kind {
            PARAMETER_PROBLEM => u32::from(u8_at(header, 4)?),
            _ => u32::from(u16_at(header, 6)?),
        };
        Self::new(kind, code, info).map(|report| (report, quoted)).ok_or(Error::Malformed)
    }

    /// Bytes that [`Self::emit`] writes for a quote of `quoted` bytes.
    pub fn len(quoted: usize) -> usize {
        LEN + quoted.min(MAX_QUOTE)
    }

    /// Writes the message with checksum to the start of `out`, which has room for [`Self::len`]
    /// bytes. Of `quoted`, which begins with an IPv4 header, at most [`MAX_QUOTE`] bytes count.
    pub fn emit(&self, quoted: &[u8], out: &mut [u8]) {
        let quoted = quoted.get(..MAX_QUOTE).unwrap_or(quoted);
        let (kind, code, [w0, w1, w2, w3]) = match *self {
            Self::Unreachable { code, mtu } => (UNREACHABLE, code, u32::from(mtu).to_be_bytes()),
            Self::TimeExceeded { code } => (TIME_EXCEEDED, code, [0; 4]),
            Self::ParameterProblem { code, pointer } => {
                (PARAMETER_PROBLEM, code, [pointer, 0, 0, 0])
            }
        };
        let mut sum = checksum::Sum::new();
        sum.add_bytes(&[kind, code, 0, 0, w0, w1, w2, w3]);
        sum.add_bytes(quoted);
        let [c0, c1] = sum.finish().to_be_bytes();
        put(out, 0, &[kind, code, c0, c1, w0, w1, w2, w3]);
        put(out, LEN, quoted);
    }
}

/// Whether a message of this type is about another packet (RFC 1122 3.2.2): never answered with an
/// error.
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_echo_request_is_read_and_written() {
        let bytes = [8, 0, 0x4d, 0x2a, 0x12, 0x34, 0, 7];
        let echo = Echo::parse(&bytes).unwrap();
        assert_eq!((echo.kind, echo.id, echo.seq), (EchoKind::Request, 0x1234, 7));
        assert_eq!(echo.to_bytes(), bytes);
        let checksum = echo.sum().finish();
        assert_eq!(checksum::checksum(&Echo { checksum, ..echo }.to_bytes()), 0);
        assert_eq!(Echo::parse(&[13, 0, 0, 0, 0, 0, 0, 0]), Err(Error::Malformed));
        assert_eq!(Echo::parse(&bytes[..7]), Err(Error::Truncated));
    }

    #[test]
    fn reports_quote_at_most_548_bytes_and_sum_up() {
        let quoted: Vec<u8> = (0..1000u16).map(|n| n as u8).collect();
        for (kind, code, info, word) in [
            (3, 3, 9999, [0, 0, 0, 0]),
            (3, 4, 1400, [0, 0, 0x05, 0x78]),
            (3, 4, 70_000, [0, 0, 0xff, 0xff]),
            (11, 0, 5, [0, 0, 0, 0]),
            (12, 0, 20, [20, 0, 0, 0]),
        ] {
            let report = Report::new(kind, code, info).unwrap();
            let mut out = vec![0; Report::len(quoted.len())];
            report.emit(&quoted, &mut out);
            assert_eq!(out.len(), 556);
            assert_eq!((out[0], out[1], &out[4..8]), (kind, code, &word[..]));
            assert_eq!(checksum::checksum(&out), 0);
            assert_eq!(&out[8..], &quoted[..548]);
            assert_eq!(Report::parse(&out), Ok((report, &quoted[..548])));
        }
        assert_eq!(Report::new(5, 0, 0), None);
        assert!(is_error(3) && is_error(5) && !is_error(8) && !is_error(0));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(echo) = Echo::parse(&bytes) {
                prop_assert_eq!(&echo.to_bytes()[..], &bytes[..LEN]);
            }
            if let Ok((report, quoted)) = Report::parse(&bytes) {
                let mut out = vec![0; Report::len(quoted.len())];
                report.emit(quoted, &mut out);
                prop_assert_eq!(Report::parse(&out), Ok((report, quoted)));
            }
        }
    }
}

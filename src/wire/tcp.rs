//! TCP headers (RFC 9293 3.1) and the options that count in a handshake.

use super::seq::{Mss, SeqNum, UnscaledWindow, WindowScale};
use super::{Error, Result, put, u8_at, u16_at, u32_at};
use std::fmt;
use std::ops::BitOr;

/// Bytes of a header without options.
pub const LEN: usize = 20;

/// Bytes of the longest header.
pub const MAX_LEN: usize = 60;

/// Where the checksum stands in the header: `csum_offset` of a partial checksum.
pub const CHECKSUM_OFFSET: u16 = 16;

/// The control bits of a segment.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement field is significant.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// The flags of the byte in a header.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The byte in a header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Both sets together; [`BitOr`] for constants.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether FIN is set.
    pub const fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// Whether SYN is set.
    pub const fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// Whether RST is set.
    pub const fn rst(self) -> bool {
        self.contains(Self::RST)
    }

    /// Whether PSH is set.
    pub const fn psh(self) -> bool {
        self.contains(Self::PSH)
    }

    /// Whether ACK is set.
    pub const fn ack(self) -> bool {
        self.contains(Self::ACK)
    }

    /// Whether URG is set.
    pub const fn urg(self) -> bool {
        self.contains(Self::URG)
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl fmt::Debug for Flags {
    /// As tcpdump writes them: `[S.]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (bit, letter) in "FSRP.UEW".chars().enumerate() {
            if self.0 >> bit & 1 == 1 {
                write!(f, "{letter}")?;
            }
        }
        f.write_str("]")
    }
}

/// A TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number of the first byte, or of the SYN.
    pub seq: SeqNum,
    /// The next sequence number expected; meaningless without ACK.
    pub ack: SeqNum,
    /// Control bits.
    pub flags: Flags,
    /// The window field.
    pub window: UnscaledWindow,
    /// The checksum as it stands there; the caller's when written.
    pub checksum: u16,
    /// The urgent pointer; meaningless without URG.
    pub urgent: u16,
    /// Bytes of header and options, 20 to 60, a multiple of 4.
    pub header_len: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`, which may be a copy of only the first bytes of a
    /// segment; `available` is what the IP header left for it. Options are at
    /// `bytes[20..header_len]`: see [`Options::parse`].
    ///
    /// # Errors
    /// [`Error::Truncated`] when header and options are not all in `bytes` and in `available`;
    /// [`Error::Malformed`] for a data offset below 5.
    pub fn parse(bytes: &[u8], available: usize) -> Result<Self> {
        let header_len = usize::from(u8_at(bytes, 12)? >> 4) * 4;
        if header_len < LEN {
            return Err(Error::Malformed);
        }
        if bytes.len() < header_len || available < header_len {
            return Err(Error::Truncated);
        }
        Ok(Self {
            src_port: u16_at(bytes, 0)?,
            dst_port: u16_at(bytes, 2)?,
            seq: SeqNum(u32_at(bytes, 4)?),
            ack: SeqNum(u32_at(bytes, 8)?),
            flags: Flags(u8_at(bytes, 13)?),
            window: UnscaledWindow(u16_at(bytes, 14)?),
            checksum: u16_at(bytes, 16)?,
            urgent: u16_at(bytes, 18)?,
            header_len,
        })
    }

    /// The fixed part as bytes; the data offset comes from `header_len`.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let offset = u8::try_from(self.header_len.clamp(LEN, MAX_LEN) / 4).unwrap_or(5) << 4;
        put(&mut bytes, 0, &self.src_port.to_be_bytes());
        put(&mut bytes, 2, &self.dst_port.to_be_bytes());
        put(&mut bytes, 4, &self.seq.0.to_be_bytes());
        put(&mut bytes, 8, &self.ack.0.to_be_bytes());
        put(&mut bytes, 12, &[offset, self.flags.0]);
        put(&mut bytes, 14, &self.window.0.to_be_bytes());
        put(&mut bytes, 16, &self.checksum.to_be_bytes());
        put(&mut bytes, 18, &self.urgent.to_be_bytes());
        bytes
    }

    /// Writes the fixed part to the start of `out`, which has room for [`LEN`] bytes. Options, if
    /// `header_len` says that there are any, are for [`Options::emit`].
    pub fn emit(&self, out: &mut [u8]) {
        put(out, 0, &self.to_bytes());
    }
}

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;

/// The options of a SYN that we understand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size (RFC 9293 3.7.1); a size of 0 counts as absent.
    pub mss: Option<Mss>,
    /// Window scale (RFC 7323 2); more than 14 counts as 14.
    pub window_scale: Option<WindowScale>,
    /// The sender takes selective acknowledgements (RFC 2018). Never written: we send none.
    pub sack_permitted: bool,
}

impl Options {
    /// Reads an option area. There is no error: an option with an impossible length ends the list,
    /// known options with a wrong length are skipped, of equal ones the last counts.
    pub fn parse(mut area: &[u8]) -> Self {
        let mut options = Self::default();
        while let [kind, rest @ ..] = area {
            match (*kind, rest) {
                (END_OF_OPTIONS, _) => break,
                (NO_OPERATION, _) => area = rest,
                (kind, [len, ..]) => {
                    let Some((option, behind)) = area.split_at_checked(usize::from(*len)) else {
                        break;
                    };
                    let Some(value) = option.get(2..) else { break };
                    options.take(kind, value);
                    area = behind;
                }
                (_, []) => break,
            }
        }
        options
    }

    fn take(&mut self, kind: u8, value: &[u8]) {
        match (kind, value) {
            (MAXIMUM_SEGMENT_SIZE, &[a, b]) => {
                self.mss = Some(Mss(u16::from_be_bytes([a, b]))).filter(|mss| mss.0 > 0);
            }
            (WINDOW_SCALE, &[shift]) => self.window_scale = Some(WindowScale::new(shift)),
            (SACK_PERMITTED, []) => self.sack_permitted = true,
            _ => {}
        }
    }

    /// Bytes that [`Self::emit`] writes: 0, 4 or 8.
    pub const fn len(&self) -> usize {
        self.mss.is_some() as usize * 4 + self.window_scale.is_some() as usize * 4
    }

    /// Whether there is nothing to write.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes MSS, then NOP and window scale, as far as they are there, to the start of `out`,
    /// which has room for [`Self::len`] bytes.
    pub fn emit(&self, out: &mut [u8]) {
        let mut at = 0;
        if let Some(Mss(mss)) = self.mss {
            let [a, b] = mss.to_be_bytes();
            put(out, at, &[MAXIMUM_SEGMENT_SIZE, 4, a, b]);
            at = 4;
        }
        if let Some(scale) = self.window_scale {
            put(out, at, &[NO_OPERATION, WINDOW_SCALE, 3, scale.get()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The SYN of a Linux client, from a capture.
    const SYN: [u8; 40] = [
        0x9c, 0x40, 0x00, 0x50, 0x01, 0x02, 0x03, 0x04, 0x00, 0x00, 0x00, 0x00, 0xa0, 0x02, 0xfa,
        0xf0, 0xfe, 0x30, 0x00, 0x00, 0x02, 0x04, 0x05, 0xb4, 0x04, 0x02, 0x08, 0x0a, 0x11, 0x22,
        0x33, 0x44, 0x00, 0x00, 0x00, 0x00, 0x01, 0x03, 0x03, 0x07,
    ];

    #[test]
    fn a_syn_of_linux_is_read() {
        let header = Header::parse(&SYN, 40).unwrap();
        assert_eq!((header.src_port, header.dst_port), (40_000, 80));
        assert_eq!((header.seq, header.ack), (SeqNum(0x0102_0304), SeqNum(0)));
        assert_eq!((header.flags, header.header_len), (Flags::SYN, 40));
        assert_eq!(header.window, UnscaledWindow(64_240));
        let options = Options::parse(&SYN[20..40]);
        assert_eq!(
            options,
            Options {
                mss: Some(Mss(1460)),
                window_scale: Some(WindowScale::new(7)),
                sack_permitted: true
            }
        );
    }

    #[test]
    fn data_offsets_are_checked() {
        for (offset, available, expected) in [
            (4u8, 40, Err(Error::Malformed)),
            (0, 40, Err(Error::Malformed)),
            (5, 20, Ok(20)),
            (5, 19, Err(Error::Truncated)),
            (10, 40, Ok(40)),
            (10, 39, Err(Error::Truncated)),
            (11, 60, Err(Error::Truncated)), // the copy holds only 40
        ] {
            let mut bytes = SYN;
            bytes[12] = offset << 4;
            let got = Header::parse(&bytes, available).map(|h| h.header_len);
            assert_eq!(got, expected, "offset {offset} of {available}");
        }
    }

    #[test]
    fn our_options_are_eight_bytes() {
        let options = Options {
            mss: Some(Mss(0xf000)),
            window_scale: Some(WindowScale::new(8)),
            sack_permitted: false,
        };
        let mut out = [0xff; 8];
        options.emit(&mut out);
        assert_eq!((options.len(), out), (8, [2, 4, 0xf0, 0, 1, 3, 3, 8]));
        let options = Options { window_scale: None, ..options };
        let mut out = [0xff; 4];
        options.emit(&mut out);
        assert_eq!((options.len(), out), (4, [2, 4, 0xf0, 0]));
    }

    #[test]
    fn broken_option_areas_end_quietly() {
        let none = Options::default();
        for area in [
            &[][..],
            &[2],
            &[2, 4],
            &[2, 4, 5],
            &[2, 0, 5, 0xb4], // length 0
            &[2, 1, 5, 0xb4], // length 1
            &[0, 2, 4, 5, 0xb4],
            &[2, 3, 5, 1],    // wrong length for its kind
            &[2, 4, 0, 0],    // size 0
            &[99, 200, 1, 2], // beyond the area
        ] {
            assert_eq!(Options::parse(area), none, "{area:?}");
        }
        let after = Options::parse(&[254, 4, 1, 2, 3, 3, 200, 99]);
        assert_eq!(after.window_scale, Some(WindowScale::MAX), "15 and more count as 14");
    }

    #[test]
    fn flags_print_like_tcpdump() {
        assert_eq!(format!("{:?}", Flags::SYN | Flags::ACK), "[S.]");
        assert!((Flags::FIN | Flags::ACK).fin() && !Flags::ACK.fin() && Flags::from_bits(4).rst());
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_emit_undoes_it(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            available in 0usize..2000,
        ) {
            if let Ok(header) = Header::parse(&bytes, available) {
                prop_assert!(header.header_len <= available && header.header_len <= bytes.len());
                let mut out = [0; LEN];
                header.emit(&mut out);
                let mut expected = bytes[..LEN].to_vec();
                expected[12] &= 0xf0; // reserved bits
                prop_assert_eq!(&out[..], &expected[..]);
            }
        }

        #[test]
        fn options_never_panic_and_parse_undoes_emit(
            area in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..10], 0..40),
        ) {
            let options = Options { sack_permitted: false, ..Options::parse(&area) };
            let mut out = vec![0; options.len()];
            options.emit(&mut out);
            prop_assert_eq!(Options::parse(&out), options);
        }
    }
}

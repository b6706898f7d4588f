//! UDP headers (RFC 768).

use super::{Error, Result, put, u16_at};

/// Bytes of a header.
pub const LEN: usize = 8;

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Bytes of header and payload, at least 8. What lies behind those is padding.
    pub len: u16,
    /// The checksum as it stands there; 0 over IPv4 means none.
    pub checksum: u16,
}

impl Header {
    /// Reads the header at the start of `bytes`; `available` is what the IP header left for it.
    ///
    /// # Errors
    /// [`Error::Truncated`] when the header is not all there or the length field says more than
    /// `available`; [`Error::Malformed`] when it says less than 8.
    pub fn parse(bytes: &[u8], available: usize) -> Result<Self> {
        let header = Self {
            src_port: u16_at(bytes, 0)?,
            dst_port: u16_at(bytes, 2)?,
            len: u16_at(bytes, 4)?,
            checksum: u16_at(bytes, 6)?,
        };
        match usize::from(header.len) {
            0..LEN => Err(Error::Malformed),
            len if len > available => Err(Error::Truncated),
            _ => Ok(header),
        }
    }

    /// Bytes of payload.
    pub const fn payload_len(&self) -> usize {
        (self.len as usize).saturating_sub(LEN)
    }

    /// The header as bytes.
    pub const fn to_bytes(&self) -> [u8; LEN] {
        let [s0, s1] = self.src_port.to_be_bytes();
        let [d0, d1] = self.dst_port.to_be_bytes();
        let [l0, l1] = self.len.to_be_bytes();
        let [c0, c1] = self.checksum.to_be_bytes();
        [s0, s1, d0, d1, l0, l1, c0, c1]
    }

    /// Writes the header to the start of `out`, which has room for [`LEN`] bytes.
    pub fn emit(&self, out: &mut [u8]) {
        put(out, 0, &self.to_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_length_field_counts() {
        let bytes = |len: u16| Header { src_port: 68, dst_port: 67, len, checksum: 0 }.to_bytes();
        for (len, available, expected) in [
            (7, 100, Err(Error::Malformed)),
            (0, 100, Err(Error::Malformed)),
            (8, 8, Ok(0)),
            (8, 26, Ok(0)), // padding is trimmed
            (100, 100, Ok(92)),
            (101, 100, Err(Error::Truncated)),
        ] {
            let got = Header::parse(&bytes(len), available).map(|h| h.payload_len());
            assert_eq!(got, expected, "length {len} of {available}");
        }
        assert_eq!(Header::parse(&bytes(8)[..7], 8), Err(Error::Truncated));
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_emit_undoes_it(
            bytes in prop::collection::vec(any::<u8>(), 0..20),
            available in 0usize..70_000,
        ) {
            if let Ok(header) = Header::parse(&bytes, available) {
                prop_assert!(usize::from(header.len) <= available);
                let mut out = [0; LEN];
                header.emit(&mut out);
                prop_assert_eq!(&out[..], &bytes[..LEN]);
            }
        }
    }
}

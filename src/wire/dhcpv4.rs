//! DHCP messages (RFC 2131) and their options (RFC 2132, RFC 3396).

use super::{Error, Result, array_at, put, u8_at, u16_at, u32_at};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The server's UDP port.
pub const SERVER_PORT: u16 = 67;
/// The client's UDP port.
pub const CLIENT_PORT: u16 = 68;

/// Bytes of a message in front of its options: the fixed fields and the cookie.
pub const LEN: usize = 240;

/// BOOTP clients may expect this many bytes (RFC 1542 2.1): shorter messages are padded.
const MIN_LEN: usize = 300;

const COOKIE: u32 = 0x6382_5363;
const SERVER_NAME: usize = 44;
const FILE: usize = 108;
const COOKIE_AT: usize = 236;

/// The broadcast bit of [`Header::flags`].
pub const BROADCAST: u16 = 0x8000;

/// Option codes that we read or write.
pub mod option {
    #![allow(missing_docs, reason = "names are those of the IANA registry")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DOMAIN_NAME_SERVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const INTERFACE_MTU: u8 = 26;
    pub const BROADCAST_ADDRESS: u8 = 28;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_MESSAGE_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLIENT_ID: u8 = 61;
    pub const RAPID_COMMIT: u8 = 80;
    pub const CLIENT_FQDN: u8 = 81;
    pub const DOMAIN_SEARCH: u8 = 119;
    pub const CLASSLESS_ROUTES: u8 = 121;
    pub const END: u8 = 255;
}

/// What a message wants or says (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// A client looks for servers.
    Discover,
    /// A server offers an address.
    Offer,
    /// A client asks for an address.
    Request,
    /// A client has found the address in use.
    Decline,
    /// A server gives the address.
    Ack,
    /// A server refuses the address.
    Nak,
    /// A client gives the address back.
    Release,
    /// A client asks for everything but an address.
    Inform,
}

impl MessageType {
    /// The type of the option's value; `None` for values that RFC 2131 does not know.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }

    /// The option's value.
    pub const fn number(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
        }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A client (BOOTREQUEST).
    Request,
    /// A server (BOOTREPLY).
    Reply,
}

/// The fixed fields; server name and boot file are empty in what we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who speaks.
    pub op: Op,
    /// Hardware type; 1 is Ethernet.
    pub hardware_type: u8,
    /// Bytes of `client_hardware` that count, at most 16.
    pub hardware_len: u8,
    /// The client's transaction.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// Flags: [`BROADCAST`].
    pub flags: u16,
    /// The address that the client has.
    pub client_addr: Ipv4Addr,
    /// The address that the client shall have.
    pub your_addr: Ipv4Addr,
    /// The next server of a boot.
    pub server_addr: Ipv4Addr,
    /// The relay that passed it on.
    pub relay_addr: Ipv4Addr,
    /// The client's hardware address.
    pub client_hardware: [u8; 16],
}

/// The options of a message by code; those that came in several pieces are joined (RFC 3396).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// The value of option `code`.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// The value as an address; `None` also when it is none.
    pub fn addr(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.get(code)?).ok().map(Ipv4Addr::from)
    }

    /// The value as a number of 16 bits; `None` also when it is none.
    pub fn number(&self, code: u8) -> Option<u16> {
        <[u8; 2]>::try_from(self.get(code)?).ok().map(u16::from_be_bytes)
    }

    /// Reads an option area up to its end; what is cut off is left out.
    fn take(&mut self, mut area: &[u8]) {
        while let [code, rest @ ..] = area {
            match (*code, rest) {
                (option::PAD, _) => area = rest,
                (option::END, _) | (_, []) => break,
                (code, [len, data @ ..]) => {
                    let Some((data, behind)) = data.split_at_checked(usize::from(*len)) else {
                        break;
                    };
                    self.0.entry(code).or_default().extend_from_slice(data);
                    area = behind;
                }
            }
        }
    }
}

/// Reads a message: fixed fields and options, also those that overflow into the fields for boot
/// file and server name (option 52).
///
/// # Errors
/// [`Error::Truncated`] below 240 bytes; [`Error::Malformed`] for a wrong cookie, operation or
/// hardware address length.
pub fn parse(bytes: &[u8]) -> Result<(Header, Options)> {
    if u32_at(bytes, COOKIE_AT)? != COOKIE {
        return Err(Error::Malformed);
    }
    let op = match u8_at(bytes, 0)? {
        1 => Op::Request,
        2 => Op::Reply,
        _ => return Err(Error::Malformed),
    };
    let addr = |at| array_at::<4>(bytes, at).map(Ipv4Addr::from);
    let header = Header {
        op,
        hardware_type: u8_at(bytes, 1)?,
        hardware_len: u8_at(bytes, 2)?,
        xid: u32_at(bytes, 4)?,
        secs: u16_at(bytes, 8)?,
        flags: u16_at(bytes, 10)?,
        client_addr: addr(12)?,
        your_addr: addr(16)?,
        server_addr: addr(20)?,
        relay_addr: addr(24)?,
        client_hardware: array_at(bytes, 28)?,
    };
    if header.hardware_len > 16 {
        return Err(Error::Malformed);
    }
    let mut options = Options::default();
    options.take(bytes.get(LEN..).unwrap_or_default());
    let overload = options.get(option::OVERLOAD).and_then(<[u8]>::first).copied().unwrap_or(0);
    if overload & 1 != 0 {
        options.take(bytes.get(FILE..COOKIE_AT).unwrap_or_default());
    }
    if overload & 2 != 0 {
        options.take(bytes.get(SERVER_NAME..FILE).unwrap_or_default());
    }
    Ok((header, options))
}

/// A message in the making: options are appended as long as they fit.
#[derive(Clone, Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    limit: usize,
}

impl Writer {
    /// A message without options that may grow to `limit` bytes.
    pub fn new(header: &Header, limit: usize) -> Self {
        let mut bytes = vec![0; LEN];
        let op = match header.op {
            Op::Request => 1,
            Op::Reply => 2,
        };
        put(&mut bytes, 0, &[op, header.hardware_type, header.hardware_len]);
        put(&mut bytes, 4, &header.xid.to_be_bytes());
        put(&mut bytes, 8, &header.secs.to_be_bytes());
        put(&mut bytes, 10, &header.flags.to_be_bytes());
        put(&mut bytes, 12, &header.client_addr.octets());
        put(&mut bytes, 16, &header.your_addr.octets());
        put(&mut bytes, 20, &header.server_addr.octets());
        put(&mut bytes, 24, &header.relay_addr.octets());
        put(&mut bytes, 28, &header.client_hardware);
        put(&mut bytes, COOKIE_AT, &COOKIE.to_be_bytes());
        Self { bytes, limit }
    }

    /// Appends an option, in pieces when it is longer than 255 bytes (RFC 3396). What would not
    /// leave room for the end mark is left out, as a whole.
    pub fn push(&mut self, code: u8, data: &[u8]) {
        let pieces = data.len().div_ceil(255).max(1);
        if self.bytes.len() + data.len() + 2 * pieces + 1 > self.limit {
            return;
        }
        let mut rest = data;
        for _ in 0..pieces {
            let (piece, behind) = rest.split_at(rest.len().min(255));
            self.bytes.push(code);
            self.bytes.push(u8::try_from(piece.len()).unwrap_or(u8::MAX));
            self.bytes.extend_from_slice(piece);
            rest = behind;
        }
    }

    /// The message, ended and padded.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(option::END);
        let len = self.bytes.len().max(MIN_LEN);
        self.bytes.resize(len, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            op: Op::Request,
            hardware_type: 1,
            hardware_len: 6,
            xid: 0x0102_0304,
            secs: 3,
            flags: BROADCAST,
            client_addr: Ipv4Addr::new(192, 0, 2, 1),
            your_addr: Ipv4Addr::UNSPECIFIED,
            server_addr: Ipv4Addr::UNSPECIFIED,
            relay_addr: Ipv4Addr::UNSPECIFIED,
            client_hardware: *b"\x02\x00\x00\x00\x00\x09\0\0\0\0\0\0\0\0\0\0",
        }
    }

    #[test]
    fn messages_are_at_least_300_bytes_and_come_back() {
        let mut writer = Writer::new(&header(), 548);
        writer.push(option::MESSAGE_TYPE, &[1]);
        writer.push(option::RAPID_COMMIT, &[]);
        let bytes = writer.finish();
        assert_eq!(bytes.len(), 300);
        assert_eq!(bytes[236..246], [99, 130, 83, 99, 53, 1, 1, 80, 0, 255]);
        let (parsed, options) = parse(&bytes).unwrap();
        assert_eq!(parsed, header());
        assert_eq!(options.get(option::MESSAGE_TYPE), Some(&[1][..]));
        assert_eq!(options.get(option::RAPID_COMMIT), Some(&[][..]));
        assert_eq!(options.get(option::SERVER_ID), None);
    }

    #[test]
    fn what_does_not_fit_is_left_out_as_a_whole() {
        let mut writer = Writer::new(&header(), 548);
        writer.push(1, &[7; 300]);
        writer.push(2, &[8; 20]);
        writer.push(3, &[9; 1]);
        let bytes = writer.finish();
        assert_eq!(bytes.len(), 548, "240 + 304 + 3 + the end mark");
        let (_, options) = parse(&bytes).unwrap();
        assert_eq!(options.get(1), Some(&[7; 300][..]), "joined again");
        assert_eq!((options.get(2), options.get(3)), (None, Some(&[9][..])));
    }

    #[test]
    fn options_overflow_into_file_and_server_name() {
        let mut writer = Writer::new(&header(), 548);
        writer.push(option::OVERLOAD, &[3]);
        let mut bytes = writer.finish();
        bytes[108..112].copy_from_slice(&[53, 1, 8, 255]);
        bytes[44..51].copy_from_slice(&[50, 4, 10, 0, 0, 9, 255]);
        let (_, options) = parse(&bytes).unwrap();
        assert_eq!(options.get(53), Some(&[8][..]));
        assert_eq!(options.addr(50), Some(Ipv4Addr::new(10, 0, 0, 9)));
    }

    #[test]
    fn wrong_cookies_operations_and_lengths_are_refused() {
        let bytes = Writer::new(&header(), 548).finish();
        for (at, value) in [(236, 0), (239, 98), (0, 0), (0, 3), (2, 17)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert_eq!(parse(&bytes), Err(Error::Malformed), "byte {at}");
        }
        assert_eq!(parse(&bytes[..239]), Err(Error::Truncated));
        assert!(parse(&bytes[..240]).is_ok());
    }

    #[test]
    fn option_areas_that_are_cut_off_end_quietly() {
        for area in [&[53][..], &[53, 2, 1], &[53, 255], &[0, 0, 0]] {
            let mut options = Options::default();
            options.take(area);
            assert_eq!(options, Options::default(), "{area:?}");
        }
        let mut options = Options::default();
        options.take(&[0, 53, 1, 3, 50, 3, 1, 2, 3, 54, 9]);
        assert_eq!(options.get(53), Some(&[3][..]));
        assert_eq!(options.addr(50), None, "three bytes are no address");
    }

    proptest! {
        #[test]
        fn parsing_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            likely: bool,
        ) {
            let mut bytes = bytes;
            if likely && bytes.len() >= LEN {
                bytes[COOKIE_AT..LEN].copy_from_slice(&COOKIE.to_be_bytes());
                (bytes[0], bytes[2]) = (1, 6);
            }
            if let Ok((header, options)) = parse(&bytes) {
                let mut writer = Writer::new(&header, usize::MAX);
                for (code, data) in options.0.iter().filter(|(code, _)| **code != 52) {
                    writer.push(*code, data);
                }
                let (again, mut expected) = (parse(&writer.finish()).unwrap(), options);
                expected.0.remove(&52);
                prop_assert_eq!(again, (header, expected));
            }
        }
    }
}

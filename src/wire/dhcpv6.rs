//! DHCPv6 messages between client and server, and their options (RFC 8415).

use super::{Error, Result, array_at, u16_at, u32_at};
use std::net::Ipv6Addr;

/// The server's UDP port.
pub const SERVER_PORT: u16 = 547;
/// The client's UDP port.
pub const CLIENT_PORT: u16 = 546;

/// Bytes in front of the options.
const HEADER_LEN: usize = 4;

/// Option codes that we read or write.
pub mod option {
    #![allow(missing_docs, reason = "names are those of the IANA registry")]
    pub const CLIENT_ID: u16 = 1;
    pub const SERVER_ID: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const IA_TA: u16 = 4;
    pub const IA_ADDR: u16 = 5;
    pub const STATUS_CODE: u16 = 13;
    pub const RAPID_COMMIT: u16 = 14;
    pub const DNS_SERVERS: u16 = 23;
    pub const DOMAIN_LIST: u16 = 24;
    pub const IA_PD: u16 = 25;
    pub const CLIENT_FQDN: u16 = 39;
}

/// Status codes (RFC 8415 21.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// All is well.
    Success,
    /// There is no address left for this association.
    NoAddrsAvail,
    /// The association is not known.
    NoBinding,
    /// The addresses do not belong on this link.
    NotOnLink,
    /// There is no prefix for this association.
    NoPrefixAvail,
}

impl Status {
    /// The code on the wire.
    pub const fn code(self) -> u16 {
        match self {
            Self::Success => 0,
            Self::NoAddrsAvail => 2,
            Self::NoBinding => 3,
            Self::NotOnLink => 4,
            Self::NoPrefixAvail => 6,
        }
    }

    /// The text that goes with it.
    const fn text(self) -> &'static str {
        match self {
            Self::Success => "",
            Self::NoAddrsAvail => "No address available",
            Self::NoBinding => "No binding",
            Self::NotOnLink => "Not on this link",
            Self::NoPrefixAvail => "No prefix available",
        }
    }
}

/// What a message wants or says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// A client looks for servers.
    Solicit,
    /// A server offers a lease.
    Advertise,
    /// A client asks for the lease.
    Request,
    /// A client, woken up, asks whether its addresses still belong here.
    Confirm,
    /// A client asks its server for more time.
    Renew,
    /// A client asks any server for more time.
    Rebind,
    /// A server gives, refuses or confirms.
    Reply,
    /// A client gives addresses back.
    Release,
    /// A client has found addresses in use.
    Decline,
    /// A client asks for everything but addresses.
    InformationRequest,
}

impl MessageType {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Solicit,
            2 => Self::Advertise,
            3 => Self::Request,
            4 => Self::Confirm,
            5 => Self::Renew,
            6 => Self::Rebind,
            7 => Self::Reply,
            8 => Self::Release,
            9 => Self::Decline,
            11 => Self::InformationRequest,
            _ => return None,
        })
    }

    const fn number(self) -> u8 {
        match self {
            Self::Solicit => 1,
            Self::Advertise => 2,
            Self::Request => 3,
            Self::Confirm => 4,
            Self::Renew => 5,
            Self::Rebind => 6,
            Self::Reply => 7,
            Self::Release => 8,
            Self::Decline => 9,
            Self::InformationRequest => 11,
        }
    }
}

/// A list of options whose lengths have been checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// Takes `bytes` as a list of options.
    ///
    /// # Errors
    /// [`Error::Truncated`] when the last one is not all there.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut rest = bytes;
        while !rest.is_empty() {
            (_, rest) = split_option(rest)?;
        }
        Ok(Self(bytes))
    }

    /// The options in order: code and value.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (option, behind) = split_option(rest).ok()?;
            rest = behind;
            Some(option)
        })
    }

    /// The value of the first option `code`.
    pub fn get(&self, code: u16) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == code).map(|(_, value)| value)
    }
}

/// An option as code and value.
type RawOption<'a> = (u16, &'a [u8]);

/// The first option and what follows it.
fn split_option(bytes: &[u8]) -> Result<(RawOption<'_>, &[u8])> {
    let (code, len) = (u16_at(bytes, 0)?, u16_at(bytes, 2)?);
    let rest = bytes.get(4..).ok_or(Error::Truncated)?;
    let (value, behind) = rest.split_at_checked(usize::from(len)).ok_or(Error::Truncated)?;
    Ok(((code, value), behind))
}

/// A message. Those of relays are malformed to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it wants.
    pub kind: MessageType,
    /// The client's transaction, 24 bits.
    pub xid: u32,
    /// Its options.
    pub options: Options<'a>,
}

impl<'a> Message<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`Error::Truncated`] when it ends early, within an option for example;
    /// [`Error::Malformed`] for other types.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let first = u32_at(bytes, 0)?;
        let [kind, ..] = first.to_be_bytes();
        Ok(Self {
            kind: MessageType::from_number(kind).ok_or(Error::Malformed)?,
            xid: first & 0x00ff_ffff,
            options: Options::parse(bytes.get(HEADER_LEN..).ok_or(Error::Truncated)?)?,
        })
    }
}

/// Which kind of identity association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IaKind {
    /// Addresses.
    NonTemporary,
    /// Temporary addresses.
    Temporary,
    /// Delegated prefixes.
    Prefix,
}

impl IaKind {
    const fn code(self) -> u16 {
        match self {
            Self::NonTemporary => option::IA_NA,
            Self::Temporary => option::IA_TA,
            Self::Prefix => option::IA_PD,
        }
    }
}

/// An identity association as a client sends it; its times are hints that we do not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ia<'a> {
    /// Which kind.
    pub kind: IaKind,
    /// The client's number for it.
    pub id: u32,
    /// Its own options.
    pub options: Options<'a>,
}

impl<'a> Ia<'a> {
    /// Reads an option of a message; `None` when it is no association.
    ///
    /// # Errors
    /// [`Error::Truncated`] when it ends early.
    pub fn parse(code: u16, value: &'a [u8]) -> Result<Option<Self>> {
        let (kind, header) = match code {
            option::IA_NA => (IaKind::NonTemporary, 12),
            option::IA_TA => (IaKind::Temporary, 4),
            option::IA_PD => (IaKind::Prefix, 12),
            _ => return Ok(None),
        };
        let options = Options::parse(value.get(header..).ok_or(Error::Truncated)?)?;
        Ok(Some(Self { kind, id: u32_at(value, 0)?, options }))
    }

    /// The addresses in it; what is too short to be one is left out.
    pub fn addrs(&self) -> impl Iterator<Item = Ipv6Addr> + use<'a> {
        self.options
            .iter()
            .filter(|(code, _)| *code == option::IA_ADDR)
            .filter_map(|(_, value)| array_at::<16>(value, 0).ok().map(Ipv6Addr::from))
    }
}

/// A list of options in the making; a whole message when it begins with [`Writer::message`].
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A message without options.
    pub fn message(kind: MessageType, xid: u32) -> Self {
        let [_, x0, x1, x2] = xid.to_be_bytes();
        Self { bytes: vec![kind.number(), x0, x1, x2] }
    }

    /// Appends an option; one of more than 65 535 bytes is left out.
    pub fn push(&mut self, code: u16, value: &[u8]) {
        let Ok(len) = u16::try_from(value.len()) else { return };
        self.bytes.extend_from_slice(&code.to_be_bytes());
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    /// Appends a status with its text.
    pub fn push_status(&mut self, status: Status) {
        let mut value = status.code().to_be_bytes().to_vec();
        value.extend_from_slice(status.text().as_bytes());
        self.push(option::STATUS_CODE, &value);
    }

    /// Appends an address whose lifetimes are both `lifetime` seconds.
    pub fn push_addr(&mut self, addr: Ipv6Addr, lifetime: u32) {
        let mut value = addr.octets().to_vec();
        value.extend_from_slice(&lifetime.to_be_bytes());
        value.extend_from_slice(&lifetime.to_be_bytes());
        self.push(option::IA_ADDR, &value);
    }

    /// Appends an association whose T1 and T2, if it has them, are both `times` seconds.
    pub fn push_ia(&mut self, kind: IaKind, id: u32, times: u32, options: &Self) {
        let mut value = id.to_be_bytes().to_vec();
        if kind != IaKind::Temporary {
            value.extend_from_slice(&times.to_be_bytes());
            value.extend_from_slice(&times.to_be_bytes());
        }
        value.extend_from_slice(&options.bytes);
        self.push(kind.code(), &value);
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_solicit_is_read() {
        let bytes = [
            1, 0xab, 0xcd, 0xef, // SOLICIT
            0, 1, 0, 3, 9, 8, 7, // client id
            0, 3, 0, 12, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, // IA_NA
            0, 14, 0, 0, // rapid commit
        ];
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.xid), (MessageType::Solicit, 0x00ab_cdef));
        assert_eq!(message.options.get(option::CLIENT_ID), Some(&[9, 8, 7][..]));
        assert_eq!(message.options.get(option::RAPID_COMMIT), Some(&[][..]));
        let (code, value) = message.options.iter().nth(1).unwrap();
        let ia = Ia::parse(code, value).unwrap().unwrap();
        assert_eq!((ia.kind, ia.id, ia.addrs().count()), (IaKind::NonTemporary, 5, 0));
        for len in 0..bytes.len() {
            let whole = [4, 11, 27].contains(&len);
            assert_eq!(Message::parse(&bytes[..len]).is_ok(), whole, "{len} bytes");
        }
    }

    #[test]
    fn associations_of_each_kind_come_back() {
        let addr = Ipv6Addr::LOCALHOST;
        let mut inner = Writer::default();
        inner.push_addr(addr, 0);
        inner.push_status(Status::NotOnLink);
        let mut writer = Writer::message(MessageType::Reply, 7);
        for kind in [IaKind::NonTemporary, IaKind::Temporary, IaKind::Prefix] {
            writer.push_ia(kind, 9, 5, &inner);
        }
        let bytes = writer.finish();
        let message = Message::parse(&bytes).unwrap();
        let ias: Vec<_> =
            message.options.iter().map(|(code, v)| Ia::parse(code, v).unwrap().unwrap()).collect();
        assert_eq!(
            ias.iter().map(|ia| ia.kind).collect::<Vec<_>>(),
            [IaKind::NonTemporary, IaKind::Temporary, IaKind::Prefix]
        );
        for ia in ias {
            assert_eq!(ia.addrs().collect::<Vec<_>>(), [addr]);
            assert_eq!(ia.options.get(option::STATUS_CODE).unwrap()[..2], [0, 4]);
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_undoes_emit(
            kind in 0u8..14,
            rest in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..5, Just(25)], 0..80),
        ) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            if let Ok(message) = Message::parse(&bytes) {
                let mut writer = Writer::message(message.kind, message.xid);
                for (code, value) in message.options.iter() {
                    if let Ok(Some(ia)) = Ia::parse(code, value) {
                        prop_assert!(ia.addrs().count() <= value.len() / 20);
                    }
                    writer.push(code, value);
                }
                prop_assert_eq!(writer.finish(), bytes);
            }
        }
    }
}

//! Neighbour discovery (RFC 4861) with the options for resolvers and search lists (RFC 8106).

use super::dns::{self, Name};
use super::{Error, MacAddr, Result, array_at, icmpv6, put, u8_at, u16_at, u32_at};
use std::net::Ipv6Addr;

/// Everyone on the link.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The hop limit of every such message: proof that no router forwarded it (RFC 4861 3.1).
pub const HOP_LIMIT: u8 = 255;

/// A lifetime that never ends.
pub const INFINITE: u32 = u32::MAX;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;

/// Whether an ICMPv6 type belongs to neighbour discovery.
pub const fn is_ndp(kind: u8) -> bool {
    matches!(kind, ROUTER_SOLICITATION..=REDIRECT)
}

/// The group in which a node is asked for `addr` (RFC 4291 2.7.1).
pub const fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    let low = (a as u16, u16::from_be_bytes([b, c]));
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | low.0, low.1)
}

/// A message of neighbour discovery. Redirects are malformed to us: nobody here sends or heeds
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for router advertisements.
    RouterSolicitation {
        /// The sender's Ethernet address.
        source_mac: Option<MacAddr>,
    },
    /// Tells of a router.
    RouterAdvertisement(RouterAdvertisement),
    /// Asks who has an address.
    NeighborSolicitation {
        /// The address asked for.
        target: Ipv6Addr,
        /// The sender's Ethernet address; absent when duplicates are looked for.
        source_mac: Option<MacAddr>,
    },
    /// Tells who has an address.
    NeighborAdvertisement {
        /// The sender is a router.
        router: bool,
        /// This answers a solicitation.
        solicited: bool,
        /// The receiver shall forget what it knew before.
        override_cache: bool,
        /// The address told about.
        target: Ipv6Addr,
        /// Its Ethernet address.
        target_mac: Option<MacAddr>,
    },
}

/// A router advertisement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// The hop limit that hosts shall use; 0 says nothing.
    pub hop_limit: u8,
    /// Addresses are to be had by DHCPv6 (M).
    pub managed: bool,
    /// Other things are to be had by DHCPv6 (O).
    pub other: bool,
    /// Seconds for which the sender is a default router; 0: it is none.
    pub lifetime: u16,
    /// The sender's Ethernet address.
    pub source_mac: Option<MacAddr>,
    /// The link's MTU.
    pub mtu: Option<u32>,
    /// Prefixes of the link.
    pub prefixes: Vec<Prefix>,
    /// Resolvers, of infinite lifetime when written.
    pub resolvers: Vec<Ipv6Addr>,
    /// Search list, of infinite lifetime when written.
    pub search: Vec<Name>,
}

/// A prefix information option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The prefix; bits behind its length are zero.
    pub addr: Ipv6Addr,
    /// Its length in bits, 0 to 128.
    pub len: u8,
    /// Addresses under it are on the link (L).
    pub on_link: bool,
    /// Hosts may make addresses under it (A).
    pub autonomous: bool,
    /// Seconds for which it and addresses under it are valid.
    pub valid: u32,
    /// Seconds for which new connections may come from those addresses.
    pub preferred: u32,
}

impl Message {
    /// Reads an ICMPv6 message. Unknown options are skipped; the checksum is the caller's to
    /// verify, for which it has the addresses.
    ///
    /// # Errors
    /// [`Error::Truncated`] when it ends early; [`Error::Malformed`] for other types, a code that
    /// is not 0, or an option of length 0 (RFC 4861 4.6).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let [kind, code, ..] = array_at::<4>(bytes, 0)?;
        if code != 0 {
            return Err(Error::Malformed);
        }
        match kind {
            ROUTER_SOLICITATION => {
                let options = Options::parse(bytes, 8)?;
                Ok(Self::RouterSolicitation { source_mac: options.source_mac })
            }
            ROUTER_ADVERTISEMENT => {
                parse_router_advertisement(bytes).map(Self::RouterAdvertisement)
            }
            NEIGHBOR_SOLICITATION => Ok(Self::NeighborSolicitation {
                target: array_at::<16>(bytes, 8)?.into(),
                source_mac: Options::parse(bytes, 24)?.source_mac,
            }),
            NEIGHBOR_ADVERTISEMENT => {
                let flags = u8_at(bytes, 4)?;
                Ok(Self::NeighborAdvertisement {
                    router: flags & 0x80 != 0,
                    solicited: flags & 0x40 != 0,
                    override_cache: flags & 0x20 != 0,
                    target: array_at::<16>(bytes, 8)?.into(),
                    target_mac: Options::parse(bytes, 24)?.target_mac,
                })
            }
            _ => Err(Error::Malformed),
        }
    }

    /// The message as bytes, with the checksum that it has between `src` and `dst`.
    pub fn to_bytes(&self, src: Ipv6Addr, dst: Ipv6Addr) -> Vec<u8> {
        let mut out = match self {
            Self::RouterSolicitation { source_mac } => {
                let mut out = vec![ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
                push_mac(&mut out, SOURCE_LINK_LAYER, *source_mac);
                out
            }
            Self::RouterAdvertisement(advertisement) => advertisement.to_bytes(),
            Self::NeighborSolicitation { target, source_mac } => {
                let mut out = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
                out.extend_from_slice(&target.octets());
                push_mac(&mut out, SOURCE_LINK_LAYER, *source_mac);
                out
            }
            Self::NeighborAdvertisement {
                router,
                solicited,
                override_cache,
                target,
                target_mac,
            } => {
                let flags = u8::from(*router) << 7
                    | u8::from(*solicited) << 6
                    | u8::from(*override_cache) << 5;
                let mut out = vec![NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
                out.extend_from_slice(&target.octets());
                push_mac(&mut out, TARGET_LINK_LAYER, *target_mac);
                out
            }
        };
        let checksum = icmpv6::checksum(src, dst, &out).to_be_bytes();
        put(&mut out, 2, &checksum);
        out
    }
}

fn parse_router_advertisement(bytes: &[u8]) -> Result<RouterAdvertisement> {
    let flags = u8_at(bytes, 5)?;
    let options = Options::parse(bytes, 16)?;
    Ok(RouterAdvertisement {
        hop_limit: u8_at(bytes, 4)?,
        managed: flags & 0x80 != 0,
        other: flags & 0x40 != 0,
        lifetime: u16_at(bytes, 6)?,
        source_mac: options.source_mac,
        mtu: options.mtu,
        prefixes: options.prefixes,
        resolvers: options.resolvers,
        search: options.search,
    })
}

impl RouterAdvertisement {
    /// The message with a checksum of 0.
    fn to_bytes(&self) -> Vec<u8> {
        let flags = u8::from(self.managed) << 7 | u8::from(self.other) << 6;
        let mut out = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, self.hop_limit, flags];
        out.extend_from_slice(&self.lifetime.to_be_bytes());
        // Reachable time and retransmission timer: unspecified.
        out.extend_from_slice(&[0; 8]);
        for prefix in &self.prefixes {
            let flags = u8::from(prefix.on_link) << 7 | u8::from(prefix.autonomous) << 6;
            out.extend_from_slice(&[PREFIX_INFORMATION, 4, prefix.len, flags]);
            out.extend_from_slice(&prefix.valid.to_be_bytes());
            out.extend_from_slice(&prefix.preferred.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&prefix.addr.octets());
        }
        if let Some(mtu) = self.mtu {
            out.extend_from_slice(&[MTU, 1, 0, 0]);
            out.extend_from_slice(&mtu.to_be_bytes());
        }
        let resolvers = self.resolvers.iter().flat_map(Ipv6Addr::octets).collect();
        push_dns(&mut out, RDNSS, resolvers);
        push_dns(&mut out, DNSSL, dns::concatenate(&self.search));
        push_mac(&mut out, SOURCE_LINK_LAYER, self.source_mac);
        out
    }
}

/// Appends an option of RFC 8106, padded with zeros to whole units of 8 bytes; nothing when there
/// is nothing to tell or more than an option can hold.
fn push_dns(out: &mut Vec<u8>, kind: u8, mut data: Vec<u8>) {
    data.resize(data.len().next_multiple_of(8), 0);
    let Ok(units @ 2..) = u8::try_from(data.len() / 8 + 1) else { return };
    out.extend_from_slice(&[kind, units, 0, 0]);
    out.extend_from_slice(&INFINITE.to_be_bytes());
    out.extend_from_slice(&data);
}

fn push_mac(out: &mut Vec<u8>, kind: u8, mac: Option<MacAddr>) {
    if let Some(mac) = mac {
        out.extend_from_slice(&[kind, 1]);
        out.extend_from_slice(&mac.0);
    }
}

/// What the options of a message say; of equal ones but prefixes, the last counts.
#[derive(Debug, Default)]
struct Options {
    source_mac: Option<MacAddr>,
    target_mac: Option<MacAddr>,
    mtu: Option<u32>,
    prefixes: Vec<Prefix>,
    resolvers: Vec<Ipv6Addr>,
    search: Vec<Name>,
}

impl Options {
    /// Reads the options behind the first `offset` bytes of a message.
    fn parse(bytes: &[u8], offset: usize) -> Result<Self> {
        let mut options = Self::default();
        let mut rest = bytes.get(offset..).ok_or(Error::Truncated)?;
        while !rest.is_empty() {
            let len = usize::from(u8_at(rest, 1)?) * 8;
            if len == 0 {
                return Err(Error::Malformed);
            }
            let (option, behind) = rest.split_at_checked(len).ok_or(Error::Truncated)?;
            options.take(option)?;
            rest = behind;
        }
        Ok(options)
    }

    fn take(&mut self, option: &[u8]) -> Result<()> {
        match (u8_at(option, 0)?, option.len()) {
            (SOURCE_LINK_LAYER, 8) => self.source_mac = Some(MacAddr(array_at(option, 2)?)),
            (TARGET_LINK_LAYER, 8) => self.target_mac = Some(MacAddr(array_at(option, 2)?)),
            (MTU, 8) => self.mtu = Some(u32_at(option, 4)?),
            (PREFIX_INFORMATION, 32) => self.prefixes.push(parse_prefix(option)?),
            (RDNSS, _) => {
                let (addrs, _) = option.get(8..).unwrap_or_default().as_chunks::<16>();
                self.resolvers = addrs.iter().copied().map(Ipv6Addr::from).collect();
            }
            (DNSSL, _) => self.search = parse_search(option.get(8..).unwrap_or_default()),
            _ => {}
        }
        Ok(())
    }
}

fn parse_prefix(option: &[u8]) -> Result<Prefix> {
    let (len, flags) = (u8_at(option, 2)?, u8_at(option, 3)?);
    if len > 128 {
        return Err(Error::Malformed);
    }
    Ok(Prefix {
        addr: array_at::<16>(option, 16)?.into(),
        len,
        on_link: flags & 0x80 != 0,
        autonomous: flags & 0x40 != 0,
        valid: u32_at(option, 4)?,
        preferred: u32_at(option, 8)?,
    })
}

/// Names up to the padding or the first that is none.
fn parse_search(mut data: &[u8]) -> Vec<Name> {
    let mut names = Vec::new();
    while let Ok((name, rest)) = Name::parse(data) {
        names.push(name);
        data = rest;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    #[test]
    fn a_neighbour_solicitation_is_read_and_written() {
        let target = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        let message = Message::NeighborSolicitation { target, source_mac: Some(MAC) };
        let bytes = message.to_bytes(ROUTER, ALL_NODES);
        assert_eq!(bytes[..2], [135, 0]);
        assert_eq!(bytes[8..24], target.octets());
        assert_eq!(bytes[24..], [1, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(icmpv6::checksum(ROUTER, ALL_NODES, &bytes), 0);
        assert_eq!(Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn options_of_length_zero_discard_the_message() {
        let mut bytes = Message::RouterSolicitation { source_mac: Some(MAC) }
            .to_bytes(Ipv6Addr::UNSPECIFIED, ALL_NODES);
        bytes[9] = 0;
        assert_eq!(Message::parse(&bytes), Err(Error::Malformed));
        bytes[9] = 2;
        assert_eq!(Message::parse(&bytes), Err(Error::Truncated));
        (bytes[8], bytes[9]) = (14, 1); // a nonce
        assert_eq!(Message::parse(&bytes), Ok(Message::RouterSolicitation { source_mac: None }));
        bytes[1] = 1;
        assert_eq!(Message::parse(&bytes), Err(Error::Malformed), "code");
    }

    #[test]
    fn search_lists_of_any_length_leave_no_empty_option() {
        for len in 1..30 {
            let name = Name::new(&"x".repeat(len)).unwrap();
            let advertisement =
                RouterAdvertisement { search: vec![name], ..RouterAdvertisement::default() };
            let message = Message::RouterAdvertisement(advertisement);
            let bytes = message.to_bytes(ROUTER, ALL_NODES);
            assert_eq!(bytes.len() % 8, 0);
            assert_eq!(bytes.len() - 16, 8 + (len + 2).next_multiple_of(8), "a name of {len}");
            assert_eq!(Message::parse(&bytes), Ok(message));
        }
    }

    #[test]
    fn groups_follow_from_the_last_24_bits() {
        let addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0x1234, 0x5678, 0x9abc, 0xdef0);
        assert_eq!(solicited_node(addr), "ff02::1:ffbc:def0".parse::<Ipv6Addr>().unwrap());
        assert!(is_ndp(133) && is_ndp(137) && !is_ndp(128) && !is_ndp(143));
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_undoes_emit(
            kind in 132u8..139,
            rest in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..6], 0..120),
        ) {
            let mut bytes = vec![kind, 0];
            bytes.extend(rest);
            if let Ok(message) = Message::parse(&bytes) {
                let out = message.to_bytes(ROUTER, ALL_NODES);
                prop_assert_eq!(Message::parse(&out), Ok(message));
            }
        }
    }
}

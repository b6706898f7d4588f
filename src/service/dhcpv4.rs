//! DHCP: the guest gets its one address, for ever (RFC 2131); but one that was made up because the
//! host has none yet only for a while, so that the guest asks again.

use super::frame::{self, Route};
use super::{Outcome, Surroundings};
use crate::config::guest::{GuestV4, GuestView};
use crate::wire::dhcpv4::{self as wire, Header, MessageType, Op, Options, Writer, option};
use crate::wire::{MacAddr, dns};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Lease, renewal and rebinding time in seconds: never ends.
const INFINITE: [u32; 3] = [u32::MAX; 3];

/// The same for an address that was made up.
const PROVISIONAL: [u32; 3] = [120, 60, 105];

/// Bytes of IPv4 and UDP headers around a message.
const HEADERS: u16 = 28;

/// The packet that every client takes (RFC 2131 2), and the largest that we send to one that
/// takes more (option 57).
const MIN_PACKET: u16 = 576;
const MAX_PACKET: u16 = 1500;

/// Flags of option 81 (RFC 4702 2.1): name in wire form; client's wish overridden.
const FQDN_ENCODED: u8 = 0x04;
const FQDN_OVERRIDE: u8 = 0x02;
/// A client's wish that the server update its address record.
const FQDN_SERVER_UPDATES: u8 = 0x01;

/// What we say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// To a BOOTP client (RFC 1534 2): an address, without any word of DHCP.
    Bootp,
    /// A lease or its offer.
    Lease(MessageType),
    /// Everything but an address.
    Inform,
    /// A refusal.
    Nak,
}

/// Answers the payload of a UDP datagram to port 67. Only what is sent to us or to everyone is
/// ours: another server's datagrams, and those of a relay in the guest, pass.
pub(super) fn answer(
    from: MacAddr,
    dst: Ipv4Addr,
    payload: &[u8],
    around: &Surroundings<'_>,
) -> Outcome {
    let view = around.view;
    let Some(guest) = view.v4.as_ref() else { return Outcome::NotForUs };
    let broadcast = dst.is_broadcast();
    if !broadcast && dst != guest.our_addr {
        return Outcome::NotForUs;
    }
    let request = wire::parse(payload).ok().filter(|(header, _)| {
        view.services.dhcp && header.op == Op::Request && header.relay_addr.is_unspecified()
    });
    match request {
        Some((header, options)) => Outcome::Consumed(reply(from, &header, &options, around, guest)),
        // Nobody else is there to hear a broadcast.
        None if broadcast => Outcome::Consumed(None),
        None => Outcome::NotForUs,
    }
}

fn reply(
    from: MacAddr,
    request: &Header,
    asked: &Options,
    around: &Surroundings<'_>,
    guest: &GuestV4,
) -> Option<Vec<u8>> {
    let kind = decide(request, asked, guest)?;
    let none = Ipv4Addr::UNSPECIFIED;
    let header = Header {
        op: Op::Reply,
        secs: 0,
        client_addr: if kind == Kind::Nak { none } else { request.client_addr },
        your_addr: if matches!(kind, Kind::Nak | Kind::Inform) { none } else { guest.addr },
        server_addr: none,
        ..*request
    };
    let mut writer = Writer::new(&header, limit(asked));
    write_options(&mut writer, kind, asked, around.view, guest);
    // RFC 2131 4.1: where a refusal, or one who asks for it, can only be reached by broadcast.
    let everyone = kind == Kind::Nak
        || request.flags & wire::BROADCAST != 0 && request.client_addr.is_unspecified();
    let dst = match request.client_addr {
        _ if everyone => Ipv4Addr::BROADCAST,
        client if client.is_unspecified() => guest.addr,
        client => client,
    };
    let dst_mac = if everyone { MacAddr::BROADCAST } else { from };
    let src_mac = around.neighbours.mac(guest.our_addr.into());
    let route = Route { src_mac, dst_mac, src: guest.our_addr, dst };
    frame::udp4(&route, wire::SERVER_PORT, wire::CLIENT_PORT, &writer.finish())
}

/// What a message gets; `None` is silence.
fn decide(request: &Header, asked: &Options, guest: &GuestV4) -> Option<Kind> {
    // Another server was chosen.
    if asked.get(option::SERVER_ID).is_some()
        && asked.addr(option::SERVER_ID) != Some(guest.our_addr)
    {
        return None;
    }
    let kind = match asked.get(option::MESSAGE_TYPE) {
        None => return Some(Kind::Bootp),
        Some(&[number]) => MessageType::from_number(number)?,
        Some(_) => return None,
    };
    match kind {
        // RFC 4039: a client in a hurry skips the offer.
        MessageType::Discover if asked.get(option::RAPID_COMMIT).is_some() => {
            Some(Kind::Lease(MessageType::Ack))
        }
        MessageType::Discover => Some(Kind::Lease(MessageType::Offer)),
        MessageType::Request => {
            let held = Some(request.client_addr).filter(|addr| !addr.is_unspecified());
            match asked.addr(option::REQUESTED_ADDRESS).or(held) {
                Some(wanted) if wanted != guest.addr => Some(Kind::Nak),
                _ => Some(Kind::Lease(MessageType::Ack)),
            }
        }
        MessageType::Inform => Some(Kind::Inform),
        MessageType::Decline
        | MessageType::Release
        | MessageType::Offer
        | MessageType::Ack
        | MessageType::Nak => None,
    }
}

/// Bytes that the client takes in a message.
fn limit(asked: &Options) -> usize {
    let packet = asked.number(option::MAX_MESSAGE_SIZE).unwrap_or(MIN_PACKET);
    usize::from(packet.clamp(MIN_PACKET, MAX_PACKET) - HEADERS)
}

/// Type, server and lease first; then what the client asked for, in its order; then the rest.
fn write_options(
    writer: &mut Writer,
    kind: Kind,
    asked: &Options,
    view: &GuestView,
    guest: &GuestV4,
) {
    let message_type = match kind {
        Kind::Bootp => None,
        Kind::Lease(message_type) => Some(message_type),
        Kind::Inform => Some(MessageType::Ack),
        Kind::Nak => Some(MessageType::Nak),
    };
    if let Some(message_type) = message_type {
        writer.push(option::MESSAGE_TYPE, &[message_type.number()]);
        writer.push(option::SERVER_ID, &guest.our_addr.octets());
        // RFC 6842: the client shall know that it is meant.
        if let Some(client) = asked.get(option::CLIENT_ID) {
            writer.push(option::CLIENT_ID, client);
        }
    }
    if kind == Kind::Nak {
        writer.push(option::MESSAGE, b"not the address of this guest");
        return;
    }
    if let Kind::Lease(message_type) = kind {
        let made_up = !guest.fixed && guest.addr.is_link_local();
        let times = if made_up { PROVISIONAL } else { INFINITE };
        let codes = [option::LEASE_TIME, option::RENEWAL_TIME, option::REBINDING_TIME];
        for (code, time) in codes.into_iter().zip(times) {
            writer.push(code, &time.to_be_bytes());
        }
        if message_type == MessageType::Ack && asked.get(option::RAPID_COMMIT).is_some() {
            writer.push(option::RAPID_COMMIT, &[]);
        }
    }
    let mut rest = parameters(asked, view, guest);
    for code in asked.get(option::PARAMETER_LIST).unwrap_or_default() {
        if let Some(data) = rest.remove(code) {
            writer.push(*code, &data);
        }
    }
    for (code, data) in rest.iter().filter(|(code, _)| **code != option::BROADCAST_ADDRESS) {
        writer.push(*code, data);
    }
}

/// What we have to tell of the network.
fn parameters(asked: &Options, view: &GuestView, guest: &GuestV4) -> BTreeMap<u8, Vec<u8>> {
    let mask = mask(guest.prefix_len);
    let broadcast = Ipv4Addr::from_bits(guest.addr.to_bits() | !mask);
    let mut options = BTreeMap::from([
        (option::SUBNET_MASK, mask.to_be_bytes().to_vec()),
        (option::BROADCAST_ADDRESS, broadcast.octets().to_vec()),
    ]);
    if let Some(gateway) = guest.gateway {
        options.insert(option::ROUTER, gateway.octets().to_vec());
        if (gateway.to_bits() ^ guest.addr.to_bits()) & mask != 0 {
            options.insert(option::CLASSLESS_ROUTES, routes(gateway));
        }
    }
    if let Some(mtu) = view.mtu {
        options.insert(option::INTERFACE_MTU, mtu.to_be_bytes().to_vec());
    }
    add_names(&mut options, asked, view);
    options
}

/// Resolvers, search list and names, as far as there are any to tell.
fn add_names(options: &mut BTreeMap<u8, Vec<u8>>, asked: &Options, view: &GuestView) {
    let dns = &view.dns;
    if dns.advertise_servers && !dns.v4.is_empty() {
        let servers = dns.v4.iter().flat_map(Ipv4Addr::octets).collect();
        options.insert(option::DOMAIN_NAME_SERVERS, servers);
    }
    let search = super::search_list(dns);
    if !search.is_empty() {
        options.insert(option::DOMAIN_SEARCH, dns::compress(&search));
    }
    if let Some(name) = dns.hostname.as_ref().filter(|name| !name.is_empty()) {
        options.insert(option::HOST_NAME, name.as_bytes().to_vec());
    }
    if let Some(name) = dns.fqdn.as_deref().and_then(dns::Name::new) {
        let theirs = asked.get(option::CLIENT_FQDN).and_then(<[u8]>::first).copied().unwrap_or(0);
        let refused = if theirs & FQDN_SERVER_UPDATES != 0 { FQDN_OVERRIDE } else { 0 };
        // The two result codes are deprecated and sent as 255 (RFC 4702 2.2).
        let mut data = vec![FQDN_ENCODED | refused, 255, 255];
        data.extend_from_slice(name.as_bytes());
        options.insert(option::CLIENT_FQDN, data);
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32u32.saturating_sub(prefix_len.into())).unwrap_or(0)
}

/// A gateway outside the guest's prefix, on the link nevertheless (RFC 3442): first the way to it,
/// then the default route over it.
fn routes(gateway: Ipv4Addr) -> Vec<u8> {
    let [a, b, c, d] = gateway.octets();
    vec![32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d]
}

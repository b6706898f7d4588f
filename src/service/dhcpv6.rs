//! DHCPv6: the guest gets its one address, for ever (RFC 8415).

use super::frame::{self, Route};
use super::{Outcome, Surroundings};
use crate::config::guest::GuestView;
use crate::wire::dhcpv6::{
    self as wire, Ia, IaKind, Message, MessageType, Options, Status, Writer, option,
};
use crate::wire::{MacAddr, dns};
use std::net::Ipv6Addr;

/// Lifetimes, T1 and T2: never end.
const INFINITE: u32 = u32::MAX;

/// Bytes of the longest DUID (RFC 8415 11.1).
const MAX_DUID: usize = 130;

/// Associations, and addresses in each, that one reply speaks of: a bound on its size, out of
/// reach of honest clients.
const MAX_IAS: usize = 16;
const MAX_ADDRS: usize = 8;

/// Flags of option 39 (RFC 4704 4.1): the client's wish that the server update its address
/// record, and that this wish is overridden.
const FQDN_SERVER_UPDATES: u8 = 0x01;
const FQDN_OVERRIDE: u8 = 0x02;

/// Whether the service answers: it has an address to give and is not switched off.
pub(super) fn is_on(view: &GuestView) -> bool {
    view.services.dhcpv6 && view.v6.as_ref().is_some_and(|guest| guest.addr.is_some())
}

/// Answers the payload of a UDP datagram to port 547. Only what is sent to a group is ours, or to
/// our own address, where it is ignored (RFC 8415 16).
pub(super) fn answer(
    from: MacAddr,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    payload: &[u8],
    around: &Surroundings<'_>,
) -> Outcome {
    let view = around.view;
    let Some(guest) = view.v6.as_ref() else { return Outcome::NotForUs };
    if !dst.is_multicast() {
        let ours = dst == guest.our_link_local;
        return if ours { Outcome::Consumed(None) } else { Outcome::NotForUs };
    }
    let reply = || {
        let addr = guest.addr.filter(|_| is_on(view))?;
        if !src.is_unicast_link_local() {
            return None;
        }
        let request = Message::parse(payload).ok()?;
        let writer = reply(&request, addr, view)?;
        let src_mac = around.neighbours.mac(guest.our_link_local.into());
        let route = Route { src_mac, dst_mac: from, src: guest.our_link_local, dst: src };
        let ports = (wire::SERVER_PORT, wire::CLIENT_PORT);
        frame::udp6(&route, request.xid, ports.0, ports.1, &writer.finish())
    };
    Outcome::Consumed(reply())
}

/// Our DUID: that of our Ethernet address alone (RFC 8415 11.4), the same after every start.
fn duid(mac: MacAddr) -> [u8; 10] {
    let [a, b, c, d, e, f] = mac.0;
    [0, 3, 0, 1, a, b, c, d, e, f]
}

/// The reply to a message; `None` is silence.
fn reply(request: &Message<'_>, addr: Ipv6Addr, view: &GuestView) -> Option<Writer> {
    let server = duid(view.our_mac);
    let asked = &request.options;
    let client = asked.get(option::CLIENT_ID);
    is_valid(request.kind, asked, &server).then_some(())?;
    let mut ias = Vec::new();
    for (code, value) in asked.iter() {
        ias.extend(Ia::parse(code, value).ok()?);
    }
    ias.truncate(MAX_IAS);
    // RFC 8415 18.2.1: a client in a hurry skips the offer.
    let rapid = request.kind == MessageType::Solicit && asked.get(option::RAPID_COMMIT).is_some();
    let kind = if request.kind == MessageType::Solicit && !rapid {
        MessageType::Advertise
    } else {
        MessageType::Reply
    };
    let mut writer = Writer::message(kind, request.xid);
    writer.push(option::SERVER_ID, &server);
    match request.kind {
        MessageType::InformationRequest if !ias.is_empty() => return None,
        MessageType::InformationRequest => {}
        MessageType::Confirm => {
            // RFC 8415 18.3.3: silence when there is nothing to confirm.
            let mut addrs = ias.iter().flat_map(Ia::addrs).peekable();
            addrs.peek()?;
            let all = addrs.all(|held| held == addr);
            writer.push_status(if all { Status::Success } else { Status::NotOnLink });
        }
        MessageType::Release | MessageType::Decline => writer.push_status(Status::Success),
        MessageType::Solicit | MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            push_ias(&mut writer, request.kind, &ias, addr);
        }
        MessageType::Advertise | MessageType::Reply => return None,
    }
    if let Some(client) = client {
        writer.push(option::CLIENT_ID, client);
    }
    if rapid {
        writer.push(option::RAPID_COMMIT, &[]);
    }
    push_names(&mut writer, asked, view);
    Some(writer)
}

/// Whether a message has the identifiers that its type must have, and no other's (RFC 8415 16).
fn is_valid(kind: MessageType, asked: &Options<'_>, server: &[u8]) -> bool {
    let client_ok = match asked.get(option::CLIENT_ID) {
        Some(client) => client.len() <= MAX_DUID,
        None => kind == MessageType::InformationRequest,
    };
    let meant = asked.get(option::SERVER_ID);
    client_ok
        && match kind {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => meant.is_none(),
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline => meant == Some(server),
            MessageType::InformationRequest => meant.is_none_or(|id| id == server),
            MessageType::Advertise | MessageType::Reply => false,
        }
}

/// Answers each association. The one address goes to the association that holds it already, else
/// to the first one for addresses.
fn push_ias(writer: &mut Writer, request: MessageType, ias: &[Ia<'_>], addr: Ipv6Addr) {
    let lasting = |ia: &&Ia<'_>| ia.kind == IaKind::NonTemporary;
    let holder = ias.iter().filter(lasting).find(|ia| ia.addrs().any(|held| held == addr));
    let chosen = holder.or_else(|| ias.iter().find(lasting)).map(|ia| ia.id);
    let mut given = false;
    for ia in ias {
        let gets = !given && ia.kind == IaKind::NonTemporary && Some(ia.id) == chosen;
        given |= gets;
        let (times, inner) = answer_ia(request, ia, gets.then_some(addr));
        writer.push_ia(ia.kind, ia.id, times, &inner);
    }
}

/// T1 and T2, and what stands in the answer to one association, which gets `addr` or nothing.
fn answer_ia(request: MessageType, ia: &Ia<'_>, addr: Option<Ipv6Addr>) -> (u32, Writer) {
    let extends = matches!(request, MessageType::Renew | MessageType::Rebind);
    let mut others = ia.addrs().filter(|held| Some(*held) != addr).take(MAX_ADDRS).peekable();
    let mut inner = Writer::default();
    // RFC 8415 18.3.2: asked for what was never offered.
    if request == MessageType::Request && addr.is_some() && others.peek().is_some() {
        inner.push_status(Status::NotOnLink);
        return (0, inner);
    }
    if let Some(addr) = addr {
        inner.push_addr(addr, INFINITE);
    }
    // RFC 8415 18.3.4: addresses that do not belong here end now.
    if extends {
        others.for_each(|held| inner.push_addr(held, 0));
    }
    let refusal = match ia.kind {
        _ if addr.is_some() => return (INFINITE, inner),
        _ if extends => Status::NoBinding,
        IaKind::Prefix => Status::NoPrefixAvail,
        IaKind::NonTemporary | IaKind::Temporary => Status::NoAddrsAvail,
    };
    inner.push_status(refusal);
    (0, inner)
}

/// Resolvers, search list and name, as far as there are any to tell.
fn push_names(writer: &mut Writer, asked: &Options<'_>, view: &GuestView) {
    let names = &view.dns;
    if names.advertise_servers && !names.v6.is_empty() {
        let servers: Vec<u8> = names.v6.iter().flat_map(Ipv6Addr::octets).collect();
        writer.push(option::DNS_SERVERS, &servers);
    }
    let search = super::search_list(names);
    if !search.is_empty() {
        writer.push(option::DOMAIN_LIST, &dns::concatenate(&search));
    }
    if let Some(name) = names.fqdn.as_deref().and_then(dns::Name::new) {
        let theirs = asked.get(option::CLIENT_FQDN).and_then(<[u8]>::first).copied().unwrap_or(0);
        let flags = if theirs & FQDN_SERVER_UPDATES != 0 { FQDN_OVERRIDE } else { 0 };
        writer.push(option::CLIENT_FQDN, &[&[flags], name.as_bytes()].concat());
    }
}

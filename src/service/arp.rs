//! ARP: we stand for every IPv4 address but the guest's own.

use super::{Seen, Surroundings, frame};
use crate::config::guest::GuestV4;
use crate::wire::MacAddr;
use crate::wire::arp::{LEN, Operation, Packet};
use crate::wire::ethernet::EtherType;
use std::net::Ipv4Addr;

/// The reply to the packet behind an Ethernet header, if it deserves one.
pub(super) fn answer(packet: &[u8], around: &Surroundings<'_>, seen: &Seen) -> Option<Vec<u8>> {
    let guest = around.view.v4.as_ref()?;
    let request = Packet::parse(packet).ok()?;
    if request.operation != Operation::Request || !is_ours(&request, guest, seen) {
        return None;
    }
    let reply = Packet {
        operation: Operation::Reply,
        sender_mac: around.neighbours.mac(request.target_addr.into()),
        sender_addr: request.target_addr,
        target_mac: request.sender_mac,
        target_addr: request.sender_addr,
    };
    Some(emit(&reply, request.sender_mac))
}

/// Whether a request is for us to answer: not an announcement, and not for an address of the
/// guest's, so that its search for duplicates finds none (RFC 5227).
fn is_ours(request: &Packet, guest: &GuestV4, seen: &Seen) -> bool {
    let target = request.target_addr;
    let sensible = !target.is_unspecified() && !target.is_multicast() && !target.is_broadcast();
    let theirs = target == guest.addr || seen.v4 == Some(target) || target == request.sender_addr;
    sensible && !request.sender_mac.is_multicast() && (!theirs || target == guest.our_addr)
}

/// Asks everyone for the guest's address.
pub(super) fn learn(around: &Surroundings<'_>) -> Option<Vec<u8>> {
    let guest = around.view.v4.as_ref()?;
    let request = Packet {
        operation: Operation::Request,
        sender_mac: around.neighbours.mac(guest.our_addr.into()),
        sender_addr: guest.our_addr,
        target_mac: MacAddr::default(),
        target_addr: guest.addr,
    };
    Some(emit(&request, MacAddr::BROADCAST))
}

/// Tells everyone who has `addr`.
pub(super) fn announce(
    addr: Ipv4Addr,
    mac: MacAddr,
    around: &Surroundings<'_>,
    seen: &Seen,
) -> Option<Vec<u8>> {
    let guest = around.view.v4.as_ref()?;
    if addr == guest.addr && addr != guest.our_addr || seen.v4 == Some(addr) {
        return None;
    }
    let announcement = Packet {
        operation: Operation::Request,
        sender_mac: mac,
        sender_addr: addr,
        target_mac: MacAddr::default(),
        target_addr: addr,
    };
    Some(emit(&announcement, MacAddr::BROADCAST))
}

fn emit(packet: &Packet, dst: MacAddr) -> Vec<u8> {
    let mut bytes = [0; LEN];
    packet.emit(&mut bytes);
    frame::ethernet(packet.sender_mac, dst, EtherType::Arp, &[&bytes])
}

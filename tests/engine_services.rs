//! Services on the link through the engine: who is answered, when, and what waits for room.

mod common;

use common::packets::*;
use common::rig::*;
use passt::engine::Settings;
use passt::engine::counters::DropReason;
use passt::flow::Endpoint;
use passt::flow::rules::Rules;
use passt::host::Scan;
use passt::link::{Link, Offload, PartialChecksum};
use passt::time::Duration;
use std::net::IpAddr;

const LINK_LOCAL: &str = "fe80::ff:fe00:2";

fn arp(operation: u8, target: IpAddr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(GUEST_MAC);
    packet.extend(octets(GUEST_V4));
    packet.extend([0; 6]);
    packet.extend(octets(target));
    ethernet(0x0806, &packet)
}

fn icmpv6(src: IpAddr, dst: IpAddr, message: Vec<u8>) -> Vec<u8> {
    ip(src, dst, 58, 255, &sum(src, dst, 58, 2, message))
}

fn solicitation(target: IpAddr) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(octets(target));
    message.extend([1, 1]);
    message.extend(GUEST_MAC);
    icmpv6(LINK_LOCAL.parse().unwrap(), target, message)
}

fn router_solicitation() -> Vec<u8> {
    let all_routers = "ff02::2".parse().unwrap();
    icmpv6(LINK_LOCAL.parse().unwrap(), all_routers, vec![133, 0, 0, 0, 0, 0, 0, 0])
}

fn discover() -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(GUEST_MAC);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    udp(([0, 0, 0, 0].into(), 68), ([255, 255, 255, 255].into(), 67), &message)
}

/// The ICMPv6 type of a frame, its checksum verified.
#[track_caller]
fn icmpv6_type(frame: &[u8]) -> u8 {
    let src: [u8; 16] = frame[22..38].try_into().unwrap();
    let dst: [u8; 16] = frame[38..54].try_into().unwrap();
    let message = &frame[54..];
    let pseudo = pseudo(src.into(), dst.into(), 58, message.len());
    assert_eq!((frame[20], checksum(&[&pseudo, message])), (58, 0));
    message[0]
}

fn is_arp(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6]
}

#[test]
fn arp_is_answered_for_others_and_not_for_the_guest_itself() {
    let mut rig = Rig::new();
    let answers = rig.send(arp(1, GATEWAY_V4));
    assert_eq!(answers.len(), 1);
    let answer = &answers[0];
    assert!(is_arp(answer) && answer[..6] == GUEST_MAC && answer[6..12] == OUR_MAC);
    assert_eq!((&answer[20..22], &answer[22..28]), (&[0, 2][..], &OUR_MAC[..]));
    assert_eq!(answer[28..32], octets(GATEWAY_V4));
    assert!(rig.send(arp(1, GUEST_V4)).is_empty(), "an address conflict probe");
    assert!(rig.send(arp(2, GATEWAY_V4)).is_empty(), "an answer");
    assert_eq!(rig.all_drops(), [(DropReason::ServiceIgnored, 2)]);
}

#[test]
fn dhcp_is_answered_and_makes_no_flow() {
    let mut rig = Rig::new();
    let answers = rig.send(discover());
    assert_eq!(answers.len(), 1);
    let offer = &answers[0];
    assert_eq!(offer[34..38], [0, 67, 0, 68]);
    assert_eq!(offer[42 + 16..42 + 20], octets(GUEST_V4), "yiaddr");
    assert_eq!((rig.engine.datagram_flows(), rig.all_drops()), (0, vec![]));
    // In many pieces, and with a checksum that is still to be completed.
    rig.link.source.piece = 11;
    let offload =
        Offload { checksum: Some(PartialChecksum { start: 34, offset: 6 }), ..Offload::default() };
    assert_eq!(rig.send_with(discover(), offload).len(), 1);
}

#[test]
fn services_that_are_off_do_not_answer() {
    let mut off = settings();
    off.view.services.dhcp = false;
    off.view.services.ndp = false;
    off.view.services.ra = false;
    off.view.services.dhcpv6 = false;
    let mut rig = Rig::with(off);
    assert!(rig.send(discover()).is_empty());
    assert!(rig.send(solicitation(GATEWAY_V6)).is_empty());
    assert!(rig.send(router_solicitation()).is_empty());
    assert!(rig.after(Duration::from_secs(10_000)).is_empty(), "nor does it advertise");
}

#[test]
fn neighbours_and_routers_are_told() {
    let mut rig = Rig::new();
    let answers = rig.send(solicitation(GATEWAY_V6));
    assert_eq!((answers.len(), icmpv6_type(&answers[0])), (1, 136));
    let answers = rig.send(router_solicitation());
    assert_eq!((answers.len(), icmpv6_type(&answers[0])), (1, 134));
    assert_eq!(rig.engine.datagram_flows(), 0);
    let mut broken = solicitation(GATEWAY_V6);
    broken[60] ^= 1;
    assert!(rig.send(broken).is_empty(), "a wrong checksum");
}

#[test]
fn routers_advertise_themselves_now_and_then() {
    let mut rig = Rig::new();
    rig.send(arp(1, GATEWAY_V4));
    let start = rig.now;
    let mut times = Vec::new();
    while times.len() < 20 {
        let next = rig.engine.next_deadline().expect("the next advertisement");
        let frames = rig.after(next - rig.now);
        assert_eq!((frames.len(), icmpv6_type(&frames[0])), (1, 134));
        times.push(rig.now - start);
    }
    let mut before = Duration::ZERO;
    for time in times {
        let gap = (time - before).as_secs_f64();
        assert!((200.0..=600.1).contains(&gap), "{gap}");
        before = time;
    }
}

#[test]
fn an_advertisement_without_room_is_lost_and_the_next_is_not() {
    let mut rig = Rig::new();
    rig.link.sink.free = 0;
    let next = rig.engine.next_deadline().expect("booked");
    assert!(rig.after(next - rig.now).is_empty());
    assert_eq!(rig.all_drops(), [(DropReason::NoRoom, 1)]);
    rig.link.sink.free = 10;
    let next = rig.engine.next_deadline().expect("booked again");
    assert!(next > rig.now);
    assert_eq!(rig.after(next - rig.now).len(), 1);
}

#[test]
fn without_ipv6_nothing_is_advertised() {
    let mut off = settings();
    off.view.v6 = None;
    assert_eq!(Rig::with(off).engine.next_deadline(), None);
}

fn link_up(rig: &mut Rig) -> Vec<Vec<u8>> {
    rig.engine.on_link_up(rig.link.halves().1, rig.now);
    rig.flush()
}

#[test]
fn a_new_guest_is_greeted_when_it_has_buffers() {
    let mut rig = Rig::new();
    let frames = link_up(&mut rig);
    assert_eq!(frames.len(), 2);
    assert!(is_arp(&frames[0]) && frames[0][..6] == [0xff; 6]);
    assert_eq!(icmpv6_type(&frames[1]), 135);
    let mut rig = Rig::new();
    rig.link.sink.free = 0;
    assert!(link_up(&mut rig).is_empty());
    assert!(link_up(&mut rig).is_empty(), "it comes and goes");
    assert!(rig.room().is_empty(), "not yet");
    rig.link.sink.free = 10;
    assert_eq!(rig.room().len(), 2, "once");
    assert!(rig.room().is_empty());
    // With room for one of the two, the greeting is said anew.
    let mut rig = Rig::new();
    rig.link.sink.free = 1;
    assert_eq!(link_up(&mut rig).len(), 1);
    rig.link.sink.free = 10;
    assert_eq!(rig.room().len(), 2);
}

#[test]
fn replies_that_find_no_room_are_counted_and_the_guest_asks_again() {
    let mut rig = Rig::new();
    rig.link.sink.free = 0;
    assert!(rig.offer(&[arp(1, GATEWAY_V4), discover(), solicitation(GATEWAY_V6)]).is_empty());
    assert_eq!(rig.all_drops(), [(DropReason::NoRoom, 3)]);
    rig.link.sink.down = true;
    assert!(rig.send(arp(1, GATEWAY_V4)).is_empty());
    assert_eq!(rig.drops(DropReason::NoRoom), 4);
    (rig.link.sink.down, rig.link.sink.free, rig.link.sink.size) = (false, 10, 300);
    assert!(rig.send(router_solicitation()).len() <= 1);
    rig.link.sink.size = 20;
    assert!(rig.send(arp(1, GATEWAY_V4)).is_empty());
    assert_eq!(rig.drops(DropReason::TooLarge), 1);
}

#[test]
fn a_service_in_the_middle_of_a_batch_does_not_disturb_the_flows() {
    let mut rig = Rig::new();
    let peer = (PEER_V4, 9);
    let frames = [
        udp((GUEST_V4, 1), peer, b"one"),
        arp(1, GATEWAY_V4),
        udp((GUEST_V4, 1), peer, b"two"),
        discover(),
        End::new((GUEST_V4, 2), (PEER_V4, 80)).syn(),
    ];
    assert_eq!(rig.offer(&frames).len(), 3);
    let sent = rig.datagrams(0).sent.clone();
    assert_eq!(sent, [(b"one".to_vec(), 64), (b"two".to_vec(), 64)]);
}

#[test]
fn other_ports_of_services_are_ordinary_traffic() {
    let mut rig = Rig::with(Settings { ..settings() });
    rig.send(udp((GUEST_V4, 68), (PEER_V4, 67), b"not DHCP at all"));
    rig.send(udp((GUEST_V4, 5000), (PEER_V4, 68), b"nor this"));
    let total = rig.engine.datagram_flows() as u64 + rig.drops(DropReason::ServiceIgnored);
    assert_eq!(total, 2, "each is carried or counted");
}

/// A search for duplicates of `target` (RFC 4862 5.4.2).
fn probe(target: IpAddr) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(octets(target));
    icmpv6("::".parse().unwrap(), "ff02::1:ff00:77".parse().unwrap(), message)
}

/// Whom a peer that comes in by IPv6 gets to.
fn reached(rig: &mut Rig, peer_port: u16) -> IpAddr {
    let peer = Endpoint::new(PEER_V6, peer_port);
    let local = Endpoint::new(GUEST_V6, HOST_PORT);
    rig.engine.host_mut().state().borrow_mut().backlog.push_back(Ok((peer, local, 0)));
    let syn = only_tcp(&rig.knock());
    syn.dst.0
}

#[test]
fn a_guest_is_found_by_the_address_that_it_has_only_searched_for_duplicates_of() {
    let mut rig = Rig::new();
    let slaac = "2001:db8::ff:fe00:77".parse().unwrap();
    assert_eq!(reached(&mut rig, 1), GUEST_V6, "as configured");
    assert!(rig.send(probe(slaac)).is_empty(), "it is not taken");
    assert_eq!(reached(&mut rig, 2), slaac);
    let mut broken = probe("2001:db8::bad".parse().unwrap());
    broken[60] ^= 1;
    rig.send(broken);
    // A lease by DHCPv6, asked for in a hurry.
    let mut solicit = vec![1, 0, 0, 1, 0, 1, 0, 10, 0, 3, 0, 1];
    solicit.extend(GUEST_MAC);
    solicit.extend([0, 3, 0, 12, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]);
    let servers = "ff02::1:2".parse().unwrap();
    let client = LINK_LOCAL.parse().unwrap();
    assert_eq!(rig.send(udp((client, 546), (servers, 547), &solicit)).len(), 1, "an offer");
    assert_eq!(reached(&mut rig, 3), slaac, "which is no lease yet");
    solicit.extend([0, 14, 0, 0]);
    assert_eq!(rig.send(udp((client, 546), (servers, 547), &solicit)).len(), 1, "a lease");
    assert_eq!(reached(&mut rig, 4), GUEST_V6);
}

/// Looks at who listens until there are no more of them; the times between them, in milliseconds.
fn looks(rig: &mut Rig, found: &[Scan]) -> Vec<u128> {
    rig.engine.host_mut().state().borrow_mut().scans.extend(found);
    rig.engine.replace_rules(&rig.engine.rules().tables());
    rig.engine.go_on_replacing().expect("is done").expect("nothing is bound");
    let mut times = Vec::new();
    let left = |rig: &mut Rig| rig.engine.host_mut().state().borrow().scans.len();
    let mut before = left(rig);
    while before > 0 {
        let wait = rig.engine.next_deadline().expect("the next look").since(rig.now);
        rig.after(wait);
        let now = left(rig);
        if now < before {
            times.push(wait.as_millis());
        }
        before = now;
    }
    times
}

fn with_automatic_ports() -> Rig {
    let mut settings = settings();
    settings.view.v6 = None; // so that there are no other deadlines
    let mut tables = settings.rules.tables();
    tables.outside.iter_mut().for_each(|rule| rule.auto = true);
    settings.rules = Rules::new(tables);
    let mut rig = Rig::with(settings);
    rig.after(Duration::ZERO);
    assert_eq!(rig.engine.next_deadline(), None, "nobody looks");
    rig
}

#[test]
fn looks_at_services_are_quick_after_changes_and_never_a_second_apart() {
    use Scan::{Changed, More, Same};
    let mut rig = with_automatic_ports();
    let found = [More, More, Same, Same, Same, Same, Same, Same, Same, Changed, Same, Same];
    let times = looks(&mut rig, &found);
    assert_eq!(times, [0, 0, 0, 40, 80, 160, 320, 640, 900, 900, 20, 40]);
}

#[test]
fn while_the_guest_is_busy_looks_are_closer_together() {
    let mut rig = with_automatic_ports();
    looks(&mut rig, &[Scan::Same]);
    for _ in 0..12 {
        rig.engine.host_mut().state().borrow_mut().scans.push_back(Scan::Same);
        let wait = rig.engine.next_deadline().expect("the next look").since(rig.now);
        assert!(wait <= Duration::from_millis(250), "{wait:?}");
        rig.send(arp(1, GATEWAY_V4));
        rig.after(wait);
    }
}

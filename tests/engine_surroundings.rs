//! A host whose network changes, through the engine: what the guest sees of neighbours, and what it
//! is told when the host gets other addresses.

mod common;

use common::packets::*;
use common::rig::*;
use passt::config::guest::Translation;
use passt::engine::Settings;
use passt::flow::Endpoint;
use passt::link::Link;
use passt::time::Duration;
use passt::wire::MacAddr;
use std::net::IpAddr;

const ROUTER: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 1];
const PRINTER: [u8; 6] = [0x02, 0, 0, 0, 0xaa, 9];
const PRINTER_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

fn ip6(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn arp_for(target: IpAddr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
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
    icmpv6(ip6("fe80::ff:fe00:2"), target, message)
}

/// A rig where the gateway's address is the gateway's.
fn unmapped() -> Rig {
    Rig::with(Settings { translation: Translation::default(), ..settings() })
}

fn meets(rig: &mut Rig, addr: IpAddr, mac: Option<[u8; 6]>) {
    rig.engine.set_neighbour(addr, mac.map(MacAddr), rig.now);
}

/// What the guest gets in the next `millis`.
fn within(rig: &mut Rig, millis: u64) -> Vec<Vec<u8>> {
    let end = rig.now + Duration::from_millis(millis);
    let mut frames = Vec::new();
    while let Some(at) = rig.engine.next_deadline().filter(|at| *at <= end) {
        frames.extend(rig.after(at - rig.now));
    }
    frames.extend(rig.after(end - rig.now));
    frames
}

/// The single frame, and the address it comes from.
#[track_caller]
fn source(frames: Vec<Vec<u8>>) -> [u8; 6] {
    assert_eq!(frames.len(), 1);
    frames[0][6..12].try_into().unwrap()
}

#[test]
fn neighbours_answer_with_their_own_address_and_the_rest_with_the_gateways() {
    let mut rig = unmapped();
    assert_eq!(source(rig.send(arp_for(PRINTER_V4))), OUR_MAC, "nobody is known yet");
    meets(&mut rig, PRINTER_V4, Some(PRINTER));
    meets(&mut rig, GATEWAY_V4, Some(ROUTER));
    meets(&mut rig, GATEWAY_V6, Some(ROUTER));
    within(&mut rig, 0);
    let answer = rig.send(arp_for(PRINTER_V4)).remove(0);
    assert_eq!((&answer[6..12], &answer[22..28]), (&PRINTER[..], &PRINTER[..]));
    for addr in [GATEWAY_V4, PEER_V4] {
        let answer = rig.send(arp_for(addr)).remove(0);
        assert_eq!((&answer[6..12], &answer[22..28]), (&ROUTER[..], &ROUTER[..]), "{addr}");
    }
    let answer = rig.send(solicitation(GATEWAY_V6)).remove(0);
    assert_eq!((&answer[6..12], &answer[answer.len() - 6..]), (&ROUTER[..], &ROUTER[..]));
    // Frames of flows.
    let mut end = End::new((GUEST_V4, 5000), (PRINTER_V4, 80));
    assert_eq!(source(rig.send(end.syn())), PRINTER);
    rig.send(udp((GUEST_V4, 5000), (PEER_V4, 53), b"?"));
    assert_eq!(source(rig.remote_sends(0, &[b"!"])), ROUTER, "off the link");
    // And those of a flow that lives while the neighbour gets another address.
    rig.send(udp((GUEST_V4, 5000), (PRINTER_V4, 53), b"?"));
    assert_eq!(source(rig.remote_sends(1, &[b"!"])), PRINTER);
    meets(&mut rig, PRINTER_V4, Some([2, 0, 0, 0, 0xbb, 9]));
    within(&mut rig, 0);
    assert_eq!(source(rig.remote_sends(1, &[b"!"])), [2, 0, 0, 0, 0xbb, 9]);
    meets(&mut rig, PRINTER_V4, None);
    within(&mut rig, 0);
    assert_eq!(source(rig.remote_sends(1, &[b"!"])), ROUTER);
}

#[test]
fn where_the_gateways_address_means_the_host_it_has_our_mac() {
    let mut rig = Rig::new();
    meets(&mut rig, GATEWAY_V4, Some(ROUTER));
    meets(&mut rig, PRINTER_V4, Some(PRINTER));
    assert_eq!(source(rig.send(arp_for(GATEWAY_V4))), OUR_MAC);
    assert_eq!(source(rig.send(arp_for(PEER_V4))), OUR_MAC);
    assert_eq!(source(rig.send(arp_for(PRINTER_V4))), PRINTER);
}

#[test]
fn the_guests_own_address_is_nobody_elses() {
    let mut rig = unmapped();
    rig.send(udp((GUEST_V4, 5000), (PEER_V4, 53), b"?"));
    meets(&mut rig, GUEST_V4, Some(PRINTER));
    meets(&mut rig, GUEST_V6, Some(PRINTER));
    assert_eq!(rig.engine.neighbours(), 0);
    assert!(within(&mut rig, 1000).is_empty(), "it would think it had lost its address");
}

#[test]
fn the_guest_hears_of_neighbours_that_come_and_change() {
    let mut rig = unmapped();
    meets(&mut rig, PRINTER_V4, Some(PRINTER));
    assert!(within(&mut rig, 1000).is_empty(), "there is no guest yet");
    rig.send(arp_for(GATEWAY_V4));
    meets(&mut rig, PRINTER_V4, Some(PRINTER));
    assert!(within(&mut rig, 1000).is_empty(), "nothing new");
    meets(&mut rig, PRINTER_V4, Some(ROUTER));
    meets(&mut rig, GATEWAY_V6, Some(ROUTER));
    let frames = within(&mut rig, 1000);
    assert_eq!(frames.len(), 2);
    let arp = &frames[0];
    assert_eq!((&arp[..6], &arp[6..12], &arp[12..14]), (&[0xff; 6][..], &ROUTER[..], &[8, 6][..]));
    assert_eq!((&arp[20..22], &arp[22..28]), (&[0, 1][..], &ROUTER[..]), "RFC 5227: a request");
    assert_eq!((&arp[28..32], &arp[38..42]), (&octets(PRINTER_V4)[..], &octets(PRINTER_V4)[..]));
    let na = &frames[1];
    assert_eq!((&na[..6], &na[6..12]), (&[0x33, 0x33, 0, 0, 0, 1][..], &ROUTER[..]));
    assert_eq!((na[54], na[58] & 0x60), (136, 0x20), "unsolicited, and overriding");
    assert_eq!(
        (&na[62..78], &na[78..86]),
        (
            &octets(GATEWAY_V6)[..],
            &{
                let mut option = vec![2, 1];
                option.extend(ROUTER);
                option
            }[..]
        )
    );
}

#[test]
fn announcements_are_few_at_a_time_and_wait_for_room() {
    let mut rig = unmapped();
    rig.send(arp_for(GATEWAY_V4));
    rig.link.sink.free = 300;
    let neighbour = |n: u8| IpAddr::from([10, 0, 0, 100 + n]);
    for n in 0..100 {
        meets(&mut rig, neighbour(n), Some([2, 0, 0, 0, 0xcc, n]));
    }
    assert_eq!(within(&mut rig, 0).len(), 8, "at once");
    assert_eq!(within(&mut rig, 99).len(), 0);
    assert_eq!(within(&mut rig, 1000).len(), 80, "then eight each 100 ms");
    // One that flaps is not announced more often.
    for n in 0..50 {
        meets(&mut rig, neighbour(99), Some([2, 0, 0, 0, 0xdd, n]));
    }
    rig.link.sink.free = 0;
    assert!(within(&mut rig, 300).is_empty());
    rig.link.sink.free = 100;
    assert_eq!(within(&mut rig, 10_000).len(), 12, "each once, with its latest address");
    // A link without a guest: whoever comes next has heard of nobody.
    rig.link.sink.down = true;
    meets(&mut rig, neighbour(0), Some(PRINTER));
    within(&mut rig, 1000);
    rig.link.sink.down = false;
    assert!(within(&mut rig, 1000).is_empty());
}

#[test]
fn a_dump_forgets_who_is_gone() {
    let mut rig = unmapped();
    meets(&mut rig, PRINTER_V4, Some(PRINTER));
    meets(&mut rig, GATEWAY_V4, Some(ROUTER));
    rig.engine.begin_neighbours();
    meets(&mut rig, GATEWAY_V4, Some(ROUTER));
    rig.engine.end_neighbours();
    assert_eq!(rig.engine.neighbours(), 1);
    assert_eq!(source(rig.send(arp_for(PRINTER_V4))), ROUTER);
}

/// A view of a host that has moved: other addresses, another router.
fn moved() -> passt::config::guest::GuestView {
    let mut moved = view();
    let v4 = moved.v4.as_mut().unwrap();
    v4.addr = "172.16.0.5".parse().unwrap();
    v4.gateway = "172.16.0.1".parse().ok();
    v4.our_addr = "172.16.0.1".parse().unwrap();
    let v6 = moved.v6.as_mut().unwrap();
    v6.addr = "2001:db8:7::5".parse().ok();
    v6.gateway = "fe80::7".parse().ok();
    v6.our_link_local = "fe80::7".parse().unwrap();
    moved
}

fn moves(rig: &mut Rig, view: &passt::config::guest::GuestView) -> Vec<Vec<u8>> {
    let translation = Translation::default();
    rig.engine.set_network(view.clone(), translation, rig.link.halves().1, rig.now);
    within(rig, 0)
}

/// The prefixes of a router advertisement, with their valid lifetimes.
fn prefixes(frame: &[u8]) -> Vec<(IpAddr, u32)> {
    assert_eq!(frame[54], 134);
    let mut options = &frame[54 + 16..];
    let mut found = Vec::new();
    while let [kind, units, ..] = options {
        let (option, rest) = options.split_at(usize::from(*units) * 8);
        if *kind == 3 {
            let addr: [u8; 16] = option[16..32].try_into().unwrap();
            found.push((addr.into(), u32::from_be_bytes(option[4..8].try_into().unwrap())));
        }
        options = rest;
    }
    found
}

#[test]
fn a_new_prefix_is_advertised_at_once_and_the_old_one_taken_back() {
    let mut rig = unmapped();
    rig.send(arp_for(GATEWAY_V4));
    let (old, new) = (ip6("2001:db8::"), ip6("2001:db8:7::"));
    let frames = moves(&mut rig, &moved());
    assert_eq!(frames.len(), 2);
    // The router that was: no router any more.
    assert_eq!(frames[0][22..38], octets(ip6("fe80::1")));
    assert_eq!(frames[0][54 + 6..54 + 8], [0, 0]);
    assert_eq!(frames[1][22..38], octets(ip6("fe80::7")));
    assert_eq!(frames[1][54 + 6..54 + 8], [0xff, 0xff]);
    assert_eq!(prefixes(&frames[1]), [(new, u32::MAX), (old, 0)]);
    let again = within(&mut rig, 60_000);
    assert_eq!(again.len(), 2, "twice more, should it have been lost");
    assert!(again.iter().all(|frame| prefixes(frame).len() == 2));
    assert!(within(&mut rig, 600_000).len() <= 3, "then as usual");
    // And back: the new one is the old one.
    let frames = moves(&mut rig, &view());
    assert_eq!(prefixes(&frames[1]), [(old, u32::MAX), (new, 0)]);
    assert!(moves(&mut rig, &view()).is_empty(), "no change, no word");
}

#[test]
fn only_the_latest_prefixes_are_remembered() {
    let mut rig = unmapped();
    rig.send(arp_for(GATEWAY_V4));
    let mut last = Vec::new();
    for n in 1..20 {
        let mut other = view();
        other.v6.as_mut().unwrap().addr = format!("2001:db8:{n}::5").parse().ok();
        last = moves(&mut rig, &other);
    }
    let former: Vec<_> = prefixes(&last[0]).into_iter().filter(|(_, time)| *time == 0).collect();
    let expected = ["15", "16", "17", "18"].map(|n| (ip6(&format!("2001:db8:{n}::")), 0));
    assert_eq!(former, expected);
}

#[test]
fn flows_live_on_and_new_ones_follow_the_new_plan() {
    let mut rig = Rig::new();
    rig.send(udp((GUEST_V4, 5000), (PEER_V4, 53), b"one"));
    rig.send(udp((GUEST_V4, 5001), (GATEWAY_V4, 53), b"to the host"));
    assert_eq!(rig.datagrams(1).remote.addr, IpAddr::from([127, 0, 0, 1]));
    let mut translation = Translation::default();
    translation.v4.host_loopback = "172.16.0.1".parse().ok();
    rig.engine.set_network(moved(), translation, rig.link.halves().1, rig.now);
    rig.flush();
    rig.send(udp((GUEST_V4, 5000), (PEER_V4, 53), b"two"));
    assert_eq!(rig.engine.datagram_flows(), 2);
    assert_eq!(rig.datagrams(0).sent.len(), 2);
    assert_eq!(rig.remote_sends(1, &[b"still"]).len(), 1);
    rig.send(udp((GUEST_V4, 5002), (GATEWAY_V4, 53), b"the old gateway is itself"));
    assert_eq!(rig.datagrams(2).remote.addr, GATEWAY_V4);
    let new: IpAddr = [172, 16, 0, 1].into();
    rig.send(udp((GUEST_V4, 5003), (new, 53), b"the new one is the host"));
    assert_eq!(rig.datagrams(3).remote.addr, IpAddr::from([127, 0, 0, 1]));
}

#[test]
fn dhcp_tells_the_new_address_and_refuses_the_old() {
    let request = |wanted: IpAddr| {
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
        message.resize(28, 0);
        message.extend(GUEST_MAC);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, 3, 50, 4]);
        message.extend(octets(wanted));
        message.push(255);
        udp(([0, 0, 0, 0].into(), 68), ([255, 255, 255, 255].into(), 67), &message)
    };
    let kind = |frames: Vec<Vec<u8>>| frames[0][42 + 240 + 2];
    let mut rig = unmapped();
    assert_eq!(kind(rig.send(request(GUEST_V4))), 5, "ACK");
    moves(&mut rig, &moved());
    assert_eq!(kind(rig.send(request(GUEST_V4))), 6, "NAK");
    let new: IpAddr = [172, 16, 0, 5].into();
    let answers = rig.send(request(new));
    assert_eq!(answers[0][42 + 16..42 + 20], octets(new));
    assert_eq!(kind(answers), 5);
}

#[test]
fn a_guest_that_has_shown_its_address_is_reached_there_until_it_shows_another() {
    let reached = |rig: &mut Rig, port| {
        let peer = Endpoint::new(PEER_V4, port);
        let local = Endpoint::new(GUEST_V4, HOST_PORT);
        rig.engine.host_mut().state().borrow_mut().backlog.push_back(Ok((peer, local, 0)));
        only_tcp(&rig.knock()).dst.0
    };
    let new: IpAddr = [172, 16, 0, 5].into();
    let mut rig = unmapped();
    moves(&mut rig, &moved());
    assert_eq!(reached(&mut rig, 1), new, "it has shown none");
    let mut rig = unmapped();
    rig.send(udp((GUEST_V4, 5000), (PEER_V4, 53), b"here I am"));
    moves(&mut rig, &moved());
    assert_eq!(reached(&mut rig, 1), GUEST_V4);
    rig.send(udp((new, 5000), (PEER_V4, 53), b"and now here"));
    assert_eq!(reached(&mut rig, 2), new);
}

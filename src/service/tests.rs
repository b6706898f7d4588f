//! Requests as clients write them, byte by byte, and what comes back.

use super::*;
use crate::config::guest::{DEFAULT_MAC, GuestV4, GuestV6, Services, Translation};
use crate::wire::{Error, arp, checksum, dhcpv4, dhcpv6, icmpv6};
use proptest::prelude::*;

const GUEST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUR_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const GUEST_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x15);
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

fn view() -> GuestView {
    GuestView {
        our_mac: DEFAULT_MAC,
        mtu: Some(65_520),
        v4: Some(GuestV4 {
            addr: GUEST,
            prefix_len: 24,
            gateway: Some(GATEWAY),
            our_addr: GATEWAY,
            fixed: false,
        }),
        v6: Some(GuestV6 {
            addr: Some(GUEST6),
            prefix_len: 64,
            gateway: Some(OUR_LL),
            our_link_local: OUR_LL,
            fixed: false,
        }),
        dns: Dns { advertise_servers: true, advertise_search: true, ..Dns::default() },
        services: Services { dhcp: true, dhcpv6: true, ndp: true, ra: true },
    }
}

/// A view with every name and resolver set.
fn named() -> GuestView {
    let mut view = view();
    view.dns.v4 = vec![Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(9, 9, 9, 9)];
    view.dns.v6 = vec![Ipv6Addr::LOCALHOST];
    view.dns.search = vec!["a.example".into(), "example other".into(), "..".into()];
    view.dns.hostname = Some("guest".into());
    view.dns.fqdn = Some("guest.example.".into());
    view
}

/// Bytes written as hexadecimal digits, with blanks anywhere.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// What `tell` says where nobody but us is known.
fn alone<T>(view: &GuestView, tell: impl FnOnce(&Surroundings<'_>) -> T) -> T {
    let neighbours = Neighbours::new(view, &Translation::default());
    tell(&Surroundings { view, neighbours: &neighbours, former: &[] })
}

fn ask_with(frame: &[u8], view: &GuestView, seen: Seen) -> Outcome {
    alone(view, |around| answer(&Request { frame, checksum_pending: false, seen }, around))
}

fn ask(frame: &[u8], view: &GuestView) -> Outcome {
    ask_with(frame, view, Seen::default())
}

#[track_caller]
fn reply_to(frame: &[u8], view: &GuestView) -> Vec<u8> {
    match ask(frame, view) {
        Outcome::Consumed(Some(reply)) => reply,
        other => panic!("no reply but {other:?}"),
    }
}

const SILENCE: Outcome = Outcome::Consumed(None);

// ---------------------------------------------------------------------------------------- ARP

fn arp_request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = hex("ffffffffffff 020000000009 0806 0001 0800 06 04 0001 020000000009");
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

#[test]
fn arp_requests_for_others_are_answered_with_our_mac() {
    let expected = hex("020000000009 9a559a559a55 0806 0001 0800 06 04 0002 \
         9a559a559a55 c0000201 020000000009 c000020f");
    assert_eq!(reply_to(&arp_request(GUEST, GATEWAY), &view()), expected);
    let elsewhere = reply_to(&arp_request(GUEST, Ipv4Addr::new(8, 8, 8, 8)), &view());
    assert_eq!(arp::Packet::parse(&elsewhere[14..]).unwrap().sender_mac, DEFAULT_MAC);
    let probe = arp_request(Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(192, 0, 2, 77));
    assert_eq!(reply_to(&probe, &view())[38..42], [0; 4], "probes for other addresses");
}

#[test]
fn arp_for_the_guests_own_addresses_stays_unanswered() {
    let none = Ipv4Addr::UNSPECIFIED;
    assert_eq!(ask(&arp_request(none, GUEST), &view()), SILENCE, "probe");
    assert_eq!(ask(&arp_request(GUEST, GUEST), &view()), SILENCE, "announcement");
    let other = Ipv4Addr::new(192, 0, 2, 99);
    let seen = Seen { v4: Some(other), ..Seen::default() };
    assert_eq!(ask_with(&arp_request(none, other), &view(), seen), SILENCE, "seen address");
    assert_eq!(ask(&arp_request(GUEST, none), &view()), SILENCE);
    assert_eq!(ask(&arp_request(GUEST, Ipv4Addr::BROADCAST), &view()), SILENCE);
    let mut reply = arp_request(GUEST, GATEWAY);
    reply[21] = 2;
    assert_eq!(ask(&reply, &view()), SILENCE, "replies are ignored");
    let without = GuestView { v4: None, ..view() };
    assert_eq!(ask(&arp_request(GUEST, GATEWAY), &without), SILENCE);
}

// --------------------------------------------------------------------------------------- DHCP

const EVERYONE: Ipv4Addr = Ipv4Addr::BROADCAST;

/// A DHCP frame as udhcpc writes it; `fields` are (offset in the message, bytes).
fn dhcp(dst: Ipv4Addr, options: &str, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut message = hex("01 01 06 00 39 03 f3 26");
    message.resize(236, 0);
    message[28..34].copy_from_slice(&GUEST_MAC.0);
    for (at, bytes) in fields {
        message[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    if message.len() == 236 {
        message.extend(hex("63 82 53 63"));
    }
    message.extend(hex(options));
    message.push(255);
    message.resize(message.len().max(300), 0);
    let mut frame = hex("ffffffffffff 020000000009 0800");
    let len = u16::try_from(message.len()).unwrap() + 8;
    frame.extend(ipv4::Header::new(Ipv4Addr::UNSPECIFIED, dst, 17, len).to_bytes());
    frame.extend(hex("0044 0043"));
    frame.extend(len.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// What a DHCP reply says, after its frame has been checked.
struct DhcpReply {
    mac: MacAddr,
    dst: Ipv4Addr,
    header: dhcpv4::Header,
    options: dhcpv4::Options,
    area: Vec<u8>,
}

#[track_caller]
fn read_dhcp(frame: &[u8]) -> DhcpReply {
    let ethernet = ethernet::Header::parse(frame).unwrap();
    assert_eq!(ethernet.src, DEFAULT_MAC);
    let ip = ipv4::Header::parse(&frame[14..], frame.len() - 14).unwrap();
    assert_eq!((ip.src, ip.ttl, ip.dont_fragment, ip.identification), (GATEWAY, 255, true, 0));
    assert_eq!(checksum::checksum(&frame[14..34]), 0);
    let datagram = &frame[34..];
    assert_eq!(datagram[..4], [0, 67, 0, 68]);
    let mut sum = checksum::pseudo_v4(ip.src, ip.dst, 17, datagram.len() as u32);
    sum.add_bytes(datagram);
    assert_eq!(sum.finish(), 0);
    let (header, options) = dhcpv4::parse(&datagram[8..]).unwrap();
    assert_eq!((header.op, header.xid), (dhcpv4::Op::Reply, 0x3903_f326));
    assert!(datagram.len() >= 308, "padded for BOOTP clients");
    assert_eq!(datagram[8 + 240], 53, "the type comes first");
    let area = datagram[8 + 240..].to_vec();
    DhcpReply { mac: ethernet.dst, dst: ip.dst, header, options, area }
}

#[track_caller]
fn dhcp_reply(frame: &[u8], view: &GuestView) -> DhcpReply {
    read_dhcp(&reply_to(frame, view))
}

const ADDR: &str = "c000020f";
const SERVER: &str = "c0000201";

#[test]
fn discover_gets_an_offer() {
    let reply = dhcp_reply(&dhcp(EVERYONE, "350101", &[]), &view());
    assert_eq!((reply.mac, reply.dst), (GUEST_MAC, GUEST));
    assert_eq!(reply.header.your_addr, GUEST);
    assert_eq!(reply.header.client_hardware[..6], GUEST_MAC.0);
    let expected = hex("35 01 02  36 04 c0000201  33 04 ffffffff  3a 04 ffffffff  3b 04 ffffffff \
         01 04 ffffff00  03 04 c0000201  1a 02 fff0  ff");
    assert_eq!(reply.area[..expected.len()], expected);
}

#[test]
fn an_address_that_was_made_up_is_lent_for_a_while_only() {
    let mut local = view();
    local.v4.as_mut().unwrap().addr = Ipv4Addr::new(169, 254, 2, 1);
    let times = |view: &GuestView| {
        let options = dhcp_reply(&dhcp(EVERYONE, "350101", &[]), view).options;
        [51, 58, 59].map(|code| options.get(code).map(<[u8]>::to_vec).unwrap())
    };
    assert_eq!(times(&local), [vec![0, 0, 0, 120], vec![0, 0, 0, 60], vec![0, 0, 0, 105]]);
    local.v4.as_mut().unwrap().fixed = true;
    assert_eq!(times(&local), [vec![0xff; 4], vec![0xff; 4], vec![0xff; 4]], "as asked for");
}

#[test]
fn request_gets_the_lease_with_what_it_asked_for_first() {
    // Asks for: 6 resolvers, 28 broadcast, 15 domain, 1 mask, 119 search.
    let frame = dhcp(
        EVERYONE,
        &format!("350103 3204{ADDR} 3604{SERVER} 3d0701020000000009 3705061c0f0177"),
        &[],
    );
    let reply = dhcp_reply(&frame, &named());
    let expected = hex("35 01 05  36 04 c0000201  3d 07 01020000000009 \
         33 04 ffffffff  3a 04 ffffffff  3b 04 ffffffff \
         06 08 c0000235 09090909  1c 04 c00002ff  01 04 ffffff00 \
         77 14 0161076578616d706c6500 c002 056f7468657200 \
         03 04 c0000201  0c 05 6775657374  1a 02 fff0 \
         51 12 04ffff 056775657374076578616d706c6500  ff");
    assert_eq!(reply.area[..expected.len()], expected, "{:02x?}", reply.area);
}

#[test]
fn requests_for_another_address_are_refused() {
    let other = [10, 0, 0, 9];
    for (options, fields) in [
        ("350103 32040a000009", &[][..]),          // reboot
        ("350103 32040a000009 3604c0000201", &[]), // selecting
        ("350103", &[(12, &other[..])]),           // renewing
    ] {
        let reply = dhcp_reply(&dhcp(EVERYONE, options, fields), &view());
        assert_eq!(reply.options.get(53), Some(&[6][..]), "{options}");
        assert_eq!((reply.mac, reply.dst), (MacAddr::BROADCAST, EVERYONE));
        assert!(
            reply.header.your_addr.is_unspecified() && reply.header.client_addr.is_unspecified()
        );
        assert_eq!(reply.options.addr(54), Some(GATEWAY));
        assert_eq!((reply.options.get(51), reply.options.get(1)), (None, None));
    }
}

#[test]
fn a_renewal_by_unicast_is_answered_to_the_client() {
    let reply = dhcp_reply(&dhcp(GATEWAY, "350103", &[(12, &GUEST.octets())]), &view());
    assert_eq!(reply.options.get(53), Some(&[5][..]));
    assert_eq!((reply.mac, reply.dst, reply.header.client_addr), (GUEST_MAC, GUEST, GUEST));
}

#[test]
fn another_servers_clients_get_silence() {
    let frame = dhcp(EVERYONE, &format!("350103 3204{ADDR} 3604c0000263"), &[]);
    assert_eq!(ask(&frame, &view()), SILENCE);
    assert_eq!(ask(&dhcp(EVERYONE, "350104", &[]), &view()), SILENCE, "decline");
    assert_eq!(ask(&dhcp(EVERYONE, "350107", &[]), &view()), SILENCE, "release");
    assert_eq!(ask(&dhcp(EVERYONE, "350102", &[]), &view()), SILENCE, "offer");
    assert_eq!(ask(&dhcp(EVERYONE, "350163", &[]), &view()), SILENCE, "unknown");
    assert_eq!(ask(&dhcp(EVERYONE, "3500", &[]), &view()), SILENCE, "empty type");
}

#[test]
fn inform_gets_everything_but_an_address() {
    let static_addr = [192, 0, 2, 20];
    let reply = dhcp_reply(&dhcp(EVERYONE, "350108", &[(12, &static_addr)]), &named());
    assert_eq!(reply.options.get(53), Some(&[5][..]));
    assert!(reply.header.your_addr.is_unspecified());
    assert_eq!(reply.dst, Ipv4Addr::from(static_addr));
    for code in [51, 58, 59] {
        assert_eq!(reply.options.get(code), None, "option {code}");
    }
    assert!(reply.options.get(6).is_some() && reply.options.get(54).is_some());
}

#[test]
fn a_discover_with_rapid_commit_gets_the_lease_at_once() {
    let reply = dhcp_reply(&dhcp(EVERYONE, "350101 5000", &[]), &view());
    assert_eq!(reply.options.get(53), Some(&[5][..]));
    assert_eq!(reply.options.get(80), Some(&[][..]));
}

#[test]
fn the_broadcast_flag_is_obeyed_while_the_client_has_no_address() {
    let reply = dhcp_reply(&dhcp(EVERYONE, "350101", &[(10, &[0x80, 0])]), &view());
    assert_eq!((reply.mac, reply.dst, reply.header.flags), (MacAddr::BROADCAST, EVERYONE, 0x8000));
    let fields = [(10, &[0x80, 0][..]), (12, &GUEST.octets())];
    let reply = dhcp_reply(&dhcp(EVERYONE, "350103", &fields), &view());
    assert_eq!((reply.mac, reply.dst), (GUEST_MAC, GUEST));
}

#[test]
fn bootp_clients_get_no_word_of_dhcp() {
    let reply = reply_to(&dhcp(EVERYONE, "", &[]), &view());
    let (header, options) = dhcpv4::parse(&reply[42..]).unwrap();
    assert_eq!(header.your_addr, GUEST);
    assert!(options.get(1).is_some());
    for code in [51, 53, 54, 58, 59, 61] {
        assert_eq!(options.get(code), None, "option {code}");
    }
}

#[test]
fn only_datagrams_to_us_or_everyone_are_ours() {
    let quad8 = Ipv4Addr::new(8, 8, 8, 8);
    assert_eq!(ask(&dhcp(quad8, "350101", &[]), &view()), Outcome::NotForUs);
    let relayed = [(24, &[10, 0, 0, 1][..])];
    assert_eq!(ask(&dhcp(GATEWAY, "350101", &relayed), &view()), Outcome::NotForUs);
    let mut wrong_cookie = dhcp(EVERYONE, "350101", &[]);
    wrong_cookie[42 + 236] = 0;
    assert_eq!(ask(&wrong_cookie, &view()), SILENCE);
    let mut reply = dhcp(EVERYONE, "350101", &[]);
    reply[42] = 2;
    assert_eq!(ask(&reply, &view()), SILENCE);
    let mut off = view();
    off.services.dhcp = false;
    assert_eq!(ask(&dhcp(EVERYONE, "350101", &[]), &off), SILENCE);
    assert_eq!(ask(&dhcp(GATEWAY, "350101", &[]), &off), Outcome::NotForUs);
    let mut other_port = dhcp(EVERYONE, "350101", &[]);
    other_port[37] = 68;
    assert_eq!(ask(&other_port, &view()), Outcome::NotForUs);
}

#[test]
fn gateways_outside_the_prefix_get_a_route_of_their_own() {
    let mut view = view();
    let guest = view.v4.as_mut().unwrap();
    (guest.addr, guest.prefix_len) = (Ipv4Addr::new(198, 51, 100, 7), 32);
    let frame = dhcp(EVERYONE, "350101", &[]);
    let reply = dhcp_reply(&frame, &view);
    assert_eq!(reply.options.get(1), Some(&[255; 4][..]));
    assert_eq!(reply.options.get(121).unwrap(), hex("20 c0000201 00000000 00 c0000201"));
    view.v4.as_mut().unwrap().prefix_len = 0;
    let reply = dhcp_reply(&frame, &view);
    assert_eq!((reply.options.get(1), reply.options.get(121)), (Some(&[0; 4][..]), None));
    view.v4.as_mut().unwrap().gateway = None;
    let reply = dhcp_reply(&frame, &view);
    assert_eq!(reply.options.addr(54), Some(GATEWAY), "no gateway, yet a lease");
    assert_eq!((reply.options.get(3), reply.options.get(121)), (None, None));
}

#[test]
fn what_is_not_known_or_not_wanted_is_not_told() {
    let mut view = named();
    view.mtu = None;
    view.dns.advertise_servers = false;
    view.dns.advertise_search = false;
    view.dns.hostname = None;
    view.dns.fqdn = Some("..".into());
    let reply = dhcp_reply(&dhcp(EVERYONE, "350101 3706060c1a517779", &[]), &view);
    for code in [6, 12, 26, 81, 119, 121] {
        assert_eq!(reply.options.get(code), None, "option {code}");
    }
}

#[test]
fn a_clients_wish_to_have_its_name_updated_is_overridden() {
    let reply = dhcp_reply(&dhcp(EVERYONE, "350101 5104 05000061", &[]), &named());
    assert_eq!(reply.options.get(81).unwrap()[..3], [0x06, 255, 255]);
    // "guest.example." has no empty label at its end.
    assert_eq!(reply.options.get(81).unwrap()[3..], *b"\x05guest\x07example\x00");
}

#[test]
fn replies_keep_to_the_size_that_the_client_takes() {
    let mut view = named();
    view.dns.search = (0..4).map(|n| format!("{n}{}", ".abcdefghi".repeat(20))).collect();
    view.dns.search.iter_mut().enumerate().for_each(|(n, s)| s.push_str(&format!(".x{n}")));
    let small = reply_to(&dhcp(EVERYONE, "350101", &[]), &view);
    assert!(small.len() <= 14 + 576, "{}", small.len());
    assert_eq!(read_dhcp(&small).options.get(119), None, "too long, left out as a whole");
    let large = reply_to(&dhcp(EVERYONE, "350101 3902 ffff", &[]), &view);
    assert!((14 + 576..=14 + 1500).contains(&large.len()), "{}", large.len());
    assert!(read_dhcp(&large).options.get(119).unwrap().len() > 255, "in pieces (RFC 3396)");
}

// ---------------------------------------------------------------------------------------- NDP

fn ipv6_frame(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = hex("333300000001 020000000009 86dd");
    let header = ipv6::Header {
        src,
        dst,
        next_header: next,
        hop_limit: hops,
        flow_label: 0,
        payload_len: u16::try_from(payload.len()).unwrap(),
    };
    frame.extend(header.to_bytes());
    frame.extend(payload);
    frame
}

/// An ICMPv6 frame whose checksum is filled in.
fn icmp(src: Ipv6Addr, dst: Ipv6Addr, message: &str) -> Vec<u8> {
    let mut message = hex(message);
    let sum = icmpv6::checksum(src, dst, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    ipv6_frame(src, dst, 58, 255, &message)
}

/// Ethernet and IPv6 destination of a message of ours, and the message without its checksum.
#[track_caller]
fn read_icmp(frame: &[u8]) -> (MacAddr, Ipv6Addr, Vec<u8>) {
    read_icmp_from(OUR_LL, frame)
}

/// The same of a message that must come from `src`.
#[track_caller]
fn read_icmp_from(src: Ipv6Addr, frame: &[u8]) -> (MacAddr, Ipv6Addr, Vec<u8>) {
    let ethernet = ethernet::Header::parse(frame).unwrap();
    assert_eq!(ethernet.src, DEFAULT_MAC);
    let ip = ipv6::Header::parse(&frame[14..], frame.len() - 14).unwrap();
    assert_eq!((ip.src, ip.next_header, ip.hop_limit), (src, 58, 255));
    let mut message = frame[54..].to_vec();
    assert_eq!(usize::from(ip.payload_len), message.len());
    assert_eq!(icmpv6::checksum(ip.src, ip.dst, &message), 0);
    message[2..4].fill(0);
    (ethernet.dst, ip.dst, message)
}

const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const RS: &str = "85 00 0000 00000000 01 01 020000000009";

/// The parts of a plain RA.
const RA_HEAD: &str = "86 00 0000 ff 80 ffff 00000000 00000000";
const RA_PREFIX: &str = "03 04 40 c0 ffffffff ffffffff 00000000 20010db8000000010000000000000000";
const RA_MTU: &str = "05 01 0000 0000fff0";
const RA_MAC: &str = "01 01 9a559a559a55";

#[test]
fn a_router_solicitation_gets_an_advertisement() {
    let (mac, dst, message) = read_icmp(&reply_to(&icmp(GUEST_LL, ALL_ROUTERS, RS), &view()));
    assert_eq!((mac, dst), (GUEST_MAC, GUEST_LL));
    assert_eq!(message, hex(&[RA_HEAD, RA_PREFIX, RA_MTU, RA_MAC].concat()));
}

#[test]
fn a_solicitation_without_source_is_answered_to_all_nodes() {
    let frame = icmp(Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, "85 00 0000 00000000");
    let (mac, dst, _) = read_icmp(&reply_to(&frame, &view()));
    assert_eq!((mac, dst), (MacAddr([0x33, 0x33, 0, 0, 0, 1]), ndp_wire::ALL_NODES));
    let frame = icmp(Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, RS);
    assert_eq!(ask(&frame, &view()), SILENCE, "RFC 4861 6.1.1: no source, no source option");
}

#[test]
fn resolvers_and_search_list_are_advertised_each_on_its_own() {
    let rdnss = "19 03 0000 ffffffff 00000000000000000000000000000001";
    // 11 + 9 + 7 bytes of names: padded from 27 to 32.
    let dnssl = "1f 05 0000 ffffffff 0161076578616d706c6500 076578616d706c6500 056f7468657200 \
                 0000000000";
    for (servers, search, options) in [
        (true, true, [rdnss, dnssl].concat()),
        (true, false, rdnss.into()),
        (false, true, dnssl.into()),
        (false, false, String::new()),
    ] {
        let mut view = named();
        view.dns.advertise_servers = servers;
        view.dns.advertise_search = search;
        let (_, _, message) = read_icmp(&reply_to(&icmp(GUEST_LL, ALL_ROUTERS, RS), &view));
        assert_eq!(message, hex(&[RA_HEAD, RA_PREFIX, RA_MTU, &options, RA_MAC].concat()));
    }
}

#[test]
fn the_managed_flag_needs_dhcpv6_and_local_mode_has_no_prefix() {
    let mut off = view();
    off.services.dhcpv6 = false;
    let (_, _, message) = read_icmp(&alone(&off, router_advertisement).unwrap());
    assert_eq!(message[5], 0);
    let mut local = view();
    local.v6.as_mut().unwrap().addr = None;
    local.mtu = Some(1000);
    let (mac, dst, message) = read_icmp(&alone(&local, router_advertisement).unwrap());
    assert_eq!((mac, dst), (MacAddr([0x33, 0x33, 0, 0, 0, 1]), ndp_wire::ALL_NODES));
    let head = "86 00 0000 ff 00 ffff 00000000 00000000";
    assert_eq!(message, hex(&[head, RA_MAC].concat()), "nor an MTU below 1280");
}

#[test]
fn what_crossed_a_router_or_was_damaged_is_ignored() {
    let good = icmp(GUEST_LL, ALL_ROUTERS, RS);
    let mut forwarded = good.clone();
    forwarded[14 + 7] = 254;
    assert_eq!(ask(&forwarded, &view()), SILENCE);
    let mut damaged = good.clone();
    damaged[54 + 15] ^= 1;
    assert_eq!(ask(&damaged, &view()), SILENCE);
    let request = Request { frame: &damaged, checksum_pending: true, seen: Seen::default() };
    assert!(
        matches!(alone(&view(), |around| answer(&request, around)), Outcome::Consumed(Some(_))),
        "a checksum that is still to be made can not be wrong"
    );
}

fn neighbour_solicitation(target: Ipv6Addr) -> String {
    let target: String = target.octets().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("87 00 0000 00000000 {target}")
}

#[test]
fn neighbour_solicitations_for_others_are_answered() {
    let elsewhere = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x99);
    for target in [OUR_LL, elsewhere] {
        let ask_for = neighbour_solicitation(target) + "0101020000000009";
        let group = ndp_wire::solicited_node(target);
        let reply = reply_to(&icmp(GUEST6, group, &ask_for), &view());
        let (mac, dst, message) = read_icmp_from(target, &reply);
        assert_eq!((mac, dst), (GUEST_MAC, GUEST6));
        let mut expected = hex("88 00 0000 e0000000");
        expected.extend(target.octets());
        expected.extend(hex("02 01 9a559a559a55"));
        assert_eq!(message, expected);
    }
}

#[test]
fn solicitations_for_the_guests_own_addresses_stay_unanswered() {
    let observed = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x77);
    let seen = Seen { v6: Some(observed), link_local: Some(GUEST_LL), v4: None };
    for target in [GUEST6, observed, GUEST_LL] {
        for src in [GUEST_LL, Ipv6Addr::UNSPECIFIED] {
            let frame =
                icmp(src, ndp_wire::solicited_node(target), &neighbour_solicitation(target));
            assert_eq!(ask_with(&frame, &view(), seen), SILENCE, "{target} from {src}");
        }
    }
    let multicast = neighbour_solicitation(ALL_ROUTERS);
    assert_eq!(ask(&icmp(GUEST_LL, ALL_ROUTERS, &multicast), &view()), SILENCE);
}

#[test]
fn a_search_for_duplicates_of_our_address_is_told_so() {
    let nobody = Ipv6Addr::UNSPECIFIED;
    let group = ndp_wire::solicited_node(OUR_LL);
    let frame = icmp(nobody, group, &neighbour_solicitation(OUR_LL));
    let (mac, dst, message) = read_icmp(&reply_to(&frame, &view()));
    assert_eq!((mac, dst), (MacAddr([0x33, 0x33, 0, 0, 0, 1]), ndp_wire::ALL_NODES));
    assert_eq!(message[4], 0xa0, "not solicited");
    let free = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x99);
    let frame = icmp(nobody, ndp_wire::solicited_node(free), &neighbour_solicitation(free));
    assert_eq!(ask(&frame, &view()), SILENCE, "the guest may take any other");
}

#[test]
fn the_switches_of_ndp_are_obeyed() {
    let solicitation = icmp(GUEST_LL, OUR_LL, &neighbour_solicitation(OUR_LL));
    let rs = icmp(GUEST_LL, ALL_ROUTERS, RS);
    let mut no_ra = view();
    no_ra.services.ra = false;
    assert!(matches!(ask(&solicitation, &no_ra), Outcome::Consumed(Some(_))));
    assert_eq!((ask(&rs, &no_ra), alone(&no_ra, router_advertisement)), (SILENCE, None));
    let mut no_ndp = view();
    no_ndp.services.ndp = false;
    let no_v6 = GuestView { v6: None, ..view() };
    for view in [no_ndp, no_v6] {
        assert_eq!((ask(&solicitation, &view), ask(&rs, &view)), (SILENCE, SILENCE));
        assert_eq!(alone(&view, router_advertisement), None);
        assert_eq!(alone(&view, learn_guest).len(), 1, "ARP only");
    }
}

#[test]
fn advertisements_and_redirects_of_the_guest_are_ignored() {
    let na = neighbour_solicitation(GUEST_LL).replacen("87", "88", 1);
    for message in [&na[..], "86 00 0000 ff 80 ffff 00000000 00000000", "89 00 0000 00000000"] {
        assert_eq!(ask(&icmp(GUEST_LL, OUR_LL, message), &view()), SILENCE, "{message}");
    }
    let echo = icmp(GUEST_LL, OUR_LL, "80 00 0000 0001 0001");
    assert_eq!(ask(&echo, &view()), Outcome::NotForUs);
}

#[test]
fn a_new_client_is_asked_for_its_addresses() {
    let frames = alone(&view(), learn_guest);
    let arp = hex("ffffffffffff 9a559a559a55 0806 0001 0800 06 04 0001 \
         9a559a559a55 c0000201 000000000000 c000020f");
    assert_eq!(frames[0], arp);
    let (mac, dst, message) = read_icmp(&frames[1]);
    assert_eq!(
        mac,
        MacAddr([0x33, 0x33, 0xff, 0, 0, 0x15]),
        "of the group, as the guest's is not known"
    );
    assert_eq!(dst, ndp_wire::solicited_node(GUEST6));
    assert_eq!(message, hex(&(neighbour_solicitation(GUEST6) + "01019a559a559a55")));
    let mut local = view();
    local.v6.as_mut().unwrap().addr = None;
    assert_eq!(alone(&local, learn_guest).len(), 1, "nothing to `::`");
}

#[test]
fn advertisements_come_at_random_between_200_and_600_seconds() {
    let mut timer = RaTimer::new(7);
    let delays: Vec<_> = (0..1000).map(|_| timer.next_delay().as_millis()).collect();
    assert!(delays.iter().all(|ms| (200_000..=600_000).contains(ms)));
    assert!(delays.iter().any(|ms| *ms < 240_000) && delays.iter().any(|ms| *ms > 560_000));
    assert_ne!(RaTimer::new(8).next_delay(), RaTimer::new(7).next_delay());
}

// ------------------------------------------------------------------------------------- DHCPv6

const CLIENT_ID: &str = "0001 000a 00030001020000000009";
const SERVER_ID: &str = "0002 000a 000300019a559a559a55";
const IA: &str = "0003 000c 00000005 00000000 00000000";
const LEASE: &str = "0003 0028 00000005 ffffffff ffffffff \
                     0005 0018 20010db8000000010000000000000015 ffffffff ffffffff";

fn dhcpv6_to(dst: Ipv6Addr, options: &[&str]) -> Vec<u8> {
    let message = hex(&options.concat());
    let mut datagram = hex("0222 0223");
    datagram.extend(u16::try_from(message.len() + 8).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(message);
    ipv6_frame(GUEST_LL, dst, 17, 1, &datagram)
}

fn dhcpv6(options: &[&str]) -> Vec<u8> {
    dhcpv6_to(SERVERS, options)
}

#[track_caller]
fn dhcpv6_reply(options: &[&str], view: &GuestView) -> Vec<u8> {
    let frame = reply_to(&dhcpv6(options), view);
    let ethernet = ethernet::Header::parse(&frame).unwrap();
    assert_eq!((ethernet.src, ethernet.dst), (DEFAULT_MAC, GUEST_MAC));
    let ip = ipv6::Header::parse(&frame[14..], frame.len() - 14).unwrap();
    assert_eq!((ip.src, ip.dst, ip.hop_limit), (OUR_LL, GUEST_LL, 255));
    let datagram = &frame[54..];
    assert_eq!(datagram[..4], hex("0223 0222"));
    let mut sum = checksum::pseudo_v6(ip.src, ip.dst, 17, datagram.len() as u32);
    sum.add_bytes(datagram);
    assert_eq!(sum.finish(), 0);
    datagram[8..].to_vec()
}

#[test]
fn solicit_and_request_get_the_address() {
    let advertise = dhcpv6_reply(&["01 abcdef", CLIENT_ID, IA], &view());
    assert_eq!(advertise, hex(&["02 abcdef", SERVER_ID, LEASE, CLIENT_ID].concat()));
    for asks in [IA, LEASE] {
        let reply = dhcpv6_reply(&["03 abcdef", CLIENT_ID, SERVER_ID, asks], &view());
        assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, LEASE, CLIENT_ID].concat()));
    }
}

#[test]
fn solicit_with_rapid_commit_gets_the_reply_at_once() {
    let reply = dhcpv6_reply(&["01 abcdef", CLIENT_ID, IA, "000e 0000"], &view());
    assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, LEASE, CLIENT_ID, "000e 0000"].concat()));
}

#[test]
fn resolvers_search_list_and_name_are_told() {
    let reply = dhcpv6_reply(&["0b 000001"], &named());
    let expected = "0017 0010 00000000000000000000000000000001 \
                    0018 001b 0161076578616d706c6500 076578616d706c6500 056f7468657200 \
                    0027 0010 00 056775657374076578616d706c6500";
    assert_eq!(reply, hex(&["07 000001", SERVER_ID, expected].concat()));
    let reply = dhcpv6_reply(&["0b 000001", "0027 0003 01 0161"], &named());
    assert!(reply.ends_with(&hex("0027 0010 02 056775657374076578616d706c6500")), "the O flag");
}

#[test]
fn renew_and_rebind_extend_the_lease_and_end_what_is_not_ours() {
    let stale = "0003 0028 00000005 00000000 00000000 \
                 0005 0018 20010db8000000090000000000000015 00000001 00000001";
    let ended = "0003 0044 00000005 ffffffff ffffffff \
                 0005 0018 20010db8000000010000000000000015 ffffffff ffffffff \
                 0005 0018 20010db8000000090000000000000015 00000000 00000000";
    for (kind, server) in [("05 abcdef", SERVER_ID), ("06 abcdef", "")] {
        let reply = dhcpv6_reply(&[kind, CLIENT_ID, server, LEASE], &view());
        assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, LEASE, CLIENT_ID].concat()));
        let reply = dhcpv6_reply(&[kind, CLIENT_ID, server, stale], &view());
        assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, ended, CLIENT_ID].concat()));
    }
    let reply = dhcpv6_reply(&["03 abcdef", CLIENT_ID, SERVER_ID, stale], &view());
    let refused = "0003 0022 00000005 00000000 00000000 \
                   000d 0012 0004 4e6f74206f6e2074686973206c696e6b";
    assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, refused, CLIENT_ID].concat()));
}

#[test]
fn confirm_says_whether_the_addresses_belong_here() {
    let reply = dhcpv6_reply(&["04 abcdef", CLIENT_ID, LEASE], &view());
    assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, "000d 0002 0000", CLIENT_ID].concat()));
    let moved = LEASE.replace("20010db800000001", "20010db800000009");
    let reply = dhcpv6_reply(&["04 abcdef", CLIENT_ID, &moved], &view());
    let status = "000d 0012 0004 4e6f74206f6e2074686973206c696e6b";
    assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, status, CLIENT_ID].concat()));
    assert_eq!(ask(&dhcpv6(&["04 abcdef", CLIENT_ID, IA]), &view()), SILENCE, "nothing to say");
}

#[test]
fn release_and_decline_are_acknowledged() {
    for kind in ["08 abcdef", "09 abcdef"] {
        let reply = dhcpv6_reply(&[kind, CLIENT_ID, SERVER_ID, LEASE], &view());
        assert_eq!(reply, hex(&["07 abcdef", SERVER_ID, "000d 0002 0000", CLIENT_ID].concat()));
    }
}

/// The statuses of the associations in a reply: option, identifier, status or `None` for a lease.
fn statuses(reply: &[u8]) -> Vec<(u16, u32, Option<u8>)> {
    let message = dhcpv6::Message::parse(reply).unwrap();
    let ias = message.options.iter().filter(|(code, _)| [3, 4, 25].contains(code));
    ias.map(|(code, value)| {
        let ia = dhcpv6::Ia::parse(code, value).unwrap().unwrap();
        assert_eq!(ia.addrs().next().is_some(), ia.options.get(13).is_none());
        (code, ia.id, ia.options.get(13).map(|status| status[1]))
    })
    .collect()
}

#[test]
fn each_association_is_answered_but_only_one_gets_the_address() {
    let second = "0003 000c 00000006 00000000 00000000";
    let temporary = "0004 0004 00000007";
    let prefix = "0019 000c 00000008 00000000 00000000";
    let asks = [CLIENT_ID, IA, second, temporary, prefix].concat();
    let expected = [(3, 5, None), (3, 6, Some(2)), (4, 7, Some(2)), (25, 8, Some(6))];
    assert_eq!(statuses(&dhcpv6_reply(&["01 abcdef", &asks], &view())), expected);
    assert_eq!(statuses(&dhcpv6_reply(&["03 abcdef", SERVER_ID, &asks], &view())), expected);
    // No binding to renew for the others; and the holder keeps the address wherever it stands.
    let asks = [CLIENT_ID, second, LEASE, prefix].concat();
    let expected = [(3, 6, Some(3)), (3, 5, None), (25, 8, Some(3))];
    assert_eq!(statuses(&dhcpv6_reply(&["06 abcdef", &asks], &view())), expected);
    let only_prefix = dhcpv6_reply(&["01 abcdef", CLIENT_ID, prefix], &view());
    assert_eq!(statuses(&only_prefix), [(25, 8, Some(6))], "no address unasked");
}

#[test]
fn messages_with_wrong_identifiers_get_silence() {
    let other = "0002 000a 000300019a559a559a56";
    let long = format!("0001 0083 {}", "00".repeat(131));
    for options in [
        &["01 abcdef", IA][..],                        // no client id
        &["01 abcdef", &long, IA],                     // overlong client id
        &["01 abcdef", CLIENT_ID, SERVER_ID, IA],      // SOLICIT to a server
        &["03 abcdef", CLIENT_ID, IA],                 // REQUEST to none
        &["03 abcdef", CLIENT_ID, other, IA],          // ... to another
        &["05 abcdef", CLIENT_ID, IA],                 // RENEW to none
        &["06 abcdef", CLIENT_ID, SERVER_ID, IA],      // REBIND to a server
        &["04 abcdef", CLIENT_ID, SERVER_ID, LEASE],   // CONFIRM to a server
        &["08 abcdef", CLIENT_ID, LEASE],              // RELEASE to none
        &["0b abcdef", other],                         // INFORMATION-REQUEST to another
        &["0b abcdef", CLIENT_ID, IA],                 // ... with an association
        &["02 abcdef", CLIENT_ID, SERVER_ID, IA],      // ADVERTISE
        &["07 abcdef", CLIENT_ID, SERVER_ID, IA],      // REPLY
        &["0c abcdef", CLIENT_ID, IA],                 // of a relay
        &["01 abcdef", CLIENT_ID, "0003 0003 000000"], // association cut off
        &["01 abcdef", CLIENT_ID, IA, "0006 0009 00"], // option cut off
    ] {
        assert_eq!(ask(&dhcpv6(options), &view()), SILENCE, "{options:?}");
    }
}

#[test]
fn dhcpv6_takes_only_what_is_sent_to_servers() {
    let solicit = ["01 abcdef", CLIENT_ID, IA];
    assert_eq!(ask(&dhcpv6_to(OUR_LL, &solicit), &view()), SILENCE);
    assert_eq!(ask(&dhcpv6_to(GUEST6, &solicit), &view()), Outcome::NotForUs);
    let mut off = view();
    off.services.dhcpv6 = false;
    let mut local = view();
    local.v6.as_mut().unwrap().addr = None;
    for view in [off, local] {
        assert_eq!(ask(&dhcpv6(&solicit), &view), SILENCE);
    }
    let mut from_nobody = dhcpv6(&solicit);
    from_nobody[22..38].fill(0);
    assert_eq!(ask(&from_nobody, &view()), SILENCE);
}

#[test]
fn extension_headers_before_a_request_are_walked() {
    let plain = dhcpv6(&["01 abcdef", CLIENT_ID, IA]);
    let mut payload = hex("11 00 01 04 00000000");
    payload.extend(&plain[54..]);
    let frame = ipv6_frame(GUEST_LL, SERVERS, 0, 1, &payload);
    assert_eq!(ask(&frame, &view()), ask(&plain, &view()));
}

#[test]
fn a_reply_stays_small_however_much_is_asked() {
    let many = IA.repeat(2000);
    let reply = dhcpv6_reply(&["01 abcdef", CLIENT_ID, &many], &view());
    assert!(reply.len() < 1280, "{}", reply.len());
}

// ------------------------------------------------------------------------------------ hostile

#[test]
fn frames_of_others_and_pieces_of_frames_are_not_for_us() {
    assert!(is_udp_service(67) && is_udp_service(547) && !is_udp_service(53));
    assert!(is_icmpv6_service(135) && !is_icmpv6_service(128));
    assert_eq!(ask(&[], &view()), Outcome::NotForUs);
    assert_eq!(ask(&hex("ffffffffffff 020000000009 8100 0001"), &view()), Outcome::NotForUs);
    for frame in [dhcp(EVERYONE, "350101", &[]), dhcpv6(&["01 abcdef", CLIENT_ID, IA])] {
        for len in 0..frame.len() {
            assert_eq!(ask(&frame[..len], &view()), Outcome::NotForUs, "{len} bytes");
        }
    }
    let mut fragment = dhcp(EVERYONE, "350101", &[]);
    fragment[20] = 0x20;
    assert_eq!(ask(&fragment, &view()), Outcome::NotForUs);
    assert_eq!(arp::Packet::parse(&[0; 28]), Err(Error::Malformed));
}

proptest! {
    #[test]
    fn no_frame_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), pending: bool) {
        let request = Request { frame: &bytes, checksum_pending: pending, seen: Seen::default() };
        alone(&named(), |around| answer(&request, around));
    }

    #[test]
    fn no_change_of_a_good_frame_panics(
        which in 0usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut frame = match which {
            0 => arp_request(GUEST, GATEWAY),
            1 => dhcp(EVERYONE, "350101 3706060c1a517779 3d0701020000000009", &[]),
            2 => dhcp(GATEWAY, "350103 3204c000020f 510405000061", &[]),
            3 => icmp(GUEST_LL, ALL_ROUTERS, RS),
            4 => icmp(GUEST_LL, OUR_LL, &neighbour_solicitation(OUR_LL)),
            _ => dhcpv6(&["06 abcdef", CLIENT_ID, LEASE, IA, "0027 0003 01 0161"]),
        };
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        let whole = Request { frame: &frame, checksum_pending: true, seen: Seen::default() };
        let cut = &frame[..cut.index(frame.len())];
        for request in [whole, Request { frame: cut, ..whole }] {
            alone(&named(), |around| answer(&request, around));
            probed(&request);
            leased(request.frame, &named());
        }
    }

    #[test]
    fn no_dhcp_options_panic(area in prop::collection::vec(any::<u8>(), 0..300)) {
        let text: String = area.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Outcome::Consumed(Some(reply)) = ask(&dhcp(EVERYONE, &text, &[]), &named()) {
            prop_assert!(reply.len() <= 14 + 1500);
        }
    }

    #[test]
    fn no_dhcpv6_options_panic(
        kind in 0u8..13,
        area in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..6], 0..120),
    ) {
        let area: String = area.iter().map(|byte| format!("{byte:02x}")).collect();
        let kind = format!("{kind:02x} abcdef");
        if let Outcome::Consumed(Some(reply)) = ask(&dhcpv6(&[&kind, CLIENT_ID, &area]), &named()) {
            prop_assert!(reply.len() <= 14 + 40 + 8 + 4000);
        }
    }

    #[test]
    fn no_view_makes_a_reply_panic(
        v4_len: u8, v6_len: u8, mtu: Option<u16>, words in prop::collection::vec(".{0,300}", 0..7),
    ) {
        let mut view = named();
        view.v4.as_mut().unwrap().prefix_len = v4_len;
        view.v6.as_mut().unwrap().prefix_len = v6_len;
        view.mtu = mtu;
        view.dns.hostname = words.first().cloned();
        view.dns.fqdn = words.last().cloned();
        view.dns.search = words;
        ask(&dhcp(EVERYONE, "350101", &[]), &view);
        ask(&dhcpv6(&["01 abcdef", CLIENT_ID, IA]), &view);
        prop_assert!(alone(&view, router_advertisement).is_some());
    }
}

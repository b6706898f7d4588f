//! Every row of the tables of address translation.

use super::*;
use crate::config::guest::{DEFAULT_MAC, Dns, Services};
use crate::flow::Side::{self, Inside, Outside};

fn view() -> GuestView {
    GuestView {
        our_mac: DEFAULT_MAC,
        mtu: None,
        v4: Some(GuestV4 {
            addr: "192.0.2.10".parse().unwrap(),
            prefix_len: 24,
            gateway: Some("192.0.2.1".parse().unwrap()),
            our_addr: "192.0.2.1".parse().unwrap(),
            fixed: false,
        }),
        v6: Some(GuestV6 {
            addr: Some("2001:db8::10".parse().unwrap()),
            prefix_len: 64,
            gateway: Some("fe80::1".parse().unwrap()),
            our_link_local: "fe80::1".parse().unwrap(),
            fixed: false,
        }),
        dns: Dns::default(),
        services: Services { dhcp: true, dhcpv6: true, ndp: true, ra: true },
    }
}

/// What `--no-map-gw` gives.
fn no_maps() -> Translation {
    Translation::default()
}

/// The default: the gateway is the host's loopback.
fn gateway() -> Translation {
    let mut nat = no_maps();
    nat.v4.host_loopback = Some("192.0.2.1".parse().unwrap());
    nat.v6.host_loopback = Some("fe80::1".parse().unwrap());
    nat
}

/// As podman asks for it: both maps, and a resolver.
fn all_maps() -> Translation {
    let mut nat = gateway();
    nat.v4.guest_addr = Some("169.254.1.2".parse().unwrap());
    nat.v6.guest_addr = Some("2001:db8:f::2".parse().unwrap());
    nat.v4.dns_forward = Some("169.254.1.1".parse().unwrap());
    nat.v4.dns_host = Some("127.0.0.53".parse().unwrap());
    nat.v6.dns_forward = Some("2001:db8:f::1".parse().unwrap());
    nat.v6.dns_host = Some("2001:db8:d::53".parse().unwrap());
    nat
}

fn end(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

#[track_caller]
fn check_out(nat: &Translation, rows: &[(Protocol, &str, u16, Result<&str, Refusal>)]) {
    for &(protocol, to, port, expected) in rows {
        let expected = expected.map(|addr| end(addr, port));
        let got = outbound(&view(), nat, protocol, end(to, port));
        assert_eq!(got, expected, "{protocol:?} to {to} {port}");
    }
}

use Protocol::{Echo, Tcp, Udp};

#[test]
fn from_the_guest_the_first_row_that_fits_decides() {
    check_out(
        &all_maps(),
        &[
            (Tcp, "169.254.1.1", 53, Ok("127.0.0.53")),
            (Udp, "169.254.1.1", 53, Ok("127.0.0.53")),
            (Tcp, "169.254.1.1", 853, Ok("127.0.0.53")),
            (Udp, "169.254.1.1", 853, Ok("127.0.0.53")),
            (Udp, "169.254.1.1", 54, Ok("169.254.1.1")),
            (Echo, "169.254.1.1", 53, Ok("169.254.1.1")),
            (Udp, "2001:db8:f::1", 53, Ok("2001:db8:d::53")),
            (Tcp, "2001:db8:f::1", 80, Ok("2001:db8:f::1")),
            (Tcp, "192.0.2.1", 80, Ok("127.0.0.1")),
            (Udp, "192.0.2.1", 53, Ok("127.0.0.1")),
            (Echo, "192.0.2.1", 7, Ok("127.0.0.1")),
            (Tcp, "fe80::1", 80, Ok("::1")),
            (Tcp, "169.254.1.2", 80, Ok("192.0.2.10")),
            (Tcp, "2001:db8:f::2", 80, Ok("2001:db8::10")),
            (Tcp, "198.51.100.7", 443, Ok("198.51.100.7")),
            (Udp, "2001:db8:5::7", 443, Ok("2001:db8:5::7")),
            (Tcp, "192.0.2.10", 80, Ok("192.0.2.10")),
        ],
    );
}

#[test]
fn without_maps_every_address_is_itself() {
    check_out(
        &no_maps(),
        &[
            (Tcp, "192.0.2.1", 80, Ok("192.0.2.1")),
            (Udp, "fe80::1", 53, Ok("fe80::1")),
            (Tcp, "169.254.1.2", 80, Ok("169.254.1.2")),
        ],
    );
}

#[test]
fn a_query_without_a_resolver_goes_nowhere() {
    let mut nat = all_maps();
    nat.v4.dns_host = None;
    nat.v6.dns_host = None;
    // The address for queries may be the one for loopback as well: still nothing answers.
    nat.v4.dns_forward = nat.v4.host_loopback;
    check_out(
        &nat,
        &[
            (Udp, "192.0.2.1", 53, Err(Refusal::NoResolver)),
            (Tcp, "192.0.2.1", 853, Err(Refusal::NoResolver)),
            (Tcp, "2001:db8:f::1", 53, Err(Refusal::NoResolver)),
            (Tcp, "192.0.2.1", 80, Ok("127.0.0.1")),
        ],
    );
}

#[test]
fn what_cannot_be_a_destination_is_refused() {
    check_out(
        &all_maps(),
        &[
            (Tcp, "127.0.0.1", 80, Err(Refusal::Loopback)),
            (Udp, "127.9.9.9", 80, Err(Refusal::Loopback)),
            (Tcp, "::1", 80, Err(Refusal::Loopback)),
            (Tcp, "0.0.0.0", 80, Err(Refusal::Unusable)),
            (Udp, "::", 80, Err(Refusal::Unusable)),
            (Udp, "255.255.255.255", 67, Err(Refusal::Unusable)),
            (Tcp, "224.0.0.251", 80, Err(Refusal::Unusable)),
            (Echo, "ff02::1", 1, Err(Refusal::Unusable)),
            (Udp, "224.0.0.251", 5353, Ok("224.0.0.251")),
            (Udp, "ff02::fb", 5353, Ok("ff02::fb")),
        ],
    );
    let off = GuestView { v4: None, v6: None, ..view() };
    for to in ["198.51.100.7", "2001:db8:5::7"] {
        let got = outbound(&off, &no_maps(), Tcp, end(to, 1));
        assert_eq!(got, Err(Refusal::FamilyDisabled));
    }
}

#[test]
fn the_guests_own_name_needs_an_address_of_the_guest() {
    let mut local = view();
    if let Some(v6) = &mut local.v6 {
        v6.addr = None;
    }
    let got = outbound(&local, &all_maps(), Tcp, end("2001:db8:f::2", 1));
    assert_eq!(got, Err(Refusal::NoTarget));
}

fn rule() -> Rule {
    Rule {
        listen: None,
        ifname: None,
        protocol: Tcp,
        first: 8000,
        last: 8009,
        target: None,
        to: 80,
        weak: false,
        auto: false,
    }
}

fn observed() -> Observed {
    let mut observed = Observed::new(&view());
    observed.learn("192.0.2.77".parse().unwrap());
    observed.learn("fe80::77".parse().unwrap());
    observed.learn("2001:db8::77".parse().unwrap());
    observed
}

/// Peer, local address, and what the guest sees: remote end and its own.
type RowIn<'a> = (&'a str, &'a str, Result<(&'a str, &'a str), Refusal>);

#[track_caller]
fn check_in(nat: &Translation, rows: &[RowIn<'_>]) {
    for &(peer, local, expected) in rows {
        let expected = expected.map(|(remote, guest)| FlowKey {
            protocol: Tcp,
            guest: end(guest, 83),
            remote: end(remote, 4000),
        });
        let got = inbound(&view(), nat, &observed(), &rule(), end(peer, 4000), end(local, 8003));
        assert_eq!(got, expected, "{peer} to {local}");
    }
}

#[test]
fn peers_keep_their_addresses_unless_the_guest_could_not_answer() {
    let here = "192.0.2.10";
    check_in(
        &gateway(),
        &[
            ("198.51.100.7", here, Ok(("198.51.100.7", "192.0.2.77"))),
            ("127.0.0.1", "127.0.0.1", Ok(("192.0.2.1", "192.0.2.77"))),
            ("127.0.0.2", "127.0.0.1", Ok(("192.0.2.1", "192.0.2.77"))),
            // The host's address is also the guest's.
            (here, here, Ok(("192.0.2.1", "192.0.2.77"))),
            ("192.0.2.77", here, Ok(("192.0.2.1", "192.0.2.77"))),
            ("0.0.0.0", here, Ok(("192.0.2.1", "192.0.2.77"))),
            ("2001:db8:5::7", "2001:db8::10", Ok(("2001:db8:5::7", "2001:db8::77"))),
            ("::1", "::1", Ok(("fe80::1", "2001:db8::77"))),
            ("2001:db8::10", "2001:db8::10", Ok(("fe80::1", "2001:db8::77"))),
            ("fe80::5", "fe80::9", Ok(("fe80::5", "fe80::77"))),
            ("fe80::77", "fe80::9", Ok(("fe80::1", "fe80::77"))),
            ("224.0.0.1", here, Err(Refusal::Unusable)),
            ("198.51.100.7", "224.0.0.251", Ok(("198.51.100.7", "224.0.0.251"))),
        ],
    );
}

#[test]
fn mapped_names_are_used_for_loopback_and_for_the_hosts_address() {
    let mut nat = all_maps();
    nat.v4.host_loopback = Some("192.0.2.250".parse().unwrap());
    check_in(
        &nat,
        &[
            ("127.0.0.1", "127.0.0.1", Ok(("192.0.2.250", "192.0.2.77"))),
            // Only 127.0.0.1 itself can be reached under that name.
            ("127.0.0.2", "127.0.0.1", Ok(("192.0.2.1", "192.0.2.77"))),
            ("192.0.2.10", "192.0.2.10", Ok(("169.254.1.2", "192.0.2.77"))),
            ("2001:db8::10", "2001:db8::10", Ok(("2001:db8:f::2", "2001:db8::77"))),
        ],
    );
    check_in(
        &no_maps(),
        &[
            ("127.0.0.1", "127.0.0.1", Ok(("192.0.2.1", "192.0.2.77"))),
            ("::1", "::1", Ok(("fe80::1", "2001:db8::77"))),
        ],
    );
}

#[test]
fn a_rule_may_name_its_target() {
    let to = |target: &str, peer: &str| {
        let rule = Rule { target: Some(target.parse().unwrap()), protocol: Udp, ..rule() };
        inbound(&view(), &gateway(), &observed(), &rule, end(peer, 9), end("192.0.2.10", 8000))
    };
    let flow = to("192.0.2.200", "198.51.100.7").unwrap();
    assert_eq!((flow.protocol, flow.guest), (Udp, end("192.0.2.200", 80)));
    assert_eq!(to("2001:db8::9", "198.51.100.7"), Err(Refusal::NoTarget));
    assert_eq!(to("192.0.2.1", "127.0.0.1"), Err(Refusal::NoSource), "both ends would be one");
}

#[test]
fn what_no_rule_covers_is_refused() {
    for port in [7999, 8010, 0] {
        let local = end("192.0.2.10", port);
        let got = inbound(&view(), &no_maps(), &observed(), &rule(), end("198.51.100.7", 1), local);
        assert_eq!(got, Err(Refusal::NoTarget));
    }
    let off = GuestView { v6: None, ..view() };
    let (peer, local) = (end("2001:db8:5::7", 1), end("2001:db8::10", 8000));
    let got = inbound(&off, &no_maps(), &observed(), &rule(), peer, local);
    assert_eq!(got, Err(Refusal::FamilyDisabled));
}

#[test]
fn the_guests_address_is_the_last_one_seen_unless_it_is_fixed() {
    let guest = |observed: &Observed, peer: &str| {
        let local = end("192.0.2.10", 8000);
        inbound(&view(), &gateway(), observed, &rule(), end(peer, 1), local).map(|f| f.guest.addr)
    };
    let v4 = "198.51.100.7";
    let mut observed = Observed::new(&view());
    assert_eq!(guest(&observed, v4), Ok("192.0.2.10".parse().unwrap()), "at first the configured");
    for nobody in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "::", "ff02::1", "::1"] {
        observed.learn(nobody.parse().unwrap());
    }
    assert_eq!(observed, Observed::new(&view()));
    observed.learn("192.0.2.55".parse().unwrap());
    assert_eq!(guest(&observed, v4), Ok("192.0.2.55".parse().unwrap()));

    let mut fixed = view();
    if let (Some(v4), Some(v6)) = (&mut fixed.v4, &mut fixed.v6) {
        (v4.fixed, v6.fixed) = (true, true);
    }
    let mut observed = Observed::new(&fixed);
    for source in ["192.0.2.55", "2001:db8::55", "fe80::55"] {
        observed.learn(source.parse().unwrap());
    }
    assert_eq!(guest(&observed, v4), Ok("192.0.2.10".parse().unwrap()));
    assert_eq!(observed.v6, Some("2001:db8::10".parse().unwrap()));
    assert_eq!(observed.v6_link_local, Some("fe80::55".parse().unwrap()), "never fixed");
}

#[test]
fn a_search_for_duplicates_tells_of_an_address_until_the_guest_sends() {
    let ll: Ipv6Addr = "fe80::77".parse().unwrap();
    let (slaac, temporary): (Ipv6Addr, Ipv6Addr) =
        ("2001:db8::ff:fe00:77".parse().unwrap(), "2001:db8::1234".parse().unwrap());
    let mut observed = Observed::new(&view());
    for nobody in ["::", "::1", "ff02::1"] {
        observed.learn_probe(nobody.parse().unwrap());
    }
    assert_eq!(observed, Observed::new(&view()));
    observed.learn_probe(ll);
    observed.learn_probe("fe80::78".parse().unwrap());
    observed.learn_probe(slaac);
    observed.learn_probe(temporary);
    assert_eq!((observed.v6, observed.v6_link_local), (Some(slaac), Some(ll)), "the first ones");
    observed.learn(temporary.into());
    observed.learn_probe(slaac);
    assert_eq!(observed.v6, Some(temporary), "what it sends from is sure");
    observed.learn_lease("2001:db8::10".parse().unwrap());
    assert_eq!(observed.v6, Some("2001:db8::10".parse().unwrap()), "and so is what it was given");
    observed.learn_probe(slaac);
    assert_eq!(observed.v6, Some("2001:db8::10".parse().unwrap()));

    let mut fixed = view();
    fixed.v6.as_mut().unwrap().fixed = true;
    let mut observed = Observed::new(&fixed);
    observed.learn_probe(slaac);
    observed.learn_lease(temporary);
    assert_eq!(observed, Observed::new(&fixed));
}

#[test]
fn in_local_mode_the_guest_is_reached_by_its_link_local_address() {
    let mut local = view();
    if let Some(v6) = &mut local.v6 {
        v6.addr = None;
    }
    let mut observed = Observed::new(&local);
    let come = |observed: &Observed| {
        inbound(&local, &gateway(), observed, &rule(), end("::1", 1), end("::1", 8000))
    };
    assert_eq!(come(&observed), Err(Refusal::GuestUnknown));
    observed.learn("fe80::77".parse().unwrap());
    let flow = come(&observed).unwrap();
    assert_eq!(flow.guest.addr, "fe80::77".parse::<IpAddr>().unwrap());
    assert_eq!(flow.remote.addr, "fe80::1".parse::<IpAddr>().unwrap());
}

/// Settings, and with them: the listener's side, peer, local address, and the address that a socket
/// of the other side connects to.
type RowAcross<'a> = (Side, &'a str, &'a str, Result<&'a str, Refusal>);

const SPLICE: Splicing = Splicing { inwards: true, lo_to_lo: false, only: false };
const LO_TO_LO: Splicing = Splicing { lo_to_lo: true, ..SPLICE };
const ONLY: Splicing = Splicing { only: true, ..LO_TO_LO };

fn destination(
    splicing: Splicing,
    rule: &Rule,
    side: Side,
    peer: &str,
    local: &str,
) -> Result<Destination, Refusal> {
    let arrival = Arrival { side, rule, peer: end(peer, 4000), local: end(local, 8003) };
    arrival.destination(&view(), &gateway(), &observed(), splicing)
}

#[track_caller]
fn check_across(splicing: Splicing, rows: &[RowAcross<'_>]) {
    for &(side, peer, local, expected) in rows {
        let expected = expected.map(|addr| Destination::Splice(end(addr, 83)));
        for protocol in [Tcp, Udp] {
            let rule = Rule { protocol, ..rule() };
            let got = destination(splicing, &rule, side, peer, local);
            assert_eq!(got, expected, "{splicing:?} {side:?} {peer} to {local}");
        }
    }
}

#[test]
fn from_the_hosts_loopback_to_the_guests_own_address() {
    check_across(
        SPLICE,
        &[
            (Outside, "127.0.0.1", "127.0.0.1", Ok("192.0.2.77")),
            (Outside, "127.0.0.9", "127.0.0.2", Ok("192.0.2.77")),
            (Outside, "127.0.0.1", "192.0.2.10", Ok("192.0.2.77")),
            (Outside, "127.0.0.1", "224.0.0.251", Ok("224.0.0.251")),
            (Outside, "::1", "::1", Ok("2001:db8::77")),
        ],
    );
}

#[test]
fn from_the_hosts_loopback_to_that_of_the_namespace() {
    check_across(
        LO_TO_LO,
        &[
            (Outside, "127.0.0.1", "127.0.0.1", Ok("127.0.0.1")),
            (Outside, "127.0.0.1", "127.0.0.2", Ok("127.0.0.2")),
            (Outside, "127.0.0.1", "192.0.2.10", Ok("192.0.2.77")),
            (Outside, "::1", "::1", Ok("::1")),
        ],
    );
}

#[test]
fn from_the_namespace_only_loopback_to_loopback() {
    for splicing in [Splicing::default(), SPLICE, LO_TO_LO, ONLY] {
        check_across(
            splicing,
            &[
                (Inside, "127.0.0.1", "127.0.0.1", Ok("127.0.0.1")),
                (Inside, "127.0.0.1", "127.0.0.3", Ok("127.0.0.3")),
                (Inside, "::1", "::1", Ok("::1")),
                (Inside, "192.0.2.77", "127.0.0.1", Err(Refusal::NotLocal)),
                (Inside, "127.0.0.1", "192.0.2.77", Err(Refusal::NotLocal)),
                (Inside, "192.0.2.77", "192.0.2.77", Err(Refusal::NotLocal)),
                (Inside, "2001:db8::77", "2001:db8::77", Err(Refusal::NotLocal)),
            ],
        );
    }
}

#[test]
fn everything_else_takes_the_link_or_is_refused_without_one() {
    let rows = [
        (Splicing::default(), "127.0.0.1", "127.0.0.1"),
        (Splicing::default(), "::1", "::1"),
        (SPLICE, "198.51.100.7", "192.0.2.10"),
        (SPLICE, "192.0.2.10", "127.0.0.1"),
        (LO_TO_LO, "192.0.2.10", "192.0.2.10"),
        (LO_TO_LO, "2001:db8::10", "::1"),
    ];
    for (splicing, peer, local) in rows {
        let as_ever =
            inbound(&view(), &gateway(), &observed(), &rule(), end(peer, 4000), end(local, 8003));
        let got = destination(splicing, &rule(), Outside, peer, local);
        assert_eq!(got, as_ever.map(Destination::Link), "{peer} to {local}");
        assert!(got.is_ok());
    }
    for (peer, local) in [("192.0.2.10", "192.0.2.10"), ("198.51.100.7", "192.0.2.10")] {
        let got = destination(ONLY, &rule(), Outside, peer, local);
        assert_eq!(got, Err(Refusal::NotLocal), "{peer} to {local}");
    }
}

#[test]
fn a_target_that_no_frame_could_carry_is_spliced() {
    let to = |target: &str, side, peer| {
        let rule = Rule { target: Some(target.parse().unwrap()), ..rule() };
        destination(SPLICE, &rule, side, peer, "127.0.0.1")
    };
    let splice = |addr| Ok(Destination::Splice(end(addr, 83)));
    assert_eq!(to("127.0.0.9", Outside, "127.0.0.1"), splice("127.0.0.9"));
    assert_eq!(to("::1", Outside, "127.0.0.1"), splice("::1"));
    assert!(matches!(to("192.0.2.200", Outside, "127.0.0.1"), Ok(Destination::Link(_))));
    assert_eq!(to("192.0.2.200", Inside, "127.0.0.1"), splice("192.0.2.200"));
}

#[test]
fn what_no_rule_covers_or_nobody_is_there_for_is_not_spliced() {
    let arrival = Arrival {
        side: Inside,
        rule: &rule(),
        peer: end("127.0.0.1", 1),
        local: end("127.0.0.1", 8010),
    };
    let got = arrival.destination(&view(), &gateway(), &observed(), SPLICE);
    assert_eq!(got, Err(Refusal::NoTarget));
    let nobody = Observed { v4: None, v6: None, ..observed() };
    for lo in ["127.0.0.1", "::1"] {
        let arrival =
            Arrival { side: Outside, rule: &rule(), peer: end(lo, 1), local: end(lo, 8000) };
        let got = arrival.destination(&view(), &gateway(), &nobody, SPLICE);
        assert_eq!(got, Err(Refusal::GuestUnknown));
    }
}

#[test]
fn the_guests_name_for_the_host_stands_for_where_the_host_is_now() {
    let mut nat = all_maps();
    nat.v4.host_addr = Some("198.51.100.20".parse().unwrap());
    nat.v6.host_addr = Some("2001:db8:2::20".parse().unwrap());
    check_out(
        &nat,
        &[
            (Tcp, "169.254.1.2", 80, Ok("198.51.100.20")),
            (Tcp, "2001:db8:f::2", 80, Ok("2001:db8:2::20")),
        ],
    );
    let seen = |addr: &str| {
        let observed = Observed::new(&view());
        remote_seen(&view(), &nat, &observed, addr.parse().unwrap()).map(|addr| addr.to_string())
    };
    assert_eq!(seen("198.51.100.20"), Ok("169.254.1.2".into()));
    assert_eq!(seen("2001:db8:2::20"), Ok("2001:db8:f::2".into()));
    assert_eq!(seen("192.0.2.10"), Ok("169.254.1.2".into()), "the guest's own, as before");
}

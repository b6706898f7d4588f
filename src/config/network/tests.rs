use super::*;
use crate::config::facts::Address;
use crate::config::options::{Program, Request, parse};

const BOTH: Enabled = Enabled { v4: true, v6: true };

fn typed(line: &str) -> Typed {
    let args: Vec<_> = line.split_whitespace().map(Into::into).collect();
    match parse(Program::Passt, "passt", &args) {
        Ok(Request::Run(_, typed)) => *typed,
        other => panic!("{line}: {other:?}"),
    }
}

fn facts(resolv: &str) -> HostFacts {
    HostFacts {
        interfaces: Vec::new(),
        addresses: Vec::new(),
        routes: Vec::new(),
        ipv6: true,
        resolv: Resolv::parse(resolv),
        ephemeral: 32_768..=60_999,
    }
}

fn template(addr: &str, gateway: Option<&str>, link_local: Option<&str>) -> Template {
    let (addr, len) = addr.split_once('/').unwrap();
    Template {
        interface: 2,
        name: "eth0".to_owned(),
        addr: addr.parse().unwrap(),
        prefix_len: len.parse().unwrap(),
        gateway: gateway.map(|g| g.parse().unwrap()),
        link_local: link_local.map(|a| a.parse().unwrap()),
    }
}

fn usual() -> Templates {
    Templates {
        v4: Some(template("192.0.2.5/24", Some("192.0.2.1"), None)),
        v6: Some(template("2001:db8::5/64", Some("fe80::1"), Some("fe80::5"))),
    }
}

fn planned(line: &str, templates: &Templates) -> (GuestView, Translation) {
    plan(&typed(line), &facts(""), templates, BOTH)
}

/// The guest's IPv4 as text: address, gateway.
#[track_caller]
fn v4(line: &str, template: Option<Template>) -> String {
    let v4 = planned(line, &Templates { v4: template, v6: None }).0.v4.unwrap();
    assert_eq!(Some(v4.our_addr), v4.gateway);
    format!("{}/{} via {}", v4.addr, v4.prefix_len, v4.our_addr)
}

/// The guest's IPv6 as text: address, gateway, our link-local address.
#[track_caller]
fn v6(line: &str, template: Option<Template>) -> String {
    let v6 = planned(line, &Templates { v4: None, v6: template }).0.v6.unwrap();
    let addr = v6.addr.map_or_else(|| "-".to_owned(), |a| a.to_string());
    format!("{addr}/{} via {} we {}", v6.prefix_len, v6.gateway.unwrap(), v6.our_link_local)
}

#[test]
fn the_guest_shares_the_hosts_ipv4() {
    let host = || usual().v4;
    assert_eq!(v4("", host()), "192.0.2.5/24 via 192.0.2.1");
    assert_eq!(v4("-g 192.0.2.9", host()), "192.0.2.5/24 via 192.0.2.9");
    assert_eq!(v4("-n 16", host()), "192.0.2.5/16 via 192.0.2.1");
    assert_eq!(v4("-a 192.0.2.77", host()), "192.0.2.77/24 via 192.0.2.1");
    assert_eq!(v4("-a 10.0.2.15", host()), "10.0.2.15/8 via 192.0.2.1");
    assert_eq!(v4("-a 172.16.0.9", host()), "172.16.0.9/16 via 192.0.2.1");
    assert_eq!(v4("-a 240.0.0.9", host()), "240.0.0.9/32 via 192.0.2.1");
    assert_eq!(v4("-a 10.0.2.15 -n 255.255.255.0", host()), "10.0.2.15/24 via 192.0.2.1");
    assert_eq!(v4("-a 10.0.2.15/24 -g 10.0.2.2", host()), "10.0.2.15/24 via 10.0.2.2");
}

#[test]
fn where_the_host_has_no_gateway_one_is_made_up() {
    let on_link = |addr: &str| Some(template(addr, None, None));
    assert_eq!(v4("", on_link("10.8.0.2/24")), "10.8.0.2/24 via 10.8.0.254");
    assert_eq!(v4("", on_link("10.8.0.254/24")), "10.8.0.254/24 via 10.8.0.253");
    assert_eq!(v4("", on_link("10.8.0.1/30")), "10.8.0.1/30 via 10.8.0.2");
    assert_eq!(v4("", on_link("10.8.0.2/30")), "10.8.0.2/30 via 10.8.0.1");
    assert_eq!(v4("", on_link("10.8.0.2/31")), "10.8.0.2/31 via 10.8.0.3");
    assert_eq!(v4("", on_link("10.8.0.2/32")), "10.8.0.2/32 via 169.254.2.2");
    assert_eq!(v4("", on_link("10.8.0.2/0")), "10.8.0.2/0 via 255.255.255.254");
    assert_eq!(v4("-g 10.8.0.9", on_link("10.8.0.2/24")), "10.8.0.2/24 via 10.8.0.9");

    let mut facts = facts("");
    facts.addresses.push(Address::new(2, "10.8.0.254".parse().unwrap(), 24));
    let templates = Templates { v4: on_link("10.8.0.2/24"), v6: None };
    let (guest, translation) = plan(&typed(""), &facts, &templates, BOTH);
    let gateway = Some(Ipv4Addr::new(10, 8, 0, 253));
    assert_eq!(guest.v4.unwrap().gateway, gateway, "not one of the host's own");
    assert_eq!(translation.v4.host_loopback, gateway, "and it stands for the host");
    assert!(guest.services.dhcp);
}

#[test]
fn without_a_template_ipv4_is_local() {
    assert_eq!(v4("", None), "169.254.2.1/16 via 169.254.2.2");
    assert_eq!(v4("-g 10.0.2.2", None), "169.254.2.1/16 via 10.0.2.2");
    assert_eq!(v4("-a 10.0.2.15 -g 10.0.2.2", None), "10.0.2.15/8 via 10.0.2.2");
    assert_eq!(v4("-a 10.0.2.15/24", None), "10.0.2.15/24 via 10.0.2.254");
    assert_eq!(v4("-a 169.254.2.2/16", None), "169.254.2.2/16 via 169.254.255.254");
}

#[test]
fn the_guest_shares_the_hosts_ipv6() {
    let host = || usual().v6;
    assert_eq!(v6("", host()), "2001:db8::5/64 via fe80::1 we fe80::1");
    assert_eq!(v6("-g fe80::9", host()), "2001:db8::5/64 via fe80::9 we fe80::9");
    assert_eq!(v6("-g 2001:db8::1", host()), "2001:db8::5/64 via 2001:db8::1 we fe80::5");
    assert_eq!(v6("-a fd00::7/48", host()), "fd00::7/64 via fe80::1 we fe80::1");
    let global = template("fd00::2/64", Some("fd00::1"), Some("fe80::5"));
    assert_eq!(v6("", Some(global)), "fd00::2/64 via fd00::1 we fe80::5");
    let on_link = template("fd00::2/64", None, Some("fe80::5"));
    assert_eq!(v6("", Some(on_link)), "fd00::2/64 via fe80::5 we fe80::5");
    let bare = template("fd00::2/128", None, None);
    assert_eq!(v6("", Some(bare)), "fd00::2/64 via fe80::1 we fe80::1", "no link-local at all");
}

#[test]
fn without_a_template_ipv6_is_local() {
    assert_eq!(v6("", None), "-/64 via fe80::1 we fe80::1");
    assert_eq!(v6("-a fd00::7", None), "fd00::7/64 via fe80::1 we fe80::1");
    assert_eq!(v6("-a fd00::7 -g fd00::1", None), "fd00::7/64 via fd00::1 we fe80::1");
    assert_eq!(v6("-g fe80::9", None), "-/64 via fe80::9 we fe80::9");
    let services = planned("", &Templates::default()).0.services;
    assert!(services.dhcp && !services.dhcpv6 && services.ndp && services.ra);
    assert!(planned("-a fd00::7", &Templates::default()).0.services.dhcpv6);
}

#[test]
fn an_address_given_is_fixed() {
    let (guest, _) = planned("-a 192.0.2.7", &usual());
    assert!(guest.v4.unwrap().fixed && !guest.v6.unwrap().fixed);
    let (guest, _) = planned("-a fd00::7", &usual());
    assert!(!guest.v4.unwrap().fixed && guest.v6.unwrap().fixed);
}

#[test]
fn a_family_that_is_off_has_nothing() {
    let (guest, translation) =
        plan(&typed(""), &facts("nameserver ::1"), &usual(), Enabled { v4: true, v6: false });
    assert!(guest.v6.is_none() && guest.dns.v6.is_empty());
    assert_eq!(translation.v6, Nat::default());
    let services = Services { dhcp: true, dhcpv6: false, ndp: false, ra: false };
    assert_eq!(guest.services, services);
    let (guest, translation) =
        plan(&typed(""), &facts("nameserver 127.0.0.1"), &usual(), Enabled { v4: false, v6: true });
    assert!(guest.v4.is_none() && guest.dns.v4.is_empty() && !guest.services.dhcp);
    assert_eq!(translation.v4, Nat::default());
}

#[test]
fn services_are_switched_off_one_by_one() {
    let on = Services { dhcp: true, dhcpv6: true, ndp: true, ra: true };
    for (line, expected) in [
        ("", on),
        ("--no-dhcp", Services { dhcp: false, ..on }),
        ("--no-dhcpv6", Services { dhcpv6: false, ..on }),
        ("--no-ra", Services { ra: false, ..on }),
        ("--no-ndp", Services { ndp: false, ra: false, ..on }),
        ("--no-icmp", Services { ndp: false, ra: false, ..on }),
        ("--no-tcp --no-udp", on),
    ] {
        assert_eq!(planned(line, &usual()).0.services, expected, "{line}");
    }
}

#[test]
fn link_values_are_typed_or_usual() {
    let (guest, _) = planned("", &usual());
    assert_eq!((guest.our_mac, guest.mtu), (DEFAULT_MAC, Some(65_520)));
    let (guest, _) = planned("-M 02:00:00:00:00:01 -m 1500", &usual());
    assert_eq!((guest.our_mac.0, guest.mtu), ([2, 0, 0, 0, 0, 1], Some(1500)));
    assert_eq!(planned("-m 0", &usual()).0.mtu, None);
    let (guest, _) = planned("-H h --fqdn h.a --no-dhcp-dns", &usual());
    assert_eq!(guest.dns.hostname.as_deref(), Some("h"));
    assert_eq!(guest.dns.fqdn.as_deref(), Some("h.a"));
    assert!(!guest.dns.advertise_servers && guest.dns.advertise_search);
    assert!(!planned("--no-dhcp-search", &usual()).0.dns.advertise_search);
}

#[test]
fn the_gateway_stands_for_the_host_unless_told_otherwise() {
    let loopback = |line: &str| {
        let (_, t) = planned(line, &usual());
        let text = |a: Option<IpAddr>| a.map_or_else(|| "-".to_owned(), |a| a.to_string());
        let v4 = text(t.v4.host_loopback.map(Into::into));
        format!("{v4} {}", text(t.v6.host_loopback.map(Into::into)))
    };
    assert_eq!(loopback(""), "192.0.2.1 fe80::1");
    assert_eq!(loopback("-g 192.0.2.9"), "192.0.2.9 fe80::1");
    assert_eq!(loopback("--no-map-gw"), "- -");
    assert_eq!(loopback("--map-host-loopback none"), "- -");
    assert_eq!(loopback("--map-host-loopback 192.0.2.7"), "192.0.2.7 fe80::1");
    assert_eq!(loopback("--no-map-gw --map-host-loopback fd00::7"), "- fd00::7");
    let (_, t) = planned("--map-guest-addr 192.0.2.8 -o 192.0.2.5", &usual());
    assert_eq!(t.v4.guest_addr, Some(Ipv4Addr::new(192, 0, 2, 8)));
    assert_eq!(t.v4.outbound, Some(Ipv4Addr::new(192, 0, 2, 5)));
}

/// IPv4 resolvers as text: advertised, and where from and to queries are redirected.
fn dns(line: &str, resolv: &str) -> String {
    let (guest, t) = plan(&typed(line), &facts(resolv), &usual(), BOTH);
    let servers: Vec<_> = guest.dns.v4.iter().map(ToString::to_string).collect();
    let text = |a: Option<Ipv4Addr>| a.map_or_else(|| "-".to_owned(), |a| a.to_string());
    format!("{}; {}>{}", servers.join(" "), text(t.v4.dns_forward), text(t.v4.dns_host))
}

#[test]
fn resolvers_are_the_hosts_or_those_given() {
    const TWO: &str = "nameserver 203.0.113.1\nnameserver 203.0.113.2";
    assert_eq!(dns("", TWO), "203.0.113.1 203.0.113.2; ->203.0.113.1");
    assert_eq!(dns("-D 203.0.113.9", TWO), "203.0.113.9; ->203.0.113.1");
    assert_eq!(dns("-D 203.0.113.9", ""), "203.0.113.9; ->203.0.113.9");
    assert_eq!(dns("-D fd00::1", TWO), "203.0.113.1 203.0.113.2; ->203.0.113.1");
    assert_eq!(dns("-D none", TWO), "; ->-");
    assert_eq!(dns("", ""), "; ->-");
    let four = format!("{TWO}\nnameserver 203.0.113.3\nnameserver 203.0.113.4");
    assert_eq!(dns("", &four), "203.0.113.1 203.0.113.2 203.0.113.3; ->203.0.113.1");
}

#[test]
fn a_resolver_on_loopback_is_reached_through_its_mapping() {
    const STUB: &str = "nameserver 127.0.0.53";
    assert_eq!(dns("", STUB), "192.0.2.1; 192.0.2.1>127.0.0.53");
    assert_eq!(dns("--map-host-loopback 192.0.2.9", STUB), "192.0.2.9; 192.0.2.9>127.0.0.53");
    assert_eq!(dns("--no-map-gw", STUB), "; ->127.0.0.53");
    assert_eq!(dns("--dns-forward 192.0.2.3", STUB), "192.0.2.3; 192.0.2.3>127.0.0.53");
    let line = "--no-map-gw --dns-forward 192.0.2.3";
    assert_eq!(dns(line, STUB), "192.0.2.3; 192.0.2.3>127.0.0.53");
    let both = "nameserver 127.0.0.53\nnameserver 127.0.0.54\nnameserver 203.0.113.1";
    assert_eq!(dns("", both), "192.0.2.1 203.0.113.1; 192.0.2.1>127.0.0.53");
}

#[test]
fn a_resolver_at_the_gateway_stays_reachable_though_the_gateway_stands_for_the_host() {
    assert_eq!(dns("", "nameserver 192.0.2.1"), "192.0.2.1; 192.0.2.1>192.0.2.1");
    let resolv = "nameserver 203.0.113.1\nnameserver 192.0.2.1";
    assert_eq!(dns("", resolv), "203.0.113.1 192.0.2.1; 192.0.2.1>192.0.2.1");
    assert_eq!(dns("--no-map-gw", "nameserver 192.0.2.1"), "192.0.2.1; ->192.0.2.1");
}

#[test]
fn queries_are_redirected_to_the_resolver_given_or_to_none() {
    let line = "--dns-forward 192.0.2.3 --dns-host 203.0.113.7";
    assert_eq!(dns(line, "nameserver 203.0.113.1"), "203.0.113.1; 192.0.2.3>203.0.113.7");
    assert_eq!(dns(line, "nameserver 127.0.0.53"), "192.0.2.3; 192.0.2.3>203.0.113.7");
    assert_eq!(dns("--dns-forward 192.0.2.3", ""), "; 192.0.2.3>-");
    assert_eq!(dns("--dns-forward 192.0.2.3", "nameserver fd00::1"), "; 192.0.2.3>-");
    assert_eq!(dns("-D none --dns-forward 192.0.2.3", "nameserver 203.0.113.1"), "; 192.0.2.3>-");
}

#[test]
fn ipv6_resolvers_follow_the_same_rules() {
    let (guest, t) = plan(&typed(""), &facts("nameserver ::1"), &usual(), BOTH);
    assert_eq!(guest.dns.v6, ["fe80::1".parse::<Ipv6Addr>().unwrap()]);
    assert_eq!(t.v6.dns_host, Some(Ipv6Addr::LOCALHOST));
    let text = "nameserver fe80::1%eth0\nnameserver 2001:db8::53";
    let (guest, t) = plan(&typed(""), &facts(text), &usual(), BOTH);
    assert_eq!(guest.dns.v6.len(), 2);
    assert_eq!(
        (t.v6.dns_forward, t.v6.dns_host),
        (guest.dns.v6.first().copied(), guest.dns.v6.first().copied())
    );
}

#[test]
fn search_domains_are_the_hosts_or_those_given() {
    let search = |line: &str| plan(&typed(line), &facts("search a b"), &usual(), BOTH).0.dns.search;
    assert_eq!(search(""), ["a", "b"]);
    assert_eq!(search("-S c"), ["c"]);
    assert!(search("-S none").is_empty());
}

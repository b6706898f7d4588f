use super::*;
use crate::config::facts::Interface;
use crate::config::resolv::Resolv;

/// A host written as text: `eth0 192.0.2.5/24` gives an interface an address, `route 0.0.0.0/0
/// [metric N] [table N] [src A] via 192.0.2.1 eth0 [weight N], ...` is a route.
fn host(lines: &[&str]) -> HostFacts {
    let mut facts = HostFacts {
        interfaces: Vec::new(),
        addresses: Vec::new(),
        routes: Vec::new(),
        ipv6: true,
        resolv: Resolv::default(),
        ephemeral: 32_768..=60_999,
    };
    for (i, name) in ["lo", "eth0", "eth1", "wg0"].iter().enumerate() {
        facts.interfaces.push(Interface {
            index: i as u32 + 1,
            name: (*name).to_owned(),
            loopback: i == 0,
            mtu: Some(1500),
        });
    }
    for line in lines {
        match line.strip_prefix("route ") {
            Some(route) => {
                let route = parse_route(&facts, route);
                facts.routes.push(route);
            }
            None => {
                let address = parse_address(&facts, line);
                facts.addresses.push(address);
            }
        }
    }
    facts
}

fn prefix(text: &str) -> (IpAddr, u8) {
    let (addr, len) = text.split_once('/').unwrap();
    (addr.parse().unwrap(), len.parse().unwrap())
}

fn parse_address(facts: &HostFacts, line: &str) -> Address {
    let mut words = line.split(' ');
    let interface = facts.interface(words.next().unwrap()).unwrap().index;
    let (addr, prefix_len) = prefix(words.next().unwrap());
    let flags: Vec<_> = words.collect();
    let scoped = match addr {
        IpAddr::V4(a) => a.is_loopback(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local(),
    };
    Address {
        global: !scoped && !flags.contains(&"link"),
        usable: !flags.contains(&"deprecated"),
        secondary: flags.contains(&"secondary"),
        ..Address::new(interface, addr, prefix_len)
    }
}

fn parse_route(facts: &HostFacts, text: &str) -> Route {
    let (mut metric, mut table, mut source, mut hops) = (0, MAIN_TABLE, None, Vec::new());
    let (destination, rest) = text.split_once(' ').unwrap();
    for part in rest.split(", ") {
        let mut hop = NextHop::new(0, None);
        let mut words = part.split(' ');
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap();
            match word {
                "metric" => metric = value().parse().unwrap(),
                "table" => table = value().parse().unwrap(),
                "src" => source = Some(value().parse().unwrap()),
                "via" => hop.gateway = Some(value().parse().unwrap()),
                "weight" => hop.weight = value().parse().unwrap(),
                "dead" => hop.alive = false,
                name => hop.interface = facts.interface(name).unwrap().index,
            }
        }
        hops.push(hop);
    }
    Route { table, metric, source, ..Route::new(prefix(destination), hops) }
}

/// The choice as text: interface, address, gateway.
fn chosen_of(facts: &HostFacts, family: Family, wanted: Option<u32>) -> Option<String> {
    choose(facts, family, wanted).map(|t| {
        let gateway = t.gateway.map_or_else(String::new, |g| format!(" via {g}"));
        format!("{} {}/{}{gateway}", t.name, t.addr, t.prefix_len)
    })
}

fn chosen(lines: &[&str]) -> Option<String> {
    chosen_of(&host(lines), Family::V4, None)
}

fn chosen6(lines: &[&str]) -> Option<String> {
    chosen_of(&host(lines), Family::V6, None)
}

#[test]
fn the_default_route_decides() {
    let lines =
        ["eth0 192.0.2.5/24", "eth1 198.51.100.5/24", "route 0.0.0.0/0 via 198.51.100.1 eth1"];
    assert_eq!(chosen(&lines).unwrap(), "eth1 198.51.100.5/24 via 198.51.100.1");
    let lines = ["eth0 2001:db8::5/64", "eth0 fe80::5/64", "route ::/0 via fe80::1 eth0"];
    assert_eq!(chosen6(&lines).unwrap(), "eth0 2001:db8::5/64 via fe80::1");
    assert_eq!(chosen(&lines), None, "the other family is not concerned");
}

#[test]
fn a_link_without_an_address_has_that_of_the_loopback_interface() {
    let lines = ["lo 127.0.0.1/8", "lo 203.0.113.9/32", "eth1 172.17.0.1/16"];
    let unnumbered = [lines[0], lines[1], lines[2], "route 0.0.0.0/0 eth0"];
    assert_eq!(chosen(&unnumbered).unwrap(), "eth0 203.0.113.9/32");
    let elsewhere = [lines[0], lines[1], lines[2], "route 10.0.0.0/8 eth0"];
    assert_eq!(chosen(&elsewhere), None, "for default routes only");
    assert_eq!(chosen(&[lines[0], lines[2], "route 0.0.0.0/0 eth0"]), None, "127.0.0.1 is ours");
}

#[test]
fn the_default_route_of_lowest_metric_decides() {
    let lines = [
        "eth0 192.0.2.5/24",
        "eth1 198.51.100.5/24",
        "route 0.0.0.0/0 metric 200 via 192.0.2.1 eth0",
        "route 0.0.0.0/0 metric 100 via 198.51.100.1 eth1",
    ];
    assert_eq!(chosen(&lines).unwrap(), "eth1 198.51.100.5/24 via 198.51.100.1");
}

#[test]
fn interface_and_gateway_are_of_the_same_next_hop() {
    let lines = [
        "eth0 192.0.2.5/24",
        "eth1 198.51.100.5/24",
        "route 0.0.0.0/0 via 192.0.2.1 eth0 weight 1, via 198.51.100.1 eth1 weight 2",
    ];
    assert_eq!(chosen(&lines).unwrap(), "eth1 198.51.100.5/24 via 198.51.100.1");
    let equal = [lines[0], lines[1], "route 0.0.0.0/0 via 192.0.2.1 eth0, via 198.51.100.1 eth1"];
    assert_eq!(chosen(&equal).unwrap(), "eth0 192.0.2.5/24 via 192.0.2.1");
    let dead =
        [lines[0], lines[1], "route 0.0.0.0/0 via 192.0.2.1 eth0 dead, via 198.51.100.1 eth1"];
    assert_eq!(chosen(&dead).unwrap(), "eth1 198.51.100.5/24 via 198.51.100.1");
}

#[test]
fn default_routes_of_other_tables_come_before_other_routes() {
    let lines = [
        "eth0 192.0.2.5/24",
        "wg0 10.8.0.2/32",
        "route 192.0.2.0/24 eth0",
        "route 0.0.0.0/0 table 51820 wg0",
    ];
    assert_eq!(chosen(&lines).unwrap(), "wg0 10.8.0.2/32");
    let lines = [lines[0], lines[1], "route 0.0.0.0/0 via 192.0.2.1 eth0", lines[3]];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.5/24 via 192.0.2.1");
}

#[test]
fn any_other_route_is_better_than_none() {
    let lines = ["eth0 192.0.2.5/24", "route 192.0.2.0/24 eth0"];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.5/24");
    let lines = ["eth0 192.0.2.5/24", "route 198.51.100.0/24 via 192.0.2.9 eth0"];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.5/24", "its gateway is no default one");
}

#[test]
fn loopback_and_link_local_destinations_lead_nowhere() {
    assert_eq!(chosen(&["lo 127.0.0.1/8", "route 127.0.0.0/8 lo"]), None);
    assert_eq!(chosen(&["lo 192.0.2.5/32", "route 0.0.0.0/0 lo"]), None);
    assert_eq!(chosen(&["eth0 169.254.7.7/16", "route 169.254.0.0/16 eth0"]), None);
    assert_eq!(chosen6(&["eth0 fe80::5/64", "route fe80::/64 eth0"]), None);
    assert_eq!(chosen(&[]), None);
}

#[test]
fn an_interface_without_address_is_passed_over() {
    let lines = [
        "eth1 198.51.100.5/24",
        "route 0.0.0.0/0 via 192.0.2.1 eth0",
        "route 0.0.0.0/0 metric 9 via 198.51.100.1 eth1",
    ];
    assert_eq!(chosen(&lines).unwrap(), "eth1 198.51.100.5/24 via 198.51.100.1");
    assert_eq!(chosen6(&["eth0 fe80::5/64", "route ::/0 via fe80::1 eth0"]), None);
}

#[test]
fn a_service_address_does_not_hide_the_real_one() {
    let route = "route 0.0.0.0/0 via 192.0.2.1 eth0";
    for lines in [
        ["eth0 192.0.2.100/32", "eth0 192.0.2.5/24", route],
        ["eth0 203.0.113.9/28", "eth0 192.0.2.5/24", route],
        ["eth0 192.0.2.100/24 secondary", "eth0 192.0.2.5/24", route],
        ["eth0 192.0.2.100/24 deprecated", "eth0 192.0.2.5/24", route],
        ["eth0 169.254.1.1/16 link", "eth0 192.0.2.5/24", route],
        ["lo 192.0.2.100/32", "eth0 192.0.2.5/24", route],
    ] {
        assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.5/24 via 192.0.2.1", "{lines:?}");
    }
    let lines =
        ["eth0 2001:db8::9/64 secondary", "eth0 2001:db8::5/64", "route ::/0 via fe80::1 eth0"];
    assert_eq!(chosen6(&lines).unwrap(), "eth0 2001:db8::5/64 via fe80::1");
}

#[test]
fn a_single_hosts_address_is_taken_where_there_is_no_other() {
    let lines = ["eth0 192.0.2.5/32", "route 0.0.0.0/0 via 10.0.0.1 eth0"];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.5/32 via 10.0.0.1");
    let lines = ["eth0 2001:db8::5/128", "route ::/0 via fe80::1 eth0"];
    assert_eq!(chosen6(&lines).unwrap(), "eth0 2001:db8::5/128 via fe80::1");
}

#[test]
fn the_source_that_the_route_asks_for_is_taken() {
    let route = "route 0.0.0.0/0 src 192.0.2.7 via 192.0.2.1 eth0";
    let lines = ["eth0 192.0.2.5/24", "eth0 192.0.2.7/24 secondary", route];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.7/24 via 192.0.2.1");
    let lines = ["eth0 192.0.2.5/24", "lo 192.0.2.7/32", route];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.7/32 via 192.0.2.1");
    let lines = ["eth0 192.0.2.5/24", route];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.5/24 via 192.0.2.1");
}

#[test]
fn a_gateway_of_the_other_family_is_none() {
    let lines = ["eth0 192.0.2.5/24", "route 0.0.0.0/0 via fe80::1 eth0"];
    assert_eq!(chosen(&lines).unwrap(), "eth0 192.0.2.5/24");
}

#[test]
fn the_interface_asked_for_wins() {
    let facts = host(&[
        "eth0 192.0.2.5/24",
        "eth1 198.51.100.5/24",
        "wg0 fe80::9/64",
        "route 0.0.0.0/0 via 192.0.2.1 eth0",
        "route 0.0.0.0/0 metric 9 via 198.51.100.1 eth1",
    ]);
    let wanted = |name: &str| chosen_of(&facts, Family::V4, facts.interface(name).map(|i| i.index));
    assert_eq!(wanted("eth1").unwrap(), "eth1 198.51.100.5/24 via 198.51.100.1");
    assert_eq!(wanted("wg0"), None);
    let unrouted = host(&["eth1 198.51.100.5/24", "route 0.0.0.0/0 via 192.0.2.1 eth0"]);
    assert_eq!(chosen_of(&unrouted, Family::V4, Some(3)).unwrap(), "eth1 198.51.100.5/24");
}

#[test]
fn the_interfaces_link_local_address_comes_along() {
    let facts = host(&[
        "eth1 fe80::1/64",
        "eth0 fe80::4/64 deprecated",
        "eth0 fe80::5/64",
        "eth0 2001:db8::5/64",
        "route ::/0 eth0",
    ]);
    let template = choose(&facts, Family::V6, None).unwrap();
    assert_eq!(template.link_local, Some("fe80::5".parse().unwrap()));
    let facts = host(&["eth0 2001:db8::5/64", "route ::/0 eth0"]);
    assert_eq!(choose(&facts, Family::V6, None).unwrap().link_local, None);
}

#[test]
fn subnets_are_told_apart() {
    let addr = |text: &str| text.parse().unwrap();
    for (a, b, len, expected) in [
        ("192.0.2.1", "192.0.2.9", 24, true),
        ("192.0.3.1", "192.0.2.9", 24, false),
        ("192.0.3.1", "10.0.0.0", 0, true),
        ("192.0.2.9", "192.0.2.9", 32, true),
        ("2001:db8::1", "2001:db8::2", 64, true),
        ("2001:db8::1", "2001:db9::2", 64, false),
        ("192.0.2.1", "::1", 0, false),
    ] {
        assert_eq!(in_subnet(addr(a), addr(b), len), expected, "{a} {b}/{len}");
    }
}

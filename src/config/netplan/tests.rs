use crate::config::facts::{Address, BY_KERNEL, HostFacts, NextHop, Route};
use crate::config::options::{Program, Request, parse};
use crate::config::tests::host;
use crate::config::{Config, NetPlan};
use std::net::IpAddr;

/// What the namespace gets from `facts`, as text.
#[track_caller]
fn planned(line: &str, facts: &HostFacts) -> (Vec<String>, Vec<String>) {
    let plan = plan(line, facts);
    let addresses = plan.addresses.iter().map(|a| format!("{}/{}", a.addr, a.prefix_len));
    let routes = plan.routes.iter().map(|route| {
        let onlink = if route.hops.iter().any(|hop| hop.onlink) { " onlink" } else { "" };
        format!("{route}{onlink}")
    });
    (addresses.collect(), routes.collect())
}

#[track_caller]
fn plan(line: &str, facts: &HostFacts) -> NetPlan {
    let args: Vec<_> = format!("--config-net {line}").split_whitespace().map(Into::into).collect();
    let Ok(Request::Run(mode, typed)) = parse(Program::Pasta, "pasta", &args) else {
        panic!("{line}");
    };
    let Ok((Config::Pasta(pasta), _)) = Config::new(mode, &typed, facts) else {
        panic!("{line}");
    };
    pasta.config_net.expect("was asked for")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> (IpAddr, u8) {
    let (addr, len) = text.split_once('/').unwrap();
    (ip(addr), len.parse().unwrap())
}

/// A route over eth0.
fn route(to: &str, gateway: Option<&str>) -> Route {
    Route::new(prefix(to), vec![NextHop::new(2, gateway.map(ip))])
}

fn address(interface: u32, text: &str) -> Address {
    let (addr, len) = prefix(text);
    Address::new(interface, addr, len)
}

/// A host without addresses and routes.
fn empty() -> HostFacts {
    HostFacts { addresses: Vec::new(), routes: Vec::new(), ..host() }
}

#[test]
fn addresses_and_routes_are_the_hosts() {
    let (addresses, routes) = planned("", &host());
    assert_eq!(addresses, ["192.0.2.5/24", "2001:db8::5/64"]);
    assert_eq!(routes, ["0.0.0.0/0 via 192.0.2.1", "::/0 via fe80::1"]);
    assert!(plan("", &host()).ipv6);
    let (addresses, routes) = planned("-4", &host());
    assert_eq!((addresses.len(), routes.len(), plan("-4", &host()).ipv6), (1, 1, false));
}

#[test]
fn without_anything_on_the_host_there_is_what_dhcp_would_give() {
    let (addresses, routes) = planned("", &empty());
    assert_eq!(addresses, ["169.254.2.1/16"]);
    assert_eq!(routes, ["0.0.0.0/0 via 169.254.2.2", "::/0 via fe80::1"]);
    let (addresses, routes) = planned("-a 10.0.2.15/24 -a fd00::2 -g 10.0.2.2", &empty());
    assert_eq!(addresses, ["10.0.2.15/24", "fd00::2/64"]);
    assert_eq!(routes, ["0.0.0.0/0 via 10.0.2.2", "::/0 via fe80::1"]);
}

#[test]
fn what_was_asked_for_takes_the_place_of_the_hosts() {
    for (line, addresses, routes) in [
        (
            "-a 10.0.2.100 -n 24 -g 10.0.2.2",
            &["10.0.2.100/24", "2001:db8::5/64"],
            &["0.0.0.0/0 via 10.0.2.2", "::/0 via fe80::1"],
        ),
        (
            "-a 10.0.2.100/24",
            &["10.0.2.100/24", "2001:db8::5/64"],
            &["0.0.0.0/0 via 192.0.2.1 onlink", "::/0 via fe80::1"],
        ),
        (
            "-g 198.51.100.1",
            &["192.0.2.5/24", "2001:db8::5/64"],
            &["0.0.0.0/0 via 198.51.100.1 onlink", "::/0 via fe80::1"],
        ),
        (
            "-a 2001:db8:1::7/48 -g 2001:db8:1::1",
            &["192.0.2.5/24", "2001:db8:1::7/64"],
            &["0.0.0.0/0 via 192.0.2.1", "::/0 via 2001:db8:1::1"],
        ),
        (
            "-n 16",
            &["192.0.2.5/16", "2001:db8::5/64"],
            &["0.0.0.0/0 via 192.0.2.1", "::/0 via fe80::1"],
        ),
    ] {
        assert_eq!(planned(line, &host()), (texts(addresses), texts(routes)), "{line}");
    }
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn the_deprecated_options_copy_less() {
    let mut facts = host();
    facts.addresses.push(address(2, "192.0.2.6/24"));
    facts.routes.push(route("10.0.0.0/8", Some("192.0.2.9")));
    let (addresses, routes) = planned("", &facts);
    assert_eq!((addresses.len(), routes.len()), (3, 3));
    let (addresses, routes) = planned("--no-copy-addrs --no-copy-routes", &facts);
    assert_eq!(addresses, ["192.0.2.5/24", "2001:db8::5/64"]);
    assert_eq!(routes, ["0.0.0.0/0 via 192.0.2.1", "::/0 via fe80::1"]);
}

#[test]
fn only_addresses_of_use_are_copied() {
    let mut facts = host();
    facts.addresses.push(Address { usable: false, ..address(2, "192.0.2.66/24") });
    facts.addresses.push(Address { global: false, ..address(2, "192.0.2.67/24") });
    facts.addresses.push(address(3, "198.51.100.7/24"));
    let mine = Address {
        secondary: true,
        peer: Some(ip("10.9.9.2")),
        metric: Some(100),
        connects: false,
        ..address(2, "10.9.9.1/32")
    };
    facts.addresses.push(mine);
    let addresses = plan("-4", &facts).addresses;
    assert_eq!(addresses, [address(2, "192.0.2.5/24"), mine]);
}

#[test]
fn an_address_that_the_host_has_elsewhere_comes_along() {
    let mut facts = empty();
    facts.addresses = vec![address(1, "203.0.113.9/32")];
    facts.routes = vec![route("0.0.0.0/0", Some("fe80::1"))];
    let (addresses, routes) = planned("-4", &facts);
    assert_eq!(addresses, ["203.0.113.9/32"]);
    assert_eq!(routes, ["0.0.0.0/0 via fe80::1"], "over a router of IPv6");
}

#[test]
fn the_kernels_own_routes_are_left_to_it() {
    let mut facts = host();
    let connected = |to: &str| Route { protocol: BY_KERNEL, scope: 253, ..route(to, None) };
    facts.routes.push(connected("192.0.2.0/24"));
    facts.routes.push(connected("198.51.100.0/24"));
    facts.routes.push(connected("fe80::/64"));
    facts.routes.push(Route { protocol: 9, ..route("2001:db8::/64", None) });
    let (_, routes) = planned("", &facts);
    assert_eq!(routes, ["0.0.0.0/0 via 192.0.2.1", "2001:db8::/64", "::/0 via fe80::1"]);

    // Those that NetworkManager adds in the kernel's name are not the kernel's.
    facts.addresses[0].connects = false;
    let (_, routes) = planned("-4", &facts);
    assert_eq!(routes, ["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.1"]);
}

#[test]
fn routes_that_others_need_come_first_and_routers_beyond_reach_are_on_the_link() {
    let mut facts = empty();
    facts.addresses = vec![address(2, "203.0.113.5/32")];
    facts.routes = vec![
        route("0.0.0.0/0", Some("203.0.113.1")),
        route("10.0.0.0/8", Some("203.0.113.77")),
        Route { scope: 253, ..route("203.0.113.1/32", None) },
    ];
    let (_, routes) = planned("-4", &facts);
    let expected =
        ["203.0.113.1/32", "0.0.0.0/0 via 203.0.113.1", "10.0.0.0/8 via 203.0.113.77 onlink"];
    assert_eq!(routes, expected);

    facts.addresses[0].peer = Some(ip("203.0.113.77"));
    let (_, routes) = planned("-4", &facts);
    assert_eq!(routes[2], "10.0.0.0/8 via 203.0.113.77", "it is at the other end");
}

#[test]
fn of_several_ways_those_through_the_template_are_copied() {
    let mut facts = host();
    let hop = |interface, gateway: &str, weight| NextHop {
        weight,
        ..NextHop::new(interface, Some(ip(gateway)))
    };
    facts.routes = vec![
        Route::new(
            prefix("0.0.0.0/0"),
            vec![hop(3, "198.51.100.1", 1), hop(2, "192.0.2.1", 1), hop(2, "192.0.2.2", 5)],
        ),
        Route::new(prefix("10.0.0.0/8"), vec![hop(3, "198.51.100.1", 1)]),
    ];
    let routes = plan("-4", &facts).routes;
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].hops, [hop(2, "192.0.2.1", 1), hop(2, "192.0.2.2", 5)]);
}

#[test]
fn the_table_of_the_default_route_is_copied_where_it_is_not_the_main_one() {
    let mut facts = host();
    let of = |table, route: Route| Route { table, ..route };
    facts.routes = vec![
        of(100, route("0.0.0.0/0", Some("192.0.2.1"))),
        of(100, route("10.0.0.0/8", Some("192.0.2.2"))),
        of(200, route("10.1.0.0/16", Some("192.0.2.3"))),
        route("10.0.0.0/8", Some("192.0.2.4")),
    ];
    let (_, routes) = planned("-4", &facts);
    assert_eq!(routes, ["10.0.0.0/8 via 192.0.2.4", "0.0.0.0/0 via 192.0.2.1"]);

    facts.routes.push(Route { metric: 500, ..route("0.0.0.0/0", Some("192.0.2.9")) });
    let (_, routes) = planned("-4", &facts);
    assert_eq!(routes, ["10.0.0.0/8 via 192.0.2.4", "0.0.0.0/0 via 192.0.2.9"]);
}

#[test]
fn all_of_a_route_is_kept_but_for_a_source_that_is_not_there() {
    let mut facts = host();
    let all = Route {
        metric: 7,
        source: Some(ip("192.0.2.5")),
        tos: 16,
        protocol: 186,
        metrics: vec![(2, 1400), (8, 1360)],
        ..route("10.0.0.0/8", Some("192.0.2.9"))
    };
    facts.routes =
        vec![all.clone(), Route { metric: 8, source: Some(ip("10.0.0.1")), ..all.clone() }];
    let routes = plan("-4", &facts).routes;
    assert_eq!(routes, [all.clone(), Route { metric: 8, source: None, ..all }]);
}

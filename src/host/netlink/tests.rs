use super::*;
use crate::config::options::Family;
use crate::config::template;
use std::process::Command;

fn run(command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    let status = Command::new(words[0]).args(&words[1..]).status();
    let status = status.unwrap_or_else(|e| panic!("{command}: {e} (package iproute2)"));
    assert!(status.success(), "{command}");
}

/// The facts of a network namespace of our own, made by `commands`. Namespaces of network belong
/// to threads: this one's ends with it.
fn facts_after(commands: &[&str]) -> HostFacts {
    let commands: Vec<_> = commands.iter().map(ToString::to_string).collect();
    let namespace = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("network namespaces need root");
        commands.iter().for_each(|command| run(command));
        facts().unwrap()
    };
    std::thread::spawn(namespace).join().unwrap()
}

#[test]
fn the_loopback_interface_is_found_with_its_addresses() {
    let facts = facts_after(&["ip link set lo up"]);
    let lo = facts.interface("lo").unwrap();
    assert!(lo.loopback && facts.is_loopback(lo.index));
    assert_eq!(lo.mtu, Some(65_536));
    let addr: IpAddr = Ipv4Addr::LOCALHOST.into();
    let address = facts.addresses.iter().find(|a| a.addr == addr).unwrap();
    assert_eq!((address.interface, address.prefix_len, address.global), (lo.index, 8, false));
}

#[test]
fn addresses_and_routes_of_a_namespace_are_found() {
    let facts = facts_after(&[
        "ip link add eth0 type veth peer name peer0",
        "ip link set eth0 up",
        "ip link set peer0 up",
        "ip address add 192.0.2.5/24 dev eth0",
        "ip address add 192.0.2.6/24 dev eth0",
        "ip address add 10.9.9.1 peer 10.9.9.2/32 dev eth0",
        "ip -6 address add 2001:db8::5/64 dev eth0 nodad",
        "ip -6 address add 2001:db8::6/64 dev eth0 nodad preferred_lft 0",
        "ip -6 address add fe80::5/64 dev eth0 nodad",
        "ip route add default via 192.0.2.1 dev eth0 metric 7 src 192.0.2.6",
        "ip route add default dev eth0 table 1000",
        "ip route add blackhole 203.0.113.0/24",
        "ip -6 route add default via fe80::1 dev eth0",
    ]);
    let eth0 = facts.interface("eth0").unwrap();
    assert!(!eth0.loopback);
    let flags = |text: &str| {
        let addr: IpAddr = text.parse().unwrap();
        let a = facts.addresses.iter().find(|a| a.addr == addr).unwrap();
        assert_eq!(a.interface, eth0.index);
        (a.prefix_len, a.global, a.usable, a.secondary)
    };
    assert_eq!(flags("192.0.2.5"), (24, true, true, false));
    assert_eq!(flags("192.0.2.6"), (24, true, true, true));
    assert_eq!(flags("10.9.9.1"), (32, true, true, false));
    assert_eq!(flags("2001:db8::5"), (64, true, true, false));
    assert_eq!(flags("2001:db8::6"), (64, true, false, false));
    assert_eq!(flags("fe80::5"), (64, false, true, false));

    let default = |table, v4: bool| {
        let is = |r: &&Route| {
            r.destination.1 == 0 && r.table == table && r.destination.0.is_ipv4() == v4
        };
        facts.routes.iter().find(is).unwrap()
    };
    let main = default(MAIN_TABLE, true);
    assert_eq!((main.metric, main.source), (7, "192.0.2.6".parse().ok()));
    let hop = NextHop::new(eth0.index, "192.0.2.1".parse().ok());
    assert_eq!(main.hops, [hop]);
    assert_eq!(default(1000, true).hops, [NextHop { gateway: None, ..hop }]);
    let gateway = "fe80::1".parse().ok();
    assert_eq!(default(MAIN_TABLE, false).hops, [NextHop { gateway, ..hop }]);
    let blackhole: IpAddr = "203.0.113.0".parse().unwrap();
    assert!(facts.routes.iter().all(|r| r.destination.0 != blackhole));

    let chosen = template::choose(&facts, Family::V4, None).unwrap();
    assert_eq!((chosen.name.as_str(), chosen.gateway), ("eth0", hop.gateway));
}

#[test]
fn every_way_of_a_multipath_route_is_found() {
    let facts = facts_after(&[
        "ip link add eth0 type veth peer name eth1",
        "ip link set eth0 up",
        "ip link set eth1 up",
        "ip address add 192.0.2.5/24 dev eth0",
        "ip address add 198.51.100.5/24 dev eth1",
        "ip route add default nexthop via 192.0.2.1 dev eth0 weight 1 \
         nexthop via 198.51.100.1 dev eth1 weight 3",
    ]);
    let default = facts.routes.iter().find(|r| r.destination.1 == 0).unwrap();
    let hops: Vec<_> =
        default.hops.iter().map(|h| (h.gateway.unwrap().to_string(), h.weight)).collect();
    assert_eq!(hops, [("192.0.2.1".to_owned(), 1), ("198.51.100.1".to_owned(), 3)]);
    assert_eq!(template::choose(&facts, Family::V4, None).unwrap().name, "eth1");
}

#[test]
fn a_namespace_without_network_has_no_template() {
    let facts = facts_after(&[]);
    assert_eq!(template::choose(&facts, Family::V4, None), None);
    assert_eq!(template::choose(&facts, Family::V6, None), None);
}

#[test]
fn more_addresses_than_fit_one_datagram_are_found() {
    let mut commands = vec!["ip link add eth0 type veth peer name peer0".to_owned()];
    commands.extend((1..=250).map(|n| format!("ip address add 192.0.2.{n}/24 dev eth0")));
    let facts = facts_after(&commands.iter().map(String::as_str).collect::<Vec<_>>());
    let of_subnet = |a: &&Address| a.prefix_len == 24;
    assert_eq!(facts.addresses.iter().filter(of_subnet).count(), 250);
}

//! A guest (User-mode Linux) on the vhost-user socket, against the kernel of the host.

mod common;

use common::checks::{self, Bench, FAR_PORT, GUEST_PORT};
use common::guest::Guest;
use common::net::{HOST4, Lab, Passt};
use common::peer::{self, Operation, Server};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[test]
fn peer() {
    peer::entry();
}

fn boot(options: &[&str]) -> Bench {
    Bench::new(options, |lab, socket| Guest::uml(lab, Some(socket)))
}

#[test]
fn a_guest_uses_the_network_at_the_largest_mtu() {
    boot(&[]).steps(&[
        ("slaac", |bench| {
            bench.guest.ok("ip link set eth0 up");
            checks::slaac(bench);
        }),
        ("dhclient", dhclient),
        ("dhcpcd", dhcpcd),
        ("dhclient -6", checks::dhclient6),
        ("udhcpc", checks::configure),
        ("lease", checks::udhcpc_lease),
        ("mtu", |bench| assert_eq!(bench.guest.ok("cat /sys/class/net/eth0/mtu"), "65520\n")),
        ("ping", checks::ping_far_and_gateway),
        ("large ping", checks::ping_large),
        ("TCP out", checks::tcp_out),
        ("TCP in", checks::tcp_in),
        ("UDP out", checks::udp_out),
        ("UDP in", checks::udp_in),
        ("refusals", checks::refusals_reach_the_guest),
        ("bulk", |bench| checks::bulk(bench, 1 << 30)),
        ("200 connections", |bench| checks::many_connections(bench, 200)),
        ("no offloads", checks::without_offloads),
        ("reboot", reboot),
        ("front-end killed", front_end_killed),
    ]);
}

#[test]
fn a_guest_uses_the_network_at_mtu_1500() {
    boot(&["-m", "1500"]).steps(&[
        ("udhcpc", checks::configure),
        ("mtu", |bench| assert_eq!(bench.guest.ok("cat /sys/class/net/eth0/mtu"), "1500\n")),
        ("ping", checks::ping_far_and_gateway),
        ("large ping", checks::ping_large),
        ("TCP out", checks::tcp_out),
        ("TCP in", checks::tcp_in),
        ("UDP out", checks::udp_out),
        ("UDP in", checks::udp_in),
        ("bulk", |bench| checks::bulk(bench, 1 << 30)),
        ("no offloads", checks::without_offloads),
    ]);
}

/// Local mode: link-local addresses, and the host behind the gateway's.
#[test]
fn on_a_host_without_network_the_guest_reaches_the_host() {
    let lab = Lab::without_addresses();
    lab.host.within(|| Server::start(FAR_PORT)).expect("cannot serve");
    let passt = Passt::start(&lab, &["-t", "6000"]);
    let mut guest = Guest::uml(&lab, Some(passt.socket()));
    guest.ok("guest-up 4");
    guest.ok("ip -4 addr show dev eth0 | grep ' 169.254.2.1/16 '");
    guest.ok("busybox ping -c 1 -W 10 169.254.2.2");
    guest.peer(&format!("Both 169.254.2.2:{FAR_PORT} 300000 1"));
    guest.until("ip -6 route show default | grep 'via fe80::1 dev eth0'");
    guest.peer(&format!("Both [fe80::1%2]:{FAR_PORT} 300000 2"));
    guest.serve(GUEST_PORT);
    let server = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), GUEST_PORT);
    let exchange = || peer::exchange(server, Operation::Both, 300_000, 3);
    lab.host.within(exchange).expect("into the guest");
}

/// The client of the Internet Systems Consortium, with the script that Debian gives it.
fn dhclient(bench: &mut Bench) {
    let guest = &mut bench.guest;
    guest.ok("dhclient -4 -1 -v -lf /run/leases -pf /run/dhclient.pid eth0");
    let lease = guest.ok("cat /run/leases");
    for expected in [
        "fixed-address 192.0.2.10;",
        "option subnet-mask 255.255.255.0;",
        "option routers 192.0.2.1;",
        "option domain-name-servers 198.51.100.1;",
        "option domain-search \"lab.example.\";",
        "option interface-mtu 65520;",
    ] {
        assert!(lease.contains(expected), "no {expected} in:\n{lease}");
    }
    guest.ok("ip -4 addr show dev eth0 | grep ' 192.0.2.10/24 '");
    guest.ok("ip -4 route show default | grep 'via 192.0.2.1 '");
    guest.ok("grep '^nameserver 198.51.100.1$' /etc/resolv.conf");
    guest.ok("dhclient -4 -x -pf /run/dhclient.pid eth0; ip -4 addr flush dev eth0");
}

fn dhcpcd(bench: &mut Bench) {
    let guest = &mut bench.guest;
    guest.ok("dhcpcd -4 -1 -t 30 eth0");
    guest.ok("ip -4 addr show dev eth0 | grep ' 192.0.2.10/24 '");
    guest.ok("ip -4 route show default | grep 'via 192.0.2.1 '");
    guest.ok("ip -4 addr flush dev eth0");
}

fn reboot(bench: &mut Bench) {
    bench.guest.reboot();
    checks::works_again(bench, 10_000_000);
}

/// A connection is idle then and another in full flood: the next guest does not know them, so
/// their far ends are told, and nobody else is the worse for it.
fn front_end_killed(bench: &mut Bench) {
    let process = bench.passt.id();
    let server = SocketAddr::new(HOST4, GUEST_PORT);
    let (idle, flood) = (bench.seed(), bench.seed());
    let far = &bench.lab.far;
    let mut idle = far.within(|| peer::idle(server, idle)).expect("cannot connect");
    let flood = far.within(|| peer::flood(server, flood)).expect("cannot connect");
    bench.guest.until("[ $(cat /sys/class/net/eth0/statistics/rx_bytes) -gt 100000000 ]");
    bench.replace_guest();
    checks::works_again(bench, 10_000_000);
    peer::expect_reset(&mut idle).expect("the idle connection");
    let end = flood.join().expect("no panic").expect_err("it cannot end well");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset, "the connection in full flood: {end}");
    assert_eq!(bench.passt.id(), process);
    assert!(bench.passt.is_alive());
}

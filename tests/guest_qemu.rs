//! A guest (QEMU) on the vhost-user socket, against the kernel of the host.

mod common;

use common::checks::{self, Bench};
use common::guest::Guest;
use common::net::{FAR4, HOST6};
use common::peer::Operation;

#[test]
fn peer() {
    common::peer::entry();
}

#[test]
fn a_guest_uses_the_network() {
    Bench::new(&[], |lab, socket| Guest::qemu(lab, Some(socket), "")).steps(&[
        ("udhcpc", checks::configure),
        ("lease", checks::udhcpc_lease),
        ("ping", checks::ping_far_and_gateway),
        ("large ping", checks::ping_large),
        ("TCP out", checks::tcp_out),
        ("TCP in", checks::tcp_in),
        ("UDP out", checks::udp_out),
        ("UDP in", checks::udp_in),
        ("refusals", checks::refusals_reach_the_guest),
        ("bulk", |bench| checks::bulk(bench, 64 << 20)),
        ("50 connections", |bench| checks::many_connections(bench, 50)),
        ("reboot", |bench| {
            bench.guest.reboot();
            works_again(bench);
        }),
        ("front-end killed", |bench| {
            bench.replace_guest();
            works_again(bench);
        }),
    ]);
}

/// A device without anything that the driver may leave out.
#[test]
fn a_guest_uses_the_network_without_any_offload() {
    const NOTHING: &str = ",csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,\
        guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
        mrg_rxbuf=off,event_idx=off,indirect_desc=off,host_mtu=1500";
    Bench::new(&["-m", "1500"], |lab, socket| Guest::qemu(lab, Some(socket), NOTHING)).steps(&[
        ("udhcpc", checks::configure),
        ("mtu", |bench| assert_eq!(bench.guest.ok("cat /sys/class/net/eth0/mtu"), "1500\n")),
        ("ping", checks::ping_far_and_gateway),
        ("large ping", checks::ping_large),
        ("UDP out", checks::udp_out),
        ("UDP in", checks::udp_in),
        ("bulk", |bench| checks::bulk(bench, 8 << 20)),
    ]);
}

fn works_again(bench: &mut Bench) {
    checks::configure(bench);
    checks::ping_far_and_gateway(bench);
    bench.out(Operation::Both, FAR4, 1_000_000);
    bench.into(checks::Place::Far, Operation::Both, HOST6, 1_000_000);
}

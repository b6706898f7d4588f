//! A guest (QEMU) on the vhost-user socket, against the kernel of the host.

mod common;

use common::checks::{self, Bench};
use common::guest::Guest;

#[test]
fn peer() {
    common::peer::entry();
}

#[test]
fn a_guest_uses_the_network() {
    Bench::new(&[], |lab, socket| Guest::qemu(lab, Some(socket), "")).steps(&checks::QEMU);
}

#[test]
fn a_guest_uses_the_network_at_mtu_1500() {
    let mut bench = Bench::new(&["-m", "1500"], |lab, socket| Guest::qemu(lab, Some(socket), ""));
    bench.steps(&checks::QEMU_1500);
    bench.steps(&[("no offloads", checks::without_offloads)]);
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

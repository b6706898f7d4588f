//! What any guest must be able to do, as steps that share one boot.
//!
//! A step that fails does not hide the others: [`Bench::steps`] runs them all and then fails with
//! the names of those that did. `GUEST_STEP=udhcpc,UDP` runs only steps with such names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::guest::Guest;
use super::net::{
    FAR4, FAR6, GATEWAY4, GATEWAY6, HOST4, HOST6, Lab, Namespace, Passt, TcpCounters,
};
use super::peer::{self, Operation, Server};

/// The port of the guest's server, forwarded by `passt` for TCP and UDP.
pub const GUEST_PORT: u16 = 6000;
/// The port of the servers of the far end and of the host.
pub const FAR_PORT: u16 = 5000;

/// What boots a guest on a socket.
pub type Boot = fn(&Lab, &std::path::Path) -> Guest;

/// Something that a guest must be able to do; panics if it is not.
pub type Step = fn(&mut Bench);

/// A lab, a `passt` in it and a guest.
pub struct Bench {
    // Dropped in this order: the guest goes before its network.
    pub guest: Guest,
    pub passt: Passt,
    pub lab: Lab,
    boot: Boot,
    seed: u64,
}

impl Bench {
    /// Everything up, servers listening at the far end and on the host; the guest has booted, its
    /// interface is down.
    pub fn new(options: &[&str], boot: Boot) -> Self {
        Self::on(Passt::start, options, boot)
    }

    /// As [`Bench::new`], but the socket is a stream of frames.
    pub fn stream(options: &[&str], boot: Boot) -> Self {
        Self::on(Passt::start_stream, options, boot)
    }

    fn on(start: fn(&Lab, &[&str]) -> Passt, options: &[&str], boot: Boot) -> Self {
        let lab = Lab::new();
        for namespace in [&lab.far, &lab.host] {
            namespace.within(|| Server::start(FAR_PORT)).expect("cannot serve");
        }
        let forwards = ["-t", "6000", "-u", "6000"];
        let passt = start(&lab, &[&forwards, options].concat());
        let guest = boot(&lab, passt.socket());
        Self { guest, passt, lab, boot, seed: 1000 }
    }

    /// Runs all steps; fails afterwards if one did.
    pub fn steps(&mut self, steps: &[(&str, Step)]) {
        let only = std::env::var("GUEST_STEP").unwrap_or_default();
        let only: Vec<&str> = only.split(',').collect();
        let mut failed = Vec::new();
        for (name, step) in steps.iter().filter(|(name, _)| only.iter().any(|o| name.contains(o))) {
            let start = std::time::Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| step(self)));
            let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("{name}: {verdict} ({:.1} s)", start.elapsed().as_secs_f64());
            if outcome.is_err() {
                failed.push(*name);
            }
            if self.guest.is_lost() || !self.passt.is_alive() {
                failed.push("(the rest: no guest or no passt any more)");
                break;
            }
        }
        assert!(failed.is_empty(), "failed: {}", failed.join(", "));
    }

    /// A number that no other exchange of this test has.
    pub fn seed(&mut self) -> u64 {
        self.seed += 1;
        self.seed
    }

    /// An exchange with a server, from inside the guest.
    #[track_caller]
    pub fn out(&mut self, operation: Operation, server: IpAddr, length: u64) {
        let server = SocketAddr::new(server, FAR_PORT);
        let seed = self.seed();
        self.guest.peer(&format!("{operation:?} {server} {length} {seed}"));
    }

    /// An exchange with the guest's server, from a namespace of the lab.
    #[track_caller]
    pub fn into(&mut self, from: Place, operation: Operation, guest: IpAddr, length: u64) {
        let server = SocketAddr::new(guest, GUEST_PORT);
        let seed = self.seed();
        let namespace = from.of(&self.lab);
        let result = namespace.within(|| peer::exchange(server, operation, length, seed));
        result.unwrap_or_else(|error| panic!("{operation:?} into {server}: {error}"));
    }

    /// Kills the guest and boots another on the same socket.
    pub fn replace_guest(&mut self) {
        self.guest.kill();
        self.guest = (self.boot)(&self.lab, self.passt.socket());
    }
}

/// Where a client stands.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    Far,
    Host,
}

impl Place {
    fn of(self, lab: &Lab) -> &Namespace {
        match self {
            Self::Far => &lab.far,
            Self::Host => &lab.host,
        }
    }
}

/// All that a guest under QEMU is asked for at the largest MTU, on whichever socket.
pub const QEMU: [(&str, Step); 16] = [
    ("slaac", |bench| {
        bench.guest.ok("ip link set eth0 up");
        slaac(bench);
    }),
    ("dhclient -6", dhclient6),
    ("udhcpc", configure),
    ("lease", udhcpc_lease),
    ("mtu", |bench| assert_eq!(bench.guest.ok("cat /sys/class/net/eth0/mtu"), "65520\n")),
    ("ping", ping_far_and_gateway),
    ("large ping", ping_large),
    ("TCP out", tcp_out),
    ("TCP in", tcp_in),
    ("UDP out", udp_out),
    ("UDP in", udp_in),
    ("refusals", refusals_reach_the_guest),
    ("bulk", |bench| bulk(bench, 1 << 30)),
    ("200 connections", |bench| many_connections(bench, 200)),
    ("reboot", |bench| {
        bench.guest.reboot();
        works_again(bench, 1_000_000);
    }),
    ("front-end killed", |bench| {
        bench.replace_guest();
        works_again(bench, 1_000_000);
    }),
];

/// The same at MTU 1500, as far as that makes a difference.
pub const QEMU_1500: [(&str, Step); 8] = [
    ("udhcpc", configure),
    ("mtu", |bench| assert_eq!(bench.guest.ok("cat /sys/class/net/eth0/mtu"), "1500\n")),
    ("ping", ping_far_and_gateway),
    ("large ping", ping_large),
    ("TCP out", tcp_out),
    ("UDP out", udp_out),
    ("UDP in", udp_in),
    ("bulk", |bench| bulk(bench, 1 << 30)),
];

/// All ways in which a connection may go and end.
const ORDINARY: [Operation; 6] = [
    Operation::Take,
    Operation::Give,
    Operation::Both,
    Operation::ServerEndsFirst,
    Operation::ClientResets,
    Operation::ServerResets,
];

/// Interface up; IPv4 by busybox, IPv6 by the kernel itself. For guests that are to work at once.
pub fn configure(bench: &mut Bench) {
    bench.guest.ok("guest-up");
    slaac(bench);
    bench.guest.serve(GUEST_PORT);
}

/// The lease that busybox got, item by item.
pub fn udhcpc_lease(bench: &mut Bench) {
    let lease = bench.guest.ok("cat /run/lease");
    for expected in [
        "ip='192.0.2.10'",
        "mask='24'",
        "router='192.0.2.1'",
        "dns='198.51.100.1'",
        "search='lab.example'",
    ] {
        assert!(lease.lines().any(|line| line == expected), "no {expected} in:\n{lease}");
    }
}

/// Router advertisement taken, by the kernel: an address of the prefix and a default route.
pub fn slaac(bench: &mut Bench) {
    let guest = &mut bench.guest;
    guest.until("ip -6 addr show dev eth0 scope global | grep '2001:db8:1:.*/64'");
    guest.until("! ip -6 addr show dev eth0 | grep tentative");
    guest.ok("ip -6 route show default | grep 'via fe80:.* dev eth0'");
}

/// The client of the Internet Systems Consortium, with the script that Debian gives it.
pub fn dhclient6(bench: &mut Bench) {
    let guest = &mut bench.guest;
    guest.ok("dhclient -6 -1 -v -lf /run/leases6 -pf /run/dhclient6.pid eth0");
    let lease = guest.ok("cat /run/leases6");
    for expected in
        ["iaaddr 2001:db8:1::10 ", "dhcp6.name-servers 2001:db8:ffff::1;", "lab.example"]
    {
        assert!(lease.contains(expected), "no {expected} in:\n{lease}");
    }
    guest.ok("ip -6 addr show dev eth0 | grep ' 2001:db8:1::10/128 '");
    guest.ok("kill $(cat /run/dhclient6.pid)");
}

/// The driver goes on without checksum and segmentation offload: every frame is an ordinary one.
pub fn without_offloads(bench: &mut Bench) {
    bench.guest.ok("ethtool -K eth0 tx off sg off tso off gso off gro off rx off || true");
    let features = bench.guest.ok("ethtool -k eth0");
    for feature in ["tx-checksumming: off", "tcp-segmentation-offload: off"] {
        assert!(features.contains(feature), "not {feature}:\n{features}");
    }
    ping_far_and_gateway(bench);
    udp_out(bench);
    udp_in(bench);
    bulk(bench, 64 << 20);
    bench.guest.ok("ethtool -K eth0 tx on sg on tso on gso on gro on || true");
}

/// A guest that has just booted has a network, which carries `length` bytes each way.
pub fn works_again(bench: &mut Bench, length: u64) {
    configure(bench);
    ping_far_and_gateway(bench);
    for address in [FAR4, FAR6] {
        bench.out(Operation::Both, address, length);
    }
    for address in [HOST4, HOST6] {
        bench.into(Place::Far, Operation::Both, address, length);
    }
}

pub fn ping_far_and_gateway(bench: &mut Bench) {
    for address in [FAR4, FAR6, GATEWAY4, GATEWAY6] {
        bench.guest.ok(&format!("busybox ping -c 2 -i 0.2 -W 10 {address}"));
    }
}

/// Larger than the MTU in any case: fragments at the guest's side.
pub fn ping_large(bench: &mut Bench) {
    for (address, size) in [(FAR4, 1400), (FAR6, 1400), (FAR4, 20_000), (FAR6, 20_000)] {
        bench.guest.ok(&format!("busybox ping -c 1 -W 10 -s {size} {address}"));
    }
}

pub fn tcp_out(bench: &mut Bench) {
    for address in [FAR4, FAR6, GATEWAY4, GATEWAY6] {
        for operation in ORDINARY {
            bench.out(operation, address, 300_000);
        }
    }
}

pub fn tcp_in(bench: &mut Bench) {
    for (place, address) in
        [(Place::Far, HOST4), (Place::Far, HOST6), (Place::Host, HOST4), (Place::Host, HOST6)]
    {
        for operation in ORDINARY {
            bench.into(place, operation, address, 300_000);
        }
    }
}

/// Nobody listens: a reset comes back for TCP, an ICMP error for UDP.
pub fn refusals_reach_the_guest(bench: &mut Bench) {
    for address in [FAR4, FAR6] {
        let server = SocketAddr::new(address, 9);
        bench.guest.peer(&format!("refused {server}"));
        bench.guest.peer(&format!("udp-refused {server}"));
    }
}

pub fn udp_out(bench: &mut Bench) {
    for address in [FAR4, FAR6, GATEWAY4, GATEWAY6] {
        let server = SocketAddr::new(address, FAR_PORT);
        bench.guest.peer(&format!("udp {server} 1 512 1472 1473 9000 32000 60000"));
    }
}

pub fn udp_in(bench: &mut Bench) {
    for address in [HOST4, HOST6] {
        let server = SocketAddr::new(address, GUEST_PORT);
        let echo = || peer::udp_echo(server, &[1, 512, 1472, 1473, 9000, 32_000, 60_000]);
        bench.lab.far.within(echo).unwrap_or_else(|error| panic!("UDP into {server}: {error}"));
    }
}

/// `count` connections open at the same time, each way.
pub fn many_connections(bench: &mut Bench, count: u64) {
    let seed = bench.seed();
    for address in [FAR4, FAR6] {
        let server = SocketAddr::new(address, FAR_PORT);
        bench.guest.peer(&format!("gather {server} {count} {seed}"));
    }
    for address in [HOST4, HOST6] {
        let server = SocketAddr::new(address, GUEST_PORT);
        let gather = || -> io::Result<()> { peer::gather(server, count, seed) };
        bench.lab.far.within(gather).unwrap_or_else(|error| panic!("into {server}: {error}"));
    }
}

/// `length` bytes each way and both ways at once, every byte compared, and none of them sent
/// twice: between two kernels on one machine nothing is ever lost. (The host's own kernel is not
/// asked: on two processors its veth pairs reorder segments now and then.)
pub fn bulk(bench: &mut Bench, length: u64) {
    let small = length / 4;
    let before = bench.guest.tcp_counters();
    bench.out(Operation::Take, FAR4, length);
    bench.into(Place::Far, Operation::Take, HOST4, length);
    bench.out(Operation::Take, FAR6, small);
    bench.into(Place::Far, Operation::Take, HOST6, small);
    bench.out(Operation::Give, FAR4, small);
    bench.into(Place::Far, Operation::Give, HOST4, small);
    bench.out(Operation::Both, FAR4, small);
    bench.into(Place::Far, Operation::Both, HOST6, small);
    let counted = bench.guest.tcp_counters().since(before);
    assert_eq!(counted, TcpCounters::NONE, "in the guest");
}

//! `pasta` over its tap, between a namespace and the kernels of two others. Needs root.
//!
//! Every byte is compared at the other end. Between kernels on one machine nothing may be lost, so
//! the namespace's kernel never has to send anything again.

mod common;

use common::net::{FAR4, FAR6, GATEWAY4, HOST4, HOST6, Lab, Namespace, TcpCounters, need};
use common::peer::{self, Operation, Server};
use common::tapped::{INTERFACE, Pasta};
use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

/// Ports of servers outside, and inside, where they are forwarded to.
const OUTSIDE: u16 = 5300;
const INSIDE: u16 = 6000;

/// All that is forwarded.
const PORTS: [&str; 8] = ["-t", "6000", "-u", "6000", "-T", "none", "-U", "none"];

const GIBIBYTE: u64 = 1 << 30;

/// A lab with a `pasta` and servers everywhere.
struct Bench {
    pasta: Pasta,
    lab: Lab,
    seed: u64,
}

impl Bench {
    fn new(options: &[&str]) -> Self {
        let lab = Lab::new();
        for namespace in [&lab.far, &lab.host] {
            namespace.within(|| Server::start(OUTSIDE)).expect("cannot serve");
        }
        let program = OsStr::new(env!("CARGO_BIN_EXE_pasta"));
        let pasta = Pasta::start(&lab, program, &[&PORTS, options].concat());
        pasta.inside.within(|| Server::start(INSIDE)).expect("cannot serve");
        Self { pasta, lab, seed: 1000 }
    }

    fn with_mtu(mtu: &str) -> Self {
        Self::new(&["-m", mtu])
    }

    /// A connection from a namespace.
    #[track_caller]
    fn exchange(&mut self, from: End, to: (IpAddr, u16), operation: Operation, length: u64) {
        self.seed += 1;
        let exchange = || peer::exchange(SocketAddr::from(to), operation, length, self.seed);
        if let Err(error) = self.at(from).within(exchange) {
            panic!("{from:?} to {to:?}, {operation:?} of {length}: {error}");
        }
    }

    const fn at(&self, end: End) -> &Namespace {
        match end {
            End::Inside => &self.pasta.inside,
            End::Host => &self.lab.host,
            End::Far => &self.lab.far,
        }
    }

    /// What the namespace's TCP has counted.
    fn counters(&self) -> TcpCounters {
        let read = || {
            ["snmp", "netstat"].map(|name| {
                let path = format!("/proc/thread-self/net/{name}");
                std::fs::read_to_string(path).expect("is there")
            })
        };
        TcpCounters::parse(&self.pasta.inside.within(read).concat())
    }

    #[track_caller]
    fn assert_nothing_was_lost(&self) {
        assert_eq!(self.counters(), TcpCounters::NONE);
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Inside,
    Host,
    Far,
}

#[test]
fn connections_datagrams_and_pings_pass_both_ways() {
    let mut bench = Bench::with_mtu("65520");
    for (from, to) in [
        (End::Inside, (FAR4, OUTSIDE)),
        (End::Inside, (FAR6, OUTSIDE)),
        // The gateway's address is the host's loopback address.
        (End::Inside, (GATEWAY4, OUTSIDE)),
        (End::Far, (HOST4, INSIDE)),
        (End::Far, (HOST6, INSIDE)),
        (End::Host, (HOST4, INSIDE)),
        (End::Host, (HOST6, INSIDE)),
    ] {
        for operation in [
            Operation::Both,
            Operation::ServerEndsFirst,
            Operation::ClientResets,
            Operation::ServerResets,
        ] {
            bench.exchange(from, to, operation, 3_000_000);
        }
        if matches!((from, to.0), (End::Host, IpAddr::V6(_))) {
            // It comes from our link-local address, to which the server answers from its own: not
            // from the address that was asked.
            continue;
        }
        let lengths = [1, 1400, 9000, if to.0.is_ipv4() { 65_507 } else { 65_487 }];
        let echo = || peer::udp_echo(SocketAddr::from(to), &lengths);
        bench.at(from).within(echo).unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
    }
    need("ping", "iputils-ping");
    for to in [FAR4, FAR6] {
        for size in ["16", "1400", "20000"] {
            let to = to.to_string();
            let mut ping = bench.pasta.inside.command("ping");
            let output = ping.args(["-c", "1", "-W", "30", "-s", size, &to]).output();
            assert!(output.expect("cannot run ping").status.success(), "ping -s {size} {to}");
        }
    }
    bench.assert_nothing_was_lost();
}

#[test]
fn a_gibibyte_each_way_arrives_whole_and_at_once_at_any_mtu() {
    for mtu in ["1500", "9000", "65520"] {
        let mut bench = Bench::with_mtu(mtu);
        bench.exchange(End::Inside, (FAR4, OUTSIDE), Operation::Take, GIBIBYTE);
        bench.exchange(End::Far, (HOST6, INSIDE), Operation::Take, GIBIBYTE);
        assert_eq!(bench.counters(), TcpCounters::NONE, "MTU {mtu}");
    }
}

#[test]
fn nothing_is_lost_where_many_send_at_once() {
    let bench = Bench::with_mtu("1500");
    let out = || peer::gather((FAR4, OUTSIDE).into(), 500, 1);
    bench.pasta.inside.within(out).expect("all are open at once");
    let go = |from: End, to: (IpAddr, u16), seed| {
        let exchange = || peer::exchange(to.into(), Operation::Both, 20_000_000, seed);
        bench.at(from).within(exchange).unwrap_or_else(|e| panic!("{from:?} to {to:?}: {e}"));
    };
    std::thread::scope(|scope| {
        for seed in 0..8 {
            scope.spawn(move || go(End::Inside, (FAR4, OUTSIDE), 100 + seed));
            scope.spawn(move || go(End::Far, (HOST4, INSIDE), 200 + seed));
        }
    });
    // A busy machine may keep a receiver waiting for so long that its window closes; it is probed,
    // which its kernel counts. What it sends itself must not be lost.
    let TcpCounters { retransmitted, timeouts, .. } = bench.counters();
    assert_eq!((retransmitted, timeouts), (0, 0));
}

#[test]
fn without_splice_connections_between_loopback_addresses_go_over_the_tap() {
    for (options, source) in [(&[][..], HOST4), (&["--no-splice"][..], GATEWAY4)] {
        let lab = Lab::new();
        let program = OsStr::new(env!("CARGO_BIN_EXE_pasta"));
        let pasta = Pasta::start(&lab, program, &[&PORTS, options].concat());
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, INSIDE));
        let listener = pasta.inside.within(listen).expect("cannot listen");
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, INSIDE));
        let _client = lab.host.within(connect).expect("it is forwarded");
        let (_, peer) = listener.accept().expect("it arrives");
        assert_eq!(peer.ip(), source, "{options:?}");
    }
}

#[test]
fn connections_survive_their_interface_going_down_and_coming_up() {
    let bench = Bench::with_mtu("1500");
    let exchange = |from: End, to: (IpAddr, u16), seed| {
        let work = || peer::exchange(to.into(), Operation::Both, 200_000_000, seed);
        bench.at(from).within(work)
    };
    std::thread::scope(|scope| {
        let out = scope.spawn(|| exchange(End::Inside, (FAR4, OUTSIDE), 1));
        let inwards = scope.spawn(|| exchange(End::Far, (HOST4, INSIDE), 2));
        let inside = &bench.pasta.inside;
        for _ in 0..3 {
            wait_for_traffic(&bench);
            inside.ip(&format!("link set {INTERFACE} down"));
            inside.ip(&format!("link set {INTERFACE} up"));
            // Down takes the routes with it.
            inside.ip(&format!("route replace default via {GATEWAY4}"));
        }
        for thread in [out, inwards] {
            thread.join().expect("no panic").expect("everything arrives");
        }
    });
    assert!(bench.pasta.is_alive());
}

/// Returns when the namespace's TCP has sent some more.
fn wait_for_traffic(bench: &Bench) {
    let sent = || {
        let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").expect("is there");
        let text = bench.pasta.inside.within(read);
        let mut tcp = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, values) = (tcp.next().expect("names"), tcp.next().expect("values"));
        let column = names.split(' ').position(|name| name == "OutSegs").expect("is counted");
        values.split(' ').nth(column).expect("has a value").parse::<u64>().expect("a number")
    };
    let before = sent();
    while sent() < before + 100 {
        std::thread::yield_now();
    }
}

#[test]
fn it_ends_when_its_namespace_or_its_interface_is_removed_under_load() {
    type Remove = fn(&Namespace);
    let ways: [(&str, Remove); 2] = [
        ("namespace", |inside| inside.remove()),
        ("interface", |inside| inside.ip(&format!("link del {INTERFACE}"))),
    ];
    for (what, remove) in ways {
        let bench = Bench::with_mtu("1500");
        let flood = || peer::flood((FAR4, OUTSIDE).into(), 1);
        let out: io::Result<_> = bench.pasta.inside.within(flood);
        // Its end is no business of ours: its kernel will go on trying for a while.
        let _out = out.expect("it is connected");
        let flood = || peer::flood((HOST4, INSIDE).into(), 2);
        let inwards = bench.lab.far.within(flood).expect("it is connected");
        wait_for_traffic(&bench);
        remove(&bench.pasta.inside);
        assert!(bench.pasta.ends(), "{what} removed");
        inwards.join().expect("no panic").expect_err("its peer is gone");
    }
}

use super::*;
use crate::flow::rules::Tables;
use crate::host::sockets::{Features, Setup};
use crate::sys::epoll::Epoll;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;

fn listens(side: Side, listen: Option<&str>, reach: Reach, loopback: bool) -> Vec<String> {
    let rule = Rule {
        listen: listen.map(|addr| addr.parse().unwrap()),
        ifname: None,
        protocol: Protocol::Tcp,
        first: 1,
        last: 65_535,
        target: None,
        to: 1,
        weak: true,
        auto: true,
    };
    addresses(side, &rule, reach, loopback).map(|addr| addr.to_string()).collect()
}

#[test]
fn services_are_offered_where_they_can_be_reached_and_nowhere_else() {
    use Side::{Inside, Outside};
    let all_v4 = Reach::LOOPBACK_V4.and(Reach::OTHER_LOOPBACK).and(Reach::V4);
    let all_v6 = Reach::LOOPBACK_V6.and(Reach::V6);
    let all = all_v4.and(all_v6);
    let local = Reach::LOOPBACK_V4.and(Reach::LOOPBACK_V6);
    type Row = (Side, Option<&'static str>, Reach, bool, &'static [&'static str]);
    let rows: &[Row] = &[
        (Outside, None, all, false, &["0.0.0.0", "::"]),
        (Outside, None, all_v4, false, &["0.0.0.0"]),
        (Outside, None, all_v6, false, &["::"]),
        (Outside, None, Reach::V4, false, &["0.0.0.0"]),
        (Outside, None, local, false, &[]),
        (Outside, None, local, true, &["127.0.0.1", "::1"]),
        (Outside, None, Reach::OTHER_LOOPBACK, true, &[]),
        (Outside, Some("0.0.0.0"), all, false, &["0.0.0.0"]),
        (Outside, Some("::1"), all, false, &["::1"]),
        (Outside, Some("::1"), all_v4, false, &[]),
        (Outside, Some("192.0.2.1"), all, true, &["192.0.2.1"]),
        (Outside, Some("192.0.2.1"), local, true, &[]),
        (Outside, Some("127.0.0.9"), local, true, &["127.0.0.9"]),
        (Outside, Some("::"), local, true, &["::1"]),
        (Inside, None, all, false, &["0.0.0.0", "::"]),
        (Inside, None, local, false, &["0.0.0.0", "::"]),
        (Inside, None, Reach::OTHER_LOOPBACK, false, &["0.0.0.0"]),
        (Inside, None, Reach::V4.and(Reach::V6), false, &[]),
        (Inside, Some("0.0.0.0"), all, false, &["0.0.0.0"]),
    ];
    for (side, listen, reach, loopback, expected) in rows {
        let found = listens(*side, *listen, *reach, *loopback);
        assert_eq!(found, *expected, "{side} {listen:?} {reach:?} {loopback}");
    }
}

/// A network namespace of its own for this thread, with `lo` up; needs root.
fn own_namespace() -> OwnedFd {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("this test needs iproute2").success());
    std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// Two namespaces, of which this thread is in the first, and sockets between them.
struct Pair {
    outside: OwnedFd,
    inside: OwnedFd,
    host: Sockets,
    rules: Rules,
}

impl Pair {
    fn new(rules: Vec<Rule>, reaches_loopback: bool) -> Self {
        let inside = own_namespace();
        let diag_inside = Diag::open().unwrap();
        let outside = own_namespace();
        let epoll = Rc::new(Epoll::new().unwrap());
        let mut host =
            Sockets::with_features(epoll, Setup::default(), Features::default()).unwrap();
        host.watch_by(Diag::open().unwrap(), diag_inside, reaches_loopback);
        let rules = Rules::from(rules);
        host.listen(&rules).unwrap();
        Self { outside, inside, host, rules }
    }

    /// Does something inside.
    fn inside<R>(&self, what: impl FnOnce() -> R) -> R {
        setns(&self.inside, CloneFlags::CLONE_NEWNET).unwrap();
        let result = what();
        setns(&self.outside, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    /// Looks to the end.
    fn scan(&mut self) -> Scan {
        std::iter::repeat_with(|| self.host.scan(&self.rules))
            .find(|outcome| *outcome != Scan::More)
            .unwrap()
    }

    /// What is listened on outside, in order.
    fn listens(&self) -> Vec<String> {
        let line = |place: &Place| {
            let protocol = if place.protocol == Protocol::Tcp { "tcp" } else { "udp" };
            format!("{protocol} {:?} {}", place.spot.addr.unwrap(), place.port)
        };
        let mut lines: Vec<_> = self.host.listeners.iter().map(|(_, l)| line(&l.place)).collect();
        lines.sort_unstable();
        lines
    }
}

fn auto(protocol: Protocol) -> Rule {
    Rule {
        listen: None,
        ifname: None,
        protocol,
        first: 1,
        last: 32_767,
        target: None,
        to: 1,
        weak: true,
        auto: true,
    }
}

/// Namespaces are threads' own: tests that enter some run in threads that end with them.
fn in_a_thread(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn ports_follow_services_as_they_come_and_go() {
    in_a_thread(|| {
        let mut pair = Pair::new(vec![auto(Protocol::Tcp), auto(Protocol::Udp)], false);
        assert_eq!(pair.scan(), Scan::Same);
        let both = pair.inside(|| TcpListener::bind("[::]:5000").unwrap());
        let v4 = pair.inside(|| TcpListener::bind("0.0.0.0:5001").unwrap());
        let v6 = pair.inside(|| UdpSocket::bind("[::1]:5002").unwrap());
        let local = pair.inside(|| TcpListener::bind("127.0.0.1:5003").unwrap());
        let ephemeral = pair.inside(|| TcpListener::bind("0.0.0.0:0").unwrap());
        assert_eq!(pair.scan(), Scan::Changed);
        let all = [
            "tcp 0.0.0.0 5000",
            "tcp 0.0.0.0 5001",
            "tcp :: 5000",
            "udp 0.0.0.0 5000",
            "udp 0.0.0.0 5001",
            "udp :: 5000",
        ];
        assert_eq!(pair.listens(), all, "TCP ports for UDP too; nothing that is loopback only");
        assert_eq!(pair.scan(), Scan::Same, "our own listeners are no services");
        TcpStream::connect("127.0.0.1:5001").unwrap();
        drop((both, v6, local, ephemeral));
        assert_eq!(pair.scan(), Scan::Changed);
        assert_eq!(pair.listens(), ["tcp 0.0.0.0 5001", "udp 0.0.0.0 5001"]);
        drop(v4);
        assert_eq!(pair.scan(), Scan::Changed);
        assert!(pair.listens().is_empty());
        TcpStream::connect("127.0.0.1:5001").unwrap_err();
    });
}

#[test]
fn loopback_services_are_offered_on_loopback_where_that_reaches_them() {
    in_a_thread(|| {
        let mut pair = Pair::new(vec![auto(Protocol::Tcp)], true);
        let _local = pair.inside(|| TcpListener::bind("127.0.0.1:5000").unwrap());
        pair.scan();
        assert_eq!(pair.listens(), ["tcp 127.0.0.1 5000"]);
        // Another listener of the service's is everywhere: so are we, and without a gap.
        let _wide = pair.inside(|| TcpListener::bind("[::1]:5000").unwrap());
        pair.scan();
        assert_eq!(pair.listens(), ["tcp 127.0.0.1 5000", "tcp ::1 5000"]);
    });
}

#[test]
fn a_port_that_is_taken_is_tried_again_and_complained_of_once() {
    in_a_thread(|| {
        let mut pair = Pair::new(vec![auto(Protocol::Tcp)], false);
        let taken = TcpListener::bind("0.0.0.0:5000").unwrap();
        let _one = pair.inside(|| TcpListener::bind("0.0.0.0:5000").unwrap());
        let _other = pair.inside(|| TcpListener::bind("0.0.0.0:5001").unwrap());
        assert_eq!(pair.scan(), Scan::Changed);
        assert_eq!(pair.listens(), ["tcp 0.0.0.0 5001"], "the others are not held up");
        let complained = |pair: &Pair| {
            let lookout = pair.host.lookout.as_ref().unwrap();
            lookout.complained[0].contains(5000) && !lookout.complained[0].contains(5001)
        };
        assert!(complained(&pair));
        assert_eq!(pair.scan(), Scan::Same);
        drop(taken);
        assert_eq!(pair.scan(), Scan::Changed);
        assert_eq!(pair.listens(), ["tcp 0.0.0.0 5000", "tcp 0.0.0.0 5001"]);
        assert!(complained(&pair) && pair.host.lookout.as_ref().unwrap().failed.is_empty());
    });
}

#[test]
fn a_look_that_fails_is_said_once_and_again_when_all_was_well_for_long() {
    in_a_thread(|| {
        let mut pair = Pair::new(vec![auto(Protocol::Tcp)], false);
        let _service = pair.inside(|| TcpListener::bind("0.0.0.0:5000").unwrap());
        // Sockets of this kind know nothing of others.
        let route = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        );
        let useless = Diag::over(route.unwrap()).unwrap();
        let useful =
            std::mem::replace(&mut pair.host.lookout.as_mut().unwrap().inside.diag, useless);
        let blind = |pair: &Pair| pair.host.lookout.as_ref().unwrap().blind;
        assert_eq!((pair.scan(), blind(&pair)), (Scan::Same, WELL));
        assert_eq!((pair.scan(), blind(&pair)), (Scan::Same, WELL));
        pair.host.lookout.as_mut().unwrap().inside.diag = useful;
        assert_eq!((pair.scan(), blind(&pair)), (Scan::Changed, WELL - 1));
        assert_eq!(pair.listens(), ["tcp 0.0.0.0 5000"]);
        (1..WELL).for_each(|_| assert_eq!(pair.scan(), Scan::Same));
        assert_eq!(blind(&pair), 0);
    });
}

#[test]
fn many_services_come_in_portions() {
    in_a_thread(|| {
        let mut pair = Pair::new(vec![auto(Protocol::Tcp)], false);
        let services = pair.inside(|| {
            (0..700).map(|n| TcpListener::bind(("0.0.0.0", 5000 + n)).unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(pair.scan(), Scan::Changed);
        assert_eq!(pair.host.listeners.len(), PORTION);
        assert_eq!(pair.scan(), Scan::Changed, "the rest");
        assert_eq!(pair.host.listeners.len(), 700);
        assert_eq!(pair.scan(), Scan::Same);
        drop(services);
        pair.scan();
        assert!(pair.host.listeners.is_empty());
    });
}

#[test]
fn ranges_with_auto_follow_by_their_targets_and_fixed_ports_stay() {
    in_a_thread(|| {
        let range = Rule { first: 8000, last: 8009, to: 80, weak: false, ..auto(Protocol::Tcp) };
        let fixed = Rule { first: 9000, last: 9000, to: 9000, auto: false, ..range.clone() };
        let mut pair = Pair::new(vec![range.clone(), fixed.clone()], false);
        let _web = pair.inside(|| TcpListener::bind("0.0.0.0:81").unwrap());
        let _more = pair.inside(|| TcpListener::bind("0.0.0.0:8001").unwrap());
        pair.scan();
        let ports = |pair: &Pair| {
            let mut ports: Vec<_> = pair.host.listeners.iter().map(|(_, l)| l.place.port).collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(ports(&pair), [8001, 9000], "8001 stands for 81");
        // Replacing rules leaves what follows services alone.
        let rules = pair.rules.followed_by(&Tables {
            outside: vec![range, Rule { to: 90, ..fixed }],
            inside: Vec::new(),
        });
        let changes = pair.host.listen(&rules).unwrap();
        assert_eq!((changes.opened, changes.closed, changes.kept), (0, 0, 2));
        pair.rules = rules;
        assert_eq!(pair.scan(), Scan::Same);
        let rules = pair.rules.followed_by(&Tables::default());
        pair.host.listen(&rules).unwrap();
        assert_eq!((pair.host.scan(&rules), ports(&pair)), (Scan::Off, vec![]));
    });
}

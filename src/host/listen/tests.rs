use super::*;
use crate::config::ports::Rule;
use crate::flow::rules::{Rules, Tables};
use crate::host::sockets::{Features, Setup};
use crate::host::{Host as _, Relisten};
use crate::sys::epoll::{Epoll, Events};
use crate::time::Duration;
use std::io::{ErrorKind, Read as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::rc::Rc;

fn sockets() -> Sockets {
    let epoll = Rc::new(Epoll::new().unwrap());
    Sockets::with_features(epoll, Setup::default(), Features::default()).unwrap()
}

fn rule(listen: &str, port: u16) -> Rule {
    Rule {
        listen: Some(listen.parse().unwrap()),
        ifname: None,
        protocol: Protocol::Tcp,
        first: port,
        last: port,
        target: None,
        to: port,
        weak: false,
        auto: false,
    }
}

fn udp(listen: &str, port: u16) -> Rule {
    Rule { protocol: Protocol::Udp, ..rule(listen, port) }
}

fn outside(rules: &[Rule]) -> Tables {
    Tables { outside: rules.to_vec(), ..Tables::default() }
}

/// Runs `test` with ports of this range until it finds the ports that it takes free; the kernel
/// hands none of them to anybody else.
fn with_ports(first: u16, step: u16, test: impl Fn(u16) -> Option<()>) {
    (0..50).map(|n| first + n * step).find_map(test).unwrap();
}

/// What replacing rules has done: opened, closed, kept.
fn counts(changes: &Changes) -> (usize, usize, usize) {
    (changes.opened, changes.closed, changes.kept)
}

/// A host and its rules, changed together as the engine does.
struct Forwarding {
    host: Sockets,
    rules: Rules,
}

impl Forwarding {
    fn new() -> Self {
        Self { host: sockets(), rules: Rules::default() }
    }

    fn replace(&mut self, tables: &Tables) -> Result<Changes, Failure> {
        let rules = self.rules.followed_by(tables);
        loop {
            if let Some(changes) = self.step(&rules)? {
                return Ok(changes);
            }
        }
    }

    /// One step towards `rules`; the changes once it was the last one.
    fn step(&mut self, rules: &Rules) -> Result<Option<Changes>, Failure> {
        let before = self.host.listeners.len();
        let progress = self.host.relisten(rules);
        let touched = self.host.listeners.len().abs_diff(before);
        assert!(touched <= 130, "{touched} sockets in one step");
        match progress? {
            Relisten::More => Ok(None),
            Relisten::Bound => {
                self.rules = rules.clone();
                Ok(None)
            }
            Relisten::Done(changes) => Ok(Some(changes)),
        }
    }

    /// Whether the engine would hear of the connections that wait at this port.
    fn is_reported(&self, port: u16) -> bool {
        let mut events = Events::with_capacity(1024);
        self.host.epoll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        let id = self.id(port);
        events.iter().any(|(token, _)| matches!(token, Token::Listener(n) if Some(n) == id))
    }

    /// The listener of this port.
    fn id(&self, port: u16) -> Option<u32> {
        self.host.listeners.iter().find(|(_, l)| l.place.port == port).map(|(id, _)| id)
    }
}

#[test]
fn only_what_has_changed_is_bound_anew() {
    with_ports(21_000, 4, |port| {
        let mut f = Forwarding::new();
        let kept = rule("127.0.0.1", port);
        let ports = [kept.clone(), rule("127.0.0.1", port + 1)];
        assert_eq!(counts(&f.replace(&outside(&ports)).ok()?), (2, 0, 0));
        let (first, gone) = (f.id(port).unwrap(), f.id(port + 1).unwrap());
        let waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let lost = TcpStream::connect(("127.0.0.1", port + 1)).unwrap();

        let tables = outside(&[rule("127.0.0.1", port + 2), kept]);
        assert_eq!(counts(&f.replace(&tables).ok()?), (1, 1, 1));
        assert_eq!(f.id(port), Some(first), "the same socket");
        let accepted = f.host.accept(first).unwrap();
        assert_eq!(accepted.peer, endpoint(waiting.local_addr().unwrap()), "still in its queue");
        assert_eq!(f.rules.get(accepted.rule).unwrap().first, port);
        assert_eq!(f.host.listening(gone), None);
        assert_eq!(f.host.accept(gone).unwrap_err().kind(), ErrorKind::NotFound);
        let reset = (&lost).read(&mut [0; 1]).unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        TcpStream::connect(("127.0.0.1", port + 1)).unwrap_err();
        assert_ne!(f.id(port + 2), Some(gone), "numbers are not given again at once");
        Some(())
    });
}

#[test]
fn a_rule_that_changes_its_target_takes_over_socket_and_queue() {
    with_ports(21_200, 2, |port| {
        let mut f = Forwarding::new();
        f.replace(&outside(&[rule("127.0.0.1", port)])).ok()?;
        let id = f.id(port).unwrap();
        let _waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let elsewhere = Rule { to: 80, ..rule("127.0.0.1", port) };
        assert_eq!(counts(&f.replace(&outside(&[elsewhere])).ok()?), (0, 0, 1));
        let accepted = f.host.accept(id).unwrap();
        assert_eq!(f.rules.get(accepted.rule).unwrap().to, 80);
        assert_eq!(f.rules.get(0), None, "no listener names the old rule");
        Some(())
    });
}

#[test]
fn a_failure_leaves_everything_as_it_was_and_says_why() {
    with_ports(21_400, 8, |port| {
        let taken = TcpListener::bind(("127.0.0.1", port + 3)).ok()?;
        let mut f = Forwarding::new();
        f.replace(&outside(&[rule("127.0.0.1", port), udp("127.0.0.1", port)])).ok()?;
        let id = f.id(port).unwrap();
        let before = f.rules.clone();
        let _waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();

        let new =
            [rule("127.0.0.1", port + 1), Rule { last: port + 4, ..rule("127.0.0.1", port + 2) }];
        let failure = f.replace(&outside(&new)).unwrap_err();
        assert_eq!(
            failure.to_string(),
            format!(
                "Listen failed for HOST TCP port 127.0.0.1/{}: Address already in use",
                port + 3
            )
        );
        assert_eq!((f.host.listeners.len(), f.id(port)), (2, Some(id)));
        assert_eq!(f.rules, before);
        assert_eq!(f.host.accept(id).unwrap().rule, 0);
        TcpStream::connect(("127.0.0.1", port + 1)).unwrap_err();
        drop(taken);
        assert_eq!(counts(&f.replace(&outside(&new)).ok()?), (4, 2, 0));
        Some(())
    });
}

#[test]
fn many_ports_are_opened_in_steps_and_the_old_ones_serve_until_all_are_there() {
    with_ports(24_000, 640, |port| {
        let mut f = Forwarding::new();
        f.replace(&outside(&[rule("127.0.0.1", port)])).ok()?;
        let old = f.id(port).unwrap();
        let many = Rule { last: port + 600, ..rule("127.0.0.1", port + 1) };
        let rules = f.rules.followed_by(&outside(std::slice::from_ref(&many)));
        let _early = loop {
            f.step(&rules).ok()?;
            if let Some(_id) = f.id(port + 1) {
                break TcpStream::connect(("127.0.0.1", port + 1)).unwrap();
            }
        };
        let mut steps = 1;
        while f.rules != rules {
            assert!(!f.is_reported(port + 1), "its rule is not in force");
            let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            assert!(f.is_reported(port), "the old rule is");
            assert_eq!(f.host.accept(old).unwrap().rule, 0);
            assert_eq!(f.step(&rules).ok()?, None);
            steps += 1;
        }
        assert!(steps >= 5, "{steps}");
        let changes = loop {
            if let Some(changes) = f.step(&rules).unwrap() {
                break changes;
            }
        };
        assert_eq!(counts(&changes), (600, 1, 0));
        assert!(f.is_reported(port + 1), "who came early is not forgotten");
        assert_eq!(f.host.accept(f.id(port + 1).unwrap()).unwrap().rule, 1);
        TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        // Going is done in steps as well: each is checked.
        assert_eq!(counts(&f.replace(&Tables::default()).unwrap()), (0, 600, 0));
        Some(())
    });
}

#[test]
fn many_ports_of_which_the_last_cannot_be_had_are_closed_again_in_steps() {
    with_ports(26_000, 640, |port| {
        let _taken = TcpListener::bind(("127.0.0.1", port + 600)).ok()?;
        let mut f = Forwarding::new();
        f.replace(&outside(&[rule("127.0.0.1", port)])).ok()?;
        let before = f.rules.clone();
        let many = Rule { last: port + 600, ..rule("127.0.0.1", port + 1) };
        let failure = f.replace(&outside(&[many])).unwrap_err().to_string();
        assert!(
            failure.contains(&format!("127.0.0.1/{}: Address already", port + 600)),
            "{failure}"
        );
        assert_eq!((f.host.listeners.len(), &f.rules), (1, &before));
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(f.is_reported(port));
        assert_eq!(counts(&f.replace(&outside(&[rule("127.0.0.1", port)])).ok()?), (0, 0, 1));
        Some(())
    });
}

#[test]
fn nobody_looks_for_services_while_the_rules_change() {
    with_ports(28_000, 640, |port| {
        let mut f = Forwarding::new();
        let many = Rule { last: port + 600, ..rule("127.0.0.1", port) };
        let auto = Rule { auto: true, ..udp("127.0.0.1", port) };
        let rules = f.rules.followed_by(&outside(&[many, auto]));
        assert_eq!(f.step(&rules).ok()?, None);
        assert_eq!(f.host.scan(&rules), crate::host::Scan::Same);
        while f.step(&rules).ok()?.is_none() {}
        assert_eq!(f.host.scan(&rules), crate::host::Scan::Off, "this host has no lookout");
        Some(())
    });
}

#[test]
fn addresses_of_one_port_change_without_a_gap() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        with_ports(22_000, 1, |port| {
            let mut f = Forwarding::new();
            let at = |listen: Option<&str>| Rule {
                listen: listen.map(|a| a.parse().unwrap()),
                protocol,
                ..rule("0.0.0.0", port)
            };
            f.replace(&outside(&[at(Some("0.0.0.0"))])).ok()?;
            // Each wants what the one before has.
            let steps: [&[Option<&str>]; 5] = [
                &[Some("127.0.0.1")],
                &[None],
                &[Some("0.0.0.0"), Some("::")],
                &[Some("::1"), Some("127.0.0.1"), None],
                &[None],
            ];
            for step in steps {
                let rules: Vec<_> = step.iter().map(|listen| at(*listen)).collect();
                f.replace(&outside(&rules)).unwrap();
                assert_eq!(f.host.listeners.len(), step.len(), "{step:?}");
            }
            Some(())
        });
    }
}

/// A socket as another of our kind has it for a flow, bound to `local`.
fn flow_of_another(local: &str, port: u16) -> Option<UdpSocket> {
    let fd = socket::open(socket::Family::V4, socket::Kind::Datagram).unwrap();
    socket::set(fd.as_fd(), socket::IntOption::REUSE_ADDRESS, 1).unwrap();
    socket::bind(fd.as_fd(), &format!("{local}:{port}").parse().unwrap()).ok()?;
    Some(fd.into())
}

#[test]
fn two_do_not_listen_for_the_same_datagrams() {
    with_ports(23_000, 4, |port| {
        let at = |listen: Option<&str>, port| Rule {
            listen: listen.map(|addr| addr.parse().unwrap()),
            ..udp("127.0.0.1", port)
        };
        let (mut first, mut second) = (Forwarding::new(), Forwarding::new());
        first.replace(&outside(&[at(Some("127.0.0.1"), port)])).ok()?;
        for listen in [Some("127.0.0.1"), Some("0.0.0.0"), None] {
            let failure = second.replace(&outside(&[at(listen, port)])).unwrap_err().to_string();
            assert!(failure.ends_with(&format!("/{port}: Address already in use")), "{failure}");
        }
        // Elsewhere it may, and then neither goes where the other is.
        second.replace(&outside(&[at(Some("127.0.0.2"), port)])).unwrap();
        first.replace(&outside(&[at(None, port)])).unwrap_err();
        second.replace(&Tables::default()).unwrap();
        first.replace(&outside(&[at(None, port)])).unwrap();
        second.replace(&outside(&[at(Some("127.0.0.2"), port)])).unwrap_err();
        Some(())
    });
}

/// As mDNS has it: what is sent to a group comes to all who listen for it.
#[test]
fn listeners_of_a_group_share_its_port() {
    with_ports(23_500, 2, |port| {
        let other = flow_of_another("0.0.0.0", port)?;
        let mut f = Forwarding::new();
        f.replace(&outside(&[udp("0.0.0.0", port)])).unwrap_err();
        f.replace(&outside(&[udp("224.0.0.251", port)])).unwrap();
        drop(other);
        Some(())
    });
}

#[test]
fn best_effort_datagram_ports_of_others_are_left_out() {
    with_ports(23_300, 8, |port| {
        let (mut first, mut second) = (Forwarding::new(), Forwarding::new());
        let all = Rule { last: port + 3, weak: true, ..udp("127.0.0.1", port) };
        first.replace(&outside(&[udp("127.0.0.1", port + 1)])).ok()?;
        let changes = second.replace(&outside(&[all])).ok()?;
        assert_eq!((counts(&changes), changes.warnings.len()), ((3, 0, 0), 1));
        Some(())
    });
}

#[test]
fn flows_do_not_keep_their_port_from_listeners() {
    with_ports(23_600, 2, |port| {
        let flow = flow_of_another("127.0.0.1", port)?;
        flow.connect("127.0.0.1:9").unwrap();
        let mut f = Forwarding::new();
        f.replace(&outside(&[udp("127.0.0.1", port)])).unwrap();
        // What listens shares the port with flows that come later, too.
        let later = flow_of_another("127.0.0.1", port).unwrap();
        later.connect("127.0.0.1:10").unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        far.send_to(b"new", ("127.0.0.1", port)).unwrap();
        let mut batch = crate::host::Batch::new();
        let id = f.id(port).unwrap();
        assert_eq!(f.host.receive_listener(id, &mut batch).unwrap().1, 1);
        // And it can go and come back while both live.
        f.replace(&Tables::default()).unwrap();
        f.replace(&outside(&[udp("0.0.0.0", port)])).unwrap();
        Some(())
    });
}

#[test]
fn a_kernel_that_does_not_tell_who_waits_lets_flows_share() {
    with_ports(23_800, 2, |port| {
        let flow = flow_of_another("127.0.0.1", port)?;
        flow.connect("127.0.0.1:9").unwrap();
        let mut f = Forwarding::new();
        f.host.diag = None;
        f.replace(&outside(&[udp("127.0.0.1", port)])).unwrap();
        Some(())
    });
}

#[test]
fn best_effort_ports_are_complained_of_once() {
    with_ports(22_100, 8, |port| {
        let _taken = TcpListener::bind(("127.0.0.1", port + 1)).ok()?;
        let mut f = Forwarding::new();
        let all = Rule { last: port + 3, weak: true, ..rule("127.0.0.1", port) };
        let changes = f.replace(&outside(std::slice::from_ref(&all))).ok()?;
        assert_eq!((counts(&changes), changes.warnings.len()), ((3, 0, 0), 1));
        let changes = f.replace(&outside(&[all, udp("127.0.0.1", port)])).ok()?;
        assert_eq!((counts(&changes), changes.warnings.len()), ((1, 0, 3), 0));
        Some(())
    });
}

#[test]
fn a_udp_listener_keeps_its_queue() {
    with_ports(22_500, 2, |port| {
        let mut f = Forwarding::new();
        f.replace(&outside(&[udp("127.0.0.1", port)])).ok()?;
        let id = f.id(port).unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        far.send_to(b"waits", ("127.0.0.1", port)).unwrap();
        f.replace(&outside(&[Rule { to: 9, ..udp("127.0.0.1", port) }])).ok()?;
        let mut batch = crate::host::Batch::new();
        let (number, n) = f.host.receive_listener(id, &mut batch).unwrap();
        assert_eq!((f.rules.get(number).unwrap().to, n), (9, 1));
        f.replace(&Tables::default()).unwrap();
        let gone = f.host.receive_listener(id, &mut batch).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        Some(())
    });
}

#[test]
fn starved_listeners_that_are_closed_are_not_fed() {
    with_ports(22_700, 1, |port| {
        let mut f = Forwarding::new();
        f.replace(&outside(&[rule("127.0.0.1", port)])).ok()?;
        f.host.starved.push(f.id(port).unwrap());
        f.replace(&Tables::default()).unwrap();
        assert!(!f.host.is_starved());
        Some(())
    });
}

#[test]
fn numbers_of_listeners_outlive_their_slots() {
    let epoll = Epoll::new().unwrap();
    let listener = || Listener {
        fd: epoll.as_fd().try_clone_to_owned().unwrap(),
        v4: true,
        watched: false,
        rule: 0,
        place: Place {
            side: Side::Outside,
            protocol: Protocol::Tcp,
            port: 1,
            spot: Rc::new(place::Spot { addr: None, device: None }),
        },
    };
    let mut listeners = Listeners::default();
    let first = listeners.insert(listener()).unwrap();
    let mut seen = std::collections::HashSet::from([first]);
    let mut last = first;
    for _ in 0..4095 {
        assert!(listeners.remove(last).is_some());
        assert!(listeners.get(last).is_none() && listeners.remove(last).is_none());
        last = listeners.insert(listener()).unwrap();
        assert!(seen.insert(last));
    }
    assert_eq!((listeners.len(), listeners.iter().count()), (1, 1));
    assert_eq!(listeners.slots.len(), 1);
}

#[test]
fn without_an_inside_nothing_listens_there() {
    let mut f = Forwarding::new();
    let inside = Tables { inside: vec![rule("127.0.0.1", 80)], ..Tables::default() };
    let failure = f.replace(&inside).unwrap_err().to_string();
    assert!(failure.starts_with("Listen failed for SPLICE TCP port 127.0.0.1/80: "), "{failure}");
}

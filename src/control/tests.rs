use super::*;
use crate::config::ports::Rule;
use crate::config::rules_wire::{Greeting, Malformed, ResultReader, emit_update};
use crate::sys::epoll::Events;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A daemon that only has a control socket, stepped by hand.
struct Daemon {
    server: Server,
    epoll: Rc<Epoll>,
    rules: Rules,
    /// What the next update is told instead of being taken.
    refusal: Option<String>,
    /// Updates are taken, and settled later: the one that waits.
    slow: bool,
    wanted: Option<Tables>,
    now: Instant,
    path: PathBuf,
}

fn policy(inside: bool) -> Policy {
    let outside = Context {
        v4: true,
        v6: true,
        ephemeral: 1..=2,
        auto_allowed: inside,
        listen_allowed: true,
    };
    Policy {
        inside: inside.then(|| Context { listen_allowed: false, ..outside.clone() }),
        outside,
        protocols: Protocols { tcp: true, udp: true, icmp: true },
    }
}

impl Daemon {
    fn new(policy: Policy) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("passt-control-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let epoll = Rc::new(Epoll::new().unwrap());
        let server = Server::new(listener, Rc::clone(&epoll), policy).unwrap();
        let now = Instant::from_nanos(1_000_000_000);
        Self {
            server,
            epoll,
            rules: Rules::default(),
            refusal: None,
            slow: false,
            wanted: None,
            now,
            path,
        }
    }

    /// A client, connected but not yet seen.
    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// Handles events until there are none; how many there were.
    fn run(&mut self) -> usize {
        let mut handled = 0;
        loop {
            let mut events = Events::with_capacity(8);
            if self.server.deadline().is_some_and(|due| due <= self.now) {
                self.server.on_deadline(&self.rules, self.now);
            }
            if self.epoll.wait(&mut events, Some(Duration::ZERO)).unwrap() == 0 {
                return handled;
            }
            for (token, _) in events.iter() {
                let Token::Runtime(number) = token else { panic!("{token:?}") };
                assert!(Server::owns(number));
                handled += 1;
                assert!(handled < 100_000, "it spins");
                if let Some(tables) = self.server.on_event(number, &self.rules, self.now) {
                    self.apply(&tables);
                }
            }
        }
    }

    fn apply(&mut self, tables: &Tables) {
        if self.slow {
            assert!(self.wanted.is_none(), "one at a time");
            self.wanted = Some(tables.clone());
            return;
        }
        let outcome = match self.refusal.take() {
            Some(why) => Err(why),
            None => {
                self.rules = self.rules.followed_by(tables);
                Ok(String::new())
            }
        };
        self.server.settle(&outcome, &self.rules, self.now);
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.run();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// All that has come, and whether the stream has ended.
fn received(mut client: &UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let end = client.read_to_end(&mut bytes);
    match end {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => (bytes, false),
        _ => (bytes, true),
    }
}

#[track_caller]
fn greeting(client: &UnixStream) -> Vec<Table<About>> {
    let (bytes, ended) = received(client);
    assert!(!ended);
    Greeting::new().push(&bytes).unwrap().expect("is complete")
}

#[track_caller]
fn result(client: &UnixStream) -> Outcome {
    let (bytes, ended) = received(client);
    assert!(ended);
    ResultReader::default().push(&bytes).unwrap().expect("is complete")
}

fn rule(port: u16) -> Rule {
    Rule {
        listen: None,
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

fn update(rules: Vec<Rule>) -> Vec<u8> {
    emit_update(&[Table { pif: HOST, about: (), rules }])
}

#[test]
fn a_client_is_told_the_tables_and_may_replace_them() {
    let mut daemon = Daemon::new(policy(true));
    let mut client = daemon.connect();
    daemon.run();
    let tables = greeting(&client);
    let names: Vec<_> = tables.iter().map(|t| (t.pif, t.about.name.as_str())).collect();
    assert_eq!(names, [(HOST, "HOST"), (SPLICE, "SPLICE")]);
    assert_eq!(tables[0].about.caps.to_bits(), 63);
    client.write_all(&update(vec![rule(22)])).unwrap();
    daemon.run();
    assert_eq!(result(&client), Ok(String::new()));
    let client = daemon.connect();
    daemon.run();
    assert_eq!(greeting(&client)[0].rules, [rule(22)]);
}

#[test]
fn passt_has_one_table_without_auto() {
    let mut daemon = Daemon::new(policy(false));
    let mut client = daemon.connect();
    daemon.run();
    let tables = greeting(&client);
    assert_eq!((tables.len(), tables[0].about.caps.to_bits()), (1, 47));
    let inside = emit_update(&[Table { pif: SPLICE, about: (), rules: Vec::new() }]);
    client.write_all(&inside).unwrap();
    daemon.run();
    assert_eq!(result(&client), Err("No forwarding table 3".to_owned()));
}

#[test]
fn tables_that_are_not_sent_become_empty() {
    let mut daemon = Daemon::new(policy(true));
    daemon.rules = Rules::new(Tables { outside: vec![rule(1)], inside: vec![rule(2)] });
    let mut client = daemon.connect();
    client.write_all(&update(vec![rule(3)])).unwrap();
    daemon.run();
    assert_eq!(daemon.rules.tables(), Tables { outside: vec![rule(3)], inside: vec![] });
    let mut client = daemon.connect();
    client.write_all(&[0]).unwrap();
    daemon.run();
    assert_eq!(daemon.rules.tables(), Tables::default());
}

#[test]
fn a_client_of_the_original_closes_without_reading_a_result() {
    let mut daemon = Daemon::new(policy(false));
    let mut client = daemon.connect();
    daemon.run();
    greeting(&client);
    client.write_all(&update(vec![rule(22)])).unwrap();
    drop(client);
    daemon.run();
    assert_eq!(daemon.rules.tables().outside, [rule(22)]);
    greeting(&{
        let client = daemon.connect();
        daemon.run();
        client
    });
}

#[test]
fn bad_updates_change_nothing_and_are_told_why() {
    let table = |pif, rules| Table { pif, about: (), rules };
    let mut off = policy(true);
    off.protocols.tcp = false;
    let v4 = |mut policy: Policy| {
        policy.outside.v6 = false;
        policy
    };
    let v6_rule = Rule { listen: Some("::1".parse().unwrap()), ..rule(22) };
    let auto = Rule { auto: true, ..rule(22) };
    for (policy, tables, message) in [
        (policy(true), vec![table(HOST, vec![rule(22), rule(22)])], "Forwarding configuration con"),
        (policy(true), vec![table(HOST, vec![]), table(HOST, vec![])], "Bad update: table 1 comes"),
        (policy(true), vec![table(2, vec![])], "No forwarding table 2"),
        (policy(false), vec![table(HOST, vec![auto])], "'auto' port forwarding is only"),
        (v4(policy(true)), vec![table(HOST, vec![v6_rule])], "IPv6 forward, but IPv6 not enabled"),
        (off, vec![table(SPLICE, vec![rule(22)])], "TCP port forwarding requested, but TCP is"),
    ] {
        let mut daemon = Daemon::new(policy);
        daemon.rules = vec![rule(80)].into();
        let mut client = daemon.connect();
        daemon.run();
        received(&client);
        client.write_all(&emit_update(&tables)).unwrap();
        daemon.run();
        let why = result(&client).unwrap_err();
        assert!(why.starts_with(message), "{why}");
        assert_eq!(daemon.rules.tables().outside, [rule(80)]);
    }
}

#[test]
fn an_update_that_the_host_refuses_is_told_why_and_the_next_client_sees_the_old_rules() {
    let mut daemon = Daemon::new(policy(false));
    daemon.rules = vec![rule(80)].into();
    daemon.refusal = Some("Listen failed".to_owned());
    let mut client = daemon.connect();
    daemon.run();
    received(&client);
    client.write_all(&update(vec![rule(22)])).unwrap();
    daemon.run();
    assert_eq!(result(&client), Err("Listen failed".to_owned()));
    let client = daemon.connect();
    daemon.run();
    assert_eq!(greeting(&client)[0].rules, [rule(80)]);
}

#[test]
fn bytes_may_come_one_at_a_time_and_half_an_update_is_none() {
    let mut daemon = Daemon::new(policy(false));
    let bytes = update(vec![rule(22)]);
    let mut client = daemon.connect();
    for byte in &bytes[..bytes.len() - 1] {
        client.write_all(&[*byte]).unwrap();
        daemon.run();
    }
    assert!(greeting(&client)[0].rules.is_empty());
    assert_eq!(daemon.rules, Rules::default());
    client.write_all(&bytes[bytes.len() - 1..]).unwrap();
    daemon.run();
    assert_eq!(result(&client), Ok(String::new()));
    for end in 1..bytes.len() {
        let mut client = daemon.connect();
        daemon.run();
        received(&client);
        client.write_all(&bytes[..end]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        daemon.run();
        let why = format!("Bad update: {}", Malformed::Short);
        assert_eq!(result(&client), Err(why), "after {end} bytes");
    }
    assert_eq!(daemon.rules.tables().outside, [rule(22)]);
}

#[test]
fn a_client_that_never_reads_holds_up_nobody_for_long() {
    let mut daemon = Daemon::new(policy(false));
    // More than a socket takes at once.
    daemon.rules = (1..=4096).map(rule).collect::<Vec<_>>().into();
    let stuck = daemon.connect();
    daemon.run();
    let next = daemon.connect();
    assert!(daemon.run() < 3, "nothing spins");
    daemon.wait(PATIENCE);
    assert!(received(&stuck).1);
    let mut bytes = received(&next).0;
    while Greeting::new().push(&bytes).unwrap().is_none() {
        assert!(daemon.run() > 0);
        bytes.extend(received(&next).0);
    }
}

#[test]
fn a_silent_client_stays_until_somebody_else_has_waited_long_enough() {
    let mut daemon = Daemon::new(policy(false));
    let silent = daemon.connect();
    daemon.run();
    greeting(&silent);
    assert_eq!(daemon.server.deadline(), None, "nobody is woken for nothing");
    daemon.wait(Duration::from_secs(3600));
    let second = daemon.connect();
    let third = daemon.connect();
    daemon.run();
    let (bytes, ended) = received(&silent);
    let why = "Took too long while others waited".to_owned();
    assert_eq!((ResultReader::default().push(&bytes), ended), (Ok(Some(Err(why))), true));
    greeting(&second);
    assert_eq!(received(&third).0, b"");
    daemon.wait(PATIENCE);
    greeting(&third);
    assert!(received(&second).1);
    assert_eq!(daemon.server.deadline(), None);
}

#[test]
fn who_waited_and_left_costs_the_client_nothing() {
    let mut daemon = Daemon::new(policy(false));
    let mut client = daemon.connect();
    daemon.run();
    let other = daemon.connect();
    daemon.run();
    assert!(daemon.server.deadline().is_some());
    drop(other);
    // Its connection is accepted, found dead, and that is that.
    client.write_all(&update(vec![rule(22)])).unwrap();
    daemon.run();
    assert_eq!(daemon.rules.tables().outside, [rule(22)]);
    let next = daemon.connect();
    daemon.run();
    greeting(&next);
}

#[test]
fn garbage_costs_that_client_only_and_many_at_once_are_served_in_turn() {
    let mut daemon = Daemon::new(policy(false));
    let clients: Vec<_> = (0..40u8)
        .map(|n| {
            let mut client = daemon.connect();
            client.write_all(&vec![n.wrapping_mul(37) | 1; 3000]).unwrap();
            client
        })
        .collect();
    let mut good = daemon.connect();
    good.write_all(&update(vec![rule(22)])).unwrap();
    while daemon.server.deadline().is_some() || daemon.run() > 0 {
        daemon.wait(Duration::ZERO);
    }
    for client in &clients {
        let (bytes, ended) = received(client);
        assert!(ended && bytes.starts_with(b"basil:s\0"));
    }
    assert_eq!(daemon.rules.tables().outside, [rule(22)]);
}

#[test]
fn what_comes_behind_an_update_is_not_looked_at() {
    let mut daemon = Daemon::new(policy(false));
    let mut client = daemon.connect();
    let twice = [update(vec![rule(22)]), update(vec![rule(23)])].concat();
    client.write_all(&twice).unwrap();
    daemon.run();
    assert_eq!(daemon.rules.tables().outside, [rule(22)]);
    assert!(received(&client).1);
}

#[test]
fn while_an_update_takes_its_time_nobody_else_is_served_and_nobody_is_sent_away() {
    let mut daemon = Daemon::new(policy(false));
    daemon.slow = true;
    let mut first = daemon.connect();
    daemon.run();
    greeting(&first);
    first.write_all(&update(vec![rule(1)])).unwrap();
    let mut second = daemon.connect();
    daemon.run();
    daemon.wait(PATIENCE * 3);
    assert_eq!(received(&first), (Vec::new(), false), "no result yet");
    assert_eq!(received(&second), (Vec::new(), false), "it waits");

    let tables = daemon.wanted.take().unwrap();
    daemon.slow = false;
    daemon.apply(&tables);
    daemon.run();
    assert_eq!(result(&first), Ok(String::new()));
    assert_eq!(greeting(&second)[0].rules, [rule(1)]);
    second.write_all(&update(vec![])).unwrap();
    daemon.run();
    assert_eq!(result(&second), Ok(String::new()));
}

#[test]
fn who_leaves_during_its_update_gets_it_all_the_same() {
    let mut daemon = Daemon::new(policy(false));
    daemon.slow = true;
    let mut first = daemon.connect();
    daemon.run();
    first.write_all(&update(vec![rule(1)])).unwrap();
    daemon.run();
    drop(first);
    let second = daemon.connect();
    for token in [CLIENT, LISTENER, CLIENT] {
        assert_eq!(daemon.server.on_event(token, &daemon.rules, daemon.now), None);
    }
    let tables = daemon.wanted.take().unwrap();
    daemon.slow = false;
    daemon.apply(&tables);
    daemon.run();
    assert_eq!(greeting(&second)[0].rules, [rule(1)]);
}

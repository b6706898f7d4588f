//! Networks of hosts as they are found in the world, in namespaces of their own: `passt` starts on
//! every one of them, and what it would give to a guest works. Needs root, `ip` and `unshare`.

#[path = "common/hosts.rs"]
mod hosts;

use hosts::{Folder, HOSTS, script};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

/// What passt says when it starts on such a host. It must, and it must end as asked.
fn summary(name: &str, network: &str, options: &str) -> String {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run as root");
    let folder = Folder::new();
    let script = format!(
        "{}exec {} --vhost-user -f -D none -s {} {options}",
        script(network, &folder),
        env!("CARGO_BIN_EXE_passt"),
        folder.0.join("socket").display(),
    );
    let mut child = Command::new("unshare")
        .args(["--net", "--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare is there (package util-linux), and ip (package iproute2)");
    let mut stderr = BufReader::new(child.stderr.take().expect("is piped"));
    let mut said = String::new();
    while !said.contains("UNIX domain socket bound at ") {
        assert_ne!(stderr.read_line(&mut said).expect("is text"), 0, "{name}: no start: {said}");
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it lives");
    stderr.read_to_string(&mut said).expect("is text");
    assert_eq!(child.wait().expect("is ours").code(), Some(0), "{name}: {said}");
    said
}

/// Both families are there, and no guest gets an address that is ours as well.
#[track_caller]
fn works(name: &str, said: &str) {
    let all = |start: &str| -> HashSet<String> {
        let values = said.lines().filter_map(|line| line.trim_start().strip_prefix(start));
        values.map(str::to_owned).collect()
    };
    let (assigned, routers) = (all("assign: "), all("router: "));
    assert_eq!(routers.len(), 2, "{name}: one of each family: {said}");
    assert!(assigned.is_disjoint(&routers), "{name}: {said}");
    assert!(all("our link-local: ").iter().all(|addr| addr.starts_with("fe80::")), "{name}");
    assert_eq!(all("NAT to host 127.0.0.1: ").len(), 1, "{name}: the host is reached: {said}");
    assert_eq!(all("NAT to host ::1: ").len(), 1, "{name}: the host is reached: {said}");
}

#[test]
fn on_every_host_it_starts_and_gives_the_guest_what_works() {
    for host in HOSTS {
        let said = summary(host.name, host.network, host.options);
        works(host.name, &said);
        for line in host.says {
            assert!(said.lines().any(|l| l == *line), "{}: {line:?} in:\n{said}", host.name);
        }
    }
}

#[test]
fn a_table_of_many_thousand_routes_does_not_hide_the_default_route() {
    let mut network = "+eth0\naddr add 192.0.2.5/24 dev eth0\n".to_owned();
    for n in 0..20_000 {
        let (high, low) = (n / 256, n % 256);
        writeln!(network, "route add 10.{high}.{low}.0/24 via 192.0.2.{}", 2 + n % 3)
            .expect("strings grow");
    }
    network += "route add default via 192.0.2.1 metric 20000\n";
    let said = summary("many routes", &network, "");
    works("many routes", &said);
    assert!(said.contains("    router: 192.0.2.1\n"), "{said}");
}

#[test]
fn many_addresses_and_links_do_not_hide_the_one_that_counts() {
    let mut network = String::new();
    for n in 0..100 {
        writeln!(network, "+eth{n}\naddr add 10.0.{n}.5/24 dev eth{n}").expect("strings grow");
    }
    for n in 0..600 {
        writeln!(network, "addr add 10.200.{}.{}/32 dev eth73", n / 200, n % 200 + 1)
            .expect("strings grow");
    }
    network += "route add default via 10.0.73.1\n";
    let said = summary("many addresses", &network, "");
    works("many addresses", &said);
    assert!(said.contains("Template interface: eth73 (IPv4)\n"), "{said}");
    assert!(said.contains("    assign: 10.0.73.5\n"), "{said}");
}

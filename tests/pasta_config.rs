//! What `pasta --config-net` makes in a namespace of networks as hosts have them. Each test has two
//! namespaces: one for the host, and one whose interface is configured. Needs root and `ip`.

#[path = "common/hosts.rs"]
mod hosts;

use hosts::{Folder, HOSTS, script};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use passt::config::facts::{Address, HostFacts, MAIN_TABLE, Route};
use passt::config::options::{Program, Request, parse};
use passt::config::{Config, Pasta};
use passt::host::netlink;
use passt::pasta::interface;
use std::collections::HashSet;
use std::net::IpAddr;
use std::process::Command;

/// What became of a namespace.
struct Outcome {
    host: HostFacts,
    inside: HostFacts,
    pasta: Pasta,
    warnings: Vec<String>,
    /// Number of the interface inside.
    index: u32,
    /// What `ip` says of it.
    shown: String,
}

/// Runs a script in the network namespace of this thread; what it prints.
#[track_caller]
fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh is there");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {said} (ip is in package iproute2)");
    String::from_utf8(output.stdout).expect("is text")
}

fn new_namespace() {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run as root");
    unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
}

fn pasta(options: &str, host: &HostFacts) -> Pasta {
    let line = format!("--config-net {options}");
    let args: Vec<_> = line.split_whitespace().map(Into::into).collect();
    let Ok(Request::Run(mode, typed)) = parse(Program::Pasta, "pasta", &args) else {
        panic!("{options}");
    };
    match Config::new(mode, &typed, host) {
        Ok((Config::Pasta(pasta), _)) => *pasta,
        other => panic!("{options}: {other:?}"),
    }
}

/// The namespace that a host with `network` (as in [`hosts`]) gets with `options`, when `before`
/// was run in it. Network namespaces belong to threads: these end with theirs.
fn inside(network: &str, options: &str, before: &str) -> Outcome {
    let work = || {
        new_namespace();
        let folder = Folder::new();
        sh(&script(network, &folder));
        let host = netlink::facts().expect("netlink is there");
        let pasta = pasta(options, &host);

        new_namespace();
        let tap = pasta.tap.as_ref().expect("is wanted");
        let name = &tap.name;
        // In place of a tap, which has a carrier only as long as someone holds it.
        sh(&format!("ip link add {name} type veth peer name there && ip link set there up"));
        sh(before);
        let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        let route = socket(AddressFamily::Netlink, kind.0, kind.1, kind.2).expect("is there");
        let warnings = interface::configure(route, Some(tap), pasta.config_net.as_ref());
        let warnings = warnings.unwrap_or_else(|e| panic!("{network}: {e}"));
        let inside = netlink::facts().expect("netlink is there");
        let index = inside.interface(name).expect("was made").index;
        let shown = sh(&format!("ip addr show lo; ip addr show dev {name}; ip route; ip -6 route"));
        Outcome { host, inside, pasta, warnings, index, shown }
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Outcome {
    /// The addresses of the interface, but for link-local ones.
    fn addresses(&self) -> Vec<Address> {
        let is_own = |a: &&Address| a.interface == self.index && a.global;
        self.inside.addresses.iter().filter(is_own).copied().collect()
    }

    /// All routes of the main table, by `interface`, as text; those of the kernel as well.
    fn routes(facts: &HostFacts, interface: u32) -> Vec<String> {
        let of_links = |to: IpAddr| match to {
            IpAddr::V4(_) => false,
            IpAddr::V6(to) => to.is_unicast_link_local() || to.is_multicast(),
        };
        let mut routes: Vec<_> = facts
            .routes
            .iter()
            .filter(|r| r.table == MAIN_TABLE && !of_links(r.destination.0))
            .filter_map(|r| {
                let hops = r.hops.iter().filter(|h| h.interface == interface);
                let hops: Vec<_> = hops.map(|h| (h.gateway, h.onlink)).collect();
                let rest = (r.metric, r.source, r.tos, r.protocol, &r.metrics);
                (!hops.is_empty())
                    .then(|| format!("{}/{} {hops:?} {rest:?}", r.destination.0, r.destination.1))
            })
            .collect();
        routes.sort();
        routes
    }

    fn own_routes(&self) -> Vec<&Route> {
        let by = |r: &&Route| r.hops.iter().any(|h| h.interface == self.index);
        self.inside.routes.iter().filter(by).collect()
    }
}

/// What holds on every host.
#[track_caller]
fn holds(name: &str, outcome: &Outcome) {
    let shown = &outcome.shown;
    assert_eq!(outcome.warnings, [""; 0], "{name}: {shown}");
    let plan = outcome.pasta.config_net.as_ref().expect("was asked for");
    let there = outcome.addresses();
    for wanted in &plan.addresses {
        let found = there.iter().find(|a| a.addr == wanted.addr);
        let found = found.unwrap_or_else(|| panic!("{name}: {} in {shown}", wanted.addr));
        assert!(found.usable, "{name}: {} at once: {shown}", wanted.addr);
        let of = |a: &Address| (a.prefix_len, a.peer, a.connects, a.metric);
        assert_eq!(of(found), of(wanted), "{name}: {}", wanted.addr);
    }
    assert_eq!(there.len(), plan.addresses.len(), "{name}: {shown}");

    let link_local = |a: &&Address| {
        a.interface == outcome.index
            && matches!(a.addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
    };
    let link_locals: Vec<_> = outcome.inside.addresses.iter().filter(link_local).collect();
    assert_eq!(link_locals.len(), usize::from(plan.ipv6), "{name}: {shown}");
    assert!(link_locals.iter().all(|a| a.usable), "{name}: at once: {shown}");
    assert!(shown.contains("LOOPBACK,UP"), "{name}: {shown}");
    assert!(!shown.contains("tentative"), "{name}: {shown}");

    let mut seen = HashSet::new();
    for route in outcome.own_routes() {
        let key = (route.destination, route.table, route.metric, route.tos);
        assert!(route.destination.0.is_multicast() || seen.insert(key), "{name}: {route} twice");
    }
}

#[test]
fn on_every_host_the_namespace_gets_what_works() {
    for host in HOSTS {
        let outcome = inside(host.network, host.options, "");
        holds(host.name, &outcome);
        let guest = &outcome.pasta.network.guest;
        if guest.v6.is_some() {
            let host_has = outcome
                .host
                .routes
                .iter()
                .any(|r| r.destination.1 == 0 && r.destination.0.is_ipv6());
            let template = outcome.pasta.network.templates.v6.is_some();
            let expected = host_has || !template;
            let found = outcome
                .own_routes()
                .iter()
                .any(|r| r.destination.1 == 0 && r.destination.0.is_ipv6());
            assert_eq!(found, expected, "{}: {}", host.name, outcome.shown);
        }
    }
}

#[test]
fn routes_are_the_hosts_word_for_word() {
    let mut compared = 0;
    for host in HOSTS {
        let outcome = inside(host.network, host.options, "");
        let templates = &outcome.pasta.network.templates;
        let Some(template) = templates.v4.as_ref().filter(|_| !host.options.contains("-a ")) else {
            continue;
        };
        if templates.v6.as_ref().is_some_and(|v6| v6.interface != template.interface) {
            continue; // two links of the host became one
        }
        if ["a default route in a table", "addresses that are depr"]
            .iter()
            .any(|n| host.name.starts_with(n))
        {
            continue; // routes that move to the main table; a source that is not copied
        }
        let v4 = |routes: Vec<String>| {
            routes.into_iter().filter(|r| r.contains('.')).collect::<Vec<_>>()
        };
        let (theirs, ours) = (
            v4(Outcome::routes(&outcome.host, template.interface)),
            v4(Outcome::routes(&outcome.inside, outcome.index)),
        );
        assert_eq!(ours, theirs, "{}: {}", host.name, outcome.shown);
        compared += usize::from(!ours.is_empty());
    }
    assert!(compared > 20, "{compared} of {}", HOSTS.len());
}

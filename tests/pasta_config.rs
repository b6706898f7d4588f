//! What `pasta --config-net` makes in a namespace of networks as hosts have them. Each test has two
//! namespaces: one for the host, and one whose interface is configured. Needs root and `ip`.

#[path = "common/hosts.rs"]
mod hosts;

use hosts::{Folder, HOSTS, Host, script};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use passt::config::facts::{Address, HostFacts, MAIN_TABLE, Route};
use passt::config::options::{Program, Request, parse};
use passt::config::{Config, NetPlan, Pasta, Tap};
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
    inside_then(network, options, before, "")
}

/// The same, when `after` was run in it behind that.
fn inside_then(network: &str, options: &str, before: &str, after: &str) -> Outcome {
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
        let plan = pasta.config_net.as_ref();
        let warnings = interface::configure(route_socket(), Some(tap), plan);
        let warnings = warnings.unwrap_or_else(|e| panic!("{network}: {e}"));
        sh(after);
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

/// Networks that are of interest here only.
const MORE: &[Host] = &[
    Host {
        name: "routes with everything that they may have",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0
            addr add 192.0.2.6/24 dev eth0
            addr add 2001:db8:1::5/64 dev eth0
            addr add 2001:db8:1::6/64 dev eth0
            addr add 2001:db8:1::7/128 dev eth0
            route add default via 192.0.2.1 metric 100 mtu 1400 advmss 1360 src 192.0.2.6
            route add default via 192.0.2.2 metric 200 proto static
            route add 10.0.0.0/8 via 192.0.2.9 tos 0x10
            route add 10.0.0.0/8 via 192.0.2.8
            route add 10.1.0.0/16 dev eth0 proto dhcp scope link window 1000 hoplimit 3
            route add 10.2.0.0/16 nexthop via 192.0.2.3 weight 3 nexthop via 192.0.2.4
            route add 10.3.0.0/16 nexthop via 10.9.9.9 dev eth0 onlink nexthop via 192.0.2.4
            route add 10.4.0.0/16 via inet6 fe80::9 dev eth0
            route add ::/0 via fe80::1 dev eth0 proto ra metric 1024 expires 1000 mtu 1400
            route add ::/0 via fe80::2 dev eth0 proto static metric 2048
            route add 2001:db8:2::/48 via 2001:db8:1::9 metric 5
            route add 2001:db8:3::/48 dev eth0 proto ra
            route add 2001:db8:4::/48 nexthop via fe80::3 dev eth0 nexthop via fe80::4 dev eth0
            route add 2001:db8:5::/48 via 2001:db8:9::9 dev eth0 onlink",
        options: "",
        says: &[],
    },
    Host {
        name: "an address whose route someone else has made, as NetworkManager does",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0 noprefixroute
            route add 192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.5 metric 100
            route add default via 192.0.2.1 proto dhcp src 192.0.2.5 metric 100",
        options: "",
        says: &[],
    },
    Host {
        name: "an address whose route has a metric",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0 metric 1024
            route add default via 192.0.2.1 proto dhcp src 192.0.2.5 metric 1024",
        options: "",
        says: &[],
    },
    Host {
        name: "routers behind routes that come later",
        network: "+eth0
            addr add 203.0.113.5/32 dev eth0
            route add 10.0.0.1 dev eth0 scope link
            route add 10.0.0.128/25 via 10.0.0.1
            route add 10.0.0.2 dev eth0 scope link
            route add default via 10.0.0.2",
        options: "",
        says: &[],
    },
    Host {
        name: "routes that lead nowhere",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0
            route add default via 192.0.2.1
            route add blackhole 10.0.0.0/8
            route add unreachable 10.1.0.0/16
            route add prohibit 10.2.0.0/16
            route add throw 10.3.0.0/16",
        options: "",
        says: &[],
    },
];

/// All networks.
fn networks() -> impl Iterator<Item = &'static Host> {
    HOSTS.iter().chain(MORE)
}

#[test]
fn on_every_host_the_namespace_gets_what_works() {
    for host in networks() {
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
    for host in networks() {
        let outcome = inside(host.network, host.options, "");
        let templates = &outcome.pasta.network.templates;
        let Some(template) = templates.v4.as_ref().filter(|_| !host.options.contains("-a ")) else {
            continue;
        };
        if templates.v6.as_ref().is_some_and(|v6| v6.interface != template.interface) {
            continue; // two links of the host became one
        }
        let moved = ["a default route in a table", "addresses that are depr", "links without numb"];
        if moved.iter().any(|start| host.name.starts_with(start)) {
            continue; // to the main table; another source; from the loopback interface
        }
        // Where the host has no IPv6 to share, the namespace has a way to the host.
        let shared = |routes: Vec<String>| -> Vec<String> {
            let v6 = templates.v6.is_some();
            routes.into_iter().filter(|r| v6 || !r.starts_with("::/0")).collect()
        };
        let (theirs, ours) = (
            shared(Outcome::routes(&outcome.host, template.interface)),
            shared(Outcome::routes(&outcome.inside, outcome.index)),
        );
        assert_eq!(ours, theirs, "{}: {}", host.name, outcome.shown);
        compared += usize::from(!ours.is_empty());
    }
    assert!(compared > 25, "{compared} of {}", networks().count());
}

#[test]
fn the_link_gets_its_mac_address_and_its_mtu() {
    let network = "+eth0\naddr add 192.0.2.5/24 dev eth0\nroute add default via 192.0.2.1";
    let outcome = inside(network, "-I x0 -m 9000 --ns-mac-addr 02:00:00:00:ab:cd", "");
    holds("link", &outcome);
    let shown = outcome.shown;
    assert!(shown.contains(" x0@there: ") && shown.contains(" mtu 9000 "), "{shown}");
    assert!(shown.contains("link/ether 02:00:00:00:ab:cd "), "{shown}");
    assert!(shown.contains("inet6 fe80::ff:fe00:abcd/64 scope link"), "{shown}");
    let before = "ip link set eth0 mtu 1234";
    assert!(inside(network, "-m 0", before).shown.contains(" mtu 1234 "));
}

#[test]
fn only_the_families_that_are_on_are_configured() {
    let network = HOSTS[0].network;
    let v4: Vec<_> = inside(network, "-4", "").addresses().iter().map(|a| a.addr).collect();
    assert_eq!(v4, ["192.0.2.5".parse::<IpAddr>().expect("is one")]);
    let v6 = inside(network, "-6", "");
    holds("IPv6 only", &v6);
    assert!(v6.addresses().iter().all(|a| a.addr.is_ipv6()), "{}", v6.shown);
}

#[test]
fn a_table_of_many_thousand_routes_is_copied() {
    let mut network = "+eth0\naddr add 192.0.2.5/24 dev eth0\n".to_owned();
    network += "route add default via 192.0.2.1\n";
    for n in 0..20_000 {
        let (high, low) = (n / 256, n % 256);
        network += &format!("route add 10.{high}.{low}.0/24 via 192.0.2.{}\n", 2 + n % 3);
    }
    let outcome = inside(&network, "", "");
    assert_eq!(outcome.warnings, [""; 0]);
    let v4 = outcome.own_routes().iter().filter(|r| r.destination.0.is_ipv4()).count();
    assert_eq!(v4, 20_002);
}

#[test]
fn what_the_namespace_refuses_is_named_in_one_line_and_the_rest_is_there() {
    let mut network = "+eth0\naddr add 2001:db8:1::5/64 dev eth0\n".to_owned();
    for n in 0..9 {
        network += &format!("route add 2001:db8:10{n}::/48 via 2001:db8:1::9\n");
    }
    network += "route add ::/0 via fe80::1 dev eth0\n";
    // Nobody routes through himself.
    let outcome = inside(&network, "-a 2001:db8:1::9", "");
    let named = |n| format!("2001:db8:10{n}::/48 via 2001:db8:1::9 (Invalid argument)");
    let named = [0, 1, 2, 3].map(named).join(", ");
    let warning = format!("Skipped routes that the namespace refuses: {named} and 5 more");
    assert_eq!(outcome.warnings, [warning]);
    assert!(outcome.shown.contains("default via fe80::1 dev eth0"), "{}", outcome.shown);
}

#[test]
fn where_ipv6_is_not_to_be_had_there_is_one_warning_and_ipv4() {
    let disabled = "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
    for (options, before, reason) in [
        ("", disabled, "Permission denied"),
        ("-m 1000", "", "Address family not supported by protocol"),
    ] {
        let outcome = inside(HOSTS[0].network, options, before);
        let warning = format!("No IPv6 on eth0 in the namespace: {reason}");
        assert_eq!(outcome.warnings, [warning], "{}", outcome.shown);
        let v4: Vec<_> = outcome.addresses().iter().map(|a| a.addr.to_string()).collect();
        assert_eq!(v4, ["192.0.2.5"]);
        assert!(outcome.own_routes().iter().any(|r| r.destination.1 == 0), "{}", outcome.shown);
    }
}

#[test]
fn what_is_there_already_is_fine() {
    let before = "ip link set lo up && ip addr add 192.0.2.5/24 dev eth0 && ip link set eth0 up && \
         ip addr add 2001:db8:1::5/64 dev eth0 && ip route add default via 192.0.2.1";
    let outcome = inside(HOSTS[0].network, "", before);
    assert_eq!(outcome.warnings, [""; 0]);
    assert_eq!(outcome.addresses().len(), 2, "{}", outcome.shown);
}

#[test]
fn the_interface_keeps_its_link_local_address_when_it_goes_down_and_up() {
    let again = "ip link set eth0 down && ip link set eth0 up && \
         timeout 60 sh -c 'until ip addr show dev eth0 | grep -q fe80; do :; done'";
    let outcome = inside_then(HOSTS[0].network, "", "", again);
    assert!(outcome.shown.contains("inet6 fe80::"), "{}", outcome.shown);
}

#[test]
fn the_default_route_of_another_table_is_the_namespaces() {
    let host = HOSTS.iter().find(|h| h.name.starts_with("a default route in a table"));
    let outcome = inside(host.expect("is there").network, "", "");
    for line in ["default via 198.51.100.1 dev eth1", "default via fe80::1 dev eth1"] {
        assert!(outcome.shown.contains(line), "{}", outcome.shown);
    }
}

/// Runs `work` in a thread with a network namespace of its own.
fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            new_namespace();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn route_socket() -> std::os::fd::OwnedFd {
    let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
    socket(AddressFamily::Netlink, kind.0, kind.1, kind.2).expect("netlink is there")
}

#[test]
fn without_an_interface_only_the_loopback_is_brought_up() {
    let shown = in_namespace(|| {
        sh("ip link set lo name loop"); // nobody does, but everybody could
        let warnings = interface::configure(route_socket(), None, None).expect("is allowed");
        assert_eq!(warnings, [""; 0]);
        sh("ip addr")
    });
    assert!(
        shown.contains("<LOOPBACK,UP,LOWER_UP>") && shown.contains("inet 127.0.0.1/8"),
        "{shown}"
    );
}

#[test]
fn who_configures_himself_finds_a_link_that_is_down_with_its_mtu_and_its_queue() {
    let tap = Tap { name: "x0".to_owned(), mac: None, mtu: Some(9000) };
    let shown = in_namespace(|| {
        sh("ip link add x0 type veth peer name y0");
        let warnings = interface::configure(route_socket(), Some(&tap), None).expect("is allowed");
        assert_eq!(warnings, [""; 0]);
        sh("ip addr show dev x0")
    });
    for words in ["<BROADCAST,MULTICAST,M-DOWN>", " mtu 9000 ", " state DOWN ", " qlen 8192"] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    assert!(!shown.contains("inet"), "{shown}");
}

#[test]
fn what_cannot_be_done_without_is_one_line() {
    let tap = |name: &str, mtu| Tap { name: name.to_owned(), mac: None, mtu };
    let plan = NetPlan::default();
    let fails = |tap: Tap, before: &str| {
        in_namespace(|| {
            sh(before);
            let outcome = interface::configure(route_socket(), Some(&tap), Some(&plan));
            outcome.expect_err("is refused").to_string()
        })
    };
    assert_eq!(
        fails(tap("x0", None), ""),
        "Couldn't find interface x0 in the namespace: No such device"
    );
    let small = "ip link add x0 type veth peer name y0";
    assert_eq!(
        fails(tap("x0", Some(20)), small),
        "Couldn't set MTU 20 of x0 in the namespace: Invalid argument"
    );
    let forbidden = in_namespace(|| {
        let route = route_socket();
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN)
            .expect("is ours");
        interface::configure(route, None, None).expect_err("is refused").to_string()
    });
    let expected =
        "Couldn't bring up the loopback interface in the namespace: Operation not permitted";
    assert_eq!(forbidden, expected);
}

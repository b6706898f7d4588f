//! Networks of hosts as they are found in the world, and how to make them in a namespace. Needs root
//! and `ip`.

use nix::unistd::mkdtemp;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// What a host looks like, and what its guest is to get.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    /// Lines for `ip -batch`, `-6` ones come last; `+ethN` makes a link, without addresses, that is up.
    pub(crate) network: &'static str,
    pub(crate) options: &'static str,
    /// Lines of the summary.
    #[allow(dead_code, reason = "each test looks at what concerns it")]
    pub(crate) says: &'static [&'static str],
}

/// The summary of a host without IPv4, or IPv6.
const LOCAL4: &str = "No template interface for IPv4: local mode";
const LOCAL6: &str = "No template interface for IPv6: local mode";
const ETH0: &str = "Template interface: eth0 (IPv4)";
const ETH1: &str = "Template interface: eth1 (IPv4)";

pub(crate) const HOSTS: &[Host] = &[
    Host {
        name: "the usual one",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0
            addr add 2001:db8:1::5/64 dev eth0
            route add default via 192.0.2.1
            route add default via fe80::1 dev eth0",
        options: "",
        says: &[
            ETH0,
            "Template interface: eth0 (IPv6)",
            "NAT to host 127.0.0.1: 192.0.2.1",
            "NAT to host ::1: fe80::1",
            "    assign: 192.0.2.5",
            "    mask: 255.255.255.0",
            "    router: 192.0.2.1",
            "    assign: 2001:db8:1::5",
            "    router: fe80::1",
            "    our link-local: fe80::1",
        ],
    },
    Host {
        name: "nothing but a loopback interface, which is down",
        network: "",
        options: "",
        says: &[
            LOCAL4,
            LOCAL6,
            "    assign: 169.254.2.1",
            "    mask: 255.255.0.0",
            "    router: 169.254.2.2",
            "    our link-local: fe80::1",
        ],
    },
    Host {
        name: "links without addresses",
        network: "+eth0
            +eth1",
        options: "",
        says: &[LOCAL4, LOCAL6, "    assign: 169.254.2.1"],
    },
    Host {
        name: "several ways out, the second one with the greater share",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            route add default nexthop via 192.0.2.1 weight 1 nexthop via 198.51.100.1 weight 5",
        options: "",
        says: &[ETH1, "    assign: 198.51.100.5", "    router: 198.51.100.1"],
    },
    Host {
        name: "several ways out, of which the better one is down",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            route add default nexthop via 192.0.2.1 weight 1 nexthop via 198.51.100.1 weight 5
            link set eth1 down",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5", "    router: 192.0.2.1"],
    },
    Host {
        name: "several ways out over IPv6",
        network: "+eth0
            +eth1
            addr add 2001:db8:1::5/64 dev eth0
            addr add 2001:db8:2::5/64 dev eth1
            route add ::/0 nexthop via fe80::1 dev eth0 nexthop via fe80::2 dev eth1",
        options: "",
        says: &[
            LOCAL4,
            "Template interface: eth0 (IPv6)",
            "    assign: 2001:db8:1::5",
            "    router: fe80::1",
        ],
    },
    Host {
        name: "a next hop with a number",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0
            nexthop add id 7 via 192.0.2.1 dev eth0
            route add default nhid 7",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5", "    router: 192.0.2.1"],
    },
    Host {
        name: "two default routes, the later one with the smaller metric",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            route add default via 192.0.2.1 metric 600
            route add default via 198.51.100.1 metric 100",
        options: "",
        says: &[ETH1, "    router: 198.51.100.1"],
    },
    Host {
        name: "a default route in a table of its own only",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            addr add 2001:db8:2::5/64 dev eth1
            rule add from all table 100 priority 100
            -6 rule add from all table 100 priority 100
            route add default via 198.51.100.1 dev eth1 table 100
            route add ::/0 via fe80::1 dev eth1 table 100",
        options: "",
        says: &[
            ETH1,
            "Template interface: eth1 (IPv6)",
            "    assign: 198.51.100.5",
            "    router: 198.51.100.1",
            "    assign: 2001:db8:2::5",
        ],
    },
    Host {
        name: "a tunnel with a table of its own beside the real thing, as wg-quick makes it",
        network: "+eth0
            +wg0
            addr add 192.0.2.5/24 dev eth0
            addr add 10.8.0.2/32 dev wg0
            route add default via 192.0.2.1
            rule add not fwmark 0xca6c table 51820
            rule add table main suppress_prefixlength 0
            route add default dev wg0 table 51820",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5", "    router: 192.0.2.1"],
    },
    Host {
        name: "a tunnel that takes everything by two halves, as OpenVPN makes it",
        network: "+eth0
            +tun0
            addr add 192.0.2.5/24 dev eth0
            addr add 10.8.0.6 peer 10.8.0.5 dev tun0
            route add default via 192.0.2.1
            route add 0.0.0.0/1 via 10.8.0.5
            route add 128.0.0.0/1 via 10.8.0.5",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5", "    router: 192.0.2.1"],
    },
    Host {
        name: "service addresses for single hosts, the first of all addresses",
        network: "+eth0
            addr add 192.0.2.200/32 dev eth0
            addr add 192.0.2.5/24 dev eth0
            addr add 192.0.2.201/32 dev eth0
            addr add 2001:db8:1::200/128 dev eth0
            addr add 2001:db8:1::5/64 dev eth0
            route add default via 192.0.2.1
            route add ::/0 via 2001:db8:1::1",
        options: "",
        says: &[
            "    assign: 192.0.2.5",
            "    mask: 255.255.255.0",
            "    assign: 2001:db8:1::5",
            "    router: 2001:db8:1::1",
        ],
    },
    Host {
        name: "an address for a single host and a gateway on the link, as clouds have them",
        network: "+eth0
            addr add 203.0.113.5/32 dev eth0
            route add 203.0.113.1 dev eth0 scope link
            route add default via 203.0.113.1 dev eth0",
        options: "",
        says: &["    assign: 203.0.113.5", "    mask: 255.255.255.255", "    router: 203.0.113.1"],
    },
    Host {
        name: "a gateway outside of all subnets",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0
            route add default via 10.0.0.1 dev eth0 onlink",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5", "    router: 10.0.0.1"],
    },
    Host {
        name: "a default route without a gateway, point to point",
        network: "+ppp0
            addr add 100.64.0.7 peer 100.64.0.1 dev ppp0
            route add default dev ppp0
            route add ::/0 dev ppp0",
        options: "",
        says: &[
            "Template interface: ppp0 (IPv4)",
            LOCAL6,
            "    assign: 100.64.0.7",
            "    mask: 255.255.255.255",
            "    router: 169.254.2.2",
        ],
    },
    Host {
        name: "a default route without a gateway, in a subnet",
        network: "+eth0
            addr add 192.0.2.254/24 dev eth0
            addr add 2001:db8:1::5/64 dev eth0
            route add default dev eth0
            route add ::/0 dev eth0",
        options: "",
        says: &["    assign: 192.0.2.254", "    router: 192.0.2.253", "    assign: 2001:db8:1::5"],
    },
    Host {
        name: "the subnet only",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0
            addr add 2001:db8:1::5/64 dev eth0",
        options: "",
        says: &["    assign: 192.0.2.5", "    router: 192.0.2.254", "    assign: 2001:db8:1::5"],
    },
    Host {
        name: "no default route, but another",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            route add 10.0.0.0/8 via 192.0.2.1",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5", "    router: 192.0.2.254"],
    },
    Host {
        name: "a default route that is forbidden, before one that is not",
        network: "+eth0
            addr add 192.0.2.5/24 dev eth0
            route add unreachable default metric 10
            route add default via 192.0.2.1 metric 20
            route add blackhole ::/0 metric 10",
        options: "",
        says: &[ETH0, LOCAL6, "    router: 192.0.2.1"],
    },
    Host {
        name: "addresses that are deprecated",
        network: "+eth0
            addr add 192.0.2.4/24 dev eth0 valid_lft 3600 preferred_lft 0
            addr add 192.0.2.5/24 dev eth0
            addr add 2001:db8:1::5/64 dev eth0
            addr add 2001:db8:1::6/64 dev eth0 valid_lft 3600 preferred_lft 0
            route add default via 192.0.2.1
            route add ::/0 via fe80::1 dev eth0",
        options: "",
        says: &["    assign: 192.0.2.5", "    assign: 2001:db8:1::5"],
    },
    Host {
        name: "nothing but deprecated addresses",
        network: "+eth0
            addr add 192.0.2.4/24 dev eth0 valid_lft 3600 preferred_lft 0
            addr add 2001:db8:1::6/64 dev eth0 valid_lft 3600 preferred_lft 0
            route add default via 192.0.2.1
            route add ::/0 via fe80::1 dev eth0",
        options: "",
        says: &[LOCAL4, LOCAL6],
    },
    Host {
        name: "several addresses, of which the route prefers one",
        network: "+eth0
            addr add 192.0.2.4/24 dev eth0
            addr add 192.0.2.5/24 dev eth0
            route add default via 192.0.2.1 src 192.0.2.5",
        options: "",
        says: &["    assign: 192.0.2.5", "    router: 192.0.2.1"],
    },
    Host {
        name: "addresses of two subnets, the gateway in the second",
        network: "+eth0
            addr add 10.0.0.5/8 dev eth0
            addr add 192.0.2.5/24 dev eth0
            route add default via 192.0.2.1",
        options: "",
        says: &["    assign: 192.0.2.5", "    router: 192.0.2.1"],
    },
    Host {
        name: "links without numbers, the address on the loopback interface",
        network: "+eth0
            link set lo up
            addr add 203.0.113.9/32 dev lo
            addr add 2001:db8:9::9/128 dev lo
            route add 0.0.0.0/0 via inet6 fe80::1 dev eth0
            route add ::/0 via fe80::1 dev eth0",
        options: "",
        says: &[
            ETH0,
            "Template interface: eth0 (IPv6)",
            "    assign: 203.0.113.9",
            "    assign: 2001:db8:9::9",
            "    router: fe80::1",
        ],
    },
    Host {
        name: "the same, and the route names the address",
        network: "+eth0
            link set lo up
            addr add 203.0.113.9/32 dev lo
            route add 0.0.0.0/0 via inet6 fe80::1 dev eth0 src 203.0.113.9",
        options: "",
        says: &[ETH0, "    assign: 203.0.113.9"],
    },
    Host {
        name: "IPv4 link-local addresses only",
        network: "+eth0
            addr add 169.254.7.5/16 dev eth0 scope link",
        options: "",
        says: &[LOCAL4, "    assign: 169.254.2.1"],
    },
    Host {
        name: "IPv6 link-local addresses only, and a router",
        network: "+eth0
            route add ::/0 via fe80::1 dev eth0",
        options: "",
        says: &[LOCAL4, LOCAL6, "    our link-local: fe80::1"],
    },
    Host {
        name: "IPv6 without a link-local address",
        network: "=net/ipv6/conf/default/addr_gen_mode 1
            +eth0
            addr add 2001:db8:1::5/64 dev eth0
            route add ::/0 via 2001:db8:1::1",
        options: "",
        says: &[
            LOCAL4,
            "Template interface: eth0 (IPv6)",
            "    assign: 2001:db8:1::5",
            "    router: 2001:db8:1::1",
            "    our link-local: fe80::1",
        ],
    },
    Host {
        name: "IPv6 switched off",
        network: "=net/ipv6/conf/all/disable_ipv6 1
            +eth0
            addr add 192.0.2.5/24 dev eth0
            route add default via 192.0.2.1",
        options: "",
        says: &[ETH0, LOCAL6, "    router: 192.0.2.1"],
    },
    Host {
        name: "IPv6 only, as in a 464XLAT network",
        network: "+eth0
            addr add 2001:db8:1::5/64 dev eth0
            route add ::/0 via fe80::1 dev eth0",
        options: "",
        says: &[LOCAL4, "Template interface: eth0 (IPv6)", "    assign: 2001:db8:1::5"],
    },
    Host {
        name: "several ways out, of which the better one has no carrier",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            route add default nexthop via 192.0.2.1 weight 1 nexthop via 198.51.100.1 weight 5
            link set peer-eth1 down",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5", "    router: 192.0.2.1"],
    },
    Host {
        name: "a bridge for containers whose link is down, beside the real thing",
        network: "+docker0
            addr add 172.17.0.1/16 dev docker0
            link set peer-docker0 down
            +eth0
            addr add 192.0.2.5/24 dev eth0
            route add default via 192.0.2.1",
        options: "",
        says: &[ETH0, "    assign: 192.0.2.5"],
    },
    Host {
        name: "the default route over a link that is down, and another that is up",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            route add default via 192.0.2.1 metric 100
            route add default via 198.51.100.1 metric 600
            link set peer-eth0 down",
        options: "",
        says: &[ETH1, "    router: 198.51.100.1"],
    },
    Host {
        name: "a name that is as long and as odd as names may be",
        network: "+enp0s3f6.4094é
            addr add 192.0.2.5/24 dev enp0s3f6.4094é
            route add default via 192.0.2.1",
        options: "-i enp0s3f6.4094é",
        says: &["Template interface: enp0s3f6.4094é (IPv4)", "    router: 192.0.2.1"],
    },
    Host {
        name: "an interface that was asked for, without a route",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            route add default via 192.0.2.1",
        options: "-i eth1",
        says: &[ETH1, "    assign: 198.51.100.5", "    router: 198.51.100.254"],
    },
    Host {
        name: "an interface to leave by",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            addr add 198.51.100.5/24 dev eth1
            addr add 2001:db8:1::5/64 dev eth0
            route add default via 192.0.2.1 metric 10
            route add default via 198.51.100.1 metric 20
            route add ::/0 via fe80::1 dev eth0",
        options: "--outbound-if4 eth1",
        says: &[
            ETH1,
            "Outbound interface: eth1 (IPv4)",
            "    router: 198.51.100.1",
            "Template interface: eth0 (IPv6)",
        ],
    },
    Host {
        name: "an interface to leave by, which has no address",
        network: "+eth0
            +eth1
            addr add 192.0.2.5/24 dev eth0
            route add default via 192.0.2.1",
        options: "--outbound-if4 eth1 --outbound-if6 lo",
        says: &[
            LOCAL4,
            LOCAL6,
            "Interface eth1 has no usable IPv4 address: local mode",
            "Interface lo has no usable IPv6 address: local mode",
        ],
    },
    Host {
        name: "an address and a gateway that were asked for, on a host that has none",
        network: "",
        options: "-a 192.0.2.77/24 -g 192.0.2.1 -a 2001:db8::77",
        says: &["    assign: 192.0.2.77", "    router: 192.0.2.1", "    assign: 2001:db8::77"],
    },
];

/// A folder for the socket, which disappears with the value.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let template = std::env::temp_dir().join("passt-facts.XXXXXX");
        Self(mkdtemp(&template).expect("folders can be made"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file for `ip -batch`, or `ip -6 -batch`.
struct Batch {
    path: PathBuf,
    lines: String,
}

impl Batch {
    fn new(folder: &Folder, name: &str) -> Self {
        Self { path: folder.0.join(name), lines: String::new() }
    }

    fn add(&mut self, line: &str) {
        self.lines.push_str(line);
        self.lines.push('\n');
    }

    fn write(self) -> String {
        fs::write(&self.path, self.lines).expect("the folder is ours");
        self.path.display().to_string()
    }
}

/// A shell script that makes the network. Nothing of it is left to happen when it ends.
pub(crate) fn script(network: &str, folder: &Folder) -> String {
    // Addresses are to be usable at once.
    let mut script = "set -e\necho 0 >/proc/sys/net/ipv6/conf/default/accept_dad\n".to_owned();
    let [mut links, mut four, mut six] = ["links", "ip", "ip6"].map(|n| Batch::new(folder, n));
    for line in network.lines().map(str::trim) {
        if let Some(link) = line.strip_prefix('+') {
            let peer = if link.len() > 10 { "peer" } else { &format!("peer-{link}") };
            links.add(&format!("link add {link} type veth peer name {peer}"));
            links.add(&format!("link set {peer} addrgenmode none"));
            links.add(&format!("link set {peer} up"));
            links.add(&format!("link set {link} up"));
        } else if let Some(sysctl) = line.strip_prefix('=') {
            let (name, value) = sysctl.split_once(' ').expect("name and value");
            writeln!(script, "echo {value} >/proc/sys/{name}").expect("strings grow");
        } else if let Some(line) = line.strip_prefix("-6 ") {
            six.add(line);
        } else {
            four.add(line);
        }
    }
    // The kernel takes its time to tell the rest of itself that a link is there, or gone.
    let wait = |condition: &str| format!("timeout 60 sh -c '{condition}; do :; done'\n");
    writeln!(script, "ip -batch {}", links.write()).expect("strings grow");
    script += &wait("while ip -o link show up | grep -v LOOPBACK | grep -qv \"state UP\"");
    writeln!(script, "ip -batch {}\nip -6 -batch {}", four.write(), six.write())
        .expect("strings grow");
    script += &wait("while ip -6 addr | grep -q tentative");
    if network.contains("link set peer-") {
        script += &wait("until ip route | grep -q linkdown");
    }
    script
}

//! The options of both programs, one row each: names, value, where it exists, what it does, help.

use super::{Family, Mode, Program, Typed, Verbosity, values};
use crate::flow::Protocol;

/// What an option does.
#[derive(Clone, Copy)]
pub(super) enum Action {
    /// Takes no value.
    Flag(fn(&mut Typed)),
    /// Takes a value of this name, which is text.
    Text(&'static str, fn(&mut Typed, &str) -> Result<(), String>),
    /// Takes a value of this name, which is a path: any bytes.
    Path(&'static str, fn(&mut Typed, &std::path::Path) -> Result<(), String>),
    /// Prints something and ends the program.
    Print(fn(Program) -> String),
}

/// One option.
pub(super) struct Opt {
    pub(super) short: Option<char>,
    pub(super) long: &'static str,
    pub(super) aliases: &'static [&'static str],
    pub(super) action: Action,
    modes: u8,
    documented: u8,
    help: &'static str,
    help_in_pasta: Option<&'static str>,
}

/// The option that chooses the link, and with it the mode.
pub(super) const VHOST_USER: &str = "vhost-user";

const PASST: u8 = 1;
const VU: u8 = 2;
const PASTA: u8 = 4;
const VM: u8 = PASST | VU;
const ANY: u8 = PASST | VU | PASTA;

const fn bit(mode: Mode) -> u8 {
    match mode {
        Mode::Passt => PASST,
        Mode::VhostUser => VU,
        Mode::Pasta => PASTA,
    }
}

impl Opt {
    /// Whether the option exists in `mode`.
    pub(super) const fn exists_in(&self, mode: Mode) -> bool {
        self.modes & bit(mode) != 0
    }

    /// The mode that has the option, in words.
    pub(super) const fn owner(&self) -> &'static str {
        match self.modes {
            VU => "vhost-user",
            PASTA => "pasta",
            _ => "passt",
        }
    }

    /// The name of the option's value, if it takes one.
    pub(super) const fn value(&self) -> Option<&'static str> {
        match self.action {
            Text(name, _) | Path(name, _) => Some(name),
            Flag(_) | Print(_) => None,
        }
    }

    const fn new(
        modes: u8,
        short: Option<char>,
        long: &'static str,
        action: Action,
        help: &'static str,
    ) -> Self {
        Self {
            short,
            long,
            aliases: &[],
            action,
            modes,
            documented: modes,
            help,
            help_in_pasta: None,
        }
    }

    /// Whether the option does something in `mode` that users are told of.
    pub(super) const fn documented_in(&self, mode: Mode) -> bool {
        self.documented & bit(mode) != 0
    }

    /// What the option does, in the words of `program`: its guest is a namespace.
    pub(super) fn help(&self, program: Program) -> String {
        match (program, self.help_in_pasta) {
            (Program::Passt, _) => self.help.to_owned(),
            (Program::Pasta, Some(help)) => help.to_owned(),
            (Program::Pasta, None) => self
                .help
                .replace("the guest", "the namespace")
                .replace("The guest", "The namespace"),
        }
    }

    /// Of use to machines only, though others understand it.
    const fn for_machines(self) -> Self {
        Self { documented: VM, ..self }
    }

    const fn in_pasta(self, help: &'static str) -> Self {
        Self { help_in_pasta: Some(help), ..self }
    }

    const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }
}

use Action::{Flag, Path, Print, Text};

fn deprecated(name: &str, instead: &str) -> String {
    format!("--{name} is deprecated, use {instead}")
}

fn no_migration(name: &str) -> String {
    format!("--{name} is deprecated and does nothing: there is no migration yet")
}

/// All options.
pub(super) fn options() -> impl Iterator<Item = &'static Opt> {
    GROUPS.iter().flat_map(|(_, options)| options.iter())
}

/// All options, under the headings of the help text.
pub(super) const GROUPS: &[(&str, &[Opt])] = &[
    ("General", GENERAL),
    ("Virtual machine", MACHINE),
    ("Addresses and routes", ADDRESSES),
    ("Names", NAMES),
    ("Protocols and services", SERVICES),
    ("Port forwarding", PORTS),
    ("Namespace", NAMESPACE),
];

const GENERAL: &[Opt] = &[
    Opt::new(ANY, Some('h'), "help", Print(super::help), "Show this text and exit"),
    Opt::new(ANY, None, "version", Print(super::version), "Show the version and exit"),
    Opt::new(
        ANY,
        Some('d'),
        "debug",
        Flag(|t| t.verbosity = Verbosity::Debug),
        "Log everything to standard error, not to the system log",
    ),
    Opt::new(
        ANY,
        None,
        "trace",
        Flag(|t| t.verbosity = Verbosity::Trace),
        "As --debug, and a line for every packet",
    ),
    Opt::new(
        ANY,
        Some('q'),
        "quiet",
        Flag(|t| t.verbosity = Verbosity::Quiet),
        "Log only warnings and errors",
    ),
    Opt::new(
        ANY,
        Some('f'),
        "foreground",
        Flag(|t| t.foreground = true),
        "Don't go to background once ready",
    ),
    Opt::new(
        ANY,
        Some('e'),
        "stderr",
        Flag(|t| t.warnings.push("--stderr is deprecated and does nothing".to_owned())),
        "Deprecated, does nothing",
    ),
    Opt::new(
        ANY,
        Some('l'),
        "log-file",
        Path("PATH", |t, v| values::path(&mut t.log_file, "log file", v)),
        "Log to a file, not to the system log",
    ),
    Opt::new(
        ANY,
        None,
        "log-size",
        Text("BYTES", values::log_size),
        "Size that the log file never exceeds (default: 1048576)",
    ),
    Opt::new(
        ANY,
        None,
        "runas",
        Text("USER[:GROUP]", values::runas),
        "Whom to become when started as root, names or numbers (default: nobody)",
    ),
    Opt::new(
        ANY,
        Some('p'),
        "pcap",
        Path("PATH", |t, v| values::path(&mut t.pcap, "capture file", v)),
        "Capture the guest's frames to a file, in pcap format",
    ),
    Opt::new(
        ANY,
        Some('P'),
        "pid",
        Path("PATH", |t, v| values::path(&mut t.pid, "PID file", v)),
        "Write the process's number to a file",
    ),
    Opt::new(
        ANY,
        None,
        "stats",
        Text("DELAY", values::stats),
        "Print counters on standard error, every DELAY seconds at most; with --foreground only",
    ),
    Opt::new(
        ANY,
        Some('c'),
        "conf-path",
        Path("PATH", |t, v| values::socket(&mut t.conf_path, v)),
        "Socket at which pesto may show and change forwarded ports",
    ),
    Opt::new(
        ANY,
        None,
        "chroot-fallback",
        Flag(|t| t.chroot_fallback = true),
        "Isolate with chroot(2) where pivot_root(2) fails, as on an initramfs",
    ),
    Opt::new(
        ANY,
        None,
        "userns-fallback",
        Flag(|t| t.userns_fallback = true),
        "Where no user namespace can be made, go on isolated by fewer means",
    )
    .in_pasta(
        "With --fd alone: where no user namespace can be made, go on isolated by fewer means",
    ),
];

const MACHINE: &[Opt] = &[
    Opt::new(
        ANY,
        None,
        VHOST_USER,
        Flag(|_| ()), // read before all others: it chooses the mode
        "Be a vhost-user back-end",
    )
    .for_machines(),
    Opt::new(
        VM,
        Some('s'),
        "socket",
        Path("PATH", |t, v| values::socket(&mut t.socket, v)),
        "Socket to listen on (default: first free /tmp/passt_N.socket)",
    )
    .aliases(&["socket-path"]),
    Opt::new(
        ANY,
        Some('F'),
        "fd",
        Text("FD", values::fd),
        "Use an open and connected descriptor instead; implies --one-off",
    )
    .in_pasta(
        "Serve the tap that this open descriptor is of, instead of making one; exit when it goes",
    ),
    Opt::new(
        VM,
        Some('1'),
        "one-off",
        Flag(|t| t.one_off = true),
        "Exit when the first client goes away",
    ),
    Opt::new(
        ANY,
        None,
        "print-capabilities",
        Print(super::capabilities),
        "Print the back-end's capabilities as JSON and exit",
    )
    .for_machines(),
    Opt::new(
        ANY,
        None,
        "repair-path",
        Path("PATH|none", values::repair_path),
        "Socket of the helper for migration; only 'none' so far",
    )
    .for_machines(),
    Opt::new(
        VU,
        None,
        "migrate-exit",
        Flag(|t| t.warnings.push(no_migration("migrate-exit"))),
        "Deprecated, does nothing as long as there is no migration",
    ),
    Opt::new(
        VU,
        None,
        "migrate-no-linger",
        Flag(|t| t.warnings.push(no_migration("migrate-no-linger"))),
        "Deprecated, does nothing as long as there is no migration",
    ),
];

const ADDRESSES: &[Opt] = &[
    Opt::new(
        ANY,
        Some('m'),
        "mtu",
        Text("MTU", values::mtu),
        "MTU to advertise, 0 for none (default: 65520)",
    ),
    Opt::new(
        ANY,
        Some('a'),
        "address",
        Text("ADDR[/LEN]", values::guest_address),
        "The guest's address, once per IP version (default: the host's)",
    ),
    Opt::new(
        ANY,
        Some('n'),
        "netmask",
        Text("MASK", values::netmask),
        "IPv4 netmask, dotted or as a length (default: the host's)",
    ),
    Opt::new(
        ANY,
        Some('M'),
        "mac-addr",
        Text("MAC", values::mac),
        "Our MAC address (default: 9a:55:9a:55:9a:55)",
    ),
    Opt::new(
        ANY,
        Some('g'),
        "gateway",
        Text("ADDR", values::gateway),
        "Default gateway, once per IP version (default: the host's)",
    ),
    Opt::new(
        ANY,
        Some('i'),
        "interface",
        Text("NAME", |t, v| values::interface(&mut t.interface, v)),
        "Interface to take addresses and routes from",
    ),
    Opt::new(
        ANY,
        Some('o'),
        "outbound",
        Text("ADDR", values::outbound),
        "Source address towards the outside, once per IP version",
    ),
    Opt::new(
        ANY,
        None,
        "outbound-if4",
        Text("NAME", |t, v| values::interface(&mut t.outbound_if4, v)),
        "Interface that IPv4 leaves by; its addresses are used unless --interface is given",
    ),
    Opt::new(
        ANY,
        None,
        "outbound-if6",
        Text("NAME", |t, v| values::interface(&mut t.outbound_if6, v)),
        "Interface that IPv6 leaves by; its addresses are used unless --interface is given",
    ),
    Opt::new(
        ANY,
        None,
        "map-host-loopback",
        Text("ADDR|none", values::map_host_loopback),
        "The guest's name for the host's loopback address (default: the gateway)",
    ),
    Opt::new(
        ANY,
        None,
        "map-guest-addr",
        Text("ADDR|none", values::map_guest_addr),
        "The guest's name for its own address on the host (default: none)",
    ),
    Opt::new(
        ANY,
        None,
        "no-map-gw",
        Flag(|t| t.no_map_gw = true),
        "The gateway doesn't stand for the host",
    ),
    Opt::new(ANY, Some('4'), "ipv4-only", Flag(|t| t.only = Some(Family::V4)), "Disable IPv6"),
    Opt::new(ANY, Some('6'), "ipv6-only", Flag(|t| t.only = Some(Family::V6)), "Disable IPv4"),
];

const NAMES: &[Opt] = &[
    Opt::new(
        ANY,
        Some('D'),
        "dns",
        Text("ADDR|none", values::dns),
        "Resolver for the guest, may be repeated (default: from resolv.conf)",
    ),
    Opt::new(
        ANY,
        None,
        "dns-forward",
        Text("ADDR", values::dns_forward),
        "Address at which the guest finds the host's resolver",
    ),
    Opt::new(
        ANY,
        None,
        "dns-host",
        Text("ADDR", values::dns_host),
        "The host's resolver for --dns-forward (default: first of resolv.conf)",
    ),
    Opt::new(
        ANY,
        Some('S'),
        "search",
        Text("NAME|none", values::search),
        "Search domain for the guest, may be repeated (default: from resolv.conf)",
    ),
    Opt::new(ANY, Some('H'), "hostname", Text("NAME", values::hostname), "The guest's host name"),
    Opt::new(
        ANY,
        None,
        "fqdn",
        Text("NAME", values::fqdn),
        "The guest's fully qualified domain name",
    ),
    Opt::new(VM, None, "no-dhcp-dns", Flag(|t| t.no_dhcp_dns = true), "Don't hand out resolvers"),
    Opt::new(
        VM,
        None,
        "no-dhcp-search",
        Flag(|t| t.no_dhcp_search = true),
        "Don't hand out search domains",
    ),
    Opt::new(
        PASTA,
        None,
        "dhcp-dns",
        Flag(|t| t.namespace().dhcp_dns = true),
        "Hand out resolvers by DHCP, DHCPv6 and NDP",
    ),
    Opt::new(
        PASTA,
        None,
        "dhcp-search",
        Flag(|t| t.namespace().dhcp_search = true),
        "Hand out search domains by DHCP, DHCPv6 and NDP",
    ),
];

const SERVICES: &[Opt] = &[
    Opt::new(ANY, None, "no-tcp", Flag(|t| t.no_tcp = true), "Disable TCP"),
    Opt::new(ANY, None, "no-udp", Flag(|t| t.no_udp = true), "Disable UDP"),
    Opt::new(ANY, None, "no-icmp", Flag(|t| t.no_icmp = true), "Disable ICMP, ICMPv6 and NDP"),
    Opt::new(ANY, None, "no-dhcp", Flag(|t| t.no_dhcp = true), "Disable the DHCP server"),
    Opt::new(ANY, None, "no-dhcpv6", Flag(|t| t.no_dhcpv6 = true), "Disable the DHCPv6 server"),
    Opt::new(
        ANY,
        None,
        "no-ndp",
        Flag(|t| t.no_ndp = true),
        "Disable answers to neighbour and router solicitations",
    ),
    Opt::new(ANY, None, "no-ra", Flag(|t| t.no_ra = true), "Disable router advertisements"),
    Opt::new(
        ANY,
        None,
        "freebind",
        Flag(|t| t.freebind = true),
        "Allow to forward ports of addresses that the host doesn't have (yet)",
    ),
];

const PORTS: &[Opt] = &[
    Opt::new(
        ANY,
        Some('t'),
        "tcp-ports",
        Text("SPEC", |t, v| {
            t.ports.push((Protocol::Tcp, v.to_owned()));
            Ok(())
        }),
        "TCP ports to forward to the guest, may be repeated (default: none): 'none', 'all', or \
         [ADDR][%IFNAME/]PORT[-PORT][:[TARGET/]PORT[-PORT]], with commas, and ~PORT to leave out",
    )
    .in_pasta(
        "TCP ports to forward to the namespace, may be repeated (default: auto): 'none', 'all', \
         'auto' for those that are listened on, or \
         [ADDR][%IFNAME/]PORT[-PORT][:[TARGET/]PORT[-PORT]], with commas, and ~PORT to leave out",
    ),
    Opt::new(
        ANY,
        Some('u'),
        "udp-ports",
        Text("SPEC", |t, v| {
            t.ports.push((Protocol::Udp, v.to_owned()));
            Ok(())
        }),
        "UDP ports to forward to the guest, as for --tcp-ports",
    )
    .in_pasta("UDP ports to forward to the namespace, as for --tcp-ports"),
    Opt::new(
        PASTA,
        Some('T'),
        "tcp-ns",
        Text("SPEC", |t, v| {
            t.namespace().ports.push((Protocol::Tcp, v.to_owned()));
            Ok(())
        }),
        "TCP ports of the namespace's loopback interface to forward to the host's, as for \
         --tcp-ports but without an address to listen on (default: auto)",
    ),
    Opt::new(
        PASTA,
        Some('U'),
        "udp-ns",
        Text("SPEC", |t, v| {
            t.namespace().ports.push((Protocol::Udp, v.to_owned()));
            Ok(())
        }),
        "UDP ports to forward to the host, as for --tcp-ns",
    ),
];

const NAMESPACE: &[Opt] = &[
    Opt::new(
        PASTA,
        Some('I'),
        "ns-ifname",
        Text("NAME", |t, v| values::interface(&mut t.namespace().ifname, v)),
        "Name of the interface in the namespace (default: the host's, or else tap0)",
    ),
    Opt::new(
        PASTA,
        None,
        "ns-mac-addr",
        Text("MAC", values::ns_mac),
        "MAC address of the interface in the namespace (default: random)",
    ),
    Opt::new(
        PASTA,
        None,
        "userns",
        Path("PATH", values::userns),
        "User namespace to join (default: a new one, or the process's)",
    ),
    Opt::new(
        PASTA,
        None,
        "netns",
        Path("PATH|NAME", values::netns),
        "Network namespace to join, by path or by its name under /run/netns",
    ),
    Opt::new(
        PASTA,
        None,
        "netns-only",
        Flag(|t| {
            t.namespace().netns_only = true;
            t.namespace().userns = None;
        }),
        "Neither join nor create a user namespace (default with --netns and no --userns)",
    ),
    Opt::new(
        PASTA,
        None,
        "no-netns-quit",
        Flag(|t| t.namespace().no_quit = true),
        "Don't exit when the namespace that was joined disappears",
    ),
    Opt::new(
        PASTA,
        None,
        "config-net",
        Flag(|t| t.namespace().config_net = true),
        "Configure the interface in the namespace: up, with addresses and routes; implies --no-ra",
    ),
    Opt::new(
        PASTA,
        None,
        "no-copy-routes",
        Flag(|t| {
            t.namespace().no_copy_routes = true;
            t.warnings.push(deprecated("no-copy-routes", "--gateway"));
        }),
        "Deprecated: no routes but the default one, with --config-net; --gateway does the same",
    ),
    Opt::new(
        PASTA,
        None,
        "no-copy-addrs",
        Flag(|t| {
            t.namespace().no_copy_addrs = true;
            t.warnings.push(deprecated("no-copy-addrs", "--address"));
        }),
        "Deprecated: one address of each IP version, with --config-net; --address does the same",
    ),
    Opt::new(
        PASTA,
        None,
        "host-lo-to-ns-lo",
        Flag(|t| t.namespace().lo_to_lo = true),
        "Connections to the host's loopback address reach the namespace's",
    ),
    Opt::new(
        PASTA,
        None,
        "no-splice",
        Flag(|t| t.namespace().no_splice = true),
        "No direct path for connections to the host's loopback address",
    ),
    Opt::new(
        PASTA,
        None,
        "splice-only",
        Flag(|t| t.namespace().splice_only = true),
        "Only the direct path between loopback addresses: no interface in the namespace",
    ),
];

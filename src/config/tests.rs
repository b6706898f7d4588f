use super::facts::{Address, Interface, NextHop, Route};
use super::options::{Program, Request, parse};
use super::resolv::Resolv;
use super::*;
use std::net::IpAddr;

/// A host with eth0 192.0.2.5/24 and 2001:db8::5/64 behind a gateway, and wlan0 with nothing.
pub(super) fn host() -> HostFacts {
    let interface = |index, name: &str, loopback| Interface {
        index,
        name: name.to_owned(),
        loopback,
        mtu: Some(1500),
    };
    let address = |addr: &str, prefix_len, global| Address {
        global,
        ..Address::new(2, addr.parse().unwrap(), prefix_len)
    };
    let route = |destination: &str, gateway: &str| {
        let hop = NextHop::new(2, Some(gateway.parse().unwrap()));
        Route::new((destination.parse().unwrap(), 0), vec![hop])
    };
    HostFacts {
        interfaces: vec![
            interface(1, "lo", true),
            interface(2, "eth0", false),
            interface(3, "wlan0", false),
        ],
        addresses: vec![
            address("192.0.2.5", 24, true),
            address("2001:db8::5", 64, true),
            address("fe80::5", 64, false),
        ],
        routes: vec![route("0.0.0.0", "192.0.2.1"), route("::", "fe80::1")],
        ipv6: true,
        resolv: Resolv::parse("nameserver 192.0.2.53\nsearch example"),
        ephemeral: 32_768..=60_999,
    }
}

fn configured(line: &str, facts: &HostFacts) -> Result<(Machine, Vec<String>), Error> {
    let line = format!("--vhost-user {line}");
    let args: Vec<_> = line.split_whitespace().map(Into::into).collect();
    let Ok(Request::Run(mode, typed)) = parse(Program::Passt, "passt", &args) else {
        panic!("{line}");
    };
    let (config, warnings) = Config::new(mode, &typed, facts)?;
    let Config::VhostUser(machine) = config else { panic!("{line}: not vhost-user") };
    Ok((*machine, warnings))
}

#[track_caller]
fn refused(line: &str, message: &str) {
    assert_eq!(configured(line, &host()).unwrap_err().to_string(), message, "{line}");
}

#[test]
fn nothing_typed_shares_what_the_host_has() {
    let (config, warnings) = configured("", &host()).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!((config.socket, config.one_off), (Socket::ListenAnywhere, false));
    let addr: IpAddr = config.network.guest.v4.unwrap().addr.into();
    assert_eq!(addr, "192.0.2.5".parse::<IpAddr>().unwrap());
    assert_eq!(config.network.guest.v6.unwrap().addr, "2001:db8::5".parse().ok());
    assert!(config.network.forwards.is_empty());
    assert_eq!(config.process.log_size, 1 << 20);
}

#[test]
fn a_descriptor_implies_one_off_and_excludes_a_path() {
    let (config, _) = configured("-F 3", &host()).unwrap();
    assert_eq!((config.socket, config.one_off), (Socket::Connected(3), true));
    let (config, _) = configured("-s /a -1", &host()).unwrap();
    assert_eq!((config.socket, config.one_off), (Socket::Listen("/a".into()), true));
    refused("-s /a -F 3", "Options --fd and --socket exclude each other");
    refused("-F 3 -s /a", "Options --fd and --socket exclude each other");
}

/// What programs type that start passt; `+` stands for a blank inside of a word.
const CLIENTS: &[(&str, &str)] = &[
    (
        "libvirt, vhostuser",
        "--vhost-user --one-off --socket /run/libvirt/qemu/passt/1-vm-net0.socket \
         --pid /run/libvirt/qemu/passt/1-vm-net0-passt.pid --mtu 9000 --interface eth0 \
         --log-file /var/log/passt.log --hostname vm --fqdn vm.example.com \
         --address 172.17.2.4 --netmask 24 --address 2001:db8:ac10:fd01::1:20 \
         --tcp-ports 2001:db8:ac10:fd01::1:10/22:2022,1000-1050,~1020,~1030-1040 \
         --udp-ports 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015 \
         --tcp-ports 80 --tcp-ports 443:344",
    ),
    (
        "libvirt, user, as KubeVirt with Istio has it",
        "--one-off --socket /run/libvirt/qemu/passt/2-vm-net0.socket \
         --pid /run/libvirt/qemu/passt/2-vm-net0-passt.pid --interface eth0 \
         --log-file /var/run/kubevirt/passt.log --tcp-ports ~15001,~15006 --udp-ports all",
    ),
    ("libvirt 9.0.0", "--one-off --socket /run/a.socket --mac-addr 52:54:00:00:00:01"),
    (
        "qemu -netdev passt",
        "--vhost-user --quiet --mtu 1500 --address 192.0.2.9 --netmask 255.255.255.0 \
         --mac-addr 52:54:00:12:34:56 --gateway 192.0.2.1 --interface eth0 --outbound 192.0.2.5 \
         --outbound-if4 eth0 --outbound-if6 eth0 --dns 192.0.2.53 --search a.example+b.example \
         --fqdn vm.example --no-dhcp-dns --no-dhcp-search --map-host-loopback 192.0.2.2 \
         --map-guest-addr 192.0.2.3 --dns-forward 192.0.2.4 --dns-host 127.0.0.1 --no-icmp \
         --no-dhcp --no-ndp --no-dhcpv6 --no-ra --freebind --ipv4-only --tcp-ports 22,80 \
         --udp-ports 53 --pid /tmp/passt-ABCDEF.pid --fd 3",
    ),
    ("Kata Containers", "-P /tmp/kata-passt-1.pid -s /tmp/kata-passt-1.socket"),
    ("muvm", "-q -f --fd 4"),
    (
        "Cuttlefish",
        "--vhost-user --foreground -s /tmp/a.socket --repair-path none -4 -a 192.168.97.2 -n 30 \
         -g 192.168.97.1 --map-host-loopback 192.168.97.1 -D 192.0.2.53",
    ),
    (
        "wrappers of cloud-hypervisor",
        "--socket /tmp/a.socket --vhost-user --foreground --quiet -a 10.0.2.15 -g 10.0.2.2 \
         --dns-forward 10.0.2.3",
    ),
];

#[test]
fn what_real_clients_type_is_understood_without_a_warning() {
    for (client, line) in CLIENTS {
        let args: Vec<_> =
            line.split_whitespace().map(|word| word.replace('+', " ").into()).collect();
        let Ok(Request::Run(mode, typed)) = parse(Program::Passt, "passt", &args) else {
            panic!("{client}");
        };
        let (config, warnings) = Config::new(mode, &typed, &host()).expect(client);
        assert!(warnings.is_empty(), "{client}: {warnings:?}");
        let rings = matches!(config, Config::VhostUser(_));
        assert_eq!(rings, line.contains("--vhost-user"), "{client}");
        let (Config::VhostUser(machine) | Config::Stream(machine)) = config else {
            panic!("{client}: not passt");
        };
        assert_eq!(machine.one_off, line.contains("-one-off") || line.contains("-fd"), "{client}");
        let search = &machine.network.guest.dns.search;
        assert!(!line.contains('+') || search == &["a.example", "b.example"], "{search:?}");
    }
}

#[test]
fn counters_are_shown_in_the_foreground_only_whatever_the_order() {
    for line in ["-f --stats 5", "--stats 5 -f"] {
        assert_eq!(configured(line, &host()).unwrap().0.process.stats, Some(5));
    }
    refused("--stats 5", "Option --stats needs --foreground");
}

#[test]
fn a_netmask_beside_an_address_with_a_length_is_redundant() {
    let message = "Redundant netmask: given with --netmask and with --address";
    refused("-a 192.0.2.7/24 -n 24", message);
    refused("-n 24 -a 192.0.2.7/24", message);
    refused("-a 192.0.2.7/24 -a fd00::1 -n 16", message);
    for line in
        ["-n 24 -a fd00::1/64", "-n 24", "-n 24 -a 192.0.2.7", "-a 192.0.2.7/8 -a 192.0.2.7 -n 24"]
    {
        let (config, _) = configured(line, &host()).unwrap();
        assert_eq!(config.network.guest.v4.unwrap().prefix_len, 24, "{line}");
    }
}

#[test]
fn an_interface_must_exist_and_should_have_an_address() {
    refused("-i bogus0", "Invalid interface name bogus0: no such interface");
    let (config, warnings) = configured("-i wlan0", &host()).unwrap();
    assert_eq!(config.network.templates, Templates::default());
    assert_eq!(warnings, ["Interface wlan0 has no usable address: local mode"]);
    assert!(configured("-i eth0", &host()).unwrap().1.is_empty());
}

#[test]
fn traffic_leaves_by_the_interface_that_was_asked_for_and_looks_like_it() {
    let mut host = host();
    let mut elsewhere = host.addresses[0];
    (elsewhere.interface, elsewhere.addr) = (3, "198.51.100.7".parse().unwrap());
    host.addresses.push(elsewhere);
    let wlan = Device { name: "wlan0".to_owned(), index: 3 };

    let (config, warnings) = configured("--outbound-if4 wlan0", &host).unwrap();
    let network = config.network;
    assert_eq!(network.devices, Devices { v4: Some(wlan.clone()), v6: None });
    assert_eq!(network.guest.v4.as_ref().unwrap().addr.to_string(), "198.51.100.7");
    assert_eq!(network.guest.v6.as_ref().unwrap().addr, "2001:db8::5".parse().ok());
    assert_eq!((network.scope(), &*warnings), (2, &[][..]));
    let summary = network.summary();
    assert!(summary.contains(&"Outbound interface: wlan0 (IPv4)".to_owned()), "{summary:?}");

    let (config, _) =
        configured("--outbound-if4 wlan0 --outbound-if6 wlan0 -i eth0", &host).unwrap();
    let network = config.network;
    assert_eq!(network.devices, Devices { v4: Some(wlan.clone()), v6: Some(wlan) });
    assert_eq!(network.guest.v4.as_ref().unwrap().addr.to_string(), "192.0.2.5");
    assert_eq!(network.scope(), 3);

    let (config, warnings) = configured("--outbound-if6 wlan0", &host).unwrap();
    assert_eq!(config.network.guest.v6.unwrap().addr, None);
    assert_eq!(warnings, ["Interface wlan0 has no usable IPv6 address: local mode"]);
    let message = "Invalid interface name bogus0: no such interface";
    refused("--outbound-if4 bogus0", message);
    refused("-4 -i eth0 --outbound-if6 bogus0", message);
    assert!(configured("-4 --outbound-if6 wlan0", &host).unwrap().1.is_empty());
}

#[test]
fn families_are_on_unless_switched_off_or_unknown_to_the_kernel() {
    let families = |line: &str, facts: &HostFacts| {
        configured(line, facts)
            .map(|(c, _)| (c.network.guest.v4.is_some(), c.network.guest.v6.is_some()))
    };
    let without = HostFacts { ipv6: false, ..host() };
    assert_eq!(families("", &host()), Ok((true, true)));
    assert_eq!(families("-4", &host()), Ok((true, false)));
    assert_eq!(families("-6", &host()), Ok((false, true)));
    assert_eq!(families("", &without), Ok((true, false)));
    assert_eq!(families("-6", &without), Err(Error::NoIpv6));
}

#[test]
fn ports_are_forwarded_whatever_the_order_of_options() {
    let rules = |line: &str| {
        let (config, _) = configured(line, &host()).unwrap();
        config.network.forwards.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        rules("-t 22 -4 -u 53:5353"),
        ["TCP [0.0.0.0]:22  =>  22", "UDP [0.0.0.0]:53  =>  5353"]
    );
    assert_eq!(rules("-t none --no-tcp"), [""; 0]);
    assert_eq!(rules("-u 53 --no-tcp").len(), 1);
    refused("-t 22 --no-tcp", "TCP port forwarding requested, but TCP is disabled");
    refused("--no-udp -u 53", "UDP port forwarding requested, but UDP is disabled");
    refused("-t ::1/22 -4", "IPv6 forward, but IPv6 not enabled");
    refused("-6 -t 127.0.0.1/22", "IPv4 forward, but IPv4 not enabled");
    refused("-t auto", "'auto' port forwarding is only allowed for pasta");
}

#[test]
fn the_user_is_warned_of_what_is_odd() {
    let warned = |line: &str, facts: &HostFacts| configured(line, facts).unwrap().1.join("|");
    assert_eq!(warned("-m 1279", &host()), "MTU 1279 is below the minimum of 1280");
    assert_eq!(warned("-m 1279 -4", &host()), "");
    assert_eq!(warned("-m 67 -4", &host()), "MTU 67 is below the minimum of 68");
    assert_eq!(warned("-m 0", &host()), "", "0 asks for silence, not for a small MTU");
    let no_dns = HostFacts { resolv: Resolv::default(), ..host() };
    assert_eq!(warned("", &no_dns), "Couldn't get any nameserver address");
    assert_eq!(warned("-D none", &no_dns), "");
    assert_eq!(warned("-D 192.0.2.1", &no_dns), "");
    assert_eq!(warned("-e", &host()), "--stderr is deprecated and does nothing");
}

#[test]
fn without_vhost_user_the_socket_is_a_stream() {
    let of = |mode| Config::new(mode, &Typed::default(), &host());
    let (Ok((Config::Stream(stream), _)), Ok((Config::VhostUser(rings), _))) =
        (of(Mode::Passt), of(Mode::VhostUser))
    else {
        panic!("each mode has its link");
    };
    assert_eq!(stream, rings);
    assert!(matches!(of(Mode::Pasta), Ok((Config::Pasta(_), _))));
}

#[test]
fn the_summary_tells_what_the_guest_gets() {
    let (config, _) = configured("-t 22 -o 192.0.2.5", &host()).unwrap();
    assert_eq!(
        config.network.summary().join("\n"),
        "\
Template interface: eth0 (IPv4)
Outbound address: 192.0.2.5 (IPv4)
NAT to host 127.0.0.1: 192.0.2.1
DHCP:
    assign: 192.0.2.5
    mask: 255.255.255.0
    router: 192.0.2.1
Template interface: eth0 (IPv6)
NAT to host ::1: fe80::1
NDP/DHCPv6:
    assign: 2001:db8::5
    router: fe80::1
    our link-local: fe80::1
MAC: 9a:55:9a:55:9a:55
DNS:
    192.0.2.53
DNS search list:
    example
Inbound forwarding rules (HOST):
    TCP [*]:22  =>  22"
    );
    let facts = HostFacts { addresses: Vec::new(), ..host() };
    let (config, _) = configured("-4 --no-dhcp -D none -S none --no-map-gw", &facts).unwrap();
    assert_eq!(
        config.network.summary(),
        ["No template interface for IPv4: local mode", "MAC: 9a:55:9a:55:9a:55"]
    );
}

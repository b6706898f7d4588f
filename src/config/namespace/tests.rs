use super::super::options::{Program, Request, Verbosity, parse};
use super::super::tests::host;
use super::*;
use crate::config::Config;
use crate::config::resolv::Resolv;

fn any(line: &str, facts: &HostFacts) -> Result<(Config, Vec<String>), String> {
    let args: Vec<_> = line.split_whitespace().map(Into::into).collect();
    let (mode, typed) = match parse(Program::Pasta, "pasta", &args) {
        Ok(Request::Run(mode, typed)) => (mode, typed),
        Ok(other) => panic!("{line}: {other:?}"),
        Err(e) => return Err(e.to_string()),
    };
    Config::new(mode, &typed, facts).map_err(|e| e.to_string())
}

fn configured(line: &str, facts: &HostFacts) -> Result<(Pasta, Vec<String>), String> {
    match any(line, facts)? {
        (Config::Pasta(pasta), warnings) => Ok((*pasta, warnings)),
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn pasta(line: &str) -> Pasta {
    let (pasta, warnings) = configured(line, &host()).expect(line);
    assert!(warnings.is_empty(), "{line}: {warnings:?}");
    pasta
}

fn rules(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_typed_is_a_shell_with_all_that_is_the_default() {
    let pasta = pasta("");
    assert_eq!(pasta.target, Target::Shell);
    assert_eq!((pasta.userns, pasta.netns_only, pasta.quit), (None, false, true));
    let tap = Tap { name: "eth0".to_owned(), mac: None, mtu: Some(65_520) };
    assert_eq!((pasta.tap, pasta.config_net), (Some(tap), None));
    assert_eq!((pasta.splice, pasta.lo_to_lo, pasta.hostname), (true, false, None));
    let dns = pasta.network.guest.dns;
    assert!(!dns.advertise_servers && !dns.advertise_search);
    assert_eq!(dns.v4.len(), 1, "it may be forwarded all the same");
    assert!(pasta.network.guest.services.ra && pasta.network.protocols.icmp);
}

#[test]
fn words_behind_the_options_say_which_namespace() {
    let command =
        |words: &str| Target::Command(words.split(' ').map(OsString::from).collect::<Vec<_>>());
    for (line, target) in [
        ("-4 -f", Target::Shell),
        ("ls", command("ls")),
        ("-4 ls -4", command("ls -4")),
        ("grep -F x f", command("grep -F x f")),
        ("x --vhost-user --fd 3 --version", command("x --vhost-user --fd 3 --version")),
        ("-- -x", command("-x")),
        ("-4 -- ls -- -l", command("ls -- -l")),
        ("ls -- -l", command("ls -- -l")),
        ("ls --", command("ls --")),
        ("123abc", command("123abc")),
        ("123 456", command("123 456")),
        ("-123 x", Target::Shell),
        ("123", Target::Pid(123)),
        ("-- 0123", Target::Pid(123)),
        ("2147483647", Target::Pid(i32::MAX)),
        ("--netns a", Target::Path("/run/netns/a".into())),
        ("--netns /a", Target::Path("/a".into())),
        ("--netns ./a", Target::Path("./a".into())),
        ("--netns=/proc/1/ns/net", Target::Path("/proc/1/ns/net".into())),
    ] {
        if line == "-123 x" {
            assert!(configured(line, &host()).unwrap_err().contains("invalid option -- '"));
        } else {
            assert_eq!(pasta(line).target, target, "{line}");
        }
    }
    for (line, message) in [
        ("2147483648", "Invalid PID: 2147483648"),
        ("99999999999999999999", "Invalid PID: 99999999999999999999"),
        ("0", "Invalid PID: 0"),
        ("--netns a 1", "Both --netns and PID or command given"),
        ("--netns a ls -l", "Both --netns and PID or command given"),
        ("--netns= 1", "Invalid network namespace: empty path"),
        ("--userns=", "Invalid user namespace: empty path"),
    ] {
        assert_eq!(configured(line, &host()).unwrap_err(), message, "{line}");
    }
}

#[test]
fn a_command_is_waited_for_and_has_the_terminal_for_itself() {
    let of = |line: &str| {
        let process = pasta(line).process;
        (process.foreground, process.verbosity)
    };
    for (line, expected) in [
        ("ls", (true, Verbosity::Quiet)),
        ("", (true, Verbosity::Quiet)),
        ("-d ls", (true, Verbosity::Debug)),
        ("--trace ls", (true, Verbosity::Trace)),
        ("-d -q ls", (true, Verbosity::Quiet)),
        ("1", (false, Verbosity::Info)),
        ("-f 1", (true, Verbosity::Info)),
        ("-q --netns a", (false, Verbosity::Quiet)),
        ("--netns a", (false, Verbosity::Info)),
    ] {
        assert_eq!(of(line), expected, "{line}");
    }
    assert_eq!(pasta("--stats 1 ls").process.stats, Some(1));
    assert_eq!(pasta("--stats 1 -f 1").process.stats, Some(1));
    let refused = configured("--stats 1 1", &host()).unwrap_err();
    assert_eq!(refused, "Option --stats needs --foreground");
}

#[test]
fn the_last_word_on_the_user_namespace_counts() {
    let of = |line: &str| {
        let pasta = pasta(line);
        (pasta.userns.map(|path| path.display().to_string()), pasta.netns_only)
    };
    let path = |path: &str| Some(path.to_owned());
    for (line, expected) in [
        ("ls", (None, false)),
        ("1", (None, false)),
        ("--netns-only ls", (None, true)),
        ("--netns-only 1", (None, true)),
        ("--userns /u 1", (path("/u"), false)),
        ("--userns /u --netns-only 1", (None, true)),
        ("--netns-only --userns /u 1", (path("/u"), false)),
        ("--netns a", (None, true)),
        ("--netns a --userns /u", (path("/u"), false)),
        ("--userns /u --netns a --netns-only", (None, true)),
    ] {
        assert_eq!(of(line), expected, "{line}");
    }
    assert!(!pasta("--no-netns-quit 1").quit);
}

#[test]
fn the_interface_inside_is_named_after_the_hosts() {
    let name = |line: &str, facts: &HostFacts| {
        configured(line, facts).expect(line).0.tap.expect("is there").name
    };
    let mut host = host();
    assert_eq!(name("", &host), "eth0");
    assert_eq!(name("-6", &host), "eth0");
    assert_eq!(name("-I x0", &host), "x0");
    assert_eq!(name("-i wlan0", &host), "tap0", "it has no address");
    let mut elsewhere = host.addresses[1];
    (elsewhere.interface, elsewhere.addr) = (3, "2001:db8:1::5".parse().unwrap());
    host.addresses.push(elsewhere);
    assert_eq!(name("--outbound-if6 wlan0", &host), "eth0", "IPv4 comes first");
    assert_eq!(name("-i wlan0", &host), "wlan0", "IPv6 alone");
    assert_eq!(name("-i wlan0 -4", &host), "tap0");
    host.addresses.clear();
    assert_eq!(name("", &host), "tap0");
}

#[test]
fn link_options_are_for_the_interface_inside() {
    let tap = |line: &str| pasta(line).tap.expect("is there");
    assert_eq!(tap("-m 1500").mtu, Some(1500));
    assert_eq!(tap("-m 0").mtu, None);
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    assert_eq!(tap("--ns-mac-addr 02:00:00:00:00:01").mac, Some(mac));
    for line in ["--ns-mac-addr 00:00:00:00:00:00", "--ns-mac-addr 01:00:00:00:00:00"] {
        let refused = configured(line, &host()).unwrap_err();
        assert!(refused.starts_with("Invalid MAC address: "), "{refused}");
    }
    let long = configured("-I 0123456789abcdef", &host()).unwrap_err();
    assert_eq!(long, "Invalid interface name: 0123456789abcdef");
}

#[test]
fn what_is_configured_is_not_advertised_too() {
    let configured = pasta("--config-net");
    assert!(configured.config_net.is_some());
    let services = configured.network.guest.services;
    assert!(!services.ra && services.ndp && services.dhcp && services.dhcpv6);
    let dns = pasta("--dhcp-dns --dhcp-search").network.guest.dns;
    assert!(dns.advertise_servers && dns.advertise_search);
}

#[test]
fn spliced_alone_there_is_no_interface_and_nothing_to_serve_on_it() {
    let only = pasta("--splice-only --config-net");
    assert_eq!((only.tap.as_ref(), only.config_net.as_ref()), (None, None));
    assert!(only.splice && only.lo_to_lo && !only.network.protocols.icmp);
    let guest = &only.network.guest;
    assert!(!guest.services.ndp && !guest.services.ra);
    assert!(guest.dns.v4.is_empty() && guest.dns.v6.is_empty() && guest.dns.search.is_empty());
    let no_dns = HostFacts { resolv: Resolv::default(), ..host() };
    assert!(configured("--splice-only", &no_dns).unwrap().1.is_empty());
    assert!(pasta("--host-lo-to-ns-lo").lo_to_lo);
    assert!(!pasta("--no-splice").splice);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for (line, message) in [
        ("--no-splice --splice-only", "Options --no-splice and --splice-only exclude each other"),
        (
            "--host-lo-to-ns-lo --no-splice",
            "Options --no-splice and --host-lo-to-ns-lo exclude each other",
        ),
        ("--no-copy-routes", "Option --no-copy-routes needs --config-net"),
        ("--no-copy-addrs 1", "Option --no-copy-addrs needs --config-net"),
        ("--fd 3 --splice-only 1", "Options --fd and --splice-only exclude each other"),
        ("--fd 3 -I x0", "Options --fd and --ns-ifname exclude each other"),
        ("--fd 3 ls", "Both --fd and command given"),
        ("--netns a --fd 3 ls", "Both --netns and PID or command given"),
        ("--no-tcp -t 22", "TCP port forwarding requested, but TCP is disabled"),
        ("--no-tcp -t auto", "TCP port forwarding requested, but TCP is disabled"),
        ("-T 22 --no-tcp", "TCP port forwarding requested, but TCP is disabled"),
        ("-U auto --no-udp", "UDP port forwarding requested, but UDP is disabled"),
        (
            "-T 127.0.0.1/22",
            "Invalid port specifier '127.0.0.1/22': listening address not allowed here",
        ),
        ("-U %lo/22", "Invalid port specifier '%lo/22': listening address not allowed here"),
        ("-T 22 -T none", "TCP ports: 'none' given after other port rules"),
        ("-4 -t ::1/22", "IPv6 forward, but IPv6 not enabled"),
    ] {
        assert_eq!(configured(line, &host()).unwrap_err(), message, "{line}");
    }
    for (line, warning) in [
        ("--config-net --no-copy-routes", "--no-copy-routes is deprecated, use --gateway"),
        ("--config-net --no-copy-addrs", "--no-copy-addrs is deprecated, use --address"),
    ] {
        assert_eq!(configured(line, &host()).unwrap().1, [warning]);
    }
}

#[test]
fn where_there_is_but_an_interface_nothing_is_done_inside() {
    let machine = |line: &str| match any(line, &host()).expect(line) {
        (Config::Tap(machine), warnings) if warnings.is_empty() => machine,
        other => panic!("{line}: {other:?}"),
    };
    let alone = machine("--fd 7");
    assert_eq!((alone.socket, alone.one_off), (Socket::Connected(7), true));
    assert!(alone.network.forwards.is_empty(), "nobody can look who listens");
    assert!(!alone.network.guest.dns.advertise_servers, "as in other namespaces");
    assert_eq!(machine("-F 7 -t 22 -u none -T none --no-splice").network.forwards.len(), 1);
    for (line, option) in [
        ("--config-net", "--config-net"),
        ("--ns-mac-addr 0a:00:00:00:00:01", "--ns-mac-addr"),
        ("--host-lo-to-ns-lo", "--host-lo-to-ns-lo"),
        ("-T 22", "--tcp-ns"),
        ("-U auto", "--udp-ns"),
        ("-t 22,auto", "--tcp-ports auto"),
        ("-u auto", "--udp-ports auto"),
        ("--userns /proc/1/ns/user", "--userns"),
    ] {
        let refused = any(&format!("--fd 7 {line}"), &host()).unwrap_err();
        assert_eq!(refused, format!("Option {option} needs --netns or a PID"));
    }
}

#[test]
fn an_interface_of_someone_elses_in_a_namespace_that_is_known_is_like_ours() {
    for line in ["--fd 7 1", "--fd 7 --netns a", "1"] {
        let pasta = pasta(&format!("--config-net -t 22 -T 23 {line}"));
        assert_eq!(pasta.given, line != "1", "{line}");
        assert!(pasta.config_net.is_some() && pasta.splice, "{line}");
        let named = pasta.summary().iter().any(|line| line.starts_with("Namespace interface: "));
        assert_eq!(named, line == "1", "{line}: its name is not known yet");
    }
}

#[test]
fn ports_are_looked_for_on_the_other_side_unless_named() {
    let all = |protocol: &str, at: &str, left_out: (u16, u16)| {
        let (before, after) = (left_out.0 - 1, left_out.1 + 1);
        [
            format!("{protocol} {at}:1-{before}  =>  1-{before}  (best effort)  (auto-scan)"),
            format!("{protocol} {at}:{after}-65535  =>  {after}-65535  (best effort)  (auto-scan)"),
        ]
    };
    let ephemeral = (32_768, 60_999);
    let both = |at: &str| [all("TCP", at, ephemeral), all("UDP", at, ephemeral)].concat();
    let of = |line: &str| {
        let pasta = pasta(line);
        (rules(&pasta.network.forwards), rules(&pasta.inside))
    };
    assert_eq!(of(""), (both("[*]"), both("[*]%lo")));
    assert_eq!(of("-4"), (both("[0.0.0.0]"), both("[0.0.0.0]%lo")));
    assert_eq!(of("-6"), (both("[::]"), both("[::]%lo")));
    let tcp = |at: &str| all("TCP", at, ephemeral).to_vec();
    let udp = |at: &str| all("UDP", at, ephemeral).to_vec();
    assert_eq!(of("--no-tcp"), (udp("[*]"), udp("[*]%lo")));
    assert_eq!(of("--no-udp -u none"), (tcp("[*]"), tcp("[*]%lo")));
    assert_eq!(of("--no-udp --no-tcp"), (vec![], vec![]));
    assert_eq!(of("-t none -u none -T none -U none"), (vec![], vec![]));
    let (forwards, inside) = of("-t 2022:22 -U 53");
    assert_eq!(forwards, [udp("[*]"), vec!["TCP [*]:2022  =>  22".to_owned()]].concat());
    assert_eq!(inside, [tcp("[*]%lo"), vec!["UDP [*]%lo:53  =>  53".to_owned()]].concat());
}

#[test]
fn a_missing_resolver_matters_only_where_it_is_handed_out() {
    let no_dns = HostFacts { resolv: Resolv::default(), ..host() };
    let warned = |line: &str| configured(line, &no_dns).expect(line).1.join("|");
    assert_eq!(warned(""), "");
    for line in ["--dhcp-dns", "--dns-forward 192.0.2.3"] {
        assert_eq!(warned(line), "Couldn't get any nameserver address", "{line}");
    }
}

#[test]
fn a_host_name_is_for_those_who_run_inside() {
    assert_eq!(pasta("-H a ls").hostname.as_deref(), Some("a"));
    let joined = pasta("-H a 1");
    assert_eq!(joined.hostname, None);
    assert_eq!(joined.network.guest.dns.hostname.as_deref(), Some("a"));
}

#[test]
fn what_podman_and_rootlesskit_type_is_understood_without_a_warning() {
    let podman = pasta(
        "--config-net --address 10.0.0.5 -t 127.0.0.1/8080-8080:80-80 -u ::1/53-53:53-53 \
         --dns-forward 169.254.1.1 -T none -U none --no-map-gw --quiet \
         --netns /run/user/1000/netns/netns-1 --map-guest-addr 169.254.1.2",
    );
    assert_eq!(podman.target, Target::Path("/run/user/1000/netns/netns-1".into()));
    assert!(podman.netns_only && podman.inside.is_empty());
    assert_eq!(podman.network.translation.v4.host_loopback, None);
    let rootlesskit = "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 \
         --netmask=24 --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only \
         --tcp-ports=auto --udp-ports=auto --host-lo-to-ns-lo";
    for (target, netns_only) in
        [("4711", false), ("--userns=/proc/4711/ns/user --netns=/run/netns", false)]
    {
        let line = format!("{rootlesskit} {target}");
        let (pasta, warnings) = configured(&line, &host()).unwrap();
        assert_eq!(warnings, ["--stderr is deprecated and does nothing"]);
        assert_eq!(pasta.netns_only, netns_only);
        assert_eq!(pasta.tap.expect("is there").name, "tap0");
        assert!(pasta.network.forwards.iter().all(|rule| rule.auto && rule.listen.is_some()));
    }
}

#[test]
fn the_summary_tells_what_is_inside() {
    let all = pasta("-t 22 -u none -T 80 -U none -I x0").summary();
    for line in [
        "Namespace interface: x0",
        "Template interface: eth0 (IPv4)",
        "    assign: 192.0.2.5",
        "Inbound forwarding rules (HOST):",
        "    TCP [*]:22  =>  22",
        "Outbound forwarding rules (SPLICE):",
        "    TCP [*]%lo:80  =>  80",
    ] {
        assert!(all.iter().any(|l| l == line), "{line} in {all:?}");
    }
    assert!(!all.contains(&"DNS:".to_owned()), "{all:?}");
    let only = pasta("--splice-only -t 22 -u none -T none -U none").summary();
    assert_eq!(only, ["Inbound forwarding rules (HOST):", "    TCP [*]:22  =>  22"]);
}

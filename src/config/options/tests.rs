use super::*;
use proptest::prelude::*;

fn args(line: &str) -> Vec<OsString> {
    line.split(' ').filter(|w| !w.is_empty()).map(|w| OsString::from(w.replace('_', " "))).collect()
}

/// Parses a line of words; an underscore stands for a blank inside of one.
fn request(line: &str) -> Result<Request, Error> {
    parse(Program::Passt, "passt", &args(line))
}

#[track_caller]
fn typed(line: &str) -> Typed {
    match request(line) {
        Ok(Request::Run(_, typed)) => *typed,
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn refused(line: &str) -> String {
    let error = request(line).expect_err(line);
    assert!(!error.message.contains('\n'), "{error}");
    error.message
}

#[test]
fn the_table_is_a_sound_clap_command() {
    command(Program::Passt).debug_assert();
    command(Program::Pasta).debug_assert();
}

#[test]
fn help_names_every_supported_option_of_the_program() {
    let text = help(Program::Passt);
    for option in options().filter(|o| o.exists_in(Mode::VhostUser)) {
        for name in std::iter::once(&option.long).chain(option.aliases) {
            assert!(text.contains(&format!("--{name}")), "{name}");
        }
    }
    assert!(!text.contains("--netns"), "{text}");
    let text = help(Program::Pasta);
    for option in options().filter(|o| o.documented_in(Mode::Pasta)) {
        assert!(text.contains(&format!("--{}", option.long)), "{}", option.long);
    }
    assert!(!text.contains("--one-off") && !text.contains("guest's"), "{text}");
}

#[test]
fn flags_set_what_they_name() {
    for (line, set) in [
        ("-f", (|t| t.foreground) as fn(&Typed) -> bool),
        ("--foreground", |t| t.foreground),
        ("-1", |t| t.one_off),
        ("--one-off", |t| t.one_off),
        ("--no-map-gw", |t| t.no_map_gw),
        ("--no-tcp", |t| t.no_tcp),
        ("--no-udp", |t| t.no_udp),
        ("--no-icmp", |t| t.no_icmp),
        ("--no-dhcp", |t| t.no_dhcp),
        ("--no-dhcpv6", |t| t.no_dhcpv6),
        ("--no-ndp", |t| t.no_ndp),
        ("--no-ra", |t| t.no_ra),
        ("--freebind", |t| t.freebind),
        ("--chroot-fallback", |t| t.chroot_fallback),
        ("--userns-fallback", |t| t.userns_fallback),
        ("--no-dhcp-dns", |t| t.no_dhcp_dns),
        ("--no-dhcp-search", |t| t.no_dhcp_search),
        ("-4", |t| t.only == Some(Family::V4)),
        ("--ipv4-only", |t| t.only == Some(Family::V4)),
        ("-4 -6", |t| t.only == Some(Family::V6)),
        ("-d", |t| t.verbosity == Verbosity::Debug),
        ("-q -d", |t| t.verbosity == Verbosity::Debug),
        ("-d -q", |t| t.verbosity == Verbosity::Quiet),
        ("--quiet --trace", |t| t.verbosity == Verbosity::Trace),
        ("--trace --debug", |t| t.verbosity == Verbosity::Debug),
        ("-e", |t| t.warnings.len() == 1),
    ] {
        assert!(set(&typed(line)), "{line}");
        assert!(!set(&typed("")), "{line} is the default");
    }
}

#[test]
fn values_are_set() {
    for (line, set) in [
        ("-s /a/b", (|t| t.socket == Some("/a/b".into())) as fn(&Typed) -> bool),
        ("--socket=/a", |t| t.socket == Some("/a".into())),
        ("--socket-path /a", |t| t.socket == Some("/a".into())),
        ("-F 3", |t| t.fd == Some(3)),
        ("--fd 0x10", |t| t.fd == Some(16)),
        ("-l /a", |t| t.log_file == Some("/a".into())),
        ("--log-size 0xa000", |t| t.log_size == Some(40_960)),
        ("-p /a", |t| t.pcap == Some("/a".into())),
        ("-P /a", |t| t.pid == Some("/a".into())),
        ("-m 1500", |t| t.mtu == Some(1500)),
        ("-m 0", |t| t.mtu == Some(0)),
        ("-m 65521", |t| t.mtu == Some(65_521)),
        ("-m 0x500", |t| t.mtu == Some(1280)),
        ("-m 02400", |t| t.mtu == Some(1280)),
        ("-M 02:00:00:AB:cd:ef", |t| t.mac == Some(MacAddr([2, 0, 0, 0xab, 0xcd, 0xef]))),
        ("-i eth0", |t| t.interface.as_deref() == Some("eth0")),
        ("-n 255.255.255.0", |t| t.netmask == Some(24)),
        ("-n 24", |t| t.netmask == Some(24)),
        ("-n 0", |t| t.netmask == Some(0)),
        ("-n 0.0.0.0", |t| t.netmask == Some(0)),
        ("-n 255.255.255.255", |t| t.netmask == Some(32)),
        ("--runas a:b", |t| t.runas.as_deref() == Some("a:b")),
        ("-H host", |t| t.hostname.as_deref() == Some("host")),
        ("--fqdn a.b.c.", |t| t.fqdn.as_deref() == Some("a.b.c.")),
        ("-S a -S b.c", |t| t.search == ["a", "b.c"]),
        ("-S a_b__c", |t| t.search == ["a", "b", "c"]),
        ("-S a -S none", |t| t.search.is_empty() && t.no_search),
        ("-S none -S a", |t| t.search == ["a"] && !t.no_search),
        ("--repair-path none", |_| true),
    ] {
        assert!(set(&typed(line)), "{line}: {:?}", typed(line));
    }
}

#[test]
fn addresses_go_to_their_family() {
    let t =
        typed("-a 192.0.2.1 -a 2001:db8::1 -g 192.0.2.2 -g fe80::1 -o 192.0.2.3 -o 2001:db8::3");
    assert_eq!(t.v4.address, Some((Ipv4Addr::new(192, 0, 2, 1), None)));
    assert_eq!(t.v6.address, Some(("2001:db8::1".parse().unwrap(), None)));
    assert_eq!(t.v4.gateway, Some(Ipv4Addr::new(192, 0, 2, 2)));
    assert_eq!(t.v6.gateway, Some("fe80::1".parse().unwrap()));
    assert_eq!(t.v4.outbound, Some(Ipv4Addr::new(192, 0, 2, 3)));
    assert_eq!(t.v6.outbound, Some("2001:db8::3".parse().unwrap()));

    let t = typed("-a 192.0.2.1/24 -a 192.0.2.9/16 -a ::ffff:192.0.2.8/120 -a 2001:db8::1/48");
    assert_eq!(t.v4.address, Some((Ipv4Addr::new(192, 0, 2, 8), Some(24))), "the last one wins");
    assert_eq!(t.v6.address, Some(("2001:db8::1".parse().unwrap(), Some(48))));

    let t = typed(
        "--map-host-loopback 192.0.2.1 --map-host-loopback fe80::9 --map-guest-addr 192.0.2.2",
    );
    assert_eq!(t.v4.map_host_loopback, Some(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(t.v6.map_host_loopback, Some("fe80::9".parse().unwrap()));
    assert_eq!(t.v4.map_guest_addr, Some(Ipv4Addr::new(192, 0, 2, 2)));
    assert!(!t.no_map_gw);

    let t = typed("--map-host-loopback 192.0.2.1 --map-host-loopback none --map-guest-addr none");
    assert_eq!((t.v4.map_host_loopback, t.no_map_gw), (None, true));
}

#[test]
fn dns_none_forgets_what_came_before() {
    let t = typed("--dns-forward 192.0.2.1 --dns-host 127.0.0.53 -D 192.0.2.2 -D 2001:db8::2");
    assert_eq!(t.v4.dns_forward, Some(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(t.v4.dns_host, Some(Ipv4Addr::new(127, 0, 0, 53)));
    assert_eq!(t.dns.len(), 2);
    let t = typed("--dns-forward 192.0.2.1 --dns-host 127.0.0.53 -D 192.0.2.2 -D none");
    assert_eq!(t, Typed { no_dns: true, ..Typed::default() });
    let t = typed("-D none -D 192.0.2.2");
    assert!(!t.no_dns && t.dns.len() == 1);
    let t = typed("-D 192.0.2.1 -D 192.0.2.2 -D 192.0.2.3 -D 192.0.2.4 -D 2001:db8::1");
    assert_eq!((t.dns.len(), t.warnings.len()), (4, 1));
}

#[test]
fn bad_values_are_refused_in_one_line() {
    let long_name = format!("-H {}", "a".repeat(254));
    let long_label = format!("--fqdn {}.b", "a".repeat(64));
    let long_path = format!("-s /{}", "a".repeat(107));
    for line in [
        "-m 65522",
        "-m -1",
        "-m 1500x",
        "-m +5",
        "-m 0x",
        "-m 09",
        "-m=",
        "-m 99999999999999999999",
        "-F -1",
        "-F x",
        "-F 2147483648",
        "--stats 0",
        "--stats -1",
        "--stats 1s",
        "--stats 4294967296",
        "--stats= -f",
        "--log-size 40959",
        "--log-size 1M",
        "-a 0.0.0.0",
        "-a 127.0.0.1",
        "-a 224.0.0.1",
        "-a 255.255.255.255",
        "-a ::",
        "-a ::1",
        "-a ff02::1",
        "-a 1.2.3.4/33",
        "-a fd00::1/129",
        "-a 1.2.3.4/",
        "-a 1.2.3.4/+1",
        "-a x",
        "-a ::ffff:1.2.3.4/95",
        "-a ::ffff:127.0.0.1",
        "-n 33",
        "-n 255.0.255.0",
        "-n x",
        "-n 0.0.0.255",
        "-M 9a:55:9a:55:9a",
        "-M 9a:55:9a:55:9a:5",
        "-M 9a:55:9a:55:9a:555",
        "-M 01:00:00:00:00:00",
        "-M 9a-55-9a-55-9a-55",
        "-M 9a:55:9a:55:9a:55:",
        "-M +a:55:9a:55:9a:55",
        "-g 0.0.0.0",
        "-g 127.0.0.1",
        "-g 255.255.255.255",
        "-g ::1",
        "-g x",
        "-o 255.255.255.255",
        "-o 224.0.0.1",
        "-o ::1",
        "-o ff02::1",
        "-o ::ffff:1.2.3.4",
        "-D x",
        "-D 0.0.0.0",
        "--dns= -f",
        "--dns-forward 127.0.0.1",
        "--dns-forward ::",
        "--dns-forward 255.255.255.255",
        "--dns-host 0.0.0.0",
        "--dns-host 255.255.255.255",
        "--search= -f",
        "-S a -S b -S c -S d -S e -S f -S g",
        "-S a..b",
        "-H .",
        &long_name,
        &long_label,
        "-i 0123456789abcdef",
        "-i a/b",
        "--interface= -f",
        "--outbound-if4 0123456789abcdef",
        "--outbound-if6 a/b",
        "--map-host-loopback 127.0.0.1",
        "--map-host-loopback ::",
        "--map-guest-addr 224.0.0.1",
        "--map-guest-addr x",
        &long_path,
        "--socket= -f",
        "--pcap= -f",
        "--repair-path /a",
    ] {
        let message = refused(line);
        let words = ["Invalid", "Too many", "--repair-path"];
        assert!(words.iter().any(|w| message.starts_with(w)), "{line}: {message}");
    }
}

#[test]
fn port_options_keep_their_order() {
    let t = typed("-t 22 -u 53 --tcp-ports=80 -t none");
    let ports: Vec<_> = t.ports.iter().map(|(p, s)| (*p, s.as_str())).collect();
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    assert_eq!(ports, [(tcp, "22"), (udp, "53"), (tcp, "80"), (tcp, "none")]);
}

#[test]
fn options_are_read_as_getopt_long_does() {
    assert_eq!(typed("-fqm1300").mtu, Some(1300));
    assert_eq!(typed("--mt 1300").mtu, Some(1300));
    assert_eq!(typed("--mt=1300 --mtu 1400 -m1500").mtu, Some(1500));
    assert_eq!(typed("--sock /a").socket, Some("/a".into()), "both names are one option's");
    assert_eq!(typed("-s -f").socket, Some("-f".into()), "a value is whatever comes next");
    assert!(!typed("-s -f").foreground);
}

#[test]
fn what_is_unknown_is_refused_in_getopts_words() {
    for (line, message) in [
        ("--bogus", "passt: unrecognized option '--bogus'"),
        ("--bogus=1", "passt: unrecognized option '--bogus=1'"),
        ("-f --map-gw", "passt: unrecognized option '--map-gw'"),
        ("-z", "passt: invalid option -- 'z'"),
        ("-fz", "passt: invalid option -- 'z'"),
        ("--mtu", "passt: option '--mtu' requires an argument"),
        ("-fm", "passt: option '--mtu' requires an argument"),
        ("--no-tcp=1", "passt: option '--no-tcp' doesn't allow an argument"),
        (
            "--no-dhcp-",
            "passt: option '--no-dhcp-' is ambiguous; possibilities: '--no-dhcp-dns' '--no-dhcp-search'",
        ),
    ] {
        let error = request(line).unwrap_err();
        assert_eq!(error.message, message);
        assert!(error.usage.is_some_and(|u| u.contains("Usage: passt")), "{line}");
    }
    assert_eq!(refused("extra"), "Extra non-option argument: extra");
    assert_eq!(refused("-f -- -d"), "Extra non-option argument: -d");
}

#[test]
fn options_of_the_other_program_are_refused_by_name() {
    assert_eq!(refused("--config-net"), "--config-net is for pasta mode only");
    assert_eq!(refused("-T 22"), "--tcp-ns is for pasta mode only");
    assert_eq!(refused("--migrate-exit"), "--migrate-exit is for vhost-user mode only");
    let pasta = |line| parse(Program::Pasta, "pasta", &args(line)).map_err(|e| e.message);
    assert_eq!(pasta("-s /a"), Err("--socket is for passt mode only".to_owned()));
    assert_eq!(pasta("-1"), Err("--one-off is for passt mode only".to_owned()));
    assert_eq!(pasta("--no-dhcp-dns"), Err("--no-dhcp-dns is for passt mode only".to_owned()));
    assert!(matches!(pasta("--netns a --config-net"), Ok(Request::Run(Mode::Pasta, _))));
}

#[test]
fn options_behind_a_command_are_the_commands() {
    for line in
        ["grep -F x f", "-f ls -lF x", "x --vhost-user", "x --bogus", "x --version", "-- x -z"]
    {
        let request = parse(Program::Pasta, "pasta", &args(line)).unwrap();
        assert!(matches!(request, Request::Run(Mode::Pasta, _)), "{line}");
    }
}

#[test]
fn vhost_user_chooses_the_mode_wherever_it_stands() {
    for program in [Program::Passt, Program::Pasta] {
        let request = parse(program, "x", &args("-s /a --vhost-user")).unwrap();
        assert!(matches!(request, Request::Run(Mode::VhostUser, _)));
    }
    assert!(matches!(request("-f"), Ok(Request::Run(Mode::Passt, _))));
}

#[test]
fn what_prints_acts_at_once_but_not_before_its_turn() {
    let version = Request::Print(version(Program::Passt));
    for line in ["--version", "-f --version", "--version --bogus", "--version -m", "-f --vers x -z"]
    {
        assert_eq!(request(line).as_ref(), Ok(&version), "{line}");
    }
    for line in ["--bogus --version", "-z --version", "-m x --version", "--config-net --version"] {
        refused(line);
    }
    for line in ["-h", "--help", "-fh", "--help --bogus"] {
        assert_eq!(request(line), Ok(Request::Print(help(Program::Passt))), "{line}");
    }
    let capabilities = Request::Print("{\n  \"type\": \"net\"\n}\n".to_owned());
    assert_eq!(request("--vhost-user --print-capabilities"), Ok(capabilities));
    assert!(matches!(request("-s --version"), Ok(Request::Run(..))), "a value is no option");
}

#[test]
fn the_first_line_of_the_version_is_the_programs_name_and_version() {
    for program in [Program::Passt, Program::Pasta] {
        let text = version(program);
        let first = format!("{} {}\n", program.name(), env!("CARGO_PKG_VERSION"));
        assert!(text.starts_with(&first) && text.ends_with("\n\n"), "{text}");
    }
}

#[test]
fn text_that_is_not_utf8_is_fine_in_paths_only() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = |b: &[u8]| OsString::from_vec(b.to_vec());
    let path = parse(Program::Passt, "passt", &["-s".into(), bytes(b"/\xff")]);
    assert!(matches!(path, Ok(Request::Run(..))));
    let name = parse(Program::Passt, "passt", &["-H".into(), bytes(b"\xff")]);
    assert_eq!(name.unwrap_err().message, "Invalid --hostname: not UTF-8");
    parse(Program::Passt, "passt", &[bytes(b"--\xff")]).unwrap_err();
    parse(Program::Passt, "passt", &[bytes(b"-\xff")]).unwrap_err();
}

proptest! {
    #[test]
    fn any_command_line_is_answered(
        words in proptest::collection::vec("(--?[a-z46=-]{0,12})|[0-9a-f.:/]{0,12}|.{0,5}", 0..6),
    ) {
        let args: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        let _ = parse(Program::Passt, "passt", &args);
        let _ = parse(Program::Pasta, "pasta", &args);
    }
}

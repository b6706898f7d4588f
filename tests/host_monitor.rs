//! The host's network and what the guest sees of it while it runs: neighbours of the host with
//! their own Ethernet addresses, and a host that gets addresses later, or others. The built program
//! on its stream socket with its sandbox in force, real kernels around it.

mod common;

use common::net::*;
use common::packets::*;
use common::pasta::{Place, Running, Who, command_of};
use common::rig::{GUEST_MAC, OUR_MAC};
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const EVERYONE: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
const ARP: [u8; 2] = [0x08, 0x06];

/// A guest that is no more than its frames.
struct Guest {
    stream: UnixStream,
    /// Read, and not asked for yet.
    early: VecDeque<Vec<u8>>,
}

impl Guest {
    fn connect(passt: &Passt) -> Self {
        let stream = UnixStream::connect(passt.socket()).expect("passt listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("is open");
        Self { stream, early: VecDeque::new() }
    }

    fn send(&mut self, frame: &[u8]) {
        let bytes = [&(frame.len() as u32).to_be_bytes(), frame].concat();
        self.stream.write_all(&bytes).expect("passt reads");
    }

    fn read(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).expect("a frame, in good time");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame).expect("the rest of it");
        frame
    }

    /// The first frame of which `wanted` makes something; others are kept for later.
    #[track_caller]
    fn expect<T>(&mut self, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        if let Some(at) = self.early.iter().position(|frame| wanted(frame).is_some()) {
            let frame = self.early.remove(at).expect("is there");
            return wanted(&frame).expect("as before");
        }
        loop {
            let frame = self.read();
            match wanted(&frame) {
                Some(found) => return found,
                None => self.early.push_back(frame),
            }
        }
    }

    /// Who has `target`, by ARP.
    fn ask(&mut self, target: IpAddr) -> [u8; 6] {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
        packet.extend(GUEST_MAC);
        packet.extend(octets(HOST4));
        packet.extend([0; 6]);
        packet.extend(octets(target));
        self.send(&ethernet(0x0806, &packet));
        self.expect(|frame| {
            let reply = frame[12..14] == ARP && frame[20..22] == [0, 2];
            let (named, source) = (frame.get(22..28)?, frame.get(6..12)?);
            (reply && frame[28..32] == octets(target)).then(|| {
                assert_eq!(named, source);
                named.try_into().unwrap()
            })
        })
    }

    /// Asks until the answer is `mac`: what the kernel has to tell may be on its way.
    fn ask_until(&mut self, target: IpAddr, mac: [u8; 6]) {
        let begun = Instant::now();
        while self.ask(target) != mac {
            assert!(begun.elapsed() < PATIENCE, "it does not get to know {target}");
            std::thread::yield_now();
        }
    }

    /// Waits to be told, without having asked, that `target` has `mac`.
    #[track_caller]
    fn hears(&mut self, target: IpAddr, mac: [u8; 6]) {
        let target = octets(target);
        self.expect(|frame| {
            let arp = frame[12..14] == ARP && frame[20..22] == [0, 1];
            let about = arp && frame[28..32] == target && frame[38..42] == target;
            let advertised = target.len() == 16
                && frame[12..14] == [0x86, 0xdd]
                && (frame[20], frame.get(54)) == (58, Some(&136))
                && frame[62..78] == target;
            let sender = if about { &frame[22..28] } else { frame.get(80..86).unwrap_or_default() };
            ((about || advertised) && sender == mac && frame[6..12] == mac).then_some(())
        });
    }

    /// Address, gateway, lease time and resolvers, by DHCP.
    fn configure(&mut self) -> (IpAddr, IpAddr, u32, Vec<IpAddr>) {
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
        message.resize(28, 0);
        message.extend(GUEST_MAC);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
        self.send(&udp((ANY, 68), (EVERYONE, 67), &message));
        let offer = self.expect(|frame| {
            let from_server = frame[12..14] == [8, 0] && frame[34..38] == [0, 67, 0, 68];
            from_server.then(|| frame[42..].to_vec())
        });
        let addr = |bytes: &[u8]| IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap());
        let find = |code: u8| -> Vec<u8> {
            let mut options = &offer[240..];
            while let [kind, len, rest @ ..] = options {
                let (value, behind) = rest.split_at(usize::from(*len));
                if *kind == code {
                    return value.to_vec();
                }
                options = behind;
                if options.first() == Some(&255) {
                    break;
                }
            }
            Vec::new()
        };
        let lease = u32::from_be_bytes(find(51).try_into().expect("a lease time"));
        let resolvers = find(6).chunks(4).map(addr).collect();
        (addr(&offer[16..20]), addr(&find(3)), lease, resolvers)
    }

    /// The next router advertisement that satisfies `wanted`: prefixes with their lifetimes, and
    /// resolvers.
    fn advertised(&mut self, wanted: impl Fn(&[(IpAddr, u32)], &[IpAddr]) -> bool) {
        self.expect(|frame| {
            if frame[12..14] != [0x86, 0xdd] || frame[20] != 58 || frame[54] != 134 {
                return None;
            }
            let addr = |bytes: &[u8]| IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap());
            let (mut prefixes, mut resolvers) = (Vec::new(), Vec::new());
            let mut options = &frame[70..];
            while let [kind, units, ..] = options {
                let (option, rest) = options.split_at(usize::from(*units) * 8);
                match kind {
                    3 => {
                        let valid = u32::from_be_bytes(option[4..8].try_into().unwrap());
                        prefixes.push((addr(&option[16..32]), valid));
                    }
                    25 => resolvers.extend(option[8..].chunks(16).map(addr)),
                    _ => {}
                }
                options = rest;
            }
            wanted(&prefixes, &resolvers).then_some(())
        });
    }
}

fn mac(text: &str) -> [u8; 6] {
    let digits: Vec<u8> =
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    digits.try_into().expect("six bytes")
}

/// The Ethernet address of `eth0` inside.
fn own_mac(namespace: &Namespace) -> [u8; 6] {
    let links = namespace.command("ip").args(["-br", "link", "show", "eth0"]).output();
    let text = String::from_utf8(links.expect("ip runs").stdout).expect("is text");
    mac(text.split_whitespace().nth(2).expect("an address"))
}

fn ip6(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const ONE: &str = "02:00:00:00:aa:01";
const TWO: &str = "02:00:00:00:aa:02";

#[test]
fn the_guest_sees_the_neighbours_of_its_host() {
    let lab = Lab::new();
    lab.host.ip(&format!("neigh replace {NEIGHBOUR} lladdr {ONE} dev eth0 nud permanent"));
    let other = ip6("2001:db8:1::77");
    let passt = Passt::start_stream(&lab, &["--no-map-gw"]);
    let mut guest = Guest::connect(&passt);
    // One that was there before us.
    guest.ask_until(NEIGHBOUR, mac(ONE));
    // One that comes, changes, goes.
    lab.host.ip(&format!("neigh replace {other} lladdr {ONE} dev eth0 nud permanent"));
    guest.hears(other, mac(ONE));
    lab.host.ip(&format!("neigh replace {NEIGHBOUR} lladdr {TWO} dev eth0 nud permanent"));
    guest.hears(NEIGHBOUR, mac(TWO));
    assert_eq!(guest.ask(NEIGHBOUR), mac(TWO));
    // The router, whom the host gets to know as the guest sends something there: ours before.
    let router = own_mac(&lab.far);
    let echo = lab.far.within(|| UdpSocket::bind((GATEWAY4, 0))).expect("a port");
    echo.set_read_timeout(Some(PATIENCE)).expect("is open");
    let port = echo.local_addr().expect("is bound").port();
    guest.send(&udp((HOST4, 4000), (GATEWAY4, port), b"hello"));
    let mut bytes = [0; 9];
    let (n, from) = echo.recv_from(&mut bytes).expect("it arrives");
    guest.hears(GATEWAY4, router);
    echo.send_to(&bytes[..n], from).expect("is sent");
    let source = guest.expect(|frame| {
        let reply = frame[12..14] == [8, 0] && frame[23] == 17 && frame[42..].starts_with(b"hello");
        reply.then(|| <[u8; 6]>::try_from(&frame[6..12]).unwrap())
    });
    assert_eq!(source, router);
    // Whoever is off the link is behind the router.
    assert_eq!(guest.ask(FAR4), router);
    lab.host.ip(&format!("neigh del {NEIGHBOUR} dev eth0"));
    guest.hears(NEIGHBOUR, router);
}

#[test]
fn the_gateway_that_stands_for_the_host_has_our_address_and_other_links_do_not_count() {
    let lab = Lab::new();
    let router = own_mac(&lab.far);
    lab.host.ip("link add eth1 type veth peer name eth9");
    lab.host.ip("link set eth1 up");
    let elsewhere = IpAddr::from([192, 0, 2, 78]);
    lab.host.ip(&format!("neigh replace {elsewhere} lladdr {TWO} dev eth1 nud permanent"));
    let text = router.map(|byte| format!("{byte:02x}")).join(":");
    lab.host.ip(&format!("neigh replace {GATEWAY4} lladdr {text} dev eth0 nud permanent"));
    lab.host.ip(&format!("neigh replace {NEIGHBOUR} lladdr {ONE} dev eth0 nud permanent"));
    let passt = Passt::start_stream(&lab, &[]);
    let mut guest = Guest::connect(&passt);
    guest.ask_until(NEIGHBOUR, mac(ONE));
    for addr in [GATEWAY4, FAR4, elsewhere] {
        assert_eq!(guest.ask(addr), OUR_MAC, "{addr}");
    }
}

/// The kernel drops what it has to tell when we do not listen for long: then we ask.
#[test]
fn nothing_is_lost_when_the_kernel_has_more_to_tell_than_it_keeps() {
    let lab = Lab::new();
    let passt = Passt::start_stream(&lab, &["-d"]);
    let mut guest = Guest::connect(&passt);
    assert_eq!(guest.ask(NEIGHBOUR), OUR_MAC);
    let process = nix::unistd::Pid::from_raw(passt.id() as i32);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).expect("is ours");
    let mut batch = String::new();
    for n in 0..3000u16 {
        let [a, b] = n.to_be_bytes();
        let lladdr = format!("02:00:00:01:{a:02x}:{b:02x}");
        batch += &format!("neigh replace {NEIGHBOUR} lladdr {lladdr} dev eth0 nud permanent\n");
    }
    let mut ip = lab.host.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn();
    let ip = ip.as_mut().expect("ip runs");
    ip.stdin.take().expect("a pipe").write_all(batch.as_bytes()).expect("it reads");
    assert!(ip.wait().expect("it ends").success());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGCONT).expect("is ours");
    passt.wait_for("netlink: overrun");
    let [a, b] = 2999u16.to_be_bytes();
    guest.ask_until(NEIGHBOUR, [2, 0, 0, 1, a, b]);
}

#[test]
fn a_network_that_comes_after_the_start_reaches_the_guest() {
    let lab = Lab::without_addresses();
    let passt = Passt::start_stream(&lab, &[]);
    let mut guest = Guest::connect(&passt);
    let (addr, gateway, lease, _) = guest.configure();
    assert_eq!((addr, gateway), ([169, 254, 2, 1].into(), [169, 254, 2, 2].into()));
    assert_eq!(lease, 120, "for the time being");
    lab.connect();
    let prefix = ip6("2001:db8:1::");
    guest.advertised(|prefixes, _| prefixes == [(prefix, u32::MAX)]);
    let (addr, gateway, lease, resolvers) = guest.configure();
    assert_eq!((addr, gateway, lease), (HOST4, GATEWAY4, u32::MAX));
    assert_eq!(resolvers, [FAR4]);
    // And on: another address, and the old one gone.
    lab.host.ip("addr add 2001:db8:7::10/64 dev eth0 nodad");
    lab.host.ip(&format!("addr del {HOST6}/64 dev eth0"));
    let new = ip6("2001:db8:7::");
    guest.advertised(|prefixes, _| prefixes == [(new, u32::MAX), (prefix, 0)]);
    assert_eq!(guest.configure().0, HOST4, "which has not changed");
}

#[test]
fn a_network_that_goes_leaves_the_guest_as_it_is_and_options_stay() {
    let lab = Lab::new();
    let options = ["-a", "10.9.8.7/24", "-g", "10.9.8.1", "-D", "10.9.8.3"];
    let passt = Passt::start_stream(&lab, &options);
    let mut guest = Guest::connect(&passt);
    let before = guest.configure();
    lab.host.ip(&format!("addr del {HOST4}/24 dev eth0"));
    lab.host.ip(&format!("addr del {HOST6}/64 dev eth0"));
    // When this is told of, all that came before has been taken in.
    lab.host.ip("addr add 2001:db8:7::10/64 dev eth0 nodad");
    let (old, new) = (ip6("2001:db8:1::"), ip6("2001:db8:7::"));
    guest.advertised(|prefixes, _| prefixes == [(new, u32::MAX), (old, 0)]);
    assert_eq!(guest.configure(), before);
    let expected: IpAddr = [10, 9, 8, 7].into();
    assert_eq!(before.0, expected);
}

#[test]
fn resolvers_that_are_written_in_place_are_told() {
    let lab = Lab::new();
    let passt = Passt::start_stream(&lab, &[]);
    let mut guest = Guest::connect(&passt);
    assert_eq!(guest.configure().3, [FAR4]);
    let text = "nameserver 203.0.113.5\nnameserver 2001:db8:5::5\n";
    std::fs::write(lab.dir.join("resolv.conf"), text).expect("is ours");
    let resolver = ip6("2001:db8:5::5");
    guest.advertised(|_, resolvers| resolvers == [resolver]);
    assert_eq!(guest.configure().3, [IpAddr::from([203, 0, 113, 5])]);
}

/// A namespace behind a `pasta` that takes its resolvers from the lab's file.
struct Inside<'a> {
    pasta: Running,
    path: PathBuf,
    _place: Place<'a>,
}

impl<'a> Inside<'a> {
    /// Starts it, with a command that waits for ever.
    fn start(lab: &'a Lab, resolv_conf: &str, options: &str) -> Self {
        let place = Place::on(&lab.host);
        let file = lab.dir.join("resolv.conf");
        std::fs::write(&file, resolv_conf).expect("is ours");
        let mut command = place.command(Who::Root, "unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c"]);
        command.arg(r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#).arg(file);
        command.arg(env!("CARGO_BIN_EXE_pasta")).args(options.split_whitespace());
        command.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
        command.args(["--", "sh", "-c", "echo ready; exec sleep infinity"]);
        let (pasta, _) = Running::start(command);
        let path = format!("/proc/{}/ns/net", command_of(&pasta)).into();
        Self { pasta, path, _place: place }
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.path, work)
    }

    /// What a script of the shell's prints inside.
    fn prints(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).args(["sh", "-ec", script]);
        let output = command.output().expect("nsenter is there (package util-linux)");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let _ = self.pasta.child.kill();
        let _ = self.pasta.child.wait();
    }
}

/// Asks until there is an answer: what the kernel has to tell may be on its way.
#[track_caller]
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not come");
    }
}

#[test]
fn a_namespace_that_was_configured_gets_its_resolver_later() {
    let lab = Lab::new();
    let resolver = lab.far.within(|| UdpSocket::bind((FAR4, 53))).expect("a port");
    let options = "--config-net --dns-forward 169.254.1.1 --no-map-gw";
    let inside = Inside::start(&lab, "# nothing yet\n", options);
    let client = inside.within(|| UdpSocket::bind((ANY, 0))).expect("a port");
    client.set_read_timeout(Some(Duration::from_millis(100))).expect("is open");
    resolver.set_nonblocking(true).expect("is open");
    let mut bytes = [0; 9];
    let mut ask = || {
        client.send_to(b"query", ("169.254.1.1", 53)).expect("is sent");
        // A while for it to come, or not.
        let _ = client.recv_from(&mut [0; 9]);
        resolver.recv_from(&mut bytes).ok().map(|(_, from)| from.ip())
    };
    assert_eq!(ask(), None, "there is no resolver");
    std::fs::write(lab.dir.join("resolv.conf"), RESOLV_CONF).expect("is ours");
    assert_eq!(until(ask), HOST4);
}

#[test]
fn a_host_with_another_address_is_found_where_it_was_in_the_namespace() {
    let lab = Lab::new();
    let options = "--config-net --map-guest-addr 169.254.1.2 --no-map-gw";
    let inside = Inside::start(&lab, RESOLV_CONF, options);
    let new = IpAddr::from([192, 0, 2, 20]);
    let service = lab.host.within(|| std::net::TcpListener::bind((ANY, 0))).expect("a port");
    service.set_nonblocking(true).expect("is open");
    let port = service.local_addr().expect("is bound").port();
    let there = SocketAddr::from(([169, 254, 1, 2], port));
    let reach = || {
        let wait = Duration::from_secs(1);
        inside.within(|| std::net::TcpStream::connect_timeout(&there, wait)).ok();
        let (taken, _) = service.accept().ok()?;
        Some(taken.local_addr().expect("is open").ip())
    };
    assert_eq!(until(reach), HOST4);
    lab.host.ip(&format!("addr add {new}/25 dev eth0"));
    lab.host.ip(&format!("addr del {HOST4}/24 dev eth0"));
    lab.host.ip(&format!("route replace default via {GATEWAY4}"));
    assert_eq!(until(|| reach().filter(|addr| *addr == new)), new);
    assert!(inside.prints("ip addr").contains(&format!("inet {HOST4}/24")), "as it was told");
}

#[test]
fn a_namespace_from_before_the_network_gets_it_by_dhcp_and_router_advertisements() {
    let lab = Lab::without_addresses();
    let inside = Inside::start(&lab, RESOLV_CONF, "-I tap0 --dhcp-dns");
    let configured = |script: &str, wanted: &str| {
        let said = inside.prints(script);
        said.contains(wanted).then_some(()).ok_or(said)
    };
    inside.prints("echo 0 >/proc/sys/net/ipv6/conf/tap0/accept_dad; ip link set tap0 up");
    // A client that shows what it is offered, and leaves the rest as it is.
    let dhcp = "busybox udhcpc -i tap0 -n -q -f -t 3 -s /bin/true 2>&1";
    configured(dhcp, "lease of 169.254.2.1 obtained").unwrap_or_else(|said| panic!("{said}"));
    lab.connect();
    until(|| configured("ip -6 addr show dev tap0", "inet6 2001:db8:1:").ok());
    configured(dhcp, &format!("lease of {HOST4} obtained")).unwrap_or_else(|said| panic!("{said}"));
}

#[test]
fn every_frame_and_event_is_a_line_with_trace_only() {
    let lab = Lab::new();
    let capture = lab.dir.join("pcap");
    let capture = capture.to_str().expect("is text");
    for more in [&[][..], &["-p", capture]] {
        let passt = Passt::start_stream(&lab, &[&["--trace"][..], more].concat());
        let mut guest = Guest::connect(&passt);
        guest.ask(GATEWAY4);
        passt.wait_for("event: Link(");
        passt.wait_for(&format!("from guest: ARP who has {GATEWAY4}, tell {HOST4} (02:"));
        let mac = OUR_MAC.map(|byte| format!("{byte:02x}")).join(":");
        passt.wait_for(&format!("to guest: ARP {GATEWAY4} is at {mac}"));
        guest.send(&ethernet(0x88cc, &[0; 46]));
        passt.wait_for("from guest: Other(35020) from ");
        passt.wait_for("dropped: ");
    }
    let passt = Passt::start_stream(&lab, &["--trace", "-d"]);
    Guest::connect(&passt).ask(GATEWAY4);
    let said = passt.log();
    assert!(!said.contains("from guest") && !said.contains("event: "), "{said}");
}

#[test]
fn an_outbound_address_that_the_host_does_not_have_costs_warnings_only() {
    let lab = Lab::new();
    let own = IpAddr::from([192, 0, 2, 99]);
    let passt = Passt::start_stream(&lab, &["-o", "192.0.2.99", "--no-map-gw"]);
    let warning = "This host doesn't have 192.0.2.99 (--outbound): going on without it";
    passt.wait_for(warning);
    let mut guest = Guest::connect(&passt);
    let tcp = lab.far.within(|| std::net::TcpListener::bind((FAR4, 0))).expect("a port");
    let port = tcp.local_addr().expect("is bound").port();
    let echo = lab.far.within(|| UdpSocket::bind((FAR4, 0))).expect("a port");
    echo.set_read_timeout(Some(PATIENCE)).expect("is open");
    let echo_port = echo.local_addr().expect("is bound").port();
    let sources = |guest: &mut Guest, number: u16| {
        let mut client = End::new((HOST4, number), (FAR4, port));
        guest.send(&client.syn());
        let (_, from) = tcp.accept().expect("it comes");
        guest.send(&udp((HOST4, number), (FAR4, echo_port), b"hello"));
        let (_, sender) = echo.recv_from(&mut [0; 9]).expect("it arrives");
        assert_eq!(sender.port(), number, "the port is kept");
        [from.ip(), sender.ip()]
    };
    assert_eq!(sources(&mut guest, 4001), [HOST4; 2]);
    // A ping as well.
    let request = sum(HOST4, FAR4, 1, 2, vec![8, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3, 4]);
    guest.send(&ip(HOST4, FAR4, 1, 64, &request));
    guest.expect(|frame| (frame[12..14] == [8, 0] && frame[23] == 1).then_some(()));
    // One that it gets is used, and one that it loses is done without.
    lab.host.ip(&format!("addr add {own}/24 dev eth0"));
    assert_eq!(sources(&mut guest, 4002), [own; 2]);
    assert_eq!(passt.log().matches(warning).count(), 1);
    lab.host.ip(&format!("addr del {own}/24 dev eth0"));
    assert_eq!(sources(&mut guest, 4003), [HOST4; 2]);
    assert_eq!(passt.log().matches(warning).count(), 2);
}

/// Nobody is woken for nothing.
#[test]
fn a_quiet_host_costs_nothing() {
    let lab = Lab::new();
    let passt = Passt::start_stream(&lab, &[]);
    let mut guest = Guest::connect(&passt);
    guest.configure();
    let switches = || {
        let path = format!("/proc/{}/status", passt.id());
        let status = std::fs::read_to_string(path).expect("is alive");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|n| n.trim().parse::<u64>().ok()).expect("a number")
    };
    let before = switches();
    // Someone else's time passes meanwhile.
    let _ = Command::new("sleep").arg("3").status();
    assert!(switches() - before <= 4, "{} wake-ups in three seconds", switches() - before);
}

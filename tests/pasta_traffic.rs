//! Traffic of a namespace that the built `pasta` serves, as root and as an ordinary user: out, in,
//! and between loopback addresses, and whom services see. Needs root.

mod common;

use common::net::{
    FAR4, FAR6, GATEWAY4, GATEWAY6, HOST4, HOST6, Lab, Namespace, PATIENCE, need, within,
};
use common::pasta::{EVERYBODY, Place, Running, Who, program, waiting_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const LO4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LO6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// Another name of the host, for `--map-guest-addr` and `--map-host-loopback`.
const NAME4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 2));
const NAME6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
/// For `--dns-forward`.
const RESOLVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const RESOLVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

const QUIET: [&str; 8] = ["-T", "none", "-U", "none", "-t", "none", "-u", "none"];

/// A namespace that is served; ends with the value.
struct Served {
    pasta: Running,
    command: i32,
}

impl Served {
    fn new(place: &Place<'_>, who: Who, options: &[&str]) -> Self {
        Self::by(place.pasta(who, &[&["--config-net"], options].concat()))
    }

    /// By a command that ends as `pasta` and its options.
    fn by(pasta: Command) -> Self {
        let (pasta, command) = waiting_for(pasta);
        Self { pasta, command }
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.command).into()
    }

    /// What `work` returns, run by a thread inside.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.path(), work)
    }

    fn prints(&self, line: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).args(line.split(' '));
        let output = command.output().expect("starts");
        String::from_utf8(output.stdout).expect("is text")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.command), Signal::SIGKILL);
        let status = self.pasta.child.wait().expect("is ours");
        if !thread::panicking() {
            assert_eq!(status.code(), Some(137));
        }
    }
}

/// Bytes that depend on where they stand; the same for everybody.
struct Pattern {
    state: u64,
    left: u64,
}

impl Pattern {
    const fn new(len: u64) -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, left: len }
    }
}

impl Read for Pattern {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let room = into.len() as u64;
        let n = usize::try_from(room.min(self.left)).expect("fits");
        for chunk in into[..n].chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            chunk.copy_from_slice(&self.state.to_le_bytes()[..chunk.len()]);
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// Sends `len` bytes, and the end.
fn send(mut stream: &TcpStream, len: u64) {
    let mut pattern = Pattern::new(len);
    let mut bytes = vec![0; 1 << 16];
    loop {
        let n = pattern.read(&mut bytes).expect("cannot fail");
        if n == 0 {
            break;
        }
        stream.write_all(&bytes[..n]).expect("sends");
    }
    stream.shutdown(Shutdown::Write).expect("is open");
}

/// Receives exactly the bytes that [`send`] sends, and the end.
fn receive(mut stream: &TcpStream, len: u64) {
    let mut pattern = Pattern::new(len);
    let (mut bytes, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0_u64;
    loop {
        // In the steps of the sender: the pattern is one of whole words.
        let want = usize::try_from((len - at).min(1 << 16)).expect("fits");
        if want == 0 {
            break;
        }
        stream.read_exact(&mut bytes[..want]).unwrap_or_else(|e| panic!("after {at}: {e}"));
        pattern.read_exact(&mut expected[..want]).expect("cannot fail");
        assert!(bytes[..want] == expected[..want], "differs in the 64 KiB after {at}");
        at += want as u64;
    }
    assert_eq!(stream.read(&mut bytes).expect("ends"), 0, "more than {len} bytes");
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("is a socket");
    stream
}

/// Who a service saw, and as whom.
type Seen = (IpAddr, IpAddr);

/// Where a connection goes to.
type At = (IpAddr, u16);

/// One connection to a service, `bytes` both ways, whom the service saw, and as whom.
fn tcp(
    listener: &TcpListener,
    connect: impl FnOnce() -> std::io::Result<TcpStream> + Send,
    bytes: u64,
) -> Seen {
    // It need not be accepted to be there.
    let stream = patient(connect().expect("connects"));
    thread::scope(|scope| {
        let service = scope.spawn(|| {
            let (stream, peer) = listener.accept().expect("accepts");
            let local = stream.local_addr().expect("is connected");
            let stream = patient(stream);
            thread::scope(|scope| {
                scope.spawn(|| send(&stream, bytes));
                receive(&stream, bytes);
            });
            (plain(peer), plain(local))
        });
        thread::scope(|scope| {
            scope.spawn(|| send(&stream, bytes));
            receive(&stream, bytes);
        });
        service.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Datagrams to a service and its answers: whom the service saw.
fn udp(service: &UdpSocket, client: &UdpSocket, to: SocketAddr) -> IpAddr {
    exchange(service, client, to, 1);
    exchange(service, client, to, 1200)
}

/// A datagram to a service and its answer: whom the service saw.
#[track_caller]
fn exchange(service: &UdpSocket, client: &UdpSocket, to: SocketAddr, len: usize) -> IpAddr {
    for socket in [service, client] {
        socket.set_read_timeout(Some(PATIENCE)).expect("is a socket");
    }
    let (mut sent, mut bytes) = (vec![0; len], vec![0; 1 << 16]);
    Pattern::new(len as u64).read_exact(&mut sent).expect("cannot fail");
    client.send_to(&sent, to).expect("sends");
    let (n, peer) = service.recv_from(&mut bytes).unwrap_or_else(|e| panic!("{len} to {to}: {e}"));
    assert!(bytes[..n] == sent, "{n} of {len} to {to}");
    service.send_to(&bytes[..n], peer).expect("answers");
    let (n, from) = client.recv_from(&mut bytes).unwrap_or_else(|e| panic!("{len} of {to}: {e}"));
    assert!(bytes[..n] == sent, "{n} of {len} from {to}");
    assert_eq!((from.ip(), from.port()), (to.ip(), to.port()));
    plain(peer)
}

/// The address without the form that IPv4 has on sockets of both families.
fn plain(addr: SocketAddr) -> IpAddr {
    addr.ip().to_canonical()
}

fn any(addr: IpAddr) -> SocketAddr {
    match addr {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[test]
fn the_network_of_the_host_is_reached_as_the_host() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    for who in EVERYBODY {
        let served = Served::new(&place, who, &QUIET);
        for (far, host) in [(FAR4, HOST4), (FAR6, HOST6)] {
            let listener = lab.far.within(|| TcpListener::bind((far, 0))).expect("binds");
            let to = listener.local_addr().expect("is bound");
            let seen = tcp(&listener, || served.within(|| TcpStream::connect(to)), 1 << 20);
            assert_eq!(seen, (host, far), "{who:?}");

            let service = lab.far.within(|| UdpSocket::bind((far, 0))).expect("binds");
            let client = served.within(|| UdpSocket::bind(any(far))).expect("binds");
            let to = service.local_addr().expect("is bound");
            assert_eq!(udp(&service, &client, to), host, "{who:?}");

            let six = if far.is_ipv6() { "-6" } else { "-4" };
            let ping = served.prints(&format!("busybox ping {six} -c 1 -W 20 {far}"));
            assert!(ping.contains(" 0% packet loss"), "{who:?}: {ping}");
        }
        drop(served);
        place.assert_nothing_is_left();
    }
}

#[test]
fn forwarded_ports_are_reached_from_elsewhere_by_who_one_is() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    for who in EVERYBODY {
        let served = Served::new(
            &place,
            who,
            &["-t", "8000:80", "-u", "8000:80", "-T", "none", "-U", "none"],
        );
        for (far, gateway, host) in [(FAR4, GATEWAY4, HOST4), (FAR6, GATEWAY6, HOST6)] {
            let listener = served.within(|| TcpListener::bind((host, 80))).expect("binds");
            let connect = || lab.far.within(|| TcpStream::connect((host, 8000)));
            let (peer, local) = tcp(&listener, connect, 1 << 20);
            assert!([far, gateway].contains(&peer), "{who:?}: {peer}");
            assert_eq!(local, host, "{who:?}");

            let service = served.within(|| UdpSocket::bind((host, 80))).expect("binds");
            let client = lab.far.within(|| UdpSocket::bind((gateway, 0))).expect("binds");
            assert_eq!(udp(&service, &client, (host, 8000).into()), gateway, "{who:?}");
        }
    }
}

#[test]
fn datagrams_to_ports_that_cannot_be_bound_again_are_answered_from_there() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    let ports = ["-t", "none", "-u", "53:5353", "-T", "none", "-U", "none"];
    for runas in [&[][..], &["--runas", "1000"]] {
        let served = Served::new(&place, Who::Root, &[&ports, runas].concat());
        for (gateway, host) in [(GATEWAY4, HOST4), (GATEWAY6, HOST6)] {
            let service = served.within(|| UdpSocket::bind((host, 5353))).expect("binds");
            for _ in 0..3 {
                let client = lab.far.within(|| UdpSocket::bind((gateway, 0))).expect("binds");
                assert_eq!(udp(&service, &client, (host, 53).into()), gateway, "{runas:?}");
            }
        }
    }
}

#[test]
fn the_host_is_seen_as_its_table_of_addresses_says() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    let ports = ["-t", "8000:80", "-u", "8000:80", "-T", "8001:81", "-U", "8001:81"];
    let lo_to_lo = "--host-lo-to-ns-lo";
    let ours6 = link_local(&lab.host);
    // Options, where the host connects to, where the service inside listens, whom it sees.
    let table: [(&[&str], IpAddr, IpAddr, IpAddr); 17] = [
        (&[], HOST4, HOST4, GATEWAY4),
        (&[], HOST6, HOST6, ours6),
        (&["--map-guest-addr", "169.254.1.2"], HOST4, HOST4, NAME4),
        (&["--map-guest-addr", "fd00::2"], HOST6, HOST6, NAME6),
        (&["--no-map-gw"], HOST4, HOST4, GATEWAY4),
        (&[], LO4, HOST4, HOST4),
        (&[], LO6, HOST6, HOST6),
        (&[lo_to_lo], LO4, LO4, LO4),
        (&[lo_to_lo], LO6, LO6, LO6),
        (&["--no-splice"], LO4, HOST4, GATEWAY4),
        (&["--no-splice"], LO6, HOST6, GATEWAY6),
        (&["--no-splice", "--map-host-loopback", "169.254.1.2"], LO4, HOST4, NAME4),
        (&["--no-splice", "--map-host-loopback", "fd00::2"], LO6, HOST6, NAME6),
        (&["--no-splice", "--no-map-gw"], LO4, HOST4, GATEWAY4),
        (&["--no-splice", "--no-map-gw"], LO6, HOST6, ours6),
        (&["--splice-only"], LO4, LO4, LO4),
        (&["--splice-only"], LO6, LO6, LO6),
    ];
    for (options, to, at, expected) in table {
        let served = Served::new(&place, Who::User, &[&ports, options].concat());
        let listener = served.within(|| TcpListener::bind((at, 80))).expect("binds");
        let connect = || lab.host.within(|| TcpStream::connect((to, 8000)));
        assert_eq!(tcp(&listener, connect, 1 << 20), (expected, at), "{options:?} {to}");
        let service = served.within(|| UdpSocket::bind((at, 80))).expect("binds");
        let client = lab.host.within(|| UdpSocket::bind(any(to))).expect("binds");
        assert_eq!(udp(&service, &client, (to, 8000).into()), expected, "UDP: {options:?} {to}");
    }
    // Options, where the namespace connects to, where the host's service listens, whom it sees.
    let table: [(&[&str], At, IpAddr, IpAddr); 13] = [
        (&[], (GATEWAY4, 81), LO4, LO4),
        (&[], (GATEWAY6, 81), LO6, LO6),
        (&["--map-host-loopback", "169.254.1.2"], (NAME4, 81), LO4, LO4),
        (&["--map-host-loopback", "fd00::2"], (NAME6, 81), LO6, LO6),
        (&["--no-map-gw", "--map-host-loopback", "169.254.1.2"], (NAME4, 81), LO4, LO4),
        (&["--map-guest-addr", "169.254.1.2"], (NAME4, 81), HOST4, HOST4),
        (&["--map-guest-addr", "fd00::2"], (NAME6, 81), HOST6, HOST6),
        (&[], (LO4, 8001), LO4, LO4),
        (&[], (LO6, 8001), LO6, LO6),
        (&["--splice-only"], (LO4, 8001), LO4, LO4),
        (&["--splice-only"], (LO6, 8001), LO6, LO6),
        // A resolver of the host's own.
        (&["--dns-forward", "169.254.1.1", "--dns-host", "127.0.0.1"], (RESOLVER4, 53), LO4, LO4),
        (&["--dns-forward", "fd00::1", "--dns-host", "::1"], (RESOLVER6, 853), LO6, LO6),
    ];
    for (options, to, at, expected) in table {
        let served = Served::new(&place, Who::User, &[&ports, options].concat());
        let port = if to.1 == 8001 { 81 } else { to.1 };
        let listener = lab.host.within(|| TcpListener::bind((at, port))).expect("binds");
        let connect = || served.within(|| TcpStream::connect(to));
        assert_eq!(tcp(&listener, connect, 1 << 20), (expected, at), "{options:?} {to:?}");
        let service = lab.host.within(|| UdpSocket::bind((at, port))).expect("binds");
        let client = served.within(|| UdpSocket::bind(any(at))).expect("binds");
        assert_eq!(udp(&service, &client, to.into()), expected, "UDP: {options:?} {to:?}");
    }
}

/// The address of an interface that needs no other.
fn link_local(of: &Namespace) -> IpAddr {
    let read = || std::fs::read_to_string("/proc/thread-self/net/if_inet6").expect("is there");
    let text = of.within(read);
    let line = text.lines().find(|line| line.starts_with("fe80")).expect("has one");
    let number = u128::from_str_radix(&line[..32], 16).expect("is a number");
    Ipv6Addr::from(number).into()
}

#[test]
fn a_gateway_that_is_not_mapped_is_the_gateway() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    let served = Served::new(&place, Who::User, &[&QUIET[..], &["--no-map-gw"]].concat());
    for (gateway, host, lo) in [(GATEWAY4, HOST4, LO4), (GATEWAY6, HOST6, LO6)] {
        // It has a service of that port itself; who sees us is the gateway.
        let _other = lab.host.within(|| TcpListener::bind((lo, 82))).expect("binds");
        let refused = served.within(|| TcpStream::connect((gateway, 82)));
        let refused = refused.expect_err("the gateway has none").kind();
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);

        let listener = lab.far.within(|| TcpListener::bind((gateway, 81))).expect("binds");
        let connect = || served.within(|| TcpStream::connect((gateway, 81)));
        assert_eq!(tcp(&listener, connect, 1 << 20), (host, gateway));
        let service = lab.far.within(|| UdpSocket::bind((gateway, 81))).expect("binds");
        let client = served.within(|| UdpSocket::bind(any(gateway))).expect("binds");
        assert_eq!(udp(&service, &client, (gateway, 81).into()), host);
    }
}

#[test]
fn queries_go_to_the_hosts_resolver_and_answers_come_from_ours() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    let (far4, far6) = (FAR4.to_string(), FAR6.to_string());
    let four = ["--dns-forward", "169.254.1.1", "--dns-host", &far4];
    let six = ["--dns-forward", "fd00::1", "--dns-host", &far6];
    let served = Served::new(&place, Who::User, &[&QUIET[..], &four, &six].concat());
    for (resolver, far, host) in [(RESOLVER4, FAR4, HOST4), (RESOLVER6, FAR6, HOST6)] {
        for port in [53, 853] {
            let listener = lab.far.within(|| TcpListener::bind((far, port))).expect("binds");
            let connect = || served.within(|| TcpStream::connect((resolver, port)));
            assert_eq!(tcp(&listener, connect, 1 << 16), (host, far), "{resolver} {port}");
            let service = lab.far.within(|| UdpSocket::bind((far, port))).expect("binds");
            let client = served.within(|| UdpSocket::bind(any(far))).expect("binds");
            assert_eq!(udp(&service, &client, (resolver, port).into()), host, "{resolver} {port}");
        }
    }
}

#[test]
fn queries_without_a_resolver_reach_nobody() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    let none = place.dir.join("resolv.conf");
    std::fs::write(&none, "").expect("is ours");
    let mut pasta = place.command(Who::Root, "unshare");
    pasta.args(["--mount", "--propagation", "private", "sh", "-c"]);
    pasta.arg(r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#).arg(none);
    pasta.arg(program(Who::Root)).args(["--config-net", "--no-map-gw"]).args(QUIET);
    pasta.args(["--dns-forward", "169.254.1.1", "--dns-forward", "fd00::1"]);
    pasta.args(["--map-host-loopback", "169.254.1.2", "--map-host-loopback", "fd00::2"]);
    let served = Served::by(pasta);
    for (resolver, name, lo) in [(RESOLVER4, NAME4, LO4), (RESOLVER6, NAME6, LO6)] {
        for port in [53, 853] {
            let service = lab.host.within(|| UdpSocket::bind((lo, port))).expect("binds");
            let client = served.within(|| UdpSocket::bind(any(lo))).expect("binds");
            client.send_to(b"who is there?", (resolver, port)).expect("sends");
            // What is sent later would come later.
            udp(&service, &client, (name, port).into());
            service.set_nonblocking(true).expect("is a socket");
            let nobody = service.recv_from(&mut [0; 16]).expect_err("nobody has asked");
            assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock, "{resolver} {port}");

            let listener = lab.host.within(|| TcpListener::bind((lo, port))).expect("binds");
            let soon = std::time::Duration::from_millis(20);
            let connect = || TcpStream::connect_timeout(&(resolver, port).into(), soon);
            served.within(connect).expect_err("nobody answers");
            tcp(&listener, || served.within(|| TcpStream::connect((name, port))), 1);
            listener.set_nonblocking(true).expect("is a socket");
            let nobody = listener.accept().expect_err("nobody has come");
            assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock, "{resolver} {port}");
        }
    }
}

#[test]
fn ports_appear_and_disappear_with_services() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    for who in EVERYBODY {
        // Nothing is said about ports: that is `auto`, both ways.
        let served = Served::new(&place, who, &[]);
        let listener = served.within(|| TcpListener::bind((HOST4, 8002))).expect("binds");
        let connect = || {
            // It is seen within a second; until then the port is refused.
            let deadline = std::time::Instant::now() + PATIENCE;
            loop {
                let connected = lab.host.within(|| TcpStream::connect((LO4, 8002)));
                if connected.is_ok() || std::time::Instant::now() > deadline {
                    return connected;
                }
                thread::yield_now();
            }
        };
        assert_eq!(tcp(&listener, connect, 1000), (HOST4, HOST4), "{who:?}");
        drop(listener);
        let deadline = std::time::Instant::now() + PATIENCE;
        while lab.host.within(|| TcpStream::connect((LO4, 8002))).is_ok() {
            assert!(std::time::Instant::now() < deadline, "{who:?}: the port stays");
            thread::yield_now();
        }

        let listener = lab.host.within(|| TcpListener::bind((LO4, 8003))).expect("binds");
        let connect = || {
            let deadline = std::time::Instant::now() + PATIENCE;
            loop {
                let connected = served.within(|| TcpStream::connect((LO4, 8003)));
                if connected.is_ok() || std::time::Instant::now() > deadline {
                    return connected;
                }
                thread::yield_now();
            }
        };
        assert_eq!(tcp(&listener, connect, 1000), (LO4, LO4), "{who:?}");
    }
}

#[test]
fn much_passes_unchanged_at_any_mtu() {
    const MUCH: u64 = 64 << 20;
    need("ping", "iputils-ping");
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    for mtu in ["1500", "9000", "65520"] {
        let ports = ["-t", "8000:80", "-u", "none", "-T", "none", "-U", "none", "--mtu", mtu];
        let served = Served::new(&place, Who::User, &ports);
        assert!(served.prints("ip -o link show eth0").contains(&format!(" mtu {mtu} ")));
        for (far, host, headers) in [(FAR4, HOST4, 28), (FAR6, HOST6, 48)] {
            let whole = mtu.parse::<usize>().expect("is a number") - headers;
            let service = lab.far.within(|| UdpSocket::bind((far, 0))).expect("binds");
            let client = served.within(|| UdpSocket::bind(any(far))).expect("binds");
            let to = service.local_addr().expect("is bound");
            // One that fills a frame, and one of several frames.
            for len in [whole, 1400, 20_000] {
                assert_eq!(exchange(&service, &client, to, len), host, "{mtu} {len}");
            }
            for len in [whole, 20_000] {
                let ping = served.prints(&format!("ping -c 1 -W 20 -s {len} {far}"));
                assert!(ping.contains(" 0% packet loss"), "{mtu} {len}: {ping}");
            }
        }
        let listener = lab.far.within(|| TcpListener::bind((FAR4, 0))).expect("binds");
        let to = listener.local_addr().expect("is bound");
        tcp(&listener, || served.within(|| TcpStream::connect(to)), MUCH);
        let listener = served.within(|| TcpListener::bind((HOST6, 80))).expect("binds");
        tcp(&listener, || lab.far.within(|| TcpStream::connect((HOST6, 8000))), MUCH);
    }
    // The direct path.
    let served = Served::new(&place, Who::User, &["-t", "8000:80"]);
    let listener = served.within(|| TcpListener::bind((HOST4, 80))).expect("binds");
    tcp(&listener, || lab.host.within(|| TcpStream::connect((LO4, 8000))), 1 << 30);
}

#[test]
fn a_namespace_that_goes_under_load_ends_us_in_order() {
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    for who in EVERYBODY {
        let served = Served::new(&place, who, &["-t", "8000:80", "-T", "none"]);
        let listener = served.within(|| TcpListener::bind((HOST4, 80))).expect("binds");
        let streams: Vec<_> = (0..8)
            .map(|n| {
                // Over the interface and on the direct path.
                let stream = match n % 2 {
                    0 => lab.far.within(|| TcpStream::connect((HOST4, 8000))),
                    _ => lab.host.within(|| TcpStream::connect((LO4, 8000))),
                };
                (stream.expect("connects"), listener.accept().expect("accepts").0)
            })
            .collect();
        let passed = AtomicU64::new(0);
        thread::scope(|scope| {
            for (near, far) in &streams {
                let (mut near, mut far, passed) = (near, far, &passed);
                // Until one of the ends is gone.
                scope.spawn(move || while near.write_all(&[0; 1 << 16]).is_ok() {});
                scope.spawn(move || {
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = far.read(&mut bytes) {
                        passed.fetch_add(n as u64, Ordering::Relaxed);
                    }
                });
            }
            while passed.load(Ordering::Relaxed) < 64 << 20 {
                thread::yield_now();
            }
            kill(Pid::from_raw(served.command), Signal::SIGKILL).expect("it lives");
            for (near, far) in &streams {
                let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
            }
        });
        drop((streams, listener));
        drop(served);
        place.assert_nothing_is_left();
    }
}

//! Traffic of a namespace that the built `pasta` serves, as root and as an ordinary user: out, in,
//! and between loopback addresses, and whom services see. Needs root.

mod common;

use common::net::{FAR4, FAR6, GATEWAY4, GATEWAY6, HOST4, HOST6, Lab, PATIENCE, within};
use common::pasta::{EVERYBODY, Place, Running, Who, waiting};
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
/// Another name of the host, for `--map-guest-addr`.
const NAME4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 2));

const QUIET: [&str; 8] = ["-T", "none", "-U", "none", "-t", "none", "-u", "none"];

/// A namespace that is served; ends with the value.
struct Served {
    pasta: Running,
    command: i32,
}

impl Served {
    fn new(place: &Place<'_>, who: Who, options: &[&str]) -> Self {
        let options = [&["--config-net"], options].concat();
        let (pasta, command) = waiting(place, who, &options);
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
        let stream = patient(connect().expect("connects"));
        thread::scope(|scope| {
            scope.spawn(|| send(&stream, bytes));
            receive(&stream, bytes);
        });
        service.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A datagram to a service and its answer: whom the service saw.
fn udp(service: &UdpSocket, client: &UdpSocket, to: SocketAddr) -> IpAddr {
    for socket in [service, client] {
        socket.set_read_timeout(Some(PATIENCE)).expect("is a socket");
    }
    let mut bytes = [0; 2048];
    for len in [1, 1200] {
        client.send_to(&bytes[..len], to).expect("sends");
        let (n, peer) = service.recv_from(&mut bytes).expect("arrives");
        assert_eq!(n, len);
        service.send_to(&bytes[..n], peer).expect("answers");
        let (n, from) = client.recv_from(&mut bytes).expect("comes back");
        assert_eq!((n, from.ip(), from.port()), (len, to.ip(), to.port()));
        if len > 1 {
            return plain(peer);
        }
    }
    unreachable!("the last length returns")
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
    let ports = ["-t", "8000:80", "-u", "none", "-T", "8001:81", "-U", "none"];
    let lo_to_lo = "--host-lo-to-ns-lo";
    // Options, where the host connects to, where the service inside listens, whom it sees.
    let table: [(&[&str], IpAddr, IpAddr, Seen); 9] = [
        (&[], HOST4, HOST4, (GATEWAY4, HOST4)),
        (&["--map-guest-addr", "169.254.1.2"], HOST4, HOST4, (NAME4, HOST4)),
        (&[], LO4, HOST4, (HOST4, HOST4)),
        (&[], LO6, HOST6, (HOST6, HOST6)),
        (&[lo_to_lo], LO4, LO4, (LO4, LO4)),
        (&[lo_to_lo], LO6, LO6, (LO6, LO6)),
        (&["--no-splice"], LO4, HOST4, (GATEWAY4, HOST4)),
        (&["--splice-only"], LO4, LO4, (LO4, LO4)),
        (&["--splice-only"], LO6, LO6, (LO6, LO6)),
    ];
    for (options, to, at, expected) in table {
        let served = Served::new(&place, Who::User, &[&ports, options].concat());
        let listener = served.within(|| TcpListener::bind((at, 80))).expect("binds");
        let connect = || lab.host.within(|| TcpStream::connect((to, 8000)));
        assert_eq!(tcp(&listener, connect, 1 << 20), expected, "{options:?} {to}");
    }
    // Options, where the namespace connects to, where the host's service listens, whom it sees.
    let table: [(&[&str], At, IpAddr, Seen); 6] = [
        (&[], (GATEWAY4, 81), LO4, (LO4, LO4)),
        (&["--map-host-loopback", "169.254.1.2"], (NAME4, 81), LO4, (LO4, LO4)),
        (&["--map-guest-addr", "169.254.1.2"], (NAME4, 81), HOST4, (HOST4, HOST4)),
        (&[], (LO4, 8001), LO4, (LO4, LO4)),
        (&[], (LO6, 8001), LO6, (LO6, LO6)),
        (&["--splice-only"], (LO4, 8001), LO4, (LO4, LO4)),
    ];
    for (options, to, at, expected) in table {
        let served = Served::new(&place, Who::User, &[&ports, options].concat());
        let listener = lab.host.within(|| TcpListener::bind((at, 81))).expect("binds");
        let connect = || served.within(|| TcpStream::connect(to));
        assert_eq!(tcp(&listener, connect, 1 << 20), expected, "{options:?} {to:?}");
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
    let lab = Lab::new();
    let place = Place::on(&lab.host);
    for mtu in ["1500", "9000", "65520"] {
        let ports = ["-t", "8000:80", "-u", "none", "-T", "none", "-U", "none", "--mtu", mtu];
        let served = Served::new(&place, Who::User, &ports);
        assert!(served.prints("ip -o link show eth0").contains(&format!(" mtu {mtu} ")));
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

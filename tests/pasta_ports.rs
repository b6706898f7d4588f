//! The ports of `pasta`: which are listened on for which specifier, and how they follow services of
//! the other side; as root and as an ordinary user. Needs root, and `ss` (package iproute2).

mod common;

use common::net::PATIENCE;
use common::pasta::{EVERYBODY, Place, Who, children};
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// No ports but those that follow.
const NONE: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

/// All that follows services.
const AUTO: [&str; 8] = ["-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto"];

/// A host with addresses, and nothing behind them.
fn host() -> Place<'static> {
    let place = Place::new();
    place.host().ip("link add eth0 type veth peer name there");
    place.host().ip("link set eth0 up");
    place.host().ip("link set there up");
    place.host().ip("addr add 192.0.2.1/24 dev eth0");
    place.host().ip("-6 addr add 2001:db8::1/64 dev eth0 nodad");
    place.host().ip("route add default via 192.0.2.254");
    place.host().ip("-6 route add default via 2001:db8::fe");
    place
}

/// A `pasta` whose command does nothing, and the namespace of that.
struct Served<'a> {
    place: &'a Place<'a>,
    pasta: Child,
    _stdout: BufReader<ChildStdout>,
    net: File,
}

impl<'a> Served<'a> {
    fn new(place: &'a Place<'a>, who: Who, options: &[&str]) -> Self {
        let log = place.dir.join("log");
        let mut command = place.pasta(who, &["--config-net"]);
        command.args(options).args(["--", "sh", "-c", "echo ready; exec sleep infinity"]);
        command.stdout(Stdio::piped()).stderr(File::create(&log).expect("there is room"));
        let mut pasta = command.spawn().expect("starts");
        let mut stdout = BufReader::new(pasta.stdout.take().expect("is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("is text");
        let said = fs::read_to_string(&log).expect("is there");
        assert_eq!(line, "ready\n", "{options:?}: {said}");
        let net = namespace_of_the_command(pasta.id());
        Self { place, pasta, _stdout: stdout, net }
    }

    /// What `work` returns, run inside.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.net, CloneFlags::CLONE_NEWNET).expect("it is there");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.place.host().within(work)
    }

    fn listening_outside(&self) -> Vec<String> {
        self.outside(listening)
    }

    fn listening_inside(&self) -> Vec<String> {
        self.inside(listening)
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let _ = self.pasta.kill();
        let _ = self.pasta.wait();
    }
}

/// The network namespace of the one child of `pasta` that is in another one.
fn namespace_of_the_command(pasta: u32) -> File {
    let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let (pasta, own) = (pasta.cast_signed(), of(pasta.cast_signed()));
    let inside = |pid: &i32| of(*pid) != own;
    let pid = children(pasta).into_iter().find(inside).expect("has a command");
    File::open(format!("/proc/{pid}/ns/net")).expect("it lives")
}

/// What is listened on in the namespace of this thread, as `ss` says: `tcp 127.0.0.1:22`.
fn listening() -> Vec<String> {
    let output = Command::new("ss").arg("-Hltun").output().expect("ss is missing: iproute2");
    let text = String::from_utf8(output.stdout).expect("is text");
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            format!("{} {}", columns[0], columns[4])
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// What `attempt` gives at last.
#[track_caller]
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < end, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("is an address with a port")
}

/// A connection to `to`, made in the namespace of this thread, reaches `service`, and both hear
/// each other. Returns the peer that the service sees.
#[track_caller]
fn talks(connect: impl Fn() -> Option<TcpStream>, what: &str, service: &TcpListener) -> SocketAddr {
    service.set_nonblocking(true).expect("can be");
    let mut client = eventually(what, connect);
    let (mut server, peer) = eventually(what, || service.accept().ok());
    server.set_nonblocking(false).expect("can be");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).expect("can be");
    }
    let mut heard = [0; 4];
    client.write_all(b"ping").expect(what);
    server.read_exact(&mut heard).expect(what);
    assert_eq!(&heard, b"ping");
    server.write_all(b"pong").expect(what);
    client.read_exact(&mut heard).expect(what);
    assert_eq!(&heard, b"pong");
    peer
}

/// Datagrams from `client`, which is connected, reach `service`, and its answers come back.
#[track_caller]
fn exchanges(client: &UdpSocket, what: &str, service: &UdpSocket) {
    for socket in [client, service] {
        socket.set_nonblocking(true).expect("can be");
    }
    let mut heard = [0; 8];
    let from = eventually(what, || {
        // Nobody may be there yet: the error of the last one is not this one's.
        let _ = client.send(b"ping");
        let (n, from) = service.recv_from(&mut heard).ok()?;
        assert_eq!(&heard[..n], b"ping");
        Some(from)
    });
    service.send_to(b"pong", from).expect(what);
    let n = eventually(what, || client.recv(&mut heard).ok());
    assert_eq!(&heard[..n], b"pong");
}

/// A UDP socket that is connected to `to`.
fn udp_to(to: &str) -> UdpSocket {
    let to = address(to);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("can be");
    socket.connect(to).expect("there is a route");
    socket
}

fn try_connect(to: &str) -> Option<TcpStream> {
    TcpStream::connect(address(to)).ok()
}

fn is_refused(to: &str) -> Option<()> {
    match TcpStream::connect(address(to)) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Some(()),
        _ => None,
    }
}

#[test]
fn services_inside_appear_outside_and_disappear() {
    let place = host();
    for who in EVERYBODY {
        let served = Served::new(&place, who, &[&AUTO[..], &["--host-lo-to-ns-lo"]].concat());
        let tcp = served.inside(|| TcpListener::bind("0.0.0.0:5000").expect("is free"));
        let udp = served.inside(|| UdpSocket::bind("0.0.0.0:5001").expect("is free"));
        let tcp6 = served.inside(|| TcpListener::bind("[::1]:5002").expect("is free"));
        let udp6 = served.inside(|| UdpSocket::bind("[::]:5003").expect("is free"));
        let to = |to: &'static str| {
            let served = &served;
            move || served.outside(|| try_connect(to))
        };
        talks(to("127.0.0.1:5000"), "IPv4", &tcp);
        talks(to("192.0.2.1:5000"), "an address of the host's", &tcp);
        talks(to("[::1]:5002"), "IPv6", &tcp6);
        exchanges(&served.outside(|| udp_to("127.0.0.1:5001")), "UDP over IPv4", &udp);
        exchanges(&served.outside(|| udp_to("[::1]:5003")), "UDP over IPv6", &udp6);
        let listens = served.listening_outside();
        let has = |line: &str| listens.iter().any(|l| l == line);
        assert!(has("tcp 0.0.0.0:5000") && !has("tcp [::]:5000"), "one family: {listens:?}");
        assert!(has("udp 0.0.0.0:5000"), "UDP as TCP: {listens:?}");
        assert!(has("tcp [::1]:5002") && !has("tcp [::]:5002"), "loopback only: {listens:?}");
        drop((tcp, udp, tcp6, udp6));
        eventually("they disappear", || served.listening_outside().is_empty().then_some(()));
        served.outside(|| is_refused("127.0.0.1:5000")).expect("nobody is there");
    }
}

#[test]
fn services_outside_appear_inside_and_disappear() {
    let place = host();
    for who in EVERYBODY {
        let served = Served::new(&place, who, &AUTO);
        let tcp = served.outside(|| TcpListener::bind("127.0.0.1:6000").expect("is free"));
        let udp = served.outside(|| UdpSocket::bind("0.0.0.0:6001").expect("is free"));
        let tcp6 = served.outside(|| TcpListener::bind("[::1]:6002").expect("is free"));
        let udp6 = served.outside(|| UdpSocket::bind("[::1]:6003").expect("is free"));
        let far = served.outside(|| TcpListener::bind("192.0.2.1:6004").expect("is free"));
        let to = |to: &'static str| {
            let served = &served;
            move || served.inside(|| try_connect(to))
        };
        let peer = talks(to("127.0.0.1:6000"), "IPv4", &tcp);
        assert!(peer.ip().is_loopback());
        talks(to("[::1]:6002"), "IPv6", &tcp6);
        exchanges(&served.inside(|| udp_to("127.0.0.1:6001")), "UDP over IPv4", &udp);
        exchanges(&served.inside(|| udp_to("[::1]:6003")), "UDP over IPv6", &udp6);
        let listens = served.listening_inside();
        assert!(listens.iter().all(|line| line.contains("%lo:")), "on lo only: {listens:?}");
        assert!(listens.iter().all(|line| !line.ends_with(":6004")), "not from lo: {listens:?}");
        drop((tcp, udp, tcp6, udp6, far));
        eventually("they disappear", || served.listening_inside().is_empty().then_some(()));
    }
}

#[test]
fn what_is_there_before_us_is_there_at_the_start() {
    let place = host();
    let _service = place.host().within(|| TcpListener::bind("127.0.0.1:6000").expect("is free"));
    for who in EVERYBODY {
        let served = Served::new(&place, who, &["-T", "auto", "-t", "none"]);
        let listens = served.listening_inside();
        assert!(listens.contains(&"tcp 0.0.0.0%lo:6000".to_owned()), "{who:?}: {listens:?}");
    }
}

#[test]
fn directions_do_not_feed_each_other() {
    let place = host();
    let served = Served::new(&place, Who::User, &AUTO);
    let port_of = |line: &str| line.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    let has = |lines: &[String], port| lines.iter().any(|line| port_of(line) == Some(port));
    let first = served.inside(|| TcpListener::bind("0.0.0.0:5000").expect("is free"));
    eventually("seen outside", || has(&served.listening_outside(), 5000).then_some(()));
    // What came from the first must have been looked at when the next one is there.
    for port in [5001, 5002] {
        let service = served.inside(move || TcpListener::bind(("0.0.0.0", port)).expect("is free"));
        eventually("seen outside", || has(&served.listening_outside(), port).then_some(()));
        drop(service);
        eventually("gone", || (!has(&served.listening_outside(), port)).then_some(()));
    }
    assert_eq!(served.listening_inside(), ["tcp 0.0.0.0:5000"], "the service alone");
    let outside = served.outside(|| TcpListener::bind("127.0.0.1:6000").expect("is free"));
    eventually("seen inside", || has(&served.listening_inside(), 6000).then_some(()));
    drop((first, outside));
    eventually("nobody keeps the other alive", || {
        (served.listening_inside().is_empty() && served.listening_outside().is_empty())
            .then_some(())
    });
}

#[test]
fn a_port_that_is_taken_is_said_once_and_had_when_it_is_free() {
    let place = host();
    let taken = place.host().within(|| TcpListener::bind("0.0.0.0:5000").expect("is free"));
    let log = place.dir.join("messages");
    let to_log = ["-t", "auto", "-l", log.to_str().expect("is text")];
    let options = [&NONE[..], &to_log].concat();
    let served = Served::new(&place, Who::Root, &options);
    let _service = served.inside(|| TcpListener::bind("0.0.0.0:5000").expect("is free"));
    for port in 5001..5005u16 {
        let _next = served.inside(move || TcpListener::bind(("0.0.0.0", port)).expect("is free"));
        let line = format!("tcp 0.0.0.0:{port}");
        eventually("the others come", || served.listening_outside().contains(&line).then_some(()));
    }
    let said = fs::read_to_string(&log).expect("is there");
    let told = said.lines().filter(|line| line.contains("5000")).collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{said}");
    assert!(
        told[0].contains("Listen failed for HOST TCP port *:5000: Address already in use")
            || told[0].contains("Listen failed for HOST TCP port */5000: Address already in use")
    );
    drop(taken);
    let line = "tcp 0.0.0.0:5000".to_owned();
    eventually("it is had", || served.listening_outside().contains(&line).then_some(()));
}

#[test]
fn asked_for_ports_are_there_from_the_start_and_lead_where_they_should() {
    let place = host();
    for who in EVERYBODY {
        let ports = [
            "-t",
            "8080:8000",
            "-u",
            "8081:8001",
            "-t",
            "0.0.0.0/8082-8082:8002-8002",
            "-t",
            "[::]/8083",
            "-T",
            "9000:9100",
            "-U",
            "9001:9101",
        ];
        let served = Served::new(&place, who, &ports);
        let out = |to: &'static str| {
            let served = &served;
            move || served.outside(|| try_connect(to))
        };
        let web = served.inside(|| TcpListener::bind("[::]:8000").expect("is free"));
        talks(out("127.0.0.1:8080"), "-t", &web);
        talks(out("192.0.2.1:8080"), "-t from the host's address", &web);
        talks(out("[2001:db8::1]:8080"), "-t over IPv6", &web);
        let podman = served.inside(|| TcpListener::bind("0.0.0.0:8002").expect("is free"));
        talks(out("192.0.2.1:8082"), "as podman types it", &podman);
        served.outside(|| is_refused("[2001:db8::1]:8082")).expect("IPv4 only");
        served.outside(|| is_refused("192.0.2.1:8083")).expect("IPv6 only");
        let dns = served.inside(|| UdpSocket::bind("0.0.0.0:8001").expect("is free"));
        exchanges(&served.outside(|| udp_to("127.0.0.1:8081")), "-u", &dns);

        let local = served.outside(|| TcpListener::bind("127.0.0.1:9100").expect("is free"));
        talks(|| served.inside(|| try_connect("127.0.0.1:9000")), "-T", &local);
        served.inside(|| is_refused("192.0.2.1:9000")).expect("on lo only");
        let local = served.outside(|| UdpSocket::bind("127.0.0.1:9101").expect("is free"));
        exchanges(&served.inside(|| udp_to("127.0.0.1:9001")), "-U", &local);
    }
}

#[test]
fn every_form_of_a_specifier_binds_what_it_says() {
    let place = host();
    // Ports below 1024: as root, whatever user we become.
    let rows: &[(&[&str], &[&str])] = &[
        (&[], &[]),
        (&["-t", "22"], &["tcp *:22"]),
        (&["-t", "22:23"], &["tcp *:22"]),
        (&["-t", "22-24:32-34"], &["tcp *:22", "tcp *:23", "tcp *:24"]),
        (&["-t", "127.0.0.1/22"], &["tcp 127.0.0.1:22"]),
        (&["-t", "::1/22"], &["tcp [::1]:22"]),
        (&["-t", "[::1]/22"], &["tcp [::1]:22"]),
        (&["-t", "::ffff:127.0.0.1/22"], &["tcp 127.0.0.1:22"]),
        (&["-t", "192.0.2.1%eth0/22"], &["tcp 192.0.2.1%eth0:22"]),
        (&["-t", "%eth0/22"], &["tcp *%eth0:22"]),
        (&["-u", "*%eth0/22"], &["udp *%eth0:22"]),
        (&["-t", "/22"], &["tcp *:22"]),
        (&["-t", "0.0.0.0/22", "-t", "[::]/22"], &["tcp 0.0.0.0:22", "tcp [::]:22"]),
        (&["-t", "0.0.0.0/5000:192.0.2.5/6000"], &["tcp 0.0.0.0:5000"]),
        (&["-t", "0.0.0.0/5000:192.0.2.5"], &["tcp 0.0.0.0:5000"]),
        (&["-t", "[::]/80:2001:db8::5/81"], &["tcp [::]:80"]),
        (&["-4", "-t", "22:192.0.2.5"], &["tcp 0.0.0.0:22"]),
        (&["-6", "-t", "22"], &["tcp [::]:22"]),
        (&["-u", "2000-2004,~2002-2003"], &["udp *:2000", "udp *:2001", "udp *:2004"]),
        (&["-t", "~4-65535"], &["tcp *:1", "tcp *:2", "tcp *:3"]),
        (&["-t", "127.0.0.1/all:192.0.2.6,~3-65535"], &["tcp 127.0.0.1:1", "tcp 127.0.0.1:2"]),
        (&["-t", "all,~2-65535", "-t", "2222"], &["tcp *:1", "tcp *:2222"]),
        (&["-t", "22", "-u", "22"], &["tcp *:22", "udp *:22"]),
        (&["-t", "127.0.0.1/22", "-t", "127.0.0.2/22"], &["tcp 127.0.0.1:22", "tcp 127.0.0.2:22"]),
        (&["-t", "22", "-t", "127.0.0.1/22"], &["tcp *:22", "tcp 127.0.0.1:22"]),
        (&["-t", "%lo/22", "-t", "%eth0/22"], &["tcp *%eth0:22", "tcp *%lo:22"]),
        (&["-u", "224.0.0.251/5353"], &["udp 224.0.0.251:5353"]),
    ];
    for (options, expected) in rows {
        let served = Served::new(&place, Who::Root, &[&NONE[..], options].concat());
        assert_eq!(served.listening_outside(), *expected, "{options:?}");
        assert!(served.listening_inside().is_empty(), "{options:?}");
    }
    for (options, expected) in [
        (&["-T", "22"][..], &["tcp *%lo:22"][..]),
        (&["-T", "5000-5001:80-81"], &["tcp *%lo:5000", "tcp *%lo:5001"]),
        (&["-U", "22", "-4"], &["udp 0.0.0.0%lo:22"]),
    ] {
        let served = Served::new(&place, Who::Root, &[&NONE[..], options].concat());
        assert_eq!(served.listening_inside(), expected, "{options:?}");
        assert!(served.listening_outside().is_empty(), "{options:?}");
    }
}

#[test]
fn a_taken_port_stops_the_start_in_words() {
    let place = host();
    let _taken = place.host().within(|| TcpListener::bind("0.0.0.0:5000").expect("is free"));
    let ports = [&NONE[..], &["-t", "5000", "--", "true"]].concat();
    let output = place.run(Who::User, &ports);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        said,
        "Listen failed for HOST TCP port */5000: Address already in use\n\
         Couldn't listen on requested ports\n"
    );
    assert_eq!(output.status.code(), Some(1));
    place.assert_nothing_is_left();
}

#[test]
fn an_interface_that_is_not_there_stops_the_start_in_words() {
    let place = host();
    let ports = [&NONE[..], &["-t", "%eth7/5000", "--", "true"]].concat();
    let output = place.run(Who::User, &ports);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        said,
        "Listen failed for HOST TCP port *%eth7/5000: No such device\n\
         Couldn't listen on requested ports\n"
    );
    assert_eq!(output.status.code(), Some(1));
    place.assert_nothing_is_left();
}

//! `pesto` and the control socket of the real `passt`, in a network of their own: rules come and go
//! while it runs, and no client of the socket, whatever it does, holds up a guest's traffic.
//!
//! There is no program of the original to hold both against: what it would send and read stands
//! here as bytes.

mod common;

use common::net::{HOST4, Lab, Namespace, PATIENCE, Passt};
use common::packets::{ACK, End, FIN, PSH, SYN, Tcp, read_tcp};
use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

const LOOPBACK: &str = "127.0.0.1";

#[test]
fn peer() {
    common::peer::entry();
}

/// A `passt` with a control socket, and a guest on it that echoes what is sent to it.
struct Daemon {
    passt: Passt,
    control: PathBuf,
    lab: Lab,
}

impl Daemon {
    fn start(options: &[&str]) -> Self {
        let lab = Lab::new();
        let control = lab.dir.join("control");
        let path = control.to_str().expect("is text");
        let passt = Passt::start_stream(&lab, &[&["-c", path], options].concat());
        let daemon = Self { passt, control, lab };
        daemon.rules(); // who answers has bound its ports
        daemon
    }

    /// Runs `pesto` with a line of words and the control socket.
    fn pesto(&self, line: &str) -> Output {
        pesto(line, &self.control)
    }

    /// As [`Daemon::pesto`], which has nothing to say.
    #[track_caller]
    fn quietly(&self, line: &str) {
        let Output { status, stdout, stderr } = self.pesto(line);
        let said = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert_eq!((status.code(), &*said.0, &*said.1), (Some(0), "", ""), "{line}");
    }

    /// As [`Daemon::pesto`], which fails with one line.
    #[track_caller]
    fn fails(&self, line: &str) -> String {
        failure(&self.pesto(line))
    }

    /// The rules as `pesto` prints them.
    #[track_caller]
    fn rules(&self) -> Vec<String> {
        let text = output(&self.pesto(""));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("Inbound forwarding rules (HOST):"));
        lines.map(|line| line.strip_prefix("    ").expect("is indented").to_owned()).collect()
    }

    /// A connection to a port of the host, made there.
    fn connect(&self, addr: &str, port: u16) -> std::io::Result<TcpStream> {
        let addr: IpAddr = addr.parse().expect("is an address");
        let stream = self.lab.host.within(|| TcpStream::connect(SocketAddr::new(addr, port)))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn listens(&self, addr: &str, port: u16) -> bool {
        match self.connect(addr, port) {
            Ok(_) => true,
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => false,
            Err(e) => panic!("{e}"),
        }
    }

    /// Whether somebody has the UDP port.
    fn has_udp(&self, port: u16) -> bool {
        self.lab.host.within(|| UdpSocket::bind((LOOPBACK, port))).is_err()
    }

    /// A guest that echoes until its socket is closed.
    fn guest(&self) -> UnixStream {
        let stream = UnixStream::connect(self.passt.socket()).expect("it listens");
        let guest = stream.try_clone().expect("descriptors are there");
        thread::spawn(move || echo(guest));
        stream
    }

    /// A client of the control socket that has not said anything yet.
    fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.control).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("is open");
        stream.set_write_timeout(Some(PATIENCE)).expect("is open");
        stream
    }
}

fn pesto(line: &str, control: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pesto"));
    command.args(line.split_whitespace()).arg(control).output().expect("starts")
}

/// What a run printed that went well.
#[track_caller]
fn output(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*stderr), (Some(0), ""));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a run said that failed: one line.
#[track_caller]
fn failure(output: &Output) -> String {
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*stdout), (Some(1), ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().to_owned()
}

/// Plays a guest on the stream: takes every connection and sends back what comes.
fn echo(mut link: UnixStream) {
    let mut connections: HashMap<((IpAddr, u16), u16), End> = HashMap::new();
    loop {
        let mut length = [0; 4];
        if link.read_exact(&mut length).is_err() {
            return;
        }
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        if link.read_exact(&mut frame).is_err() {
            return;
        }
        // TCP over IPv4, without the padding of short frames.
        if frame[12..14] != [8, 0] || frame[14 + 9] != 6 {
            continue;
        }
        frame.truncate(14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])));
        let segment = read_tcp(&frame);
        let key = (segment.src, segment.dst.1);
        if segment.has(SYN) {
            connections.insert(key, End::new(segment.dst, segment.src));
        }
        let Some(end) = connections.get_mut(&key) else { continue };
        if segment.len() == 0 {
            continue;
        }
        end.take(&segment);
        let answer = answer(end, &segment);
        let length = (answer.len() as u32).to_be_bytes();
        if link.write_all(&[&length[..], &answer].concat()).is_err() {
            return;
        }
    }
}

fn answer(end: &mut End, segment: &Tcp) -> Vec<u8> {
    if segment.has(SYN) {
        let answer = end.segment(SYN | ACK, b"");
        end.snd += 1;
        return answer.frame();
    }
    let fin = if segment.has(FIN) { FIN } else { 0 };
    end.next(PSH | fin, &segment.payload)
}

/// Bytes go to the guest and come back.
#[track_caller]
fn flows(stream: &mut TcpStream) {
    stream.write_all(b"there").expect("is open");
    let mut back = [0; 5];
    stream.read_exact(&mut back).expect("comes back");
    assert_eq!(back, *b"there");
}

#[test]
fn rules_are_added_deleted_replaced_and_cleared_while_it_runs() {
    let daemon = Daemon::start(&["-t", "5001"]);
    assert_eq!(daemon.rules(), ["TCP [*]:5001  =>  5001"]);
    daemon.quietly("-A -t 5002:80 -u 5003");
    let all = ["TCP [*]:5001  =>  5001", "TCP [*]:5002  =>  80", "UDP [*]:5003  =>  5003"];
    assert_eq!(daemon.rules(), all);
    for addr in [LOOPBACK, "::1"] {
        assert!(daemon.listens(addr, 5001) && daemon.listens(addr, 5002));
    }
    assert!(daemon.has_udp(5003));
    daemon.quietly("-D -t 5001");
    assert!(!daemon.listens(LOOPBACK, 5001) && daemon.listens(LOOPBACK, 5002));
    daemon.quietly("-t 127.0.0.1/5004-5006 -u 5007");
    let replaced = ["TCP [127.0.0.1]:5004-5006  =>  5004-5006", "UDP [*]:5007  =>  5007"];
    assert_eq!(daemon.rules(), replaced);
    assert!(!daemon.listens(LOOPBACK, 5002) && !daemon.has_udp(5003) && daemon.has_udp(5007));
    assert!((5004..=5006).all(|port| daemon.listens(LOOPBACK, port)));
    assert!(!daemon.listens("::1", 5005) && !daemon.listens(&HOST4.to_string(), 5005));
    daemon.quietly("-C HOST");
    assert_eq!(daemon.rules(), [""; 0]);
    assert!(!daemon.listens(LOOPBACK, 5005) && !daemon.has_udp(5007));
}

#[test]
fn the_rules_before_and_after_are_shown_on_demand() {
    let daemon = Daemon::start(&["-t", "5001"]);
    let text = output(&daemon.pesto("--show -A -t 192.0.2.10%eth0/all,~1-65000 -D -t 5001"));
    let expected = "Before:\n\
                    Inbound forwarding rules (HOST):\n    TCP [*]:5001  =>  5001\n\
                    After:\n\
                    Inbound forwarding rules (HOST):\n    \
                    TCP [192.0.2.10]%eth0:65001-65535  =>  65001-65535  (best effort)\n";
    assert_eq!(text, expected);
    let far = |port| daemon.lab.far.within(|| TcpStream::connect((HOST4, port)).is_ok());
    assert!(far(65_535) && !far(65_000));
    assert_eq!(output(&daemon.pesto("-s")), output(&daemon.pesto("")));
    let output = daemon.pesto("--debug -A -t 5002");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    assert!(said.contains("capabilities 0x2f: 1 rules\n"), "{said}");
    assert!(said.ends_with("The daemon has the new rules\n"), "{said}");
}

#[test]
fn podmans_lines_publish_ports_and_take_them_back() {
    let daemon = Daemon::start(&[]);
    daemon.quietly("--add -t 0.0.0.0/8080 -t [::]/8080");
    daemon.quietly("--add -u [::1]/8081-8083");
    assert!(daemon.listens(LOOPBACK, 8080) && daemon.listens("::1", 8080));
    assert_eq!(daemon.rules().len(), 3);
    daemon.quietly("--delete -t 0.0.0.0/8080 -t [::]/8080");
    assert!(!daemon.listens(LOOPBACK, 8080) && !daemon.listens("::1", 8080));
    assert_eq!(daemon.rules(), ["UDP [::1]:8081-8083  =>  8081-8083"]);
}

#[test]
fn connections_outlive_their_rule_and_waiting_ones_the_change_of_others() {
    let daemon = Daemon::start(&["-t", "5001,5002"]);
    let _guest = daemon.guest();
    let mut first = daemon.connect(LOOPBACK, 5001).expect("listens");
    let mut second = daemon.connect(LOOPBACK, 5002).expect("listens");
    flows(&mut first);
    flows(&mut second);
    daemon.quietly("-D -t 5001");
    assert!(!daemon.listens(LOOPBACK, 5001));
    flows(&mut first);
    daemon.quietly("-C HOST");
    flows(&mut first);
    flows(&mut second);
    daemon.quietly("-A -t 5001:7");
    let mut third = daemon.connect(LOOPBACK, 5001).expect("listens again");
    for stream in [&mut first, &mut second, &mut third] {
        flows(stream);
    }
}

#[test]
fn what_cannot_be_listened_on_changes_nothing_and_is_told() {
    let daemon = Daemon::start(&["-t", "5001"]);
    let taken = daemon.lab.host.within(|| TcpListener::bind((LOOPBACK, 5002)));
    let taken = taken.expect("is free");
    for (line, why) in [
        (
            "-t 5003-5005,5002,5006",
            "Listen failed for HOST TCP port */5002: Address already in use",
        ),
        ("-A -t 192.0.2.99/5003", "Listen failed for HOST TCP port 192.0.2.99/5003: Cannot assign"),
        ("-A -t %bogus0/5003", "Listen failed for HOST TCP port *%bogus0/5003: No such device"),
        ("-A -t 82", "Listen failed for HOST TCP port */82: Permission denied"),
    ] {
        let said = daemon.fails(line);
        assert!(said.starts_with(why), "{said}");
        assert_eq!(daemon.rules(), ["TCP [*]:5001  =>  5001"]);
        assert!(daemon.listens(LOOPBACK, 5001));
        assert!((5003..=5006).all(|port| !daemon.listens(LOOPBACK, port)));
    }
    drop(taken);
    daemon.quietly("-A -t 5002");
    assert!(daemon.listens(LOOPBACK, 5002));
    // Best effort: what cannot be had is told, the rest is there.
    let output = daemon.pesto("-A -t 127.0.0.1/~1-81,~83-5999,~6001-65535 -t 127.0.0.1/7000");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("Listen failed for HOST TCP port 127.0.0.1/82: Permission"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(daemon.listens(LOOPBACK, 6000) && daemon.listens(LOOPBACK, 7000));
}

#[test]
fn ports_that_only_the_start_may_bind_stay_bound() {
    let daemon = Daemon::start(&["-t", "81"]);
    assert!(daemon.listens(LOOPBACK, 81));
    daemon.quietly("-A -t 5001");
    daemon.quietly("-t 81 -t 5002");
    assert!(daemon.listens(LOOPBACK, 81) && daemon.listens(LOOPBACK, 5002));
}

#[test]
fn link_local_addresses_belong_to_the_interface_that_is_named() {
    let daemon = Daemon::start(&[]);
    let mut ip = daemon.lab.host.command("ip");
    let addresses = ip.args(["-6", "-o", "addr", "show", "dev", "eth0"]).output();
    let addresses = addresses.expect("is there").stdout;
    let addresses = String::from_utf8(addresses).expect("is text");
    let own = addresses.split_whitespace().find(|word| word.starts_with("fe80:"));
    let own = own.and_then(|word| word.split('/').next()).expect("has one");
    daemon.quietly(&format!("-A -t [{own}]%eth0/5001 -t {own}/5002"));
    let said = daemon.fails(&format!("-A -t {own}%lo/5003"));
    assert!(said.starts_with("Listen failed for HOST TCP port ["), "{said}");
    assert_eq!(daemon.rules().len(), 2);
}

#[test]
fn what_makes_no_sense_ends_with_status_1_and_a_line() {
    let daemon = Daemon::start(&["-t", "5001", "-4"]);
    for (line, why) in [
        ("-A -t 5001", "Forwarding configuration conflict: TCP [0.0.0.0]:5001"),
        ("-D -t 5002", "No such forwarding rule: TCP [0.0.0.0]:5002  =>  5002"),
        ("-t 22-21", "Invalid port specifier '22-21': bad port or range of ports"),
        ("-t auto", "'auto' port forwarding is only allowed for pasta"),
        ("-t ::1/5002", "IPv6 forward, but IPv6 not enabled"),
        ("-T 5002", "No forwarding table SPLICE"),
        ("-C TAP", "No forwarding table TAP"),
        ("extra", "Extra non-option argument: "),
    ] {
        let said = daemon.fails(line);
        assert!(said.starts_with(why), "{line}: {said}");
        assert_eq!(daemon.rules(), ["TCP [0.0.0.0]:5001  =>  5001"]);
    }
    let nobody = daemon.lab.dir.join("nobody");
    let said = failure(&pesto("", &nobody));
    let expected = format!("Couldn't connect to {}: No such file or directory", nobody.display());
    assert_eq!(said, expected);
    let long = daemon.lab.dir.join(&"x".repeat(200));
    assert!(failure(&pesto("", &long)).starts_with("Couldn't connect to "));
}

#[test]
fn version_and_help_need_no_daemon() {
    let run = |line: &str| output(&pesto(line, Path::new("/nonexistent")));
    let version = run("--version");
    let first = format!("pesto {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.lines().next(), Some(&*first));
    assert!(version.ends_with("\n\n"));
    assert!(run("-h").contains("--clear"));
    let unknown = pesto("--bogus", Path::new("/nonexistent"));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!((unknown.status.code(), unknown.stdout.len()), (Some(1), 0));
    assert!(said.contains(": unrecognized option '--bogus'\n"), "{said}");
}

/// The hello, the only table of a passt, and the end, as the original has them; the capabilities
/// are those of both families and protocols, and interfaces.
fn greeting(rules: &[[u8; 56]]) -> Vec<u8> {
    let mut bytes = b"basil:s\0\0\0\0\x02\0\0\0\x80\0\0\0\x10\x01HOST".to_vec();
    bytes.resize(20 + 129, 0);
    bytes.extend([0, 0, 0, 0x2f]);
    bytes.extend((rules.len() as u32).to_be_bytes());
    bytes.extend(rules.concat());
    bytes.push(0);
    bytes
}

/// `TCP [*]:PORT  =>  PORT` as the original has it.
fn rule(port: u16) -> [u8; 56] {
    let mut bytes = [0; 56];
    for at in [48, 50, 52] {
        bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
    }
    bytes[54..].copy_from_slice(&[6, 1]);
    bytes
}

fn update(rules: &[[u8; 56]]) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend((rules.len() as u32).to_be_bytes());
    bytes.extend(rules.concat());
    bytes.push(0);
    bytes
}

#[test]
fn the_originals_client_finds_the_bytes_that_it_expects_and_may_leave_at_once() {
    let daemon = Daemon::start(&["-t", "5001"]);
    let mut client = daemon.client();
    let mut bytes = vec![0; greeting(&[rule(5001)]).len()];
    client.read_exact(&mut bytes).expect("comes");
    assert_eq!(bytes, greeting(&[rule(5001)]));
    client.write_all(&update(&[rule(5001), rule(5002)])).expect("is read");
    drop(client);
    // The next client is served when that is done.
    assert_eq!(daemon.rules().len(), 2);
    assert!(daemon.listens(LOOPBACK, 5001) && daemon.listens(LOOPBACK, 5002));
    // One that leaves without an update has looked.
    let mut client = daemon.client();
    client.read_exact(&mut [0; 158]).expect("comes");
    drop(client);
    assert_eq!(daemon.rules().len(), 2);
}

/// Plays a daemon for one run of `pesto`, and returns what the run said.
fn against(dir: &Path, line: &str, daemon: impl FnOnce(UnixStream) + Send) -> Output {
    let path = dir.join("fake");
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("binds");
    thread::scope(|scope| {
        scope.spawn(move || daemon(listener.accept().expect("it comes").0));
        pesto(line, &path)
    })
}

#[test]
fn the_originals_daemon_is_understood_though_it_never_tells_what_became_of_an_update() {
    let dir = common::net::TempDir::new();
    let all = greeting(&[rule(22)]);
    let shown = against(dir.path(), "", |mut client| {
        client.write_all(&all).expect("is read");
        assert_eq!(client.read(&mut [0]).expect("ends"), 0, "it only looks");
    });
    assert_eq!(output(&shown), "Inbound forwarding rules (HOST):\n    TCP [*]:22  =>  22\n");
    let changed = against(dir.path(), "-A -t 23", |mut client| {
        client.write_all(&all).expect("is read");
        let mut bytes = vec![0; 118];
        client.read_exact(&mut bytes).expect("comes");
        assert_eq!(bytes, update(&[rule(22), rule(23)]));
    });
    assert_eq!(output(&changed), "");
    // One that waits for the client to close sees it do so.
    let changed = against(dir.path(), "-t 23", |mut client| {
        client.write_all(&all).expect("is read");
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).expect("ends");
        assert_eq!(bytes, update(&[rule(23)]));
    });
    assert_eq!(output(&changed), "");
}

#[test]
fn what_is_no_daemon_ends_with_status_1_and_a_line() {
    let dir = common::net::TempDir::new();
    let newer = {
        let mut bytes = greeting(&[]);
        bytes[11] = 3;
        bytes
    };
    let result = |status: u8| {
        [&b"basil:r\0\0\0\0"[..], &[status], &b"\0\0\0\x03no!"[..], &b"more"[..]].concat()
    };
    for (says, then, why) in [
        (b"220 mail ready\r\n".to_vec(), vec![], "Unexpected answer: not a control socket"),
        (newer, vec![], "Unexpected answer: version 3 of the protocol, expected 2"),
        (greeting(&[])[..100].to_vec(), vec![], "The connection was closed before"),
        (vec![], vec![], "The connection was closed before"),
        (greeting(&[[0; 56]]), vec![], "Unexpected answer: rule with impossible ports"),
        (greeting(&[]), result(1), "no!"),
        (greeting(&[]), b"what?what?what?what?".to_vec(), "Unexpected answer: not a control"),
        (greeting(&[]), b"basil:r\0".to_vec(), "The connection was closed before"),
    ] {
        let run = against(dir.path(), "-t 23", |mut client| {
            client.write_all(&says).expect("is read");
            if !then.is_empty() {
                client.read_exact(&mut [0; 62]).expect("comes");
                client.write_all(&then).expect("is read");
            }
            client.shutdown(Shutdown::Write).expect("is open");
            let _ = client.read_to_end(&mut Vec::new());
        });
        let said = failure(&run);
        assert!(said.starts_with(why), "{said}");
    }
}

#[test]
fn the_client_is_locked_up_before_it_connects() {
    let dir = common::net::TempDir::new();
    let path = dir.join("fake");
    let listener = UnixListener::bind(&path).expect("binds");
    let mut client = Command::new(env!("CARGO_BIN_EXE_pesto"))
        .arg(&path)
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let (mut stream, _) = listener.accept().expect("it comes");
    let status = fs::read_to_string(format!("/proc/{}/status", client.id())).expect("it waits");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.lines().any(|l| l == line), "{line} in {status}");
    }
    stream.write_all(&greeting(&[])).expect("is read");
    assert_eq!(client.wait().expect("is ours").code(), Some(0));
}

/// A `pasta` in "host" that serves the namespace "far" without an interface there.
struct Pasta {
    child: Child,
    control: PathBuf,
    lab: Lab,
}

impl Pasta {
    fn start(options: &str) -> Self {
        let lab = Lab::new();
        let control = lab.dir.join("control");
        let mut command = lab.host.command(env!("CARGO_BIN_EXE_pasta"));
        command.args(["-f", "-q", "--splice-only", "--netns"]).arg(lab.far.path());
        command.arg("-c").arg(&control).args(options.split_whitespace());
        let child = command.stdin(Stdio::null()).spawn().expect("starts");
        let mut pasta = Self { child, control, lab };
        // Who answers has bound its ports. A socket has its name before it takes connections.
        while !pesto("", &pasta.control).status.success() {
            assert!(matches!(pasta.child.try_wait(), Ok(None)), "it did not start");
        }
        pasta
    }

    #[track_caller]
    fn quietly(&self, line: &str) {
        assert_eq!(output(&pesto(line, &self.control)), "");
    }

    #[track_caller]
    fn rules(&self) -> String {
        output(&pesto("", &self.control))
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A word goes from one namespace to a server in another, by this port.
#[track_caller]
fn reaches(client: &Namespace, server: &Namespace, port: u16, to: u16) {
    let listener = server.within(|| TcpListener::bind((LOOPBACK, to))).expect("is free");
    let mut stream = until(|| client.within(|| TcpStream::connect((LOOPBACK, port))).ok());
    stream.write_all(b"there").expect("is open");
    let (mut served, _) = listener.accept().expect("it comes");
    served.set_read_timeout(Some(PATIENCE)).expect("is open");
    let mut word = [0; 5];
    served.read_exact(&mut word).expect("it comes");
    assert_eq!(word, *b"there");
}

/// Asks until there is something.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "it does not come");
        thread::yield_now();
    }
}

#[test]
fn pasta_has_a_table_for_each_direction() {
    let pasta = Pasta::start("-t none -u none -T none -U none");
    let (host, far) = (&pasta.lab.host, &pasta.lab.far);
    let none = "Inbound forwarding rules (HOST):\nOutbound forwarding rules (SPLICE):\n";
    assert_eq!(pasta.rules(), none);
    pasta.quietly("-A -t 5001:5002 -T 5003:5004");
    assert_eq!(
        pasta.rules(),
        "Inbound forwarding rules (HOST):\n    TCP [*]:5001  =>  5002\n\
         Outbound forwarding rules (SPLICE):\n    TCP [*]%lo:5003  =>  5004\n"
    );
    reaches(host, far, 5001, 5002);
    reaches(far, host, 5003, 5004);
    // The first ports for one table replace that one alone.
    pasta.quietly("-t 5005");
    let refused = |side: &Namespace, port| {
        let outcome = side.within(|| TcpStream::connect((LOOPBACK, port)));
        outcome.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    };
    assert!(refused(host, 5001));
    reaches(far, host, 5003, 5004);
    reaches(host, far, 5005, 5005);
    pasta.quietly("-D -T 5003:5004");
    assert!(refused(far, 5003));
    let taken = far.within(|| TcpListener::bind((LOOPBACK, 5006))).expect("is free");
    let said = failure(&pesto("-A -t 5007 -T 5006", &pasta.control));
    assert!(said.starts_with("Listen failed for SPLICE TCP port *%lo/5006: Address"), "{said}");
    assert!(refused(host, 5007), "both tables or none");
    drop(taken);
    pasta.quietly("-C HOST -C SPLICE");
    assert_eq!(pasta.rules(), none);
    assert!(refused(host, 5005));
}

#[test]
fn automatic_ports_survive_the_way_to_the_client_and_back() {
    let pasta = Pasta::start("-t auto -u none -T none -U none");
    let (host, far) = (&pasta.lab.host, &pasta.lab.far);
    reaches(host, far, 5001, 5001);
    let before = pasta.rules();
    assert!(before.contains("  (best effort)  (auto-scan)\n"), "{before}");
    pasta.quietly("-A -u 5002 -T auto");
    let after = pasta.rules();
    for line in before.lines() {
        assert!(after.contains(line), "{line} in {after}");
    }
    reaches(host, far, 5003, 5003);
    reaches(far, host, 5004, 5004);
    pasta.quietly("-D -t auto -D -u 5002");
    assert!(!pasta.rules().contains("(HOST):\n    "));
    reaches(far, host, 5005, 5005);
}

/// Clients of the control socket that mean no good, for as long as `stop` does not say so.
fn torment(control: &Path, stop: &mpsc::Receiver<()>) {
    let connect = || {
        // The backlog may be full of us.
        let stream = UnixStream::connect(control).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    };
    let mut kept = Vec::new();
    let mut round = 0u32;
    while stop.try_recv() == Err(mpsc::TryRecvError::Empty) {
        round += 1;
        let Some(mut client) = connect() else {
            kept.clear();
            continue;
        };
        let _ = match round % 5 {
            0 => client.write(&vec![round as u8 | 1; 5000]),
            1 => client.write(&[1, 0xff, 0xff, 0xff, 0xff]),
            2 => client.write(&update(&[rule(0)])),
            3 => client.write(&update(&[rule(5001)])[..30]),
            _ => Ok(0), // silent
        };
        if round.is_multiple_of(7) {
            kept.push(client);
        }
        if kept.len() > 20 {
            kept.clear();
        }
    }
}

#[test]
fn hostile_clients_hold_up_neither_traffic_nor_for_long_each_other() {
    let mut daemon = Daemon::start(&["-t", "5001"]);
    let _guest = daemon.guest();
    let mut stream = daemon.connect(LOOPBACK, 5001).expect("listens");
    flows(&mut stream);
    let (stop, stopped) = mpsc::channel();
    let control = daemon.control.clone();
    let tormentor = thread::spawn(move || torment(&control, &stopped));
    for _ in 0..2000 {
        flows(&mut stream);
    }
    assert!(daemon.listens(LOOPBACK, 5001));
    stop.send(()).expect("runs");
    tormentor.join().expect("did its worst");
    daemon.quietly("-A -t 5002");
    assert_eq!(daemon.rules(), ["TCP [*]:5001  =>  5001", "TCP [*]:5002  =>  5002"]);
    assert!(daemon.passt.is_alive());
}

#[test]
fn one_byte_at_a_time_will_do_and_who_never_reads_or_never_speaks_gives_way() {
    let daemon = Daemon::start(&["-t", "5001"]);
    let _guest = daemon.guest();
    let mut stream = daemon.connect(LOOPBACK, 5001).expect("listens");
    let mut slow = daemon.client();
    for byte in update(&[rule(5001), rule(5002)]) {
        slow.write_all(&[byte]).expect("is read");
        flows(&mut stream);
    }
    assert_eq!(daemon.rules().len(), 2);
    // Thousands of rules fill the socket of one who does not read them.
    let many: Vec<_> = (5001..9000).map(rule).collect();
    let mut client = daemon.client();
    client.write_all(&update(&many)).expect("is read");
    client.read_to_end(&mut Vec::new()).expect("ends");
    let _deaf = daemon.client();
    flows(&mut stream);
    assert_eq!(daemon.rules().len(), many.len());
    flows(&mut stream);
    daemon.quietly("-t 5001");
    assert!(!daemon.listens(LOOPBACK, 8999));
    flows(&mut stream);
}

#[test]
fn the_control_socket_is_made_as_the_other_one_is() {
    let daemon = Daemon::start(&[]);
    let metadata = fs::metadata(&daemon.control).expect("is there");
    assert!(metadata.file_type().is_socket());
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::stat::umask(umask);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o777 & !umask.bits());
    let path = daemon.control.to_str().expect("is text");
    let passt = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_passt"));
        let output = command.args(["-f", "-q", "-D", "none"]).args(line.split(' ')).output();
        let output = output.expect("starts");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let other = daemon.lab.dir.join("other");
    let other = other.to_str().expect("is text");
    assert_eq!(
        passt(&format!("-s {other} -c {path}")),
        format!("Socket path {path} already in use\n")
    );
    assert_eq!(
        passt(&format!("-s {other} -c {other}")),
        format!("Socket path {other} already in use\n")
    );
    let long = format!("/tmp/{}", "x".repeat(104));
    assert_eq!(passt(&format!("-s {other} -c {long}")), format!("Invalid socket path: {long}\n"));
    let nowhere = passt(&format!("-s {other} -c /nonexistent/c"));
    assert!(nowhere.starts_with("Couldn't bind UNIX domain socket to /nonexistent/c: No such"));
    assert!(!Path::new(other).exists(), "nothing is left behind");
    daemon.quietly("-A -t 5001");
    // A stale one is replaced.
    let Daemon { passt, control, lab } = daemon;
    drop(passt);
    assert!(control.exists());
    let passt = Passt::start_stream(&lab, &["-c", control.to_str().expect("is text")]);
    assert_eq!(Daemon { passt, control, lab }.rules(), [""; 0]);
}

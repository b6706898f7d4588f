//! The built program on its stream socket, with its sandbox in force, against clients of all
//! manners. What the guest asks is ARP: its answer needs no network.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What the program is told of the network, so that it answers the same anywhere.
const NETWORK: [&str; 10] =
    ["-f", "-q", "-4", "-D", "none", "-a", "192.0.2.10/24", "-g", "192.0.2.1", "--no-ra"];

/// How long anything may take before it is called stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder of the test's own.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("passt-stream-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("is ours");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("is ours");
    }
}

/// A `passt` in the foreground. Ends with the test.
struct Passt {
    child: Child,
    folder: Folder,
}

impl Passt {
    fn start(options: &[&str]) -> Self {
        let folder = Folder::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_passt"));
        command.arg("-s").arg(folder.0.join("s")).args(NETWORK).args(options);
        Self { child: command.stdin(Stdio::null()).spawn().expect("starts"), folder }
    }

    /// With a socket for descriptor 9.
    fn start_connected() -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("sockets are there");
        let inherit = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(&theirs, inherit).expect("is open");
        let script = format!("exec \"$@\" 9<&{}", theirs.as_raw_fd());
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_passt"), "--fd", "9"]);
        command.args(NETWORK).stdin(Stdio::null());
        ours.set_read_timeout(Some(PATIENCE)).expect("is open");
        (Self { child: command.spawn().expect("starts"), folder: Folder::new() }, ours)
    }

    /// Connects, as soon as there is something to connect to.
    fn connect(&mut self) -> UnixStream {
        loop {
            match UnixStream::connect(self.folder.0.join("s")) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).expect("is open");
                    return stream;
                }
                Err(_) => assert!(self.is_alive(), "it did not start"),
            }
            std::thread::yield_now();
        }
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn end(&mut self) -> ExitStatus {
        self.child.wait().expect("is ours")
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// "Who has 192.0.2.1?" from the guest, on the wire.
fn question() -> Vec<u8> {
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 1, 192, 0, 2, 10]);
    frame.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    [&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat()
}

/// Reads frames up to the answer to [`question`].
#[track_caller]
fn expect_answer(stream: &mut UnixStream) {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("a frame comes");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        assert!((60..=65_535).contains(&frame.len()), "{} bytes", frame.len());
        stream.read_exact(&mut frame).expect("a frame is complete");
        // An ARP reply from that address; others are what it wants to know itself.
        if frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 2] {
            assert_eq!(frame[28..32], [192, 0, 2, 1]);
            assert_eq!(frame[..6], [2, 0, 0, 0, 0, 1]);
            return;
        }
    }
}

#[track_caller]
fn ask(stream: &mut UnixStream) {
    stream.write_all(&question()).expect("it reads");
    expect_answer(stream);
}

/// Closes a connection. The descriptor alone may have a copy in a process that another test is
/// just starting.
fn leave(client: UnixStream) {
    client.shutdown(Shutdown::Both).expect("is open");
}

/// Reads to the end, which must come.
#[track_caller]
fn expect_end(stream: &mut UnixStream) {
    match stream.read_to_end(&mut Vec::new()) {
        Err(e) if e.kind() != ErrorKind::ConnectionReset => panic!("{e}"),
        _ => {}
    }
}

#[test]
fn a_client_is_served_and_after_it_the_next() {
    let mut passt = Passt::start(&[]);
    for _ in 0..3 {
        let mut client = passt.connect();
        ask(&mut client);
        leave(client);
    }
    assert!(passt.is_alive());
}

#[test]
fn one_byte_at_a_time_will_do() {
    let mut passt = Passt::start(&[]);
    let mut client = passt.connect();
    for byte in question() {
        client.write_all(&[byte]).expect("it reads");
    }
    expect_answer(&mut client);
}

#[test]
fn a_second_client_is_sent_away_and_the_first_goes_on() {
    let mut passt = Passt::start(&[]);
    let mut first = passt.connect();
    ask(&mut first);
    expect_end(&mut passt.connect());
    ask(&mut first);
}

#[test]
fn garbage_and_deaths_in_mid_frame_cost_that_client_only() {
    let mut passt = Passt::start(&[]);
    for (n, length) in [0u32, 13, 65_536, u32::MAX].into_iter().enumerate() {
        let mut client = passt.connect();
        ask(&mut client);
        client.write_all(&length.to_be_bytes()).expect("it reads");
        expect_end(&mut client);
        let mut client = passt.connect();
        client.write_all(&question()[..1 + n * 10]).expect("it reads");
        leave(client);
    }
    ask(&mut passt.connect());
}

#[test]
fn a_client_that_does_not_read_stops_nothing() {
    let mut passt = Passt::start(&[]);
    let mut client = passt.connect();
    let questions = question().repeat(1000);
    // Answers beyond what waits for it are dropped; all of its questions are read.
    for _ in 0..200 {
        client.write_all(&questions).expect("it reads");
    }
    client.set_nonblocking(true).expect("is open");
    let mut drained = vec![0; 1 << 20];
    while client.read(&mut drained).is_ok_and(|n| n > 0) {}
    leave(client);
    ask(&mut passt.connect());
}

#[test]
fn one_off_ends_with_status_0_when_its_client_goes() {
    let mut passt = Passt::start(&["--one-off"]);
    let mut client = passt.connect();
    ask(&mut client);
    expect_end(&mut passt.connect());
    leave(client);
    assert_eq!(passt.end().code(), Some(0));
}

#[test]
fn a_descriptor_is_served_until_its_other_end_closes() {
    let (mut passt, mut client) = Passt::start_connected();
    ask(&mut client);
    leave(client);
    assert_eq!(passt.end().code(), Some(0));
}

/// A UDP datagram of the guest's, on the wire.
fn datagram(to: [u8; 4], from_port: u16, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 10, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
    ip[16..].copy_from_slice(&to);
    let checksum = passt::wire::checksum::checksum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame =
        [&[0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55, 2, 0, 0, 0, 0, 1, 8, 0][..], &ip].concat();
    for word in [from_port, to_port, len, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(payload);
    [&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat()
}

/// Reads frames up to a UDP datagram: the address and port it is from, that it is to, its payload.
#[track_caller]
fn expect_datagram(stream: &mut UnixStream) -> ([u8; 4], u16, u16, Vec<u8>) {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("a frame comes");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).expect("a frame is complete");
        if frame[12..14] == [8, 0] && frame[23] == 17 {
            let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let payload = frame[42..34 + usize::from(word(38))].to_vec();
            return (frame[26..30].try_into().expect("four"), word(34), word(36), payload);
        }
    }
}

#[test]
fn datagrams_on_a_port_that_took_a_privilege_are_answered_from_there() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("needs the package iproute2").success());
    // Root gives its rights up as soon as the ports are bound.
    let mut passt = Passt::start(&["-u", "53:5353"]);
    let mut guest = passt.connect();
    ask(&mut guest);
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    client.set_read_timeout(Some(PATIENCE)).expect("is open");
    for question in [&b"one"[..], b"another"] {
        client.send_to(question, "127.0.0.1:53").expect("is sent");
        let (from, port, to, payload) = expect_datagram(&mut guest);
        assert_eq!((from, to, &payload[..]), ([192, 0, 2, 1], 5353, question));
        guest.write_all(&datagram(from, 5353, port, b"answer")).expect("it reads");
        let mut room = [0; 99];
        let (n, from) = client.recv_from(&mut room).expect("an answer");
        assert_eq!((&room[..n], from), (&b"answer"[..], ([127, 0, 0, 1], 53).into()));
    }
}

#[test]
fn a_capture_holds_what_crosses_the_socket() {
    let folder = Folder::new();
    let file = folder.0.join("capture");
    let mut passt = Passt::start(&["-1", "-p", file.to_str().expect("is text")]);
    let mut client = passt.connect();
    ask(&mut client);
    leave(client);
    assert_eq!(passt.end().code(), Some(0));
    let bytes = std::fs::read(&file).expect("is there");
    assert_eq!(bytes[..4], 0xa1b2_c3d4_u32.to_ne_bytes());
    let asked = &question()[4..];
    assert!(bytes.windows(asked.len()).any(|window| window == asked));
}

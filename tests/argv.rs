//! The command lines of the programs that start `passt`, word for word: each is started for real,
//! used, and stopped as that program does it. (For `pasta` see `pasta_life.rs`.) Needs root.

mod common;

use common::net::PATIENCE;
use common::pasta::{Place, Who, ends};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// The user of virtual machines in KubeVirt's pods; libvirt has one like it.
const QEMU: u32 = 107;

/// A host with the addresses that the command lines name.
struct Host {
    place: Place<'static>,
    passt: String,
}

impl Host {
    fn new() -> Self {
        let place = Place::new();
        place.host().ip("link add eth0 type veth peer name far0");
        place.host().ip("addr add 192.0.2.10/24 dev eth0");
        place.host().ip("addr add 1.2.3.4/32 dev eth0");
        place.host().ip("addr add 2001:db8:ac10:fd01::1:10/64 dev eth0 nodad");
        place.host().ip("link set far0 up");
        place.host().ip("link set eth0 up");
        place.host().ip("route add default via 192.0.2.1");
        // Where every user may start it.
        let passt = place.dir.join("passt");
        fs::copy(env!("CARGO_BIN_EXE_passt"), &passt).expect("there is room");
        fs::set_permissions(&passt, fs::Permissions::from_mode(0o755)).expect("is ours");
        let passt = passt.to_str().expect("is text").to_owned();
        Self { place, passt }
    }

    fn path(&self, name: &str) -> String {
        self.place.dir.join(name).to_str().expect("is text").to_owned()
    }

    fn sysctl(&self, assignment: &str) {
        let mut command = self.place.command(Who::Root, "sysctl");
        assert!(command.args(["-qw", assignment]).status().expect("starts").success());
    }

    /// `passt` as a user without any rights; in the line `+` stands for a blank inside of a word,
    /// and `@/` for a directory of the test's.
    fn passt(&self, user: u32, line: &str) -> Command {
        let mut command = self.place.command(Who::Root, "setpriv");
        let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
        command.args([&user, &group, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
        command.arg(&self.passt);
        let words = line.split_whitespace();
        command.args(words.map(|word| word.replace('+', " ").replace("@/", &self.path(""))));
        command
    }

    /// Runs it until it is in the background, which means that it is ready.
    #[track_caller]
    fn background(&self, user: u32, line: &str) {
        assert_eq!(self.prints(user, line), "", "{line}");
    }

    /// Runs it to its end with status 0; what it says on standard output.
    #[track_caller]
    fn prints(&self, user: u32, line: &str) -> String {
        let output = self.passt(user, line).output().expect("starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}\n{said}");
        String::from_utf8(output.stdout).expect("is text")
    }

    /// The process in a PID file, which must live.
    #[track_caller]
    fn pid(&self, file: &str) -> i32 {
        let text = fs::read_to_string(self.path(file)).expect("is there");
        let pid = text.strip_suffix('\n').and_then(|pid| pid.parse().ok()).expect("is a number");
        assert!(self.place.processes().contains(&pid), "{pid} does not live");
        pid
    }

    /// Whether a TCP port answers.
    fn answers(&self, address: &str, port: u16) -> bool {
        let address: IpAddr = address.parse().expect("is an address");
        self.place.host().within(|| TcpStream::connect((address, port))).is_ok()
    }

    /// Whether a UDP port is taken.
    fn is_taken(&self, address: &str, port: u16) -> bool {
        let address: IpAddr = address.parse().expect("is an address");
        self.place.host().within(|| UdpSocket::bind((address, port))).is_err()
    }

    /// Connects to a socket.
    #[track_caller]
    fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.path(name)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("is open");
        stream
    }

    /// Stops it as clients do, and waits until it has gone.
    #[track_caller]
    fn stop(&self, pid: i32) {
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it lives");
        assert!(ends(pid), "{pid} does not end");
        self.place.assert_nothing_is_left();
    }
}

/// Asks who has the gateway's address, as QEMU would send it, and waits for the answer.
#[track_caller]
fn ask(stream: &mut UnixStream, gateway: [u8; 4]) {
    let mut frame = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 77]);
    frame.extend([0; 6]);
    frame.extend(gateway);
    let length = u32::try_from(frame.len()).expect("is short").to_be_bytes();
    stream.write_all(&[&length[..], &frame].concat()).expect("it reads");
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("a frame comes");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).expect("a frame is complete");
        if frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 2] {
            assert_eq!(frame[28..32], gateway);
            return;
        }
    }
}

/// A command that finds a socket as this descriptor, and the other end of the socket.
fn with_descriptor(command: &Command, number: u32) -> (Command, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("sockets are there");
    ours.set_read_timeout(Some(PATIENCE)).expect("is open");
    let mut wrapped = Command::new("sh");
    wrapped.args(["-c", &format!("exec \"$@\" {number}<&0 </dev/null"), "sh"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.stdin(Stdio::from(OwnedFd::from(theirs)));
    (wrapped, ours)
}

/// Waits for a file as those do who have no other sign of life.
#[track_caller]
fn appears(path: &str, child: &mut Child) {
    let start = Instant::now();
    while fs::metadata(path).is_err() {
        assert!(matches!(child.try_wait(), Ok(None)), "it has ended");
        assert!(start.elapsed() < PATIENCE, "no {path}");
        std::thread::yield_now();
    }
}

/// What libvirt's documentation has for an example.
const PORTS: &str = "--tcp-ports 2001:db8:ac10:fd01::1:10/22:2022,1000-1050,~1020,~1030-1040 \
    --udp-ports 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015 --tcp-ports 80 --tcp-ports 443:344";

#[track_caller]
fn ports_are_open(host: &Host) {
    for port in [22, 1000, 1019, 1021, 1041, 1050] {
        assert!(host.answers("2001:db8:ac10:fd01::1:10", port), "{port}");
        assert!(!host.answers("192.0.2.10", port), "{port}");
    }
    for port in [1020, 1030, 1040, 344] {
        assert!(!host.answers("2001:db8:ac10:fd01::1:10", port), "{port}");
    }
    for port in [80, 443] {
        assert!(host.answers("192.0.2.10", port) && host.answers("::1", port), "{port}");
    }
    for (port, taken) in [(5000, true), (5009, true), (5010, false), (5016, true), (5020, true)] {
        assert_eq!(host.is_taken("1.2.3.4", port), taken, "{port}");
        assert!(!host.is_taken("192.0.2.10", port), "{port}");
    }
}

#[test]
fn libvirt_user_interface_is_stopped_by_its_pid() {
    let host = Host::new();
    host.sysctl("net.ipv4.ip_unprivileged_port_start=0");
    let line = "--one-off --socket @/1-vm-net0.socket --pid @/1-vm-net0-passt.pid --mtu 9000 \
        --interface eth0 --log-file @/passt.log --hostname vm --fqdn vm.example.com \
        --address 192.0.2.77 --netmask 24 --address 2001:db8:ac10:fd01::1:20";
    host.background(QEMU, &format!("{line} {PORTS}"));
    let pid = host.pid("1-vm-net0-passt.pid");
    ports_are_open(&host);
    let mut qemu = host.connect("1-vm-net0.socket");
    ask(&mut qemu, [192, 0, 2, 1]);
    host.stop(pid);
    let log = fs::read_to_string(host.path("passt.log")).expect("is there");
    assert!(log.starts_with("passt ") && log.contains("Client connected"), "{log}");
}

#[test]
fn libvirt_9_0_has_no_pid_and_ends_it_with_the_machine() {
    let host = Host::new();
    // All but a few ports, without more sockets than a small limit of open files allows.
    host.sysctl("net.ipv4.ip_local_port_range=6000 65535");
    let line = "--one-off --socket @/1-vm-net0.socket --mac-addr 52:54:00:01:02:03 \
        --address 192.0.2.77 --tcp-ports 2222:22 --udp-ports ~5000,~5002-5003";
    host.background(QEMU, line);
    assert!(host.answers("127.0.0.1", 2222) && host.is_taken("127.0.0.1", 5001));
    assert!(!host.is_taken("127.0.0.1", 5000) && !host.is_taken("127.0.0.1", 5003));
    let mut qemu = host.connect("1-vm-net0.socket");
    ask(&mut qemu, [192, 0, 2, 1]);
    drop(qemu);
    host.place.assert_nothing_is_left();
}

#[test]
fn libvirt_vhostuser_interface_ends_with_the_machine_or_by_its_pid() {
    let host = Host::new();
    host.sysctl("net.ipv4.ip_unprivileged_port_start=0");
    let line = "--vhost-user --one-off --socket @/2-vm-net1.socket --pid @/2-vm-net1-passt.pid \
        --interface eth0 --log-file @/passt.log";
    host.background(QEMU, &format!("{line} {PORTS}"));
    ports_are_open(&host);
    host.stop(host.pid("2-vm-net1-passt.pid"));
    // What was left behind does not stand in the way of the next start.
    host.background(QEMU, line);
    let pid = host.pid("2-vm-net1-passt.pid");
    drop(host.connect("2-vm-net1.socket"));
    assert!(ends(pid));
    host.place.assert_nothing_is_left();
}

#[test]
fn a_machine_that_cannot_have_its_port_is_told_why() {
    let host = Host::new();
    let line = "--one-off --socket @/1-vm-net0.socket --pid @/pid --tcp-ports 192.0.2.99/2222:22";
    let output = host.passt(QEMU, line).output().expect("starts");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Listen failed for HOST TCP port 192.0.2.99/2222: "), "{said}");
    host.place.assert_nothing_is_left();
    assert!(UnixStream::connect(host.path("1-vm-net0.socket")).is_err());
}

#[test]
fn qemu_hands_over_a_socket_as_descriptor_3() {
    let host = Host::new();
    let options = "--mtu 1500 --address 192.0.2.9 --netmask 255.255.255.0 \
        --mac-addr 52:54:00:12:34:56 --gateway 192.0.2.1 --interface eth0 --outbound 192.0.2.10 \
        --outbound-if4 eth0 --outbound-if6 eth0 --dns 192.0.2.53 --search a.example+b.example \
        --fqdn vm.example --no-dhcp-dns --no-dhcp-search --map-host-loopback 192.0.2.2 \
        --map-guest-addr 192.0.2.3 --dns-forward 192.0.2.4 --dns-host 127.0.0.1 --no-icmp \
        --no-dhcp --no-ndp --no-dhcpv6 --no-ra --freebind --ipv4-only --tcp-ports 2222:22,8080 \
        --udp-ports 5353 --pid @/passt-ABCDEF.pid --fd 3";
    for link in ["--quiet", "--vhost-user --quiet"] {
        let line = format!("{link} {options}");
        let start = || {
            let (mut command, socket) = with_descriptor(&host.passt(QEMU, &line), 3);
            let output = command.output().expect("starts");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
            assert_eq!(output.status.code(), Some(0), "{line}");
            (socket, host.pid("passt-ABCDEF.pid"))
        };
        let (mut socket, pid) = start();
        assert!(host.answers("192.0.2.10", 2222) && host.is_taken("192.0.2.10", 5353));
        if link == "--quiet" {
            ask(&mut socket, [192, 0, 2, 1]);
        }
        host.stop(pid);
        drop(socket);
    }
}

#[test]
fn kubevirt_runs_it_in_a_pod_with_all_ports() {
    let host = Host::new();
    host.sysctl("net.ipv4.ip_unprivileged_port_start=0");
    host.sysctl("net.ipv4.ping_group_range=107 107");
    // Half of the ports are nobody's business here: fewer sockets to wait for.
    host.sysctl("net.ipv4.ip_local_port_range=2000 65535");
    let common = "--vhost-user --one-off --socket @/3-kubevirt_vm-net0.socket \
        --pid @/3-kubevirt_vm-net0-passt.pid --interface eth0 --log-file @/passt.log";
    host.background(QEMU, &format!("{common} --tcp-ports all --udp-ports all"));
    let pid = host.pid("3-kubevirt_vm-net0-passt.pid");
    for port in [1, 22, 80, 1999] {
        assert!(host.answers("192.0.2.10", port) && host.is_taken("192.0.2.10", port), "{port}");
    }
    assert!(!host.answers("192.0.2.10", 2000));
    // Whoever looks into the log finds the user that it runs as, and lines.
    let log = fs::metadata(host.path("passt.log")).expect("is there");
    assert!(log.len() > 0 && log.permissions().mode() & 0o777 == 0o600);
    host.stop(pid);
    // With Istio: but for its ports.
    let ports = "--tcp-ports ~1500,~1501,~1506 --udp-ports ~1500";
    host.background(QEMU, &format!("{common} {ports}"));
    assert!(host.answers("192.0.2.10", 1502) && !host.answers("192.0.2.10", 1501));
    host.stop(host.pid("3-kubevirt_vm-net0-passt.pid"));
}

/// Starts it in the foreground with a socket for a descriptor.
fn foreground(host: &Host, line: &str, descriptor: u32) -> (Child, UnixStream) {
    let (mut command, socket) = with_descriptor(&host.passt(QEMU, line), descriptor);
    (command.spawn().expect("starts"), socket)
}

#[test]
fn muvm_hands_over_a_socket_and_closes_it() {
    let host = Host::new();
    let (mut child, mut socket) = foreground(&host, "-q -f --fd 4", 4);
    ask(&mut socket, [192, 0, 2, 1]);
    drop(socket);
    assert_eq!(child.wait().expect("is ours").code(), Some(0));
}

#[test]
fn cuttlefish_interrupts_it() {
    let host = Host::new();
    let line = "--vhost-user --foreground -s @/a.socket --repair-path none -4 -a 192.168.97.2 \
        -n 30 -g 192.168.97.1 --map-host-loopback 192.168.97.1 -D 192.0.2.53";
    let mut child = host.passt(QEMU, line).stderr(Stdio::null()).spawn().expect("starts");
    appears(&host.path("a.socket"), &mut child);
    let _client = host.connect("a.socket");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("it lives");
    assert_eq!(child.wait().expect("is ours").signal(), Some(libc::SIGINT));
}

#[test]
fn wrappers_of_cloud_hypervisor_ask_first_and_wait_for_the_socket() {
    let host = Host::new();
    let output = host.prints(QEMU, "--vhost-user --print-capabilities");
    let json: String = output.split_whitespace().collect();
    assert_eq!(json, r#"{"type":"net"}"#);
    let line = "--socket @/a.socket --vhost-user --foreground --quiet -a 10.0.2.15 -g 10.0.2.2 \
        --dns-forward 10.0.2.3";
    let mut child = host.passt(QEMU, line).spawn().expect("starts");
    appears(&host.path("a.socket"), &mut child);
    let client = host.connect("a.socket");
    drop(client);
    // It stays for the next machine, until it is told to go.
    drop(host.connect("a.socket"));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it lives");
    assert_eq!(child.wait().expect("is ours").code(), Some(0));
}

#[test]
fn kata_quits_it() {
    let host = Host::new();
    host.background(QEMU, "-P @/kata-passt-1.pid -s @/kata-passt-1.socket");
    let pid = host.pid("kata-passt-1.pid");
    let mut client = host.connect("kata-passt-1.socket");
    ask(&mut client, [192, 0, 2, 1]);
    kill(Pid::from_raw(pid), Signal::SIGQUIT).expect("it lives");
    assert!(ends(pid));
    host.place.assert_nothing_is_left();
}

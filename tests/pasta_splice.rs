//! `pasta` between loopback addresses: connections and datagrams that go from socket to socket,
//! with the addresses that services see; as root and as an ordinary user. Needs root.

mod common;

use common::net::{FAR4, HOST4, HOST6, Lab, Namespace, TempDir, need};
use common::pasta::children;
use common::peer::{self, Operation, Server};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

const LO4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LO6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Ports of services inside, forwarded there by the same number, and of services on the host.
const INSIDE: u16 = 6000;
const OUTSIDE: u16 = 5300;

const PORTS: [&str; 8] = ["-t", "6000", "-u", "6000", "-T", "5300", "-U", "5300"];

/// More than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    User,
}

const EVERYBODY: [Who; 2] = [Who::Root, Who::User];

/// A `pasta` with a command that waits; ended on drop.
struct Pasta {
    child: Child,
    /// The command's process.
    command: i32,
    /// Where an ordinary user may start the program.
    _copy: TempDir,
}

impl Pasta {
    fn start(host: &Namespace, who: Who, options: &[&str]) -> Self {
        need("setpriv", "util-linux");
        let copy = TempDir::new();
        let program = copy.join("pasta");
        fs::copy(env!("CARGO_BIN_EXE_pasta"), &program).expect("there is room");
        for path in [copy.path(), &program] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("is ours");
        }
        let mut command = match who {
            Who::Root => host.command(&program),
            Who::User => {
                let mut command = host.command("setpriv");
                command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"]);
                command.arg(&program);
                command
            }
        };
        command.arg("-f").args(PORTS).args(options);
        command.args(["--", "sh", "-c", "echo ready; exec sleep infinity"]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("is piped");
        BufReader::new(stdout).read_line(&mut line).expect("is text");
        assert_eq!(line, "ready\n", "{who:?} {options:?}");
        let pid = child.id();
        let is_command = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            ["sh\n", "sleep\n"].contains(&name.as_str())
        };
        let command =
            children(pid.cast_signed()).into_iter().find(is_command).expect("the command runs");
        Self { child, command, _copy: copy }
    }

    /// What `work` returns, run by a thread inside.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.command));
        let namespace = File::open(path).expect("the namespace is there");
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).expect("cannot enter");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Its descriptors.
    fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(Path::new(&path)).expect("it lives").count()
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.command), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A service that tells each client which addresses it sees: its peer's and, of TCP, its own.
fn tell_addresses(port: u16) {
    let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, port).into();
    let listener = TcpListener::bind(any).expect("the port is free");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let ends = [stream.peer_addr(), stream.local_addr()];
            let [peer, local] = ends.map(|end| end.map_or_else(|e| e.to_string(), canonical));
            let _ = write!(stream, "{peer} {local}");
        }
    });
    let socket = UdpSocket::bind(any).expect("the port is free");
    thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(canonical(peer).as_bytes(), peer);
        }
    });
}

fn canonical(address: SocketAddr) -> String {
    address.ip().to_canonical().to_string()
}

/// What such a service says over TCP.
fn seen(to: IpAddr, port: u16) -> String {
    let mut stream = TcpStream::connect((to, port)).expect("is accepted");
    stream.set_read_timeout(Some(PATIENCE)).expect("is open");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap_or_else(|e| panic!("{to}: {e}"));
    text
}

/// What it says over UDP.
fn seen_of_datagrams(to: IpAddr, port: u16) -> String {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).expect("a port");
    socket.connect((to, port)).expect("there is a way");
    socket.set_read_timeout(Some(PATIENCE)).expect("is open");
    socket.send(b"who am I?").expect("is sent");
    let mut buffer = [0; 100];
    let n = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{to}: {e}"));
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[test]
fn services_see_the_addresses_that_the_table_says() {
    let lab = Lab::new();
    lab.host.within(|| tell_addresses(OUTSIDE));
    let (lo4, lo6) = (LO4.to_string(), LO6.to_string());
    let (host4, host6) = (HOST4.to_string(), HOST6.to_string());
    for who in EVERYBODY {
        // The guest's own addresses, or those of its loopback; the rest through the tap.
        for (options, four, six) in [
            (&["--config-net"][..], &host4, &host6),
            (&["--config-net", "--host-lo-to-ns-lo"], &lo4, &lo6),
        ] {
            let pasta = Pasta::start(&lab.host, who, options);
            pasta.within(|| tell_addresses(INSIDE));
            for (to, addr) in [(LO4, four), (LO6, six)] {
                let told = lab.host.within(|| seen(to, INSIDE));
                assert_eq!(told, format!("{addr} {addr}"), "{who:?} {options:?} TCP");
                let told = lab.host.within(|| seen_of_datagrams(to, INSIDE));
                assert_eq!(&told, addr, "{who:?} {options:?} UDP");
            }
            let told = lab.far.within(|| seen(HOST4, INSIDE));
            assert_eq!(told, format!("{FAR4} {host4}"), "{who:?} {options:?} from far away");
            for lo in [LO4, LO6] {
                let told = pasta.within(|| seen(lo, OUTSIDE));
                assert_eq!(told, format!("{lo} {lo}"), "{who:?} {options:?} TCP outwards");
                let told = pasta.within(|| seen_of_datagrams(lo, OUTSIDE));
                assert_eq!(told, lo.to_string(), "{who:?} {options:?} UDP outwards");
            }
        }
        let pasta = Pasta::start(&lab.host, who, &["--config-net", "--no-splice"]);
        pasta.within(|| tell_addresses(INSIDE));
        let told = lab.host.within(|| seen(LO4, INSIDE));
        let gateway = common::net::GATEWAY4;
        assert_eq!(told, format!("{gateway} {host4}"), "{who:?} through the tap");
    }
}

#[test]
fn a_gibibyte_each_way_arrives_unchanged() {
    let lab = Lab::new();
    lab.host.within(|| Server::start(OUTSIDE)).expect("serves");
    let pasta = Pasta::start(&lab.host, Who::User, &["--splice-only"]);
    pasta.within(|| Server::start(INSIDE)).expect("serves");
    let both = |lo: IpAddr, port| {
        peer::exchange(SocketAddr::from((lo, port)), Operation::Both, 1 << 30, 1)
    };
    lab.host.within(|| both(LO4, INSIDE)).expect("inwards");
    pasta.within(|| both(LO6, OUTSIDE)).expect("outwards");
}

#[test]
fn ends_and_resets_cross_in_every_order() {
    let lab = Lab::new();
    lab.host.within(|| Server::start(OUTSIDE)).expect("serves");
    for who in EVERYBODY {
        let pasta = Pasta::start(&lab.host, who, &["--splice-only"]);
        pasta.within(|| Server::start(INSIDE)).expect("serves");
        for (seed, operation) in (10..).zip([
            Operation::Take,
            Operation::Give,
            Operation::Both,
            Operation::ServerEndsFirst,
            Operation::ClientResets,
            Operation::ServerResets,
        ]) {
            for (length, lo) in [(0, LO4), (1, LO6), (100_000, LO4), (3_000_000, LO6)] {
                let of = |port| {
                    let to = SocketAddr::from((lo, port));
                    peer::exchange(to, operation, length, seed)
                };
                let inwards = lab.host.within(|| of(INSIDE));
                inwards.unwrap_or_else(|e| panic!("{who:?} {operation:?} {length} inwards: {e}"));
                let outwards = pasta.within(|| of(OUTSIDE));
                outwards.unwrap_or_else(|e| panic!("{who:?} {operation:?} {length} outwards: {e}"));
            }
        }
    }
}

#[test]
fn datagrams_of_all_sizes_cross_both_ways() {
    let lab = Lab::new();
    lab.host.within(|| Server::start(OUTSIDE)).expect("serves");
    let lengths = [1, 1400, 9000, 60_000, 65_507, 100, 1, 1472];
    for who in EVERYBODY {
        let pasta = Pasta::start(&lab.host, who, &["--splice-only"]);
        pasta.within(|| Server::start(INSIDE)).expect("serves");
        for lo in [LO4, LO6] {
            let echo = |port| peer::udp_echo(SocketAddr::from((lo, port)), &lengths);
            lab.host.within(|| echo(INSIDE)).expect("inwards");
            pasta.within(|| echo(OUTSIDE)).expect("outwards");
        }
    }
}

#[test]
fn datagrams_cross_on_ports_that_cannot_be_bound_again() {
    let lab = Lab::new();
    lab.host.within(|| Server::start(OUTSIDE)).expect("serves");
    let lengths = [1, 60_000, 100, 1472];
    let outwards = ["--splice-only", "-U", "54:5300"];
    let both = ["--splice-only", "-U", "54:5300", "-u", "53:6000"];
    let as_someone = [&both[..], &["--runas", "1000"]].concat();
    for (who, options) in
        [(Who::User, &outwards[..]), (Who::Root, &both[..]), (Who::Root, &as_someone[..])]
    {
        let pasta = Pasta::start(&lab.host, who, options);
        pasta.within(|| Server::start(INSIDE)).expect("serves");
        for lo in [LO4, LO6] {
            let echo = |port| peer::udp_echo(SocketAddr::from((lo, port)), &lengths);
            if who == Who::Root {
                lab.host.within(|| echo(53)).expect("inwards");
            }
            pasta.within(|| echo(54)).expect("outwards");
        }
    }
}

#[test]
fn spliced_alone_nothing_else_comes_in_and_there_is_no_interface() {
    let lab = Lab::new();
    for who in EVERYBODY {
        let pasta = Pasta::start(&lab.host, who, &["--splice-only"]);
        pasta.within(|| tell_addresses(INSIDE));
        let told = lab.host.within(|| seen(LO4, INSIDE));
        assert_eq!(told, format!("{LO4} {LO4}"), "{who:?}");
        for from in [&lab.host, &lab.far] {
            let refused = from.within(|| {
                let mut stream = TcpStream::connect((HOST4, INSIDE))?;
                stream.read(&mut [0; 1])
            });
            let error = refused.expect_err("not from loopback to loopback");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{who:?}");
        }
        // /proc/thread-self/net is the network of the thread that looks.
        let interfaces = pasta.within(|| fs::read_to_string("/proc/thread-self/net/dev"));
        let interfaces = interfaces.expect("is mounted");
        let names: Vec<_> =
            interfaces.lines().filter_map(|l| l.split_once(':')).map(|(n, _)| n.trim()).collect();
        assert_eq!(names, ["lo"], "{who:?}");
    }
}

#[test]
fn who_does_not_serve_is_a_reset_to_the_client() {
    let lab = Lab::new();
    for who in EVERYBODY {
        let pasta = Pasta::start(&lab.host, who, &["--splice-only"]);
        let read = |lo: IpAddr, port| {
            let mut stream = TcpStream::connect((lo, port))?;
            stream.read(&mut [0; 1])
        };
        for lo in [LO4, LO6] {
            let inwards = lab.host.within(|| read(lo, INSIDE)).expect_err("nobody serves");
            let outwards = pasta.within(|| read(lo, OUTSIDE)).expect_err("nobody serves");
            let both = [inwards.kind(), outwards.kind()];
            assert_eq!(both, [ErrorKind::ConnectionReset; 2], "{who:?} {lo}");
        }
    }
}

#[test]
fn an_idle_connection_is_two_descriptors_and_none_is_left_of_thousands() {
    const IDLE: usize = 300;
    let lab = Lab::new();
    let pasta = Pasta::start(&lab.host, Who::User, &["--splice-only"]);
    pasta.within(|| Server::start(INSIDE)).expect("serves");
    let to = SocketAddr::from((LO4, INSIDE));
    let exchange = |seed| peer::exchange(to, Operation::Both, 100, seed);
    lab.host.within(|| exchange(1)).expect("works");
    // Pools of sockets and pipes may be fuller or emptier.
    let (before, pools) = (pasta.descriptors(), 2 * 16 + 2 * 32);
    lab.host.within(|| (2..3002).try_for_each(exchange)).expect("works");
    let after = pasta.descriptors();
    assert!(after <= before + pools, "{before} descriptors became {after}");

    let idle = || (0..IDLE).map(|_| peer::idle(to, 1)).collect::<Result<Vec<_>, _>>();
    let _idle = lab.host.within(idle).expect("works");
    // They are there when one that came after them works.
    lab.host.within(|| exchange(2)).expect("works");
    let least = after.saturating_sub(pools) + 2 * IDLE;
    let now = pasta.descriptors();
    assert!((least..=after + 2 * IDLE + pools).contains(&now), "{after} {now}");
}

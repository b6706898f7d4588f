//! A network of its own for a test: namespaces joined by a veth pair, and `passt` in one of them.
//!
//! ```text
//!   guest === vhost-user === passt | "host" 192.0.2.10/24, 2001:db8:1::10/64
//!                                  |   |  veth
//!                                  | "far" 192.0.2.1, 2001:db8:1::1 (default gateway)
//!                                          198.51.100.1, 2001:db8:ffff::1 (an address beyond it)
//! ```
//!
//! By default a guest shares the addresses of "host"; what it sends to the gateway's address
//! reaches the loopback address of "host", so the far end is addressed by its other address.
//! Needs root: namespaces are made with `ip`. Everything is removed on drop, and what a killed
//! test left behind is removed by the next one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};

/// The address of "host", which the guest shares.
pub const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
pub const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
/// The default gateway of "host"; mapped to the loopback address of "host" for the guest.
pub const GATEWAY4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
/// An address of "far" that is reached through the gateway.
pub const FAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
pub const FAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));
/// What the resolver configuration of "host" says.
pub const RESOLV_CONF: &str =
    "nameserver 198.51.100.1\nnameserver 2001:db8:ffff::1\nsearch lab.example\n";

/// How long anything may take before a test is called stuck. Nothing waits this long when it works.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A directory that disappears with the value. Under `/tmp`: socket paths have to stay short.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        let template = std::env::temp_dir().join("passt-rs.XXXXXX");
        let path = nix::unistd::mkdtemp(&template).expect("cannot make a temporary directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A network namespace with a name; removed on drop.
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Self {
        run("ip", ["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// One without any connection.
    pub fn alone(role: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run as root"
        );
        need("ip", "iproute2");
        Self::new(fresh_name(role))
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `ip ARGUMENTS` inside.
    pub fn ip(&self, arguments: &str) {
        run("ip", ["-n", &self.name].into_iter().chain(arguments.split(' ')));
    }

    /// A command that will run inside; its process is the program itself, not a wrapper.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// What `work` returns, run by a thread inside. Sockets that it opens stay inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.path(), work)
    }

    /// Takes its name away: it lives on while someone is in it.
    pub fn remove(&self) {
        run("ip", ["netns", "del", &self.name]);
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        // /proc/sys/net shows the namespace of the thread that opens it.
        let path = Path::new("/proc/sys").join(name);
        self.within(|| fs::write(&path, value))
            .unwrap_or_else(|error| panic!("cannot set {name}: {error}"));
    }
}

/// As [`Namespace::within`], for the namespace behind a file.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(path).expect("the namespace is gone");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("cannot enter a namespace");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.path().exists() {
            let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        }
    }
}

/// Signs of loss in a kernel's TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpCounters {
    /// Segments that it sent again, for whatever reason.
    pub retransmitted: u64,
    /// Its retransmission timers that expired.
    pub timeouts: u64,
    /// Segments that it received again.
    pub duplicates: u64,
    /// Segments that it received before their turn.
    pub out_of_order: u64,
}

impl TcpCounters {
    pub const NONE: Self = Self { retransmitted: 0, timeouts: 0, duplicates: 0, out_of_order: 0 };

    /// Reads `/proc/net/snmp` and `/proc/net/netstat`, one behind the other: lines in pairs, first
    /// the names and then the values.
    pub fn parse(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let find = |group: &str, name: &str| {
            let pair = lines
                .chunks_exact(2)
                .find(|pair| pair[0].starts_with(group))
                .unwrap_or_else(|| panic!("no {group} counters in {text}"));
            let column = pair[0].split(' ').position(|word| word == name);
            let value = column.and_then(|column| pair[1].split(' ').nth(column));
            value
                .and_then(|value| value.parse().ok())
                .unwrap_or_else(|| panic!("no counter {group} {name}"))
        };
        Self {
            retransmitted: find("Tcp:", "RetransSegs"),
            timeouts: find("TcpExt:", "TCPTimeouts"),
            duplicates: find("TcpExt:", "DelayedACKLost"),
            out_of_order: find("TcpExt:", "TCPOFOQueue"),
        }
    }

    pub fn since(self, earlier: Self) -> Self {
        Self {
            retransmitted: self.retransmitted - earlier.retransmitted,
            timeouts: self.timeouts - earlier.timeouts,
            duplicates: self.duplicates - earlier.duplicates,
            out_of_order: self.out_of_order - earlier.out_of_order,
        }
    }
}

/// The two namespaces and a directory for files. One lab exists at a time on a machine that
/// shares a target directory: guests are heavy, and figures are to be comparable.
pub struct Lab {
    pub host: Namespace,
    pub far: Namespace,
    pub dir: TempDir,
    _turn: Flock<File>,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self::without_addresses();
        connect(&lab.host, &lab.far);
        lab
    }

    /// Nothing but loopback addresses anywhere.
    pub fn without_addresses() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run as root"
        );
        need("ip", "iproute2");
        need("nsenter", "util-linux");
        let turn = wait_for_turn();
        remove_leftovers();
        let (host, far) = (Namespace::new(fresh_name("host")), Namespace::new(fresh_name("far")));
        for namespace in [&host, &far] {
            // Without this an address is unusable for a second or two after it is added.
            namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
            namespace.sysctl("net/ipv6/conf/all/forwarding", "0");
            namespace.sysctl("net/ipv4/ping_group_range", "0 2147483647");
        }
        host.ip(&format!("link add eth0 type veth peer name eth0 netns {}", far.name));
        Self { host, far, dir: TempDir::new(), _turn: turn }
    }

    /// Gives a lab without addresses those of any other.
    pub fn connect(&self) {
        connect(&self.host, &self.far);
    }

    /// The resolver configuration for a process inside "host", as a file.
    fn resolv_conf(&self) -> PathBuf {
        let path = self.dir.join("resolv.conf");
        fs::write(&path, RESOLV_CONF).expect("cannot write resolv.conf");
        path
    }
}

fn connect(host: &Namespace, far: &Namespace) {
    for (namespace, four, six) in [(host, HOST4, HOST6), (far, GATEWAY4, GATEWAY6)] {
        namespace.ip(&format!("addr add {four}/24 dev eth0"));
        namespace.ip(&format!("addr add {six}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
    }
    far.ip(&format!("addr add {FAR4}/32 dev lo"));
    far.ip(&format!("addr add {FAR6}/128 dev lo nodad"));
    // Answers to datagrams leave with the address that they came to.
    far.ip(&format!("route change 192.0.2.0/24 dev eth0 src {FAR4}"));
    far.ip(&format!("-6 route add 2001:db8:1::/64 dev eth0 metric 1 src {FAR6}"));
    host.ip(&format!("route add default via {GATEWAY4}"));
    host.ip(&format!("-6 route add default via {GATEWAY6}"));
}

fn wait_for_turn() -> Flock<File> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab.lock");
    let file = File::create(&path).expect("cannot create the lock file");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("cannot lock")
}

fn fresh_name(role: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("passt-{}-{number}-{role}", std::process::id())
}

/// Removes the namespaces of tests that are dead.
fn remove_leftovers() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("passt-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// A `passt` in the foreground inside "host" of a lab; killed on drop.
pub struct Passt {
    child: Child,
    socket: PathBuf,
    log: Arc<Log>,
}

impl Passt {
    /// Starts the program under test with `--vhost-user`, a socket and `options`, and waits until
    /// it listens. `PASST_UNDER_TEST` names another binary, `PASST_OPTIONS` more options.
    pub fn start(lab: &Lab, options: &[&str]) -> Self {
        Self::start_program(lab, &program_under_test(), options)
    }

    /// As [`Passt::start`], with a program of the caller's choice.
    pub fn start_program(lab: &Lab, program: &OsStr, options: &[&str]) -> Self {
        Self::start_with(lab, program, &["--vhost-user"], options)
    }

    /// As [`Passt::start`], but its socket is a stream of frames.
    pub fn start_stream(lab: &Lab, options: &[&str]) -> Self {
        Self::start_stream_program(lab, &program_under_test(), options)
    }

    /// As [`Passt::start_stream`], with a program of the caller's choice.
    pub fn start_stream_program(lab: &Lab, program: &OsStr, options: &[&str]) -> Self {
        Self::start_with(lab, program, &[], options)
    }

    fn start_with(lab: &Lab, program: &OsStr, link: &[&str], options: &[&str]) -> Self {
        let socket = lab.dir.join(&format!("{}.socket", fresh_name("passt")));
        // A resolv.conf of its own needs a mount namespace; `exec` keeps the process id.
        let mut child = lab
            .host
            .command("unshare")
            .args(["--mount", "--propagation", "private", "--", "sh", "-c"])
            .arg(r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#)
            .arg(lab.resolv_conf())
            .arg(program)
            .args(link)
            .args(["-f", "-s"])
            .arg(&socket)
            .args(options)
            .args(std::env::var("PASST_OPTIONS").iter().flat_map(|o| o.split(' ')))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cannot start passt");
        let log = Log::follow(child.stderr.take().expect("stderr is a pipe"));
        let passt = Self { child, socket, log };
        passt.log.wait_for("UNIX domain socket bound at");
        passt
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has said on stderr so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until it has said this on stderr.
    pub fn wait_for(&self, words: &str) {
        self.log.wait_for(words);
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process is there still.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU time of the process so far, user and system.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = self.proc_file("stat");
        // The name in parentheses may hold anything; fields 14 and 15 are clock ticks.
        let fields: Vec<&str> =
            stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
        let ticks = |index: usize| fields[index].parse::<u32>().expect("a number of ticks");
        f64::from(ticks(11) + ticks(12)) / 100.0
    }

    /// The largest resident set so far, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.and_then(|number| number.parse().ok()).expect("no VmHWM")
    }

    fn proc_file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).expect("passt is gone")
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("passt said:\n{}", self.log());
        }
    }
}

fn program_under_test() -> OsString {
    let ours = OsString::from(env!("CARGO_BIN_EXE_passt"));
    std::env::var_os("PASST_UNDER_TEST").unwrap_or(ours)
}

/// The lines of a pipe, collected by a thread.
struct Log {
    state: Mutex<(String, bool)>,
    changed: Condvar,
}

impl Log {
    fn follow(pipe: impl std::io::Read + Send + 'static) -> Arc<Self> {
        let log = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let mut state = writer.state.lock().expect("poisoned");
                state.0.push_str(&String::from_utf8_lossy(&line));
                state.0.push('\n');
                writer.changed.notify_all();
            }
            writer.state.lock().expect("poisoned").1 = true;
            writer.changed.notify_all();
        });
        log
    }

    fn wait_for(&self, words: &str) {
        let state = self.state.lock().expect("poisoned");
        let waiting = |state: &mut (String, bool)| !state.0.contains(words) && !state.1;
        let (state, _) =
            self.changed.wait_timeout_while(state, PATIENCE, waiting).expect("poisoned");
        assert!(state.0.contains(words), "no line with '{words}'; it said:\n{}", state.0);
    }

    fn text(&self) -> String {
        self.state.lock().expect("poisoned").0.clone()
    }
}

/// Fails, with the Debian package to install, if there is no such program.
pub fn need(program: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{program} is missing: install the package {package}"))
}

#[track_caller]
fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    let output = Command::new(program).args(&arguments).output().expect("cannot run a program");
    assert!(
        output.status.success(),
        "{program} {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

//! The command line of the built programs: statuses, messages, what is on which stream, and what a
//! start leaves behind.

use nix::fcntl::{Flock, FlockArg};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

const PASST: &str = env!("CARGO_BIN_EXE_passt");
const PASTA: &str = env!("CARGO_BIN_EXE_pasta");

/// Runs a program with a line of words to its end.
fn run(program: &str, line: &str) -> Output {
    Command::new(program).args(line.split_whitespace()).output().expect("starts")
}

/// Runs a program that succeeds without a word on standard error; returns its standard output.
#[track_caller]
fn prints(program: &str, line: &str) -> String {
    let output = run(program, line);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
    assert_eq!(output.status.code(), Some(0), "{line}");
    String::from_utf8(output.stdout).expect("is text")
}

/// Runs a program that fails with status 1 and nothing on standard output; returns what it says.
#[track_caller]
fn fails(program: &str, line: &str) -> String {
    let output = run(program, line);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{line}");
    assert_eq!(output.status.code(), Some(1), "{line}");
    let text = String::from_utf8(output.stderr).expect("is text");
    assert!(!text.trim().is_empty(), "{line}");
    text
}

/// A folder of the test's own, and the paths that the tests use in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("passt-cli-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("is ours");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("is text").to_owned()
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).expect("is there");
        names.map(|n| n.expect("is there").file_name().into_string().expect("is text")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("is ours");
    }
}

/// A `passt --vhost-user` in the foreground. Ends with the test.
struct Foreground {
    child: Child,
    stderr: BufReader<ChildStderr>,
    path: String,
}

impl Foreground {
    /// Starts one, and waits until it says where its socket is.
    fn start(line: &str) -> Self {
        let mut child = Command::new(PASST)
            .args(["--vhost-user", "--foreground"])
            .args(line.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("is piped"));
        let mut said = String::new();
        let path = loop {
            let start = said.len();
            assert_ne!(stderr.read_line(&mut said).expect("is text"), 0, "{said}");
            let last = said.get(start..).unwrap_or_default();
            if let Some(path) = last.strip_prefix("UNIX domain socket bound at ") {
                break path.trim_end().to_owned();
            }
        };
        Self { child, stderr, path }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("is ours");
    }

    /// Waits for the end: its status, and what else it said.
    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).expect("is text");
        let mut stdout = String::new();
        let pipe = self.child.stdout.take();
        pipe.expect("is piped").read_to_string(&mut stdout).expect("is text");
        assert_eq!(stdout, "");
        (self.child.wait().expect("is ours"), rest)
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of ours that nobody else is likely to take in the next moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("ports are free");
    listener.local_addr().expect("is bound").port()
}

#[test]
fn what_prints_prints_on_standard_output_only() {
    for (program, name) in [(PASST, "passt"), (PASTA, "pasta")] {
        let version = prints(program, "--version");
        assert_eq!(version.lines().next(), Some(&*format!("{name} {}", env!("CARGO_PKG_VERSION"))));
        assert!(version.ends_with("\n\n"));
        assert!(prints(program, "--help").contains("--version"));
        assert_eq!(prints(program, "-h"), prints(program, "--help"));
        assert_eq!(prints(program, "--print-capabilities"), "{\n  \"type\": \"net\"\n}\n");
    }
    let both = "--vhost-user --print-capabilities";
    assert_eq!(prints(PASST, both), "{\n  \"type\": \"net\"\n}\n");
}

#[test]
fn the_name_by_which_it_is_called_chooses_the_program() {
    use std::os::unix::process::CommandExt as _;
    for (program, name, expected) in [
        (PASST, "/usr/bin/pasta", "pasta "),
        (PASTA, "passt", "passt "),
        (PASST, "x.passt.pasta", "pasta "),
        (PASST, "/pasta/network", "passt "),
        (PASTA, "", "pasta "),
    ] {
        let output = Command::new(program).arg0(name).arg("--version").output().expect("starts");
        assert!(String::from_utf8_lossy(&output.stdout).starts_with(expected), "{name}");
    }
}

#[test]
fn a_full_disk_behind_standard_output_is_a_failure_and_no_panic() {
    let full = fs::File::options().write(true).open("/dev/full").expect("is there");
    let status = Command::new(PASST).arg("--version").stdout(full).status().expect("starts");
    assert_eq!(status.code(), Some(1));
    let full = fs::File::options().write(true).open("/dev/full").expect("is there");
    let status = Command::new(PASST).arg("--bogus").stderr(full).status().expect("starts");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn every_option_is_known_in_both_programs() {
    for option in [
        "-h",
        "-d",
        "--debug",
        "--trace",
        "-q",
        "--quiet",
        "-f",
        "--foreground",
        "-e",
        "--stderr",
        "-l /a",
        "--log-file /a",
        "--log-size 40960",
        "--runas 1000:1000",
        "-p /a",
        "--pcap /a",
        "-P /a",
        "--pid /a",
        "-c /a",
        "--conf-path /a",
        "--fd 3",
        "-F 3",
        "-m 1500",
        "--mtu 1500",
        "-a 192.0.2.1/24",
        "--address fd00::1",
        "-n 24",
        "--netmask 255.255.0.0",
        "-M 02:00:00:00:00:01",
        "--mac-addr 02:00:00:00:00:01",
        "-g 192.0.2.1",
        "--gateway fe80::1",
        "-i lo",
        "--interface eth0",
        "-o 192.0.2.1",
        "--outbound fd00::1",
        "-D 192.0.2.1",
        "--dns none",
        "--dns-forward 192.0.2.3",
        "--dns-host 127.0.0.1",
        "-S example.org",
        "--search none",
        "-H host",
        "--hostname host",
        "--fqdn host.example",
        "--map-host-loopback 192.0.2.2",
        "--map-host-loopback none",
        "--map-guest-addr 192.0.2.2",
        "--map-guest-addr none",
        "--no-map-gw",
        "--no-tcp",
        "--no-udp",
        "--no-icmp",
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ndp",
        "--no-ra",
        "-4",
        "--ipv4-only",
        "-6",
        "--ipv6-only",
        "-t 22",
        "--tcp-ports all",
        "-u none",
        "--udp-ports 53",
        "--vhost-user",
        "--repair-path none",
        "--outbound-if4 eth0",
        "--outbound-if6=eth0",
        "--freebind",
        "--stats 1",
        "--chroot-fallback",
        "--userns-fallback",
        "--mt 1500",
        "-fqm1500",
        "--mtu=1500",
    ] {
        for program in [PASST, PASTA] {
            let text = prints(program, &format!("{option} --version"));
            assert!(option == "-h" || text.contains(env!("CARGO_PKG_VERSION")), "{option}");
        }
    }
    for option in [
        "-s /a",
        "--socket /a",
        "--socket-path /a",
        "-1",
        "--one-off",
        "--no-dhcp-dns",
        "--no-dhcp-search",
    ] {
        prints(PASST, &format!("{option} --version"));
        let message = fails(PASTA, &format!("{option} --version"));
        assert!(message.ends_with(" is for passt mode only\n"), "{message}");
    }
    for option in [
        "-I tap0",
        "--ns-ifname tap0",
        "-T 22",
        "--tcp-ns 22",
        "-U 53",
        "--udp-ns auto",
        "--userns /a",
        "--netns /a",
        "--netns-only",
        "--no-netns-quit",
        "--config-net",
        "--no-copy-routes",
        "--no-copy-addrs",
        "--ns-mac-addr 02:00:00:00:00:01",
        "--dhcp-dns",
        "--dhcp-search",
        "--host-lo-to-ns-lo",
        "--no-splice",
        "--splice-only",
    ] {
        prints(PASTA, &format!("{option} --version"));
        let message = fails(PASST, &format!("{option} --version"));
        assert!(message.ends_with(" is for pasta mode only\n"), "{message}");
    }
    for option in ["--migrate-exit", "--migrate-no-linger"] {
        prints(PASST, &format!("--vhost-user {option} --version"));
        prints(PASTA, &format!("{option} --vhost-user --version"));
        let message = fails(PASST, option);
        assert!(message.ends_with(" is for vhost-user mode only\n"), "{message}");
    }
}

#[test]
fn unknown_options_are_named_as_getopt_does_with_the_usage_behind() {
    for (line, message) in [
        ("--bogus", "unrecognized option '--bogus'"),
        ("--map-guest-address x --version", "unrecognized option '--map-guest-address'"),
        ("-f --bogus --version", "unrecognized option '--bogus'"),
        ("--bogus=1", "unrecognized option '--bogus=1'"),
        ("--no-dhcp-=1", "option '--no-dhcp-=1' is ambiguous; possibilities: '--no-dhcp-dns'"),
        ("-z", "invalid option -- 'z'"),
        ("--mtu", "option '--mtu' requires an argument"),
        ("--no-tcp=1", "option '--no-tcp' doesn't allow an argument"),
        ("--no-dhcp-", "option '--no-dhcp-' is ambiguous"),
    ] {
        let text = fails(PASST, line);
        let (first, usage) = text.split_once('\n').expect("has lines");
        assert!(first.starts_with(&format!("{PASST}: {message}")), "{first}");
        assert!(usage.contains("--vhost-user"), "{usage}");
    }
}

#[test]
fn bad_values_and_combinations_are_one_line_and_leave_nothing_behind() {
    let folder = Folder::new();
    let files = format!("-s {} -P {}", folder.path("socket"), folder.path("pid"));
    for (line, message) in [
        ("-m 65522", "Invalid MTU: 65522"),
        ("-a 127.0.0.1", "Invalid address: 127.0.0.1"),
        ("-M 9a:55", "Invalid MAC address: 9a:55"),
        ("-M 00:00:00:00:00:00", "Invalid MAC address: 00:00:00:00:00:00"),
        ("-M 01:00:5e:00:00:01", "Invalid MAC address: 01:00:5e:00:00:01"),
        ("-a 192.0.2.1/24 -n 24", "Redundant netmask"),
        ("-i bogus0", "Invalid interface name bogus0: no such interface"),
        ("--outbound-if4 bogus0", "Invalid interface name bogus0: no such interface"),
        ("-4 -i lo --outbound-if6 bogus0", "Invalid interface name bogus0: no such interface"),
        ("--outbound-if4 a/b", "Invalid interface name: a/b"),
        ("-F 3", "Invalid --fd: 3 is not open"),
        ("-t auto", "'auto' port forwarding is only allowed for pasta"),
        ("-t 22-21", "Invalid port specifier '22-21': bad port or range of ports"),
        ("-t 22,22", "Forwarding configuration conflict: "),
        ("-t 22 -t none", "TCP ports: 'none' given after other port rules"),
        ("-4 -t ::1/22", "IPv6 forward, but IPv6 not enabled"),
        ("--no-udp -u 53", "UDP port forwarding requested, but UDP is disabled"),
        ("--runas bogus-user", "Invalid --runas option: no user bogus-user"),
        ("--stats 1", "Option --stats needs --foreground"),
        ("-f --stats 0", "Invalid --stats: 0"),
        ("-c /nonexistent/c", "Couldn't bind UNIX domain socket to /nonexistent/c: No such file"),
        ("extra", "Extra non-option argument: extra"),
        ("-l /nonexistent/log", "Couldn't open log file /nonexistent/log: No such file"),
        ("-P /nonexistent/pid", "Couldn't open PID file /nonexistent/pid: No such file"),
        ("-s /nonexistent/a", "Couldn't bind UNIX domain socket to /nonexistent/a: No such file"),
    ] {
        let text = fails(PASST, &format!("--vhost-user -q -D none {files} {line}"));
        assert!(text.starts_with(message), "{line}: {text}");
        assert_eq!(text.lines().count(), 1, "{line}: {text}");
        assert!(folder.names().is_empty(), "{line}: {:?}", folder.names());
    }
}

#[test]
fn what_makes_no_sense_for_a_namespace_is_one_line_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let files = format!("-P {}", folder.path("pid"));
    for (line, message) in [
        ("-I a/b", "Invalid interface name: a/b"),
        ("--ns-ifname 0123456789abcdef", "Invalid interface name: 0123456789abcdef"),
        ("--ns-mac-addr 9a:55", "Invalid MAC address: 9a:55"),
        ("--ns-mac-addr 00:00:00:00:00:00", "Invalid MAC address: 00:00:00:00:00:00"),
        ("--netns=", "Invalid network namespace: empty path"),
        ("--userns=", "Invalid user namespace: empty path"),
        ("--netns a ls", "Both --netns and PID or command given"),
        ("--netns a 1", "Both --netns and PID or command given"),
        ("2147483648", "Invalid PID: 2147483648"),
        ("0", "Invalid PID: 0"),
        ("--no-splice --splice-only", "Options --no-splice and --splice-only exclude each other"),
        (
            "--no-splice --host-lo-to-ns-lo ls",
            "Options --no-splice and --host-lo-to-ns-lo exclude each other",
        ),
        ("--userns /proc/self/ns/user ls", "Option --userns needs --netns or a PID"),
        ("--no-copy-routes ls", "Option --no-copy-routes needs --config-net"),
        ("--no-copy-addrs ls", "Option --no-copy-addrs needs --config-net"),
        ("--fd 3 1", "Invalid --fd: 3 is not open"),
        ("--stats 1 1", "Option --stats needs --foreground"),
        ("-T 127.0.0.1/22 ls", "Invalid port specifier '127.0.0.1/22': listening address not"),
        ("-U foo ls", "Invalid port specifier 'foo': "),
        ("-T 22,22 ls", "Forwarding configuration conflict: "),
        ("--no-tcp -t auto ls", "TCP port forwarding requested, but TCP is disabled"),
        ("--no-udp -U 53 ls", "UDP port forwarding requested, but UDP is disabled"),
        ("-i bogus0 ls", "Invalid interface name bogus0: no such interface"),
        ("-a 192.0.2.1/24 -n 24 ls", "Redundant netmask"),
        ("-s /a ls", "--socket is for passt mode only"),
        ("-1 ls", "--one-off is for passt mode only"),
        ("--no-dhcp-search ls", "--no-dhcp-search is for passt mode only"),
        ("--migrate-exit ls", "--migrate-exit is for vhost-user mode only"),
        ("--repair-path /a ls", "--repair-path is not supported yet"),
    ] {
        let text = fails(PASTA, &format!("{files} {line}"));
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with(message), "{line}: {text}");
        let warnings = text.lines().filter(|line| line.contains(" is deprecated, use ")).count();
        assert_eq!(text.lines().count(), 1 + warnings, "{line}: {text}");
        assert!(folder.names().is_empty(), "{line}: {:?}", folder.names());
    }
    for (line, message) in [
        ("--bogus ls", "unrecognized option '--bogus'"),
        ("-z ls", "invalid option -- 'z'"),
        ("--netns", "option '--netns' requires an argument"),
        ("--config-net=1 ls", "option '--config-net' doesn't allow an argument"),
        ("--no-copy- ls", "option '--no-copy-' is ambiguous; possibilities: "),
    ] {
        let text = fails(PASTA, line);
        let (first, usage) = text.split_once('\n').expect("has lines");
        assert!(first.starts_with(&format!("{PASTA}: {message}")), "{first}");
        assert!(usage.contains("--config-net"), "{usage}");
    }
}

#[test]
fn status_zero_in_background_means_ready() {
    set_child_subreaper(true).expect("daemons become ours");
    let folder = Folder::new();
    let (socket, pid_file, log) = (folder.path("socket"), folder.path("pid"), folder.path("log"));
    let port = free_port();
    let line =
        format!("--vhost-user -q -D none -s {socket} -P {pid_file} -l {log} -t {port} -u {port}");
    let output = run(PASST, &line);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(output.status.code(), Some(0));

    let text = fs::read_to_string(&pid_file).expect("is there");
    let pid = text.strip_suffix('\n').and_then(|pid| pid.parse().ok()).expect("is a number");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    for line in
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line} in {status}");
    }
    let _client = UnixStream::connect(&socket).expect("it listens");
    let _v4 = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    let _v6 = TcpStream::connect(("::1", port)).expect("on both families");
    UdpSocket::bind(("0.0.0.0", port)).expect_err("the UDP port is taken");
    let mode = fs::metadata(&pid_file).expect("is there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    let text = run(PASST, &format!("--vhost-user -q -D none -s {socket}"));
    assert_eq!(text.status.code(), Some(1));
    let text = String::from_utf8_lossy(&text.stderr).into_owned();
    assert_eq!(text, format!("Socket path {socket} already in use\n"));

    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGTERM).expect("it lives");
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
    let first = format!("passt {}: ", env!("CARGO_PKG_VERSION"));
    assert!(fs::read_to_string(&log).expect("is there").starts_with(&first));
    // As its forerunner, it cannot remove what it left outside of the sandbox.
    assert_eq!(folder.names().len(), 3);
}

#[test]
fn in_foreground_it_says_where_it_is_and_what_the_guest_gets() {
    let folder = Folder::new();
    let passt =
        Foreground::start(&format!("-s {} -a 192.0.2.77/24 -D 192.0.2.9", folder.path("s")));
    assert_eq!(passt.path, folder.path("s"));
    passt.signal(Signal::SIGTERM);
    let (status, said) = passt.end();
    assert_eq!(status.code(), Some(0));
    for line in [
        "    assign: 192.0.2.77",
        "    mask: 255.255.255.0",
        "MAC: 9a:55:9a:55:9a:55",
        "    192.0.2.9",
    ] {
        assert!(said.lines().any(|l| l == line), "{line} in {said}");
    }
}

#[test]
fn signals_end_it_as_documented() {
    for (signal, code, killed) in [
        (Signal::SIGTERM, Some(0), None),
        (Signal::SIGQUIT, Some(0), None),
        (Signal::SIGINT, None, Some(libc::SIGINT)),
        (Signal::SIGHUP, None, Some(libc::SIGHUP)),
    ] {
        let folder = Folder::new();
        let passt = Foreground::start(&format!("-s {}", folder.path("s")));
        passt.signal(signal);
        let (status, said) = passt.end();
        assert_eq!((status.code(), status.signal()), (code, killed), "{signal}: {said}");
    }
}

#[test]
fn one_off_ends_with_its_first_client_but_not_for_a_second_server() {
    let folder = Folder::new();
    let passt = Foreground::start(&format!("-1 -s {}", folder.path("s")));
    let text = fails(PASST, &format!("--vhost-user -q -f -D none -s {}", passt.path));
    assert!(text.contains("already in use"), "{text}");
    let client = UnixStream::connect(&passt.path).expect("it still listens");
    drop(client);
    assert_eq!(passt.end().0.code(), Some(0));
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = Folder::new();
    drop(UnixListener::bind(folder.path("s")).expect("binds"));
    let passt = Foreground::start(&format!("-s {}", folder.path("s")));
    UnixStream::connect(&passt.path).expect("it listens");
}

#[test]
fn without_a_path_the_first_free_usual_one_is_taken() {
    let first = Foreground::start("");
    let second = Foreground::start("");
    for passt in [&first, &second] {
        assert!(passt.path.starts_with("/tmp/passt_") && passt.path.ends_with(".socket"));
        // Who answers is ready, and leaves its socket behind.
        let client = UnixStream::connect(&passt.path).expect("it listens");
        vhost_user_asks(&client, GET_FEATURES);
    }
    assert_ne!(first.path, second.path);
    let paths = [first.path.clone(), second.path.clone()];
    drop((first, second));
    paths.iter().for_each(|path| fs::remove_file(path).expect("stays behind"));
}

#[test]
fn why_none_of_the_usual_paths_can_be_had_is_told() {
    let start = "mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp && exec $P -q -D none";
    let said = script(&["--mount"], start);
    let expected = "Couldn't bind UNIX domain socket to /tmp/passt_";
    assert!(said.starts_with(expected), "{said}");
    assert!(said.ends_with(".socket: Read-only file system\n"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// Starts passt with `fd` as its descriptor 9.
fn with_descriptor(fd: BorrowedFd<'_>, line: &str) -> Command {
    let mut command = Command::new("sh");
    // Not by its number: some shells know one digit only.
    let script = format!("exec {PASST} --vhost-user -q -D none {line} 9<&0");
    command.args([OsStr::new("-c"), OsStr::new(&script)]);
    command.stdin(fd.try_clone_to_owned().expect("is open"));
    command
}

#[test]
fn an_open_descriptor_is_served_until_its_other_end_closes() {
    let (ours, theirs) = UnixStream::pair().expect("sockets are there");
    let mut passt = with_descriptor(theirs.as_fd(), "-f --fd 9").spawn().expect("starts");
    drop((ours, theirs));
    assert_eq!(passt.wait().expect("is ours").code(), Some(0));
}

/// A request that every vhost-user back-end answers.
const GET_FEATURES: u32 = 1;

/// What the vhost-user back-end at the other end of `stream` answers to a request for a number.
fn vhost_user_asks(mut stream: &UnixStream, request: u32) -> u64 {
    let [version, no_body] = [1_u32, 0];
    stream.write_all([request, version, no_body].map(u32::to_ne_bytes).as_flattened()).expect("up");
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).expect("answers");
    u64::from_ne_bytes(*reply.last_chunk().expect("eight bytes"))
}

#[test]
fn who_hands_over_a_socket_is_offered_no_channel_and_no_configuration() {
    const GET_PROTOCOL_FEATURES: u32 = 15;
    const BACKEND_REQ_AND_CONFIG: u64 = 1 << 5 | 1 << 9;
    let folder = Folder::new();
    let (ours, theirs) = UnixStream::pair().expect("sockets are there");
    let mut given = with_descriptor(theirs.as_fd(), "-f --fd 9").spawn().expect("starts");
    let path = folder.path("socket");
    let line = format!("--vhost-user -q -1 -D none -s {path}");
    prints(PASST, &line);
    let met = UnixStream::connect(&path).expect("is in the background, hence ready");
    for (stream, offered) in [(&ours, 0), (&met, BACKEND_REQ_AND_CONFIG)] {
        vhost_user_asks(stream, GET_FEATURES);
        let features = vhost_user_asks(stream, GET_PROTOCOL_FEATURES);
        assert_eq!(features & BACKEND_REQ_AND_CONFIG, offered);
    }
    drop((ours, theirs));
    assert_eq!(given.wait().expect("is ours").code(), Some(0));
}

#[test]
fn a_descriptor_that_cannot_be_served_is_refused() {
    let folder = Folder::new();
    assert_eq!(fails(PASST, "--vhost-user -F 9"), "Invalid --fd: 9 is not open\n");
    let file = fs::File::open("/dev/null").expect("is there");
    let (datagrams, _peer) = UnixDatagram::pair().expect("sockets are there");
    let listener = UnixListener::bind(folder.path("listener")).expect("binds");
    for fd in [file.as_fd(), datagrams.as_fd(), listener.as_fd()] {
        let output = with_descriptor(fd, "-f --fd 9").output().expect("starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = "Invalid --fd: 9 is no connected UNIX domain stream socket\n";
        assert_eq!((output.status.code(), &*said), (Some(1), expected));
    }
    fs::remove_file(folder.path("listener")).expect("is there");
    let line = format!("-f --fd 9 -s {}", folder.path("s"));
    let output = with_descriptor(file.as_fd(), &line).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said, "Options --fd and --socket exclude each other\n");
    assert!(folder.names().is_empty());
}

#[test]
fn a_port_that_is_taken_stops_the_start_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let taken = TcpListener::bind(("0.0.0.0", 0)).expect("ports are free");
    let port = taken.local_addr().expect("is bound").port();
    let line = format!("-s {} -P {} -t {port}", folder.path("s"), folder.path("pid"));
    let said = fails(PASST, &format!("--vhost-user -q -D none {line}"));
    assert_eq!(
        said,
        format!(
            "Listen failed for HOST TCP port */{port}: Address already in use\n\
             Couldn't listen on requested ports\n"
        )
    );
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn a_datagram_port_that_another_of_our_kind_has_stops_the_start_too() {
    let folder = Folder::new();
    let line = |name: &str| {
        let (s, pid) = (folder.path(name), folder.path(&format!("{name}.pid")));
        format!("$P -q -D none -s {s} -P {pid}")
    };
    // In a network of their own. The last one takes what it can get of a few ports.
    let text = format!(
        "ip link set lo up; {one} -u 5353 2>&-; {two} -u 5353; echo $?; {two} -u 5350-5360; \
         echo $?; {two} -u ~1-5349,~5361-65535; echo $?; kill $(cat {p}/one.pid) $(cat {p}/two.pid)",
        one = line("one"),
        two = line("two"),
        p = folder.path(".")
    );
    let said = script(&["--net"], &format!("{{ {text}; }} 2>&1"));
    let refused = "Listen failed for HOST UDP port */5353: Address already in use\n";
    let stopped = format!("{refused}Couldn't listen on requested ports\n1\n");
    assert_eq!(said, format!("{stopped}{stopped}{refused}0\n"));
}

#[test]
fn where_user_namespaces_are_forbidden_it_says_so_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let line = format!("-s {} -P {}", folder.path("s"), folder.path("pid"));
    let script = format!(
        "echo 0 >/proc/sys/user/max_user_namespaces && exec {PASST} --vhost-user -q -D none {line}"
    );
    let output = Command::new("unshare").args(["-Ur", "sh", "-c", &script]).output();
    let output = output.expect("unshare is there (package util-linux)");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("Couldn't create user namespace: "), "{said}");
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1));
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn where_user_namespaces_are_forbidden_it_goes_on_if_allowed_to() {
    set_child_subreaper(true).expect("daemons become ours");
    let folder = Folder::new();
    let script = |with: &str| {
        format!(
            "echo 0 >/proc/sys/user/max_user_namespaces && exec {with} {PASST} --vhost-user -q \
             -D none -s {} -P {} --userns-fallback",
            folder.path("s"),
            folder.path("pid")
        )
    };
    let no_namespace = "No user namespace (No space left on device): ";
    for (with, missing, locked_in) in [
        ("", "isolated by the other means\n", true),
        (
            "setpriv --bounding-set=-all",
            "no empty root and no namespaces, only fewer rights and filtered system calls\n",
            false,
        ),
    ] {
        let output = Command::new("unshare").args(["-Ur", "sh", "-c", &script(with)]).output();
        let output = output.expect("unshare is there (package util-linux)");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said), (Some(0), format!("{no_namespace}{missing}")));
        let pid = fs::read_to_string(folder.path("pid")).expect("is there");
        let pid = Pid::from_raw(pid.trim_end().parse().expect("is a number"));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        for line in ["CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line} in {status}");
        }
        let root = fs::read_dir(format!("/proc/{pid}/root")).expect("we are root");
        assert_eq!(root.count() == 0, locked_in, "{with}");
        vhost_user_asks(&UnixStream::connect(folder.path("s")).expect("it listens"), GET_FEATURES);
        kill(pid, Signal::SIGTERM).expect("it lives");
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
    }
}

#[test]
fn more_ports_than_descriptors_stop_the_start_and_leave_nothing_behind() {
    let folder = Folder::new();
    let start = format!(
        "ulimit -n 4096; exec $P -q -D none -s {} -P {} -t all",
        folder.path("s"),
        folder.path("pid")
    );
    let output = Command::new("sh").args(["-c", &start]).env("P", PASST).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let said: Vec<_> = said.lines().collect();
    assert!(said[0].contains("the limit of open files leaves "), "{said:?}");
    assert_eq!(said[1..], ["Couldn't listen on requested ports"]);
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn low_ports_need_no_root_but_the_right_to_them() {
    let folder = Folder::new();
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).expect("is ours");
    let files = format!("-s {} -P {}", folder.path("s"), folder.path("pid"));
    let right = "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service";
    let start = format!(
        "ip link set lo up; sysctl -qw net.ipv4.ip_unprivileged_port_start=1024; \
         setpriv --reuid 1000 --regid 1000 --clear-groups RIGHT {PASST} -q -D none {files} -t 81 2>&1; \
         echo $?; ss -Hltn; kill $(cat {pid})",
        pid = folder.path("pid")
    );
    let said = script(&["--net"], &start.replace("RIGHT", ""));
    assert!(said.contains("port */81: Permission denied\n"), "{said}");
    let said = script(&["--net"], &start.replace("RIGHT", right));
    assert!(said.starts_with("0\n") && said.contains(":81 "), "{said}");
}

#[test]
fn addresses_that_nobody_has_are_listened_on_with_freebind_only() {
    let folder = Folder::new();
    let line = format!("-s {} -D none -t 192.0.2.254/{}", folder.path("s"), free_port());
    let said = fails(PASST, &format!("--vhost-user -q {line}"));
    assert!(said.contains("Cannot assign requested address"), "{said}");
    let passt = Foreground::start(&format!("--freebind {line}"));
    passt.signal(Signal::SIGTERM);
    assert_eq!(passt.end().0.code(), Some(0));
}

#[test]
fn counters_are_shown_when_they_change() {
    let folder = Folder::new();
    let mut passt = Foreground::start(&format!("-s {} --stats 3600 -D none", folder.path("s")));
    let client = UnixStream::connect(&passt.path).expect("it listens");
    let mut said = String::new();
    while !said.contains("events of the link") {
        assert_ne!(passt.stderr.read_line(&mut said).expect("is text"), 0, "{said}");
    }
    drop(client);
    assert!(said.contains("      change        value  counter\n"), "{said}");
    passt.signal(Signal::SIGTERM);
    let (status, rest) = passt.end();
    assert_eq!(status.code(), Some(0));
    assert!(!rest.contains("  counter\n"), "the next table comes in an hour: {rest}");
}

#[test]
fn deprecated_options_do_nothing_but_say_so() {
    let folder = Folder::new();
    let line = "-e --migrate-exit --migrate-no-linger";
    let passt = Foreground::start(&format!("-s {} {line}", folder.path("s")));
    passt.signal(Signal::SIGTERM);
    assert_eq!(passt.end().0.code(), Some(0));
    let warnings = fails(PASST, &format!("--vhost-user -q -D none {line} -s /nonexistent/a"));
    for option in ["--stderr", "--migrate-exit", "--migrate-no-linger"] {
        let start = format!("{option} is deprecated and does nothing");
        assert!(warnings.lines().any(|l| l.starts_with(&start)), "{option} in {warnings}");
    }
}

/// Runs `work` in a thread whose children may not call pivot_root(2), as on an initramfs.
fn without_pivot_root<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows this machine");
    let filter = SeccompFilter::new(
        [(libc::SYS_pivot_root, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EINVAL.cast_unsigned()),
        arch,
    );
    let filter: BpfProgram = filter.expect("is sound").try_into().expect("is short");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            seccompiler::apply_filter(&filter).expect("filters are there");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn where_the_root_cannot_be_changed_chroot_does_if_allowed_to() {
    let folder = Folder::new();
    let line = format!("-s {} -D none", folder.path("s"));
    let said = without_pivot_root(|| fails(PASST, &format!("--vhost-user -q {line}")));
    assert!(said.ends_with("Couldn't change the root: Invalid argument\n"), "{said}");
    assert!(folder.names().is_empty(), "{:?}", folder.names());
    // Whoever stays the same user cannot remove anything later, either.
    let theirs = folder.path("theirs");
    fs::create_dir(&theirs).expect("is ours");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).expect("is ours");
    for options in ["-f", ""] {
        let files = format!("-s {theirs}/s -c {theirs}/c -P {theirs}/pid -p {theirs}/pcap");
        let line = format!("--reuid=1000 --regid=1000 --clear-groups {PASST} -q -D none {files}");
        let said = without_pivot_root(|| fails("setpriv", &format!("{line} {options}")));
        assert!(said.starts_with("Couldn't change the root: Invalid argument"), "{said}");
        assert_eq!(fs::read_dir(&theirs).expect("is there").count(), 0, "{options}");
    }
    let passt = without_pivot_root(|| Foreground::start(&format!("--chroot-fallback {line}")));
    // Who answers has taken its last step.
    vhost_user_asks(&UnixStream::connect(&passt.path).expect("it listens"), GET_FEATURES);
    let root = format!("/proc/{}/root", passt.child.id());
    let names = fs::read_dir(&root).expect("we are root, which reads everyone's");
    assert_eq!(names.count(), 0);
    fs::write(format!("{root}/file"), "").expect_err("it is read-only");
    passt.signal(Signal::SIGTERM);
    assert_eq!(passt.end().0.code(), Some(0));
}

#[test]
fn a_capture_is_a_pcap_and_one_that_cannot_be_made_costs_a_warning() {
    let folder = Folder::new();
    let passt = Foreground::start(&format!("-s {} -p {}", folder.path("s"), folder.path("pcap")));
    passt.signal(Signal::SIGTERM);
    assert_eq!(passt.end().0.code(), Some(0));
    let header = fs::read(folder.path("pcap")).expect("is there");
    assert_eq!((header.len(), header.get(..4)), (24, Some(&0xa1b2_c3d4_u32.to_ne_bytes()[..])));
    let passt = Foreground::start(&format!("-s {} -p /nonexistent/pcap", folder.path("s")));
    passt.signal(Signal::SIGTERM);
    let (status, said) = passt.end();
    assert_eq!(status.code(), Some(0));
    assert!(said.contains("Couldn't open capture /nonexistent/pcap: No such file"), "{said}");
}

#[test]
fn a_capture_on_a_full_disk_costs_a_warning_and_no_file() {
    set_child_subreaper(true).expect("daemons become ours");
    let folder = Folder::new();
    let script_text = format!(
        "mount -t tmpfs -o size=16k none /mnt && cd /mnt && {{ cat /dev/zero >fill; }} 2>&-; \
         $P -q -D none -s {s} -P {pid} -p FILE 2>&1; echo $? && ls && kill $(cat {pid})",
        s = folder.path("s"),
        pid = folder.path("pid")
    );
    for file in ["/mnt/pcap", "/dev/full"] {
        let said = script(&["--mount"], &script_text.replace("FILE", file));
        let message = format!("Couldn't write capture {file}: No space left on device\n0\nfill\n");
        assert!(said.ends_with(&message), "{said}");
    }
}

#[test]
fn a_start_that_fails_leaves_captures_as_they_were() {
    let folder = Folder::new();
    let taken = TcpListener::bind(("0.0.0.0", 0)).expect("ports are free");
    let port = taken.local_addr().expect("is bound").port();
    let line = format!("-s {} -p {} -t {port}", folder.path("s"), folder.path("pcap"));
    fails(PASST, &format!("--vhost-user -q -D none {line}"));
    assert!(folder.names().is_empty(), "{:?}", folder.names());
    fs::write(folder.path("pcap"), "precious").expect("is ours");
    fails(PASST, &format!("--vhost-user -q -D none {line}"));
    assert_eq!(folder.names(), ["pcap"]);
    assert_eq!(fs::read_to_string(folder.path("pcap")).expect("is there"), "precious");
    drop(taken);
    let passt = Foreground::start(&line);
    passt.signal(Signal::SIGTERM);
    assert_eq!(passt.end().0.code(), Some(0));
    assert_eq!(fs::read(folder.path("pcap")).expect("is there").len(), 24);
}

#[test]
fn who_starts_it_may_ignore_the_end_of_children() {
    let folder = Folder::new();
    let start = format!(
        "trap '' CHLD; $P -q -D none -s {} -P {pid}; echo $? && kill $(cat {pid})",
        folder.path("s"),
        pid = folder.path("pid")
    );
    let said = script(&[], &start);
    assert_eq!(said, "0\n");
}

// --- What is promised of passt, and not said above ---------------------------------------------

/// Runs passt in a network that has nothing but a loopback interface, for a client that has gone.
fn in_loopback_network(args: &[&str]) -> Output {
    let (ours, theirs) = UnixStream::pair().expect("sockets are there");
    let script = "ip link set lo up && exec \"$@\" 9<&0";
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", script, "sh", PASST, "-f", "-D", "none", "--fd", "9"]);
    command.args(args).stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn();
    drop((ours, command));
    child.expect("unshare is there (package util-linux)").wait_with_output().expect("is ours")
}

#[test]
fn port_specifiers_are_taken_as_documented() {
    for (line, rules) in [
        ("-t 22", &["TCP [*]:22  =>  22"][..]),
        ("-t22:23", &["TCP [*]:22  =>  23"]),
        ("-t 22-80:32-90", &["TCP [*]:22-80  =>  32-90"]),
        ("--tcp-ports=127.0.0.1/22", &["TCP [127.0.0.1]:22  =>  22"]),
        ("-t ::1/22", &["TCP [::1]:22  =>  22"]),
        ("-t [::1]/22", &["TCP [::1]:22  =>  22"]),
        ("-t ::ffff:127.0.0.1/22", &["TCP [127.0.0.1]:22  =>  22"]),
        ("-t 127.0.0.1%lo/22", &["TCP [127.0.0.1]%lo:22  =>  22"]),
        ("-t %lo/22", &["TCP [*]%lo:22  =>  22"]),
        ("-t *%lo/22", &["TCP [*]%lo:22  =>  22"]),
        ("-t /22", &["TCP [*]:22  =>  22"]),
        ("-t 0.0.0.0/22 -t [::]/22", &["TCP [0.0.0.0]:22  =>  22", "TCP [::]:22  =>  22"]),
        ("-t 0.0.0.0/5000:192.0.2.5/6000", &["TCP [0.0.0.0]:5000  =>  [192.0.2.5]:6000"]),
        ("-t 0.0.0.0/5000:192.0.2.5", &["TCP [0.0.0.0]:5000  =>  [192.0.2.5]:5000"]),
        ("-t [::]/80:2001:db8::5/81", &["TCP [::]:80  =>  [2001:db8::5]:81"]),
        ("-4 -t 22:192.0.2.5", &["TCP [0.0.0.0]:22  =>  [192.0.2.5]:22"]),
        ("-6 -t 22", &["TCP [::]:22  =>  22"]),
        (
            "-t 127.0.0.1/all:192.0.2.6,~1-65000",
            &["TCP [127.0.0.1]:65001-65535  =>  [192.0.2.6]:65001-65535  (best effort)"],
        ),
        (
            "-t 2000-2020,~2005-2010",
            &["TCP [*]:2000-2004  =>  2000-2004", "TCP [*]:2011-2020  =>  2011-2020"],
        ),
        ("-u ~1-65000", &["UDP [*]:65001-65535  =>  65001-65535  (best effort)"]),
        (
            "-t all,~1-65000,65100",
            &[
                "TCP [*]:65100  =>  65100",
                "TCP [*]:65001-65099  =>  65001-65099  (best effort)",
                "TCP [*]:65101-65535  =>  65101-65535  (best effort)",
            ],
        ),
        (
            "-t 127.0.0.1/22 -t 127.0.0.2/22",
            &["TCP [127.0.0.1]:22  =>  22", "TCP [127.0.0.2]:22  =>  22"],
        ),
        ("-t 22 -t 127.0.0.1/22", &["TCP [*]:22  =>  22", "TCP [127.0.0.1]:22  =>  22"]),
        ("-t 22 -u 22", &["TCP [*]:22  =>  22", "UDP [*]:22  =>  22"]),
        ("-t none -t 22", &["TCP [*]:22  =>  22"]),
        ("-t none -u none", &[]),
        ("-u 224.0.0.251/5353", &["UDP [224.0.0.251]:5353  =>  5353"]),
    ] {
        let args: Vec<_> = line.split(' ').collect();
        let output = in_loopback_network(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{line}: {said}");
        let lines = said.lines().skip_while(|l| *l != "Inbound forwarding rules (HOST):").skip(1);
        let shown: Vec<_> = lines.map_while(|l| l.strip_prefix("    ")).collect();
        assert_eq!(shown, rules, "{line}: {said}");
    }
}

#[test]
fn port_specifiers_are_refused_as_documented() {
    let invalid = "Invalid port specifier ";
    for (args, message) in [
        (&["-t", "22-80:32-91"][..], invalid),
        (&["-t", "22:192.0.2.5"], invalid),
        (&["-t", "127.0.0.1/22:2001:db8::1"], invalid),
        (&["-t", "127.0.0.1/22:224.0.0.1"], invalid),
        (&["-t", "::1/auto"], "'auto' port forwarding is only allowed for pasta"),
        (&["-t", "8000-8010,auto"], "'auto' port forwarding is only allowed for pasta"),
        (&["-t", "22,22"], "Forwarding configuration conflict: "),
        (&["-t", "22", "-t", "20-30"], "Forwarding configuration conflict: "),
        (&["-t", "0"], invalid),
        (&["-t", "22:0"], invalid),
        (&["-t", "65536"], invalid),
        (&["-t", "22:"], invalid),
        (&["-t", "22,"], invalid),
        (&["-t", "foo"], invalid),
        (&["-t", "2222 "], invalid),
        (&["-t", " 2222"], invalid),
        (&["-t", "+2222"], invalid),
        (&["-t", "1-0"], invalid),
        (&["-t", ""], invalid),
        (&["-t", "%/22"], invalid),
        (&["-t", "%sixteen-letters-/22"], invalid),
        (&["-t", "%../22"], invalid),
        (&["-t", "192.0.2.256/22"], invalid),
        (&["-t", "~1-65535"], invalid),
        (&["-u", "22", "-u", "none"], "UDP ports: 'none' given after other port rules"),
        (&["-4", "-t", "[::]/22"], "IPv6 forward, but IPv6 not enabled"),
        (&["-6", "-t", "127.0.0.1/22"], "IPv4 forward, but IPv4 not enabled"),
        (&["--no-tcp", "-t", "22"], "TCP port forwarding requested, but TCP is disabled"),
        (&["--no-udp", "-u", "all"], "UDP port forwarding requested, but UDP is disabled"),
        (&["-t", "127.0.0.9%bogus0/22"], "Listen failed for HOST TCP port 127.0.0.9%bogus0/22: "),
    ] {
        let output = in_loopback_network(&[&["-q"], args].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let status = (output.status.code(), output.stdout.len());
        assert_eq!(status, (Some(1), 0), "{args:?}: {said}");
        let said = said.strip_prefix("Started as root, will change to nobody.\n").unwrap_or(&said);
        assert!(said.starts_with(message), "{args:?}: {said}");
    }
}

#[test]
fn ready_means_that_the_control_socket_answers_too() {
    set_child_subreaper(true).expect("daemons become ours");
    let folder = Folder::new();
    let (control, pid_file) = (folder.path("control"), folder.path("pid"));
    let line = format!("-q -D none -s {} -c {control} -P {pid_file}", folder.path("s"));
    assert_eq!(prints(PASST, &line), "");
    let rules = prints(env!("CARGO_BIN_EXE_pesto"), &control);
    assert_eq!(rules, "Inbound forwarding rules (HOST):\n");
    let pid = fs::read_to_string(&pid_file).expect("is there");
    let pid = Pid::from_raw(pid.trim_end().parse().expect("is a number"));
    kill(pid, Signal::SIGTERM).expect("it lives");
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
}

/// Starts a program with `signal` pending: it came when nobody could do anything about it yet.
fn with_pending(signal: Signal, program: &str, line: &str) -> Output {
    let folder = Folder::new();
    let gate = fs::File::create(folder.path("gate")).expect("is ours");
    let gate = Flock::lock(gate, FlockArg::LockExclusive).expect("is ours");
    let mut command = Command::new("env");
    let name = signal.as_str().trim_start_matches("SIG");
    // Whoever runs the tests may have it ignored.
    command.args([format!("--default-signal={name}"), format!("--block-signal={name}")]);
    command.args(["flock", "--no-fork", &folder.path("gate"), program]);
    command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("env is there (package coreutils)");
    // Now it is blocked.
    while fs::read_to_string(format!("/proc/{}/comm", child.id())).expect("it lives") != "flock\n" {
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it lives");
    drop(gate);
    child.wait_with_output().expect("is ours")
}

#[test]
fn who_is_asked_to_end_before_it_is_ready_is_not_ready() {
    let folder = Folder::new();
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let line = format!("-q -D none -s {} -P {}", folder.path("s"), folder.path("pid"));
        let output = with_pending(signal, PASST, &line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = format!("Ended by {signal} before the background process was ready\n");
        assert_eq!((output.status.code(), said), (Some(1), expected));
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }
}

#[test]
fn a_command_does_not_begin_when_pasta_was_asked_to_end() {
    let ports = "-t none -u none -T none -U none";
    for (signal, status) in
        [(Signal::SIGTERM, 0), (Signal::SIGQUIT, 0), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)]
    {
        let output = with_pending(signal, PASTA, &format!("{ports} -- echo begun"));
        assert_eq!(output.status.code(), Some(status), "{signal}: {output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{signal}: {output:?}");
    }
}

/// Runs a script of the shell's, with `$P` for passt, in namespaces that `unshare` makes.
fn script(unshare: &[&str], text: &str) -> String {
    let mut command = Command::new("unshare");
    let output = command.args(unshare).args(["sh", "-c", text]).env("P", PASST).output();
    let output = output.expect("unshare is there (package util-linux)");
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn the_number_in_the_pid_file_is_the_one_that_the_starter_sees() {
    let folder = Folder::new();
    let start = format!(
        "$P -q -D none -s {} -P {pid} && \
         readlink /proc/$(cat {pid})/exe && kill $(cat {pid})",
        folder.path("s"),
        pid = folder.path("pid")
    );
    let said = script(&["--pid", "--fork", "--mount-proc"], &start);
    assert!(said.ends_with(&format!("{PASST}\n")), "{said}");
}

#[test]
fn a_full_disk_stops_the_start_and_nothing_is_left_behind() {
    let folder = Folder::new();
    let full = format!(
        "mount -t tmpfs -o size=16k none /mnt && cd /mnt && {{ cat /dev/zero >fill; }} 2>&-; \
         {{ $P -q -D none -s {s} OPTION; }} 2>&1; echo $? && ls && ls {s}",
        s = folder.path("s")
    );
    for (option, message) in [
        ("-P /mnt/pid", "Couldn't write PID file /mnt/pid: No space left on device"),
        ("-f -P /mnt/pid", "Couldn't write PID file /mnt/pid: No space left on device"),
        ("-l /mnt/log", "Couldn't open log file /mnt/log: No space left on device"),
    ] {
        let said = script(&["--mount"], &full.replace("OPTION", option));
        let expected = format!("{message}\n1\nfill\n");
        let at = said.find(message).unwrap_or_default();
        assert!(said[at..].starts_with(&expected), "{option}: {said}");
        assert!(folder.names().is_empty(), "{option}: {:?}", folder.names());
    }
}

/// The messages to a system's log, whose daemon a thread of ours is. The kernel keeps but a few, so
/// that some may be lost; the next one that is not says so.
struct SystemLog(mpsc::Receiver<String>);

impl SystemLog {
    fn new(daemon: UnixDatagram) -> Self {
        let (send, messages) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = daemon.recv(&mut bytes) {
                let text = String::from_utf8_lossy(bytes.get(..n).unwrap_or_default());
                if send.send(text.into_owned()).is_err() {
                    break;
                }
            }
        });
        Self(messages)
    }

    #[track_caller]
    fn next(&self) -> String {
        self.0.recv_timeout(Duration::from_secs(60)).expect("a message, in good time")
    }

    /// Waits for this message of priority `daemon.info`.
    #[track_caller]
    fn wait_for(&self, message: &str) {
        loop {
            let next = self.next();
            if next.starts_with("<30>passt: ") && next.ends_with(message) {
                break;
            }
        }
    }
}

#[test]
fn the_systems_log_is_told_by_the_process_in_background_too_but_never_with_debug() {
    let folder = Folder::new();
    let log = SystemLog::new(UnixDatagram::bind(folder.path("log")).expect("is ours"));
    // A /dev of their own, with what is needed at start, and our socket.
    let start = |options: &str| {
        let text = format!(
            "mount -t tmpfs none /mnt && for file in null urandom; do touch /mnt/$file && \
             mount --bind /dev/$file /mnt/$file; done && ln -s {log} /mnt/log && \
             mount --rbind /mnt /dev && $P {options} -D none -s {s} -P {pid} 2>/dev/null; echo $?",
            log = folder.path("log"),
            s = folder.path("s"),
            pid = folder.path("pid")
        );
        assert_eq!(script(&["--mount"], &text), "0\n");
        let pid = fs::read_to_string(folder.path("pid")).expect("is there");
        pid.trim().parse().expect("is a number")
    };
    let stop = |pid: i32| kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it lives");

    let pid = start("");
    log.wait_for(&format!("UNIX domain socket bound at {}", folder.path("s")));
    let mut client = UnixStream::connect(folder.path("s")).expect("it listens");
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7], &[8, 6], &[0; 46]].concat();
    client.write_all(&[&60u32.to_be_bytes()[..], &frame].concat()).expect("it reads");
    // From within the sandbox.
    log.wait_for("guest MAC address: 02:00:00:00:00:07");
    stop(pid);
    log.wait_for("Asked by a signal, exiting");

    // Nothing with -d: what we say ourselves is the next that is heard.
    let pid = start("-d");
    let other = UnixDatagram::unbound().expect("sockets are there");
    other.send_to(b"from here", folder.path("log")).expect("it is read");
    assert_eq!(log.next(), "from here");
    stop(pid);
}

#[test]
fn the_last_of_the_options_for_how_much_is_said_counts() {
    let error = "Couldn't bind UNIX domain socket to /nonexistent/s: No such file";
    for (options, details) in [
        ("-d -q", false),
        ("--trace -q", false),
        ("-q -d", true),
        ("-q --trace", true),
        ("--trace -q -d", true),
    ] {
        let said = fails(PASST, &format!("{options} -D none -s /nonexistent/s"));
        let last = said.lines().last().unwrap_or_default();
        // With details, lines begin with the time.
        let told = if details {
            last.split_once(": ")
                .is_some_and(|(time, text)| time.parse::<f64>().is_ok() && text.starts_with(error))
        } else {
            said.lines().count() == 1 && last.starts_with(error)
        };
        assert!(told, "{options}: {said}");
    }
}

#[test]
fn names_that_are_too_long_and_places_of_others_are_refused() {
    let folder = Folder::new();
    let long = folder.path(&"x".repeat(300));
    for (option, message) in [
        ("-P", format!("Couldn't open PID file {long}: File name too long")),
        ("-l", format!("Couldn't open log file {long}: File name too long")),
        ("-c", format!("Invalid socket path: {long}")),
    ] {
        let said = fails(PASST, &format!("-q -D none -s {} {option} {long}", folder.path("s")));
        assert!(said.ends_with(&format!("{message}\n")), "{said}");
        assert!(folder.names().is_empty(), "{option}: {:?}", folder.names());
    }
    // Somebody's socket that nobody serves any more, in a folder where only owners remove files.
    drop(UnixListener::bind(folder.path("stale")).expect("binds"));
    let live = UnixListener::bind(folder.path("live")).expect("binds");
    fs::set_permissions(folder.path("live"), fs::Permissions::from_mode(0o700)).expect("is ours");
    fs::set_permissions(folder.path("stale"), fs::Permissions::from_mode(0o777)).expect("is ours");
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o1777)).expect("is ours");
    for (name, reason) in [("stale", "Operation not permitted"), ("live", "Permission denied")] {
        for option in ["-s", "-c"] {
            let path = folder.path(name);
            let other = if option == "-s" { "-c" } else { "-s" };
            let output = Command::new("setpriv")
                .args(["--reuid=1000", "--regid=1000", "--clear-groups", PASST])
                .args(["-q", "-D", "none", option, &path, other, &folder.path("other")])
                .output()
                .expect("setpriv is there (package util-linux)");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let expected = format!("Couldn't bind UNIX domain socket to {path}: {reason}\n");
            assert_eq!((output.status.code(), said), (Some(1), expected));
            let mut names = folder.names();
            names.sort_unstable();
            assert_eq!(names, ["live", "stale"]);
        }
    }
    drop(live);
}

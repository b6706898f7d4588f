//! The stages of the sandbox and of going to the background, on the real kernel.
//!
//! The test program runs itself as the process that is locked in ([`helper`]), because that has
//! to be one with a single thread; hence no test harness. What the helper has become is read from
//! the outside, in `/proc`.
#![expect(unsafe_code, reason = "forbidden system calls are made by hand, to see them killed")]

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use passt::daemon::{Launch, Leftover, PidFile, Ready, Received, Signals, take_over};
use passt::sandbox::{Identity, Jail, Locked, Role, Started, WithoutUserNamespace};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio, exit};

/// Which part the helper plays; without it, this program runs the tests.
const PART: &str = "PASST_SANDBOX_HELPER";

/// Each of them has a table of system calls.
const ROLES: [Role; 6] =
    [Role::VhostUser, Role::Stream, Role::Client, Role::Namespace, Role::Command, Role::Inside];

// --- The helper: a process that is locked in ----------------------------------------------------

/// How the helper starts, from its environment.
#[derive(Default)]
struct Setup {
    background: bool,
    pid_file: Option<PathBuf>,
    run_as: Option<String>,
    keep_fd: Option<RawFd>,
    /// Do as a container's filter does, and refuse unshare(2).
    refuse_unshare: bool,
    go_on: bool,
    log_file: Option<PathBuf>,
    role: Option<Role>,
}

impl Setup {
    fn from_environment() -> Self {
        let get = |name: &str| std::env::var(name).ok();
        Self {
            background: get("BACKGROUND").is_some(),
            pid_file: get("PID_FILE").map(PathBuf::from),
            run_as: get("RUN_AS"),
            keep_fd: get("KEEP_FD").and_then(|n| n.parse().ok()),
            refuse_unshare: get("REFUSE_UNSHARE").is_some(),
            go_on: get("GO_ON").is_some(),
            log_file: get("LOG_FILE").map(PathBuf::from),
            role: get("ROLE").map(|name| {
                let is = |role: &Role| format!("{role:?}") == name;
                ROLES.into_iter().find(is).expect("a role")
            }),
        }
    }
}

fn or_exit<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| {
        eprintln!("{e}");
        exit(1)
    })
}

/// Goes through all stages as the program does; on failure, one line and status 1.
fn enter(setup: &Setup) -> (Signals, Ready, Locked) {
    if setup.refuse_unshare {
        refuse_unshare();
    }
    let started = or_exit(Started::begin());
    let signals = or_exit(Signals::block());
    or_exit(passt::log::init(&passt::log::Options {
        verbosity: passt::log::Verbosity::Info,
        program: "helper",
        version: "0",
        file: setup.log_file.clone(),
        file_limit: 1 << 20,
    }));
    let run_as = setup.run_as.as_deref().map(|text| or_exit(text.parse()));
    let identity = or_exit(Identity::choose(run_as.as_ref()));
    let pid_file = setup.pid_file.as_deref().map(|path| or_exit(PidFile::open(path)));
    let launch = or_exit(Launch::prepare(setup.background, pid_file, Vec::new()));
    let identified = or_exit(started.identify(identity));
    let jail = Jail {
        pid_namespace: setup.background,
        chroot_fallback: false,
        without_user_namespace: match setup.go_on {
            true => WithoutUserNamespace::GoOn,
            false => WithoutUserNamespace::Fail,
        },
    };
    let jailed = or_exit(identified.jail(&jail));
    let ready = or_exit(launch.go(&signals));
    match jailed.lock(setup.role.unwrap_or(Role::VhostUser)) {
        Ok(locked) => (signals, ready, locked),
        Err(e) => ready.fail(&e),
    }
}

/// Goes through the launch alone, with the PID file and another name to be left behind.
fn launch(setup: &Setup) -> Ready {
    let signals = or_exit(Signals::block());
    let pid_file = setup.pid_file.as_deref().map(|path| or_exit(PidFile::open(path)));
    let other = setup.pid_file.as_deref().map(|path| {
        let other = path.with_extension("other");
        fs::write(&other, "").expect("is ours");
        Leftover::new(&other)
    });
    let launch = Launch::prepare(setup.background, pid_file, other.into_iter().collect());
    or_exit(launch.and_then(|launch| launch.go(&signals)))
}

fn refuse_unshare() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let rules = [(libc::SYS_unshare, Vec::new())].into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().expect("a machine with a filter");
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
    let program = filter.and_then(BpfProgram::try_from).expect("compiles");
    seccompiler::apply_filter(&program).expect("installs");
}

fn helper(part: &str) -> ! {
    let setup = Setup::from_environment();
    if part == "not ready" {
        launch(&setup).fail(&"the reason");
    }
    if part == "killed before ready" {
        let ready = launch(&setup);
        kill(Pid::this(), Signal::SIGKILL).expect("kills itself");
        ready.report();
    }
    if part == "have a child" {
        or_exit(take_over(None));
        let status = Command::new("sh").args(["-c", "exit 7"]).status().expect("is waited for");
        assert_eq!(status.code(), Some(7));
        exit(0);
    }
    if part == "report" {
        let ready = launch(&setup);
        let text = || fs::read_to_string(setup.pid_file.as_deref().expect("is asked for"));
        assert_eq!(text().expect("is there"), "");
        ready.report();
        assert_eq!(text().expect("is there"), format!("{}\n", std::process::id()));
        exit(0);
    }
    if part == "ask a stopped daemon to end" {
        let ready = launch(&setup);
        kill(nix::unistd::getppid(), Signal::SIGTERM).expect("it lives");
        kill(Pid::this(), Signal::SIGSTOP).expect("stops itself");
        ready.report();
    }
    if part == "starter is killed" {
        let ready = launch(&setup);
        let starter = passt::sys::process::open_process(nix::unistd::getppid().as_raw());
        kill(nix::unistd::getppid(), Signal::SIGKILL).expect("it lives");
        let starter = starter.expect("it is there");
        let mut fds = [nix::poll::PollFd::new(starter.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).expect("waits");
        ready.report();
        // Not reached: nobody knows of us.
        fs::write(setup.pid_file.expect("is asked for"), "served").expect("is ours");
        exit(0);
    }
    let kept = or_exit(take_over(setup.keep_fd));
    let memory = File::from(
        nix::sys::memfd::memfd_create(c"guest", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .expect("memory of a guest"),
    );
    let (signals, ready, _locked) = enter(&setup);
    ready.report();
    match part {
        "wait" => {
            println!("ready");
            // Until the test closes our standard input.
            let _ = std::io::stdin().read(&mut [0]);
        }
        "chatter" => {
            for i in 0..5000 {
                log::info!(target: "passt::test", "line {i} of more than a pipe takes");
            }
            println!("ready");
            let _ = std::io::stdin().read(&mut [0]);
            log::info!(target: "passt::test", "at last");
        }
        "serve" => {
            let mut fds = [nix::poll::PollFd::new(signals.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).expect("waits");
            assert_eq!(
                signals.received().expect("reads"),
                Some(Received { signal: Signal::SIGTERM, by_terminal: false })
            );
        }
        "work" => work(&memory),
        "abort" => std::process::abort(),
        "kept" => {
            let mut kept = File::from(kept.expect("a descriptor was kept"));
            assert_eq!(kept.as_raw_fd(), 3);
            kept.write_all(b"through 3").expect("writes");
        }
        _ => {
            attempt_part(part);
        }
    }
    exit(0)
}

/// What the worker does all day. Ends with the process's own way out, which is filtered as well.
fn work(memory: &File) {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).expect("listens");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        near.set_nonblocking(true).expect("an option");
        near.set_nodelay(true).expect("an option");
        near.try_clone().expect("a copy").write_all(b"ping").expect("sends");
        let (mut far, _) = listener.accept().expect("accepts");
        let mut bytes = [0; 4];
        far.read_exact(&mut bytes).expect("receives");
        drop(near);
        assert_eq!(far.read(&mut bytes).expect("sees the end"), 0);

        let one = UdpSocket::bind(address).expect("binds");
        one.send_to(b"ping", one.local_addr().expect("bound")).expect("sends");
        assert_eq!(one.recv(&mut bytes).expect("receives"), 4);
    }
    // Allowed by the filter; whether by the host, is another matter.
    let ping = raw(libc::SYS_socket, [2, i64::from(libc::SOCK_DGRAM), 1, 0]);
    assert!(ping.is_ok() || ping == Err(Errno::EACCES), "{ping:?}");

    let large: Vec<Vec<u8>> = (1..40).map(|i| vec![1; i << 16]).collect();
    let map: HashMap<usize, Vec<u8>> = large.into_iter().enumerate().collect();
    drop(map);

    memory.set_len(1 << 20).expect("grows");
    assert_eq!(memory.metadata().expect("is asked by descriptor").len(), 1 << 20);
    let shared = i64::from(libc::MAP_SHARED);
    let at = raw_6(libc::SYS_mmap, [0, 1 << 20, 3, shared, memory.as_raw_fd().into(), 0]);
    raw(libc::SYS_munmap, [at.expect("maps"), 1 << 20, 0, 0]).expect("unmaps");

    for i in 0..60_000 {
        log::info!(target: "passt::test", "line {i} fills the log file until its oldest part is cut off");
    }
    assert!(fs::exists("/").expect("this line is not reached: a path kills"), "no root");
}

/// A system call by number.
fn raw(call: libc::c_long, a: [i64; 4]) -> nix::Result<i64> {
    raw_6(call, [a[0], a[1], a[2], a[3], 0, 0])
}

/// A system call that is not expected to return.
fn attempt(call: libc::c_long, a: [i64; 4]) {
    let _ = raw(call, a);
}

fn raw_6(call: libc::c_long, a: [i64; 6]) -> nix::Result<i64> {
    // SAFETY: the callers pass integers, and null or unmapped addresses at most, which the kernel
    // refuses if it ever looks at them; maps are new and never dereferenced.
    Errno::result(unsafe { libc::syscall(call, a[0], a[1], a[2], a[3], a[4], a[5]) })
}

/// Does what is not allowed to somebody.
fn attempt_part(part: &str) {
    if let Some((_, call)) = FORBIDDEN.iter().find(|(name, _)| *name == part) {
        return call();
    }
    if let Some((.., call)) = RESERVED.iter().find(|(name, ..)| *name == part) {
        return call();
    }
    let (_, number) = CALLS.iter().find(|(name, _)| *name == part).expect("a part");
    attempt(*number, NONSENSE);
}

/// No number of a descriptor or a process, no flags, and no address.
const NONSENSE: [i64; 4] = [-1; 4];

/// Names and numbers of calls.
macro_rules! calls {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), libc::$name)),*] };
}

/// Calls that nobody in there may make, whatever the arguments.
const CALLS: &[(&str, libc::c_long)] = calls! {
    // Paths.
    SYS_openat, SYS_openat2, SYS_open_by_handle_at, SYS_name_to_handle_at, SYS_execve,
    SYS_execveat, SYS_unlinkat, SYS_mkdirat, SYS_mknodat, SYS_linkat, SYS_symlinkat,
    SYS_renameat2, SYS_fchmodat, SYS_fchownat, SYS_readlinkat, SYS_faccessat, SYS_utimensat,
    SYS_chdir, SYS_fchdir, SYS_truncate, SYS_statfs, SYS_getcwd, SYS_inotify_add_watch,
    SYS_swapon, SYS_acct,
    // Mounts and namespaces.
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_setns, SYS_unshare, SYS_open_tree,
    SYS_move_mount, SYS_fsopen, SYS_fsmount, SYS_mount_setattr, SYS_sethostname,
    // Processes.
    SYS_clone, SYS_clone3, SYS_kill, SYS_tkill, SYS_rt_sigqueueinfo, SYS_ptrace,
    SYS_process_vm_readv, SYS_process_vm_writev, SYS_pidfd_open, SYS_pidfd_getfd,
    SYS_pidfd_send_signal, SYS_kcmp, SYS_setpriority, SYS_sched_setscheduler, SYS_prlimit64,
    SYS_setpgid, SYS_setsid, SYS_process_madvise,
    // Who we are.
    SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid,
    SYS_setgroups, SYS_setfsuid, SYS_capset, SYS_prctl, SYS_personality, SYS_umask,
    // The kernel.
    SYS_bpf, SYS_perf_event_open, SYS_io_uring_setup, SYS_io_uring_enter, SYS_userfaultfd,
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_reboot, SYS_syslog,
    SYS_settimeofday, SYS_clock_settime, SYS_adjtimex, SYS_seccomp, SYS_add_key, SYS_request_key,
    SYS_keyctl, SYS_quotactl,
    // Memory and descriptors that others would have.
    SYS_memfd_create, SYS_shmget, SYS_shmat, SYS_msgget, SYS_semget, SYS_mq_open,
    SYS_remap_file_pages, SYS_vmsplice, SYS_tee, SYS_fanotify_init, SYS_landlock_create_ruleset,
};

/// A name, the roles that may do it, and how it is done.
type Reserved = (&'static str, &'static [Role], fn());

/// Calls of one of the roles, or more, that the others may not make.
const RESERVED: &[Reserved] = &[
    ("splice", BOTH_SIDES, || attempt(libc::SYS_splice, NONSENSE)),
    ("make a pipe", BOTH_SIDES, || attempt(libc::SYS_pipe2, NONSENSE)),
    ("wait for a child", WORKERS, || attempt(libc::SYS_wait4, NONSENSE)),
    ("wait for a child by its descriptor", &[Role::Command], || wait_by(libc::P_PIDFD)),
    ("end a process by its descriptor", &[Role::Command], || {
        attempt(libc::SYS_pidfd_send_signal, [-1, 9, 0, 0]);
    }),
    ("wait for a child by its number", &[], || wait_by(libc::P_PID)),
    ("open a unix socket", &[Role::Client], || socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("open a TCP socket", SOCKETS, || socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
    ("open a UDP socket", SOCKETS, || socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)),
    ("connect", CALLERS, || attempt(libc::SYS_connect, NONSENSE)),
    ("read", CALLERS, || attempt(libc::SYS_read, NONSENSE)),
    ("write", CALLERS, || attempt(libc::SYS_write, NONSENSE)),
    ("bind", WORKERS, || attempt(libc::SYS_bind, NONSENSE)),
    ("listen", WORKERS, || attempt(libc::SYS_listen, NONSENSE)),
    ("accept", WORKERS, || attempt(libc::SYS_accept4, NONSENSE)),
    ("receive descriptors", WORKERS, || attempt(libc::SYS_recvmsg, NONSENSE)),
    ("wait for events", WORKERS, || attempt(libc::SYS_epoll_pwait, NONSENSE)),
    ("copy a descriptor", WORKERS, || attempt(libc::SYS_dup, NONSENSE)),
    ("cut off a file", WORKERS, || attempt(libc::SYS_ftruncate, NONSENSE)),
    ("set an option of TCP", WORKERS, || option(libc::IPPROTO_TCP, libc::TCP_NODELAY)),
    ("ask how much there is to read", WORKERS, || {
        attempt(libc::SYS_ioctl, [-1, 0x541b, 0, 0]);
    }),
];

const BOTH_SIDES: &[Role] = &[Role::Namespace, Role::Command];
const WORKERS: &[Role] = &[Role::VhostUser, Role::Stream, Role::Namespace, Role::Command];
const SOCKETS: &[Role] =
    &[Role::VhostUser, Role::Stream, Role::Namespace, Role::Command, Role::Inside];
const CALLERS: &[Role] =
    &[Role::VhostUser, Role::Stream, Role::Namespace, Role::Command, Role::Client];

/// Things that nobody in there may do.
const FORBIDDEN: &[(&str, fn())] = &[
    ("open a file", || drop(File::open("/etc/passwd"))),
    ("ask about a path", || drop(fs::metadata("/"))),
    ("start a program", || drop(Command::new("/bin/true").status())),
    ("start a thread", || drop(std::thread::spawn(|| {}).join())),
    ("open a netlink socket", || socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
    ("open a packet socket", || socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)),
    ("open a raw socket", || socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("open a socket of MPTCP", || socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
    ("attach a packet filter", || option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER)),
    ("attach a program", || option(libc::SOL_SOCKET, libc::SO_ATTACH_BPF)),
    ("load a protocol module", || option(libc::IPPROTO_TCP, libc::TCP_ULP)),
    ("replace a packet filter", || option(libc::IPPROTO_IP, 64)),
    ("replace a packet filter of IPv6", || option(libc::IPPROTO_IPV6, 64)),
    ("map executable memory", || {
        let private = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let _ = raw_6(libc::SYS_mmap, [0, 4096, 5, private, -1, 0]);
    }),
    ("make memory executable", || attempt(libc::SYS_mprotect, [0, 4096, 7, 0])),
    ("signal another process", || attempt(libc::SYS_kill, [1, 0, 0, 0])),
    ("abort another process", || attempt(libc::SYS_tgkill, [2, 2, 6, 0])),
    ("send itself other signals", || {
        let pid = i64::from(std::process::id());
        attempt(libc::SYS_tgkill, [pid, pid, 17, 0]);
    }),
    ("push characters into a terminal", || attempt(libc::SYS_ioctl, [0, 0x5412, 0, 0])),
    ("own the signals of a file", || attempt(libc::SYS_fcntl, [0, 8, 1, 0])),
    ("become dumpable", || attempt(libc::SYS_prctl, [4, 1, 0, 0])),
];

fn wait_by(what: libc::idtype_t) {
    attempt(libc::SYS_waitid, [what.into(), -1, 0, 0]);
}

fn socket(family: i32, kind: i32, protocol: i32) {
    attempt(libc::SYS_socket, [family.into(), kind.into(), protocol.into(), 0]);
}

fn option(level: i32, name: i32) {
    attempt(libc::SYS_setsockopt, [0, level.into(), name.into(), 0]);
}

// --- What the tests need ------------------------------------------------------------------------

/// A user whom no system knows.
const STRANGER: u32 = 424_242;

fn command(part: &str) -> Command {
    // By this name, the helper can be run by users who cannot reach the build folder.
    let mut command = Command::new("/proc/self/exe");
    command.env_clear().env(PART, part);
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the helper starts")
}

#[track_caller]
fn need_root() {
    assert!(nix::unistd::Uid::effective().is_root(), "this test needs root: run it as root");
}

/// A helper in the foreground that waits until it is dropped.
struct Waiting(Child);

impl Waiting {
    #[track_caller]
    fn start(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().expect("the helper starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("is piped");
        BufReader::new(out).read_line(&mut line).expect("reads");
        assert_eq!(line, "ready\n", "the helper did not start");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().expect("ends");
        if !std::thread::panicking() {
            assert!(status.success(), "{status}");
        }
    }
}

/// A field of `/proc/PID/status`.
#[track_caller]
fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("runs");
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().replace('\t', " ")
}

#[track_caller]
fn assert_locked(pid: u32) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    // What nobody may dump belongs to root, whoever runs it.
    let owner = std::os::unix::fs::MetadataExt::uid(
        &fs::metadata(format!("/proc/{pid}/environ")).expect("runs"),
    );
    assert_eq!(owner, 0, "dumpable");
}

#[track_caller]
fn assert_isolated(pid: u32, namespaces: &[&str]) {
    assert_eq!(status(pid, "CapBnd"), "0000000000000000");
    let link = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}"));
    let pid_text = pid.to_string();
    for name in ["user", "mnt", "ipc", "uts", "pid", "net", "cgroup"] {
        let own = link(&pid_text, name).expect("needs root to be read")
            != link("self", name).expect("is ours");
        assert_eq!(own, namespaces.contains(&name), "namespace {name}");
    }
    let root = format!("/proc/{pid}/root");
    assert_eq!(fs::read_dir(&root).expect("root may look").count(), 0, "an empty root");
    let written = File::create(format!("{root}/x")).map_err(|e| e.raw_os_error());
    assert_eq!(written.map(drop), Err(Some(libc::EROFS)));
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).expect("root may look");
    assert_eq!(cwd, Path::new("/"));
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("passt-sandbox-{}-{name}", std::process::id()))
}

/// A folder of the test's own.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = temporary("folder");
        fs::create_dir(&path).expect("is ours");
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let names =
            fs::read_dir(&self.0).expect("is there").map(|n| n.expect("is there").file_name());
        let names: BTreeSet<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.into_iter().collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("is ours");
    }
}

/// The daemon that a helper left in the background; it becomes our child when its parent ends.
#[track_caller]
fn daemon_of(command: &mut Command) -> (Pid, Output) {
    let path = temporary("pid");
    let out = output(command.env("BACKGROUND", "1").env("PID_FILE", &path));
    let text = fs::read_to_string(&path).expect("the PID file is there when the starter ends");
    fs::remove_file(path).expect("is removed");
    let pid = text.strip_suffix('\n').expect("one line").parse().expect("a number");
    (Pid::from_raw(pid), out)
}

#[track_caller]
fn end_daemon(pid: Pid) {
    kill(pid, Signal::SIGTERM).expect("runs");
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
}

// --- The tests ----------------------------------------------------------------------------------

fn in_the_foreground_nothing_is_left_but_the_network_and_our_processes() {
    need_root();
    let helper = Waiting::start(&mut command("wait"));
    assert_locked(helper.pid());
    assert_isolated(helper.pid(), &["user", "mnt", "ipc", "uts"]);
}

fn an_ordinary_user_gets_the_same() {
    need_root();
    let helper = Waiting::start(command("wait").uid(STRANGER).gid(STRANGER));
    assert_locked(helper.pid());
    assert_isolated(helper.pid(), &["user", "mnt", "ipc", "uts"]);
    let ids = format!("{STRANGER} {STRANGER} {STRANGER} {STRANGER}");
    assert_eq!(status(helper.pid(), "Uid"), ids);
}

fn whoever_runs_the_tests_is_locked_in() {
    assert_locked(Waiting::start(&mut command("wait")).pid());
}

fn root_becomes_nobody_and_says_so() {
    need_root();
    let mut child = command("wait");
    child.stderr(Stdio::piped());
    let mut helper = Waiting::start(&mut child);
    assert_eq!(status(helper.pid(), "Uid"), "65534 65534 65534 65534");
    assert_eq!(status(helper.pid(), "Gid"), "65534 65534 65534 65534");
    assert_eq!(status(helper.pid(), "Groups"), "");
    let stderr = helper.0.stderr.take().expect("is piped");
    drop(helper);
    let said = std::io::read_to_string(stderr).expect("reads");
    assert_eq!(said, "Started as root, will change to nobody.\n");
}

fn run_as_is_followed_even_to_root() {
    need_root();
    for (run_as, uid, gid) in [("1234:0x10", 1234, 16), ("0", 0, 0), ("daemon", 1, 1)] {
        let helper = Waiting::start(command("wait").env("RUN_AS", run_as));
        assert_eq!(status(helper.pid(), "Uid"), format!("{uid} {uid} {uid} {uid}"));
        assert_eq!(status(helper.pid(), "Gid"), format!("{gid} {gid} {gid} {gid}"));
        assert_eq!(status(helper.pid(), "Groups"), "");
        assert_locked(helper.pid());
    }
}

fn an_ordinary_user_cannot_run_as_another() {
    need_root();
    let mut child = command("wait");
    let out = output(child.uid(STRANGER).gid(STRANGER).env("RUN_AS", "1234"));
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(said, "Couldn't change to user 1234, group 1234: Operation not permitted\n");
}

fn in_the_background_status_0_means_ready_and_locked() {
    need_root();
    let (pid, out) = daemon_of(&mut command("serve"));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let number = pid.as_raw().unsigned_abs();
    assert_locked(number);
    assert_isolated(number, &["user", "mnt", "ipc", "uts", "pid"]);
    for fd in 0..3 {
        let file = fs::read_link(format!("/proc/{number}/fd/{fd}")).expect("is open");
        // Named from outside its namespace, where it has no path any more.
        assert!(file.ends_with("null"), "{fd}: {file:?}");
    }
    assert_eq!(nix::unistd::getsid(Some(pid)), Ok(pid), "its own session");
    assert_eq!(status(number, "NSpid"), format!("{pid} 1"));
    end_daemon(pid);
}

fn an_ordinary_users_daemon_is_ready_too() {
    need_root();
    let (pid, out) = daemon_of(command("serve").uid(STRANGER).gid(STRANGER));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_locked(pid.as_raw().unsigned_abs());
    end_daemon(pid);
}

fn a_daemon_that_cannot_start_tells_its_starter_why() {
    for (part, message) in [
        ("not ready", "the reason\n"),
        ("killed before ready", "The background process ended by SIGKILL before it was ready\n"),
        (
            "ask a stopped daemon to end",
            "Ended by SIGTERM before the background process was ready\n",
        ),
    ] {
        let folder = Folder::new();
        let out =
            output(command(part).env("BACKGROUND", "1").env("PID_FILE", folder.0.join("pid")));
        assert_eq!(out.status.code(), Some(1), "{part}: {out:?}");
        assert_eq!(String::from_utf8_lossy(&out.stderr), message, "{part}");
        assert_eq!(folder.names(), [""; 0], "{part}");
    }
}

fn in_the_foreground_a_start_that_fails_leaves_nothing_however_it_ends() {
    for (part, code, signal) in
        [("not ready", Some(1), None), ("killed before ready", None, Some(libc::SIGKILL))]
    {
        let folder = Folder::new();
        // What is waited for is the end of everybody who has our end of the output.
        let out = output(command(part).env("PID_FILE", folder.0.join("pid")));
        assert_eq!((out.status.code(), out.status.signal()), (code, signal), "{part}: {out:?}");
        assert_eq!(folder.names(), [""; 0], "{part}");
    }
}

fn a_file_that_was_there_stays_when_the_start_fails_and_names_no_process() {
    for background in [true, false] {
        let folder = Folder::new();
        let path = folder.0.join("pid");
        fs::write(&path, "4711\n").expect("is ours");
        let mut child = command("not ready");
        if background {
            child.env("BACKGROUND", "1");
        }
        assert_eq!(output(child.env("PID_FILE", &path)).status.code(), Some(1));
        assert_eq!(fs::read_to_string(&path).expect("is there"), "");
    }
}

fn the_pid_file_is_written_when_everything_works() {
    let folder = Folder::new();
    let out = output(command("report").env("PID_FILE", folder.0.join("pid")));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(folder.names(), ["pid", "pid.other"]);
}

fn a_daemon_whose_starter_was_killed_ends_and_leaves_nothing() {
    let folder = Folder::new();
    let mut child = command("starter is killed");
    let child = child.env("BACKGROUND", "1").env("PID_FILE", folder.0.join("pid"));
    assert_eq!(output(child).status.signal(), Some(libc::SIGKILL));
    // The daemon and the janitor have become our children.
    let ended = std::iter::from_fn(|| waitpid(None, None).ok());
    let codes: BTreeSet<_> =
        ended.map(|status| matches!(status, WaitStatus::Exited(_, 1))).collect();
    assert_eq!(codes, BTreeSet::from([false, true]));
    assert_eq!(folder.names(), [""; 0]);
}

fn forbidden_system_calls_kill_the_process() {
    let forbidden: Vec<&str> = FORBIDDEN
        .iter()
        .map(|(name, _)| *name)
        .chain(CALLS.iter().map(|(name, _)| *name))
        .collect();
    for role in ROLES {
        let run = |part: &str| output(command(part).env("ROLE", format!("{role:?}")));
        for name in &forbidden {
            let out = run(name);
            assert_eq!(out.status.signal(), Some(libc::SIGSYS), "{role:?}: {name}: {out:?}");
        }
        for (name, roles, _) in RESERVED {
            let out = run(name);
            if roles.contains(&role) {
                // That it comes so far also shows what has killed the others.
                assert_eq!(out.status.code(), Some(0), "{role:?}: {name}: {out:?}");
            } else {
                assert_eq!(out.status.signal(), Some(libc::SIGSYS), "{role:?}: {name}: {out:?}");
            }
        }
    }
}

fn a_days_work_is_allowed_and_the_log_stays_below_its_limit() {
    let path = temporary("log");
    let out = output(command("work").env("LOG_FILE", &path));
    // Its last step is forbidden, to show that the filter was there all the time.
    assert_eq!(out.status.signal(), Some(libc::SIGSYS), "{out:?}");
    let log = fs::read_to_string(&path).expect("is text");
    assert!(log.len() <= 1 << 20);
    assert!(log.starts_with("helper 0: /") && log.contains(" - log truncated at "));
    assert!(
        log.trim_end().ends_with("line 59999 fills the log file until its oldest part is cut off")
    );
    fs::remove_file(path).expect("is removed");
}

fn a_terminal_that_nobody_reads_costs_lines_and_not_time() {
    let mut child = command("chatter");
    child.stderr(Stdio::piped()).env("RUN_AS", own_ids());
    // It says that it is ready only after all its lines.
    let mut helper = Waiting::start(&mut child);
    let mut stderr = File::from(std::os::fd::OwnedFd::from(helper.0.stderr.take().expect("piped")));
    let mut said = vec![0; 1 << 20];
    let n = stderr.read(&mut said).expect("a full pipe");
    let first = String::from_utf8_lossy(&said[..n]).into_owned();
    assert!(first.starts_with("line 0 of more") && first.ends_with('\n'), "{first}");
    drop(helper);
    let last = std::io::read_to_string(stderr).expect("the rest");
    let lost = 5000 - first.lines().count();
    assert!(lost > 0);
    assert_eq!(last, format!("({lost} messages lost) at last\n"));
}

fn abort_ends_by_its_own_signal() {
    let out = output(&mut command("abort"));
    assert_eq!(out.status.signal(), Some(libc::SIGABRT), "{out:?}");
}

fn where_user_namespaces_are_forbidden_the_start_fails_in_known_words() {
    let out = output(command("wait").env("REFUSE_UNSHARE", "1").env("RUN_AS", own_ids()));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(said, "Couldn't create user namespace: Operation not permitted\n");
}

fn where_user_namespaces_are_forbidden_one_can_go_on_with_a_warning() {
    let mut child = command("wait");
    child
        .env("REFUSE_UNSHARE", "1")
        .env("GO_ON", "1")
        .env("RUN_AS", own_ids())
        .stderr(Stdio::piped());
    let mut helper = Waiting::start(&mut child);
    assert_locked(helper.pid());
    let stderr = helper.0.stderr.take().expect("is piped");
    drop(helper);
    let said = std::io::read_to_string(stderr).expect("reads");
    let expected = "No user namespace (Operation not permitted): no empty root and no namespaces, \
                    only fewer rights and filtered system calls\n";
    assert_eq!(said, expected);
}

fn children_are_waited_for_whatever_was_inherited() {
    let exe = std::env::current_exe().expect("is known");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("trap '' CHLD; exec \"$0\"").arg(exe).env_clear().env(PART, "have a child");
    let out = output(&mut shell);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
}

fn inherited_descriptors_are_closed_but_the_kept_one_is_3() {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let stray = File::open("/dev/null").expect("opens");
    for fd in [theirs.as_fd(), stray.as_fd()] {
        let inherited = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(fd, inherited).expect("is inherited");
    }
    let kept = theirs.as_raw_fd().to_string();
    let out = output(command("kept").env("KEEP_FD", &kept));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    drop(theirs);
    let mut said = String::new();
    ours.read_to_string(&mut said).expect("nobody else holds the other end");
    assert_eq!(said, "through 3");
}

fn descriptors_of_the_locked_process_are_ours_only() {
    need_root();
    let stray = File::open("/dev/null").expect("opens");
    let inherited = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(&stray, inherited).expect("is inherited");
    let helper = Waiting::start(&mut command("wait"));
    let open: BTreeSet<String> = fs::read_dir(format!("/proc/{}/fd", helper.pid()))
        .expect("root may look")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|file| file.display().to_string())
        .filter(|file| !file.starts_with("pipe:") && !file.starts_with("/memfd:"))
        .collect();
    // Where there is a system log, its socket is there as well.
    let expected = BTreeSet::from(["anon_inode:[signalfd]".to_owned()]);
    let surplus: Vec<_> = open.difference(&expected).filter(|f| !f.contains("socket:")).collect();
    assert!(surplus.iter().all(|f| *f == &terminal()), "{surplus:?}");
}

/// What our standard error is: the helper shares it.
fn terminal() -> String {
    fs::read_link("/proc/self/fd/2").map_or_else(|_| String::new(), |f| f.display().to_string())
}

fn closed_standard_streams_are_filled() {
    let path = temporary("streams");
    let exe = std::env::current_exe().expect("is known");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec \"$0\" <&- >&- 2>&-").arg(exe).env_clear().env(PART, "serve");
    shell.env("BACKGROUND", "1").env("PID_FILE", &path).env("RUN_AS", own_ids());
    let status = shell.status().expect("sh is there");
    assert_eq!(status.code(), Some(0));
    let text = fs::read_to_string(&path).expect("the PID file holds a number and nothing else");
    fs::remove_file(path).expect("is removed");
    end_daemon(Pid::from_raw(text.trim().parse().expect("a number")));
}

fn own_ids() -> String {
    let Identity { uid, gid } = Identity::current();
    format!("{uid}:{gid}")
}

fn a_descriptor_that_is_not_open_is_refused() {
    let out = output(command("kept").env("KEEP_FD", "77"));
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "Invalid --fd: 77 is not open\n");
}

/// Names the functions given, for a list of tests.
macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

const TESTS: &[(&str, fn())] = tests![
    in_the_foreground_nothing_is_left_but_the_network_and_our_processes,
    an_ordinary_user_gets_the_same,
    whoever_runs_the_tests_is_locked_in,
    root_becomes_nobody_and_says_so,
    run_as_is_followed_even_to_root,
    an_ordinary_user_cannot_run_as_another,
    in_the_background_status_0_means_ready_and_locked,
    an_ordinary_users_daemon_is_ready_too,
    a_daemon_that_cannot_start_tells_its_starter_why,
    in_the_foreground_a_start_that_fails_leaves_nothing_however_it_ends,
    a_file_that_was_there_stays_when_the_start_fails_and_names_no_process,
    the_pid_file_is_written_when_everything_works,
    a_daemon_whose_starter_was_killed_ends_and_leaves_nothing,
    children_are_waited_for_whatever_was_inherited,
    forbidden_system_calls_kill_the_process,
    a_days_work_is_allowed_and_the_log_stays_below_its_limit,
    a_terminal_that_nobody_reads_costs_lines_and_not_time,
    abort_ends_by_its_own_signal,
    where_user_namespaces_are_forbidden_the_start_fails_in_known_words,
    where_user_namespaces_are_forbidden_one_can_go_on_with_a_warning,
    inherited_descriptors_are_closed_but_the_kept_one_is_3,
    descriptors_of_the_locked_process_are_ours_only,
    closed_standard_streams_are_filled,
    a_descriptor_that_is_not_open_is_refused,
];

fn main() -> ExitCode {
    if let Ok(part) = std::env::var(PART) {
        helper(&part);
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let told = |option: &str| std::env::args().any(|a| a == option);
    if told("--list") {
        // nextest asks a second time, for the ignored ones; there are none.
        let shown = if told("--ignored") { &[] } else { TESTS };
        shown.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    // Daemons whose starter has ended become our children, to be waited for.
    nix::sys::prctl::set_child_subreaper(true).expect("is allowed to everybody");
    let matches = |name: &str, w: &str| if told("--exact") { name == w } else { name.contains(w) };
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|w| matches(name, w));
    let mut failed = 0;
    let tests: Vec<_> = TESTS.iter().filter(|(name, _)| chosen(name)).collect();
    println!("\nrunning {} tests", tests.len());
    for (name, test) in &tests {
        let ok = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += usize::from(!ok);
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed\n", tests.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

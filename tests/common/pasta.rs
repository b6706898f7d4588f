//! `pasta` as root and as an ordinary user, in a network of its own, and what it leaves behind.

use super::net::{Namespace, PATIENCE, TempDir, need};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use passt::sys::process::open_process;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const PASTA: &str = env!("CARGO_BIN_EXE_pasta");

/// An ordinary user; there need not be an account.
pub const USER: u32 = 1000;

/// Who starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    User,
}

pub const EVERYBODY: [Who; 2] = [Who::Root, Who::User];

/// The environment variable that marks all processes of a place.
const MARK: &str = "PASTA_TEST_MARK";

/// Where `pasta` is started: a network namespace that stands for the host's, and a mark on all that
/// is started. What is left is killed on drop.
pub struct Place<'a> {
    host: Cow<'a, Namespace>,
    pub dir: TempDir,
    mark: String,
}

/// A namespace of the place's own, or somebody else's.
enum Cow<'a, T> {
    Owned(T),
    Borrowed(&'a T),
}

impl<T> std::ops::Deref for Cow<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Owned(value) => value,
            Self::Borrowed(value) => value,
        }
    }
}

impl Place<'static> {
    /// In a namespace of its own.
    pub fn new() -> Self {
        Self::with(Cow::Owned(Namespace::alone("place")))
    }
}

impl<'a> Place<'a> {
    /// In the namespace `host`.
    pub fn on(host: &'a Namespace) -> Self {
        Self::with(Cow::Borrowed(host))
    }

    fn with(host: Cow<'a, Namespace>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        need("setpriv", "util-linux");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{number}.", std::process::id());
        let place = Self { host, dir: TempDir::new(), mark };
        // For ordinary users, too.
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(place.dir.path(), everybody).expect("is ours");
        place
    }

    /// The network namespace that stands for the host's.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// Any program, started by `who`.
    pub fn command(&self, who: Who, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match who {
            Who::Root => self.host.command(program),
            Who::User => {
                let mut command = self.host.command("setpriv");
                let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
                command.args([&user, &group, "--clear-groups", "--"]).arg(program);
                command
            }
        };
        command.env(MARK, &self.mark).env("SHELL", "/bin/sh").stdin(Stdio::null());
        // Directories that others may not search make another error of a missing program.
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// `pasta` with these arguments.
    pub fn pasta(&self, who: Who, arguments: &[&str]) -> Command {
        let mut command = self.command(who, program(who));
        command.args(arguments);
        command
    }

    /// A copy of the program for everybody, with `capabilities` as setcap(8) gives them.
    pub fn copy_with(&self, capabilities: &str) -> PathBuf {
        need("setcap", "libcap2-bin");
        let path = self.dir.join("pasta");
        fs::copy(PASTA, &path).expect("there is room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("is ours");
        let given = Command::new("setcap").arg(capabilities).arg(&path).status();
        assert!(given.expect("starts").success(), "a file system without capabilities");
        path
    }

    /// `pasta --fd 9` with these arguments and this descriptor.
    pub fn pasta_at(&self, who: Who, fd: OwnedFd, arguments: &[&str]) -> Command {
        let mut command = self.command(who, "sh");
        command.args(["-c", r#"exec "$0" --fd 9 "$@" 9<&0 <&-"#]).arg(program(who));
        command.args(arguments).stdin(fd);
        command
    }

    /// Runs `pasta` to its end, or until it is in the background.
    pub fn run(&self, who: Who, arguments: &[&str]) -> Output {
        self.pasta(who, arguments).output().expect("starts")
    }

    /// Runs `pasta`, which must succeed silently; returns what its command prints.
    #[track_caller]
    pub fn prints(&self, who: Who, arguments: &[&str]) -> String {
        let output = self.run(who, arguments);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{who:?} {arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{who:?} {arguments:?}");
        String::from_utf8(output.stdout).expect("is text")
    }

    /// Runs `pasta`, which must fail with one line on standard error and leave nothing behind;
    /// returns the line.
    #[track_caller]
    pub fn fails(&self, who: Who, arguments: &[&str]) -> String {
        self.refused(self.pasta(who, arguments))
    }

    /// As [`Place::fails`], for a command that ends as `pasta`.
    #[track_caller]
    pub fn refused(&self, mut command: Command) -> String {
        let output = command.output().expect("starts");
        let text = String::from_utf8(output.stderr).expect("is text");
        assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command:?}");
        assert_eq!(text.lines().count(), 1, "{command:?}: {text}");
        self.assert_nothing_is_left();
        text.trim_end().to_owned()
    }

    /// The processes that were started here and are alive.
    pub fn processes(&self) -> Vec<i32> {
        let entry = format!("{MARK}={}", self.mark);
        let marked = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == entry.as_bytes())
        };
        let numbers = fs::read_dir("/proc").expect("is mounted").flatten();
        let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(marked).collect()
    }

    /// Waits for every process that was started here to end, which must not take long.
    #[track_caller]
    pub fn assert_nothing_is_left(&self) {
        for pid in self.processes() {
            assert!(ends(pid), "process {pid} is left: {:?}", command_line(pid));
        }
        assert_eq!(self.processes(), [0; 0], "processes are left");
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// A program that has said that it is there, and where the rest of its output comes from.
pub struct Running {
    pub child: Child,
    pub stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it, and waits for its first line.
    pub fn start(mut command: Command) -> (Self, String) {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("is text");
        assert_ne!(line, "", "{command:?} says nothing");
        (Self { child, stdout }, line.trim_end().to_owned())
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it lives");
    }

    /// Its status, and what it has printed since.
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("is ours");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("is text");
        (status.code().or_else(|| status.signal().map(|n| -n)), rest)
    }
}

/// A `pasta` whose command waits for ever, and the command's process.
pub fn waiting(place: &Place<'_>, who: Who, options: &[&str]) -> (Running, i32) {
    waiting_for(place.pasta(who, options))
}

/// The same for a `pasta` with all its options.
pub fn waiting_for(mut pasta: Command) -> (Running, i32) {
    pasta.args(["sh", "-c", "echo ready; exec sleep infinity"]);
    let (pasta, _) = Running::start(pasta);
    let command = command_of(&pasta);
    (pasta, command)
}

/// The process that `pasta` has started, which becomes `sleep`.
pub fn command_of(pasta: &Running) -> i32 {
    let is_sleep = |pid: &i32| {
        // It may not have come to the second program yet.
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        ["sh\n", "sleep\n"].contains(&name.as_str())
    };
    children(pasta.pid()).into_iter().find(is_sleep).expect("the command runs")
}

/// The processes whose parent is `parent`. The kernel's own list (`children` in `/proc`) leaves some
/// out while others end.
pub fn children(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
        fields.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let all = fs::read_dir("/proc").expect("is mounted").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}

/// A process in namespaces of its own, as containers begin; ends with the value.
pub struct Container(Running);

impl Container {
    pub fn new(place: &Place<'_>, who: Who) -> Self {
        let mut command = place.command(who, "unshare");
        match who {
            Who::Root => command.arg("--net"),
            Who::User => command.args(["--user", "--map-root-user", "--net"]),
        };
        command.args(["sh", "-c", "echo ready; exec sleep infinity"]);
        Self(Running::start(command).0)
    }

    pub fn pid(&self) -> String {
        self.0.pid().to_string()
    }

    /// Its network namespace.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.pid()).into()
    }

    /// What a command prints that runs inside.
    pub fn prints(&self, line: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.pid()).arg("--net").args(line.split(' '));
        let output = command.output().expect("starts");
        String::from_utf8(output.stdout).expect("is text")
    }

    pub fn kill(mut self) {
        self.0.child.kill().expect("is ours");
        self.0.child.wait().expect("is ours");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.child.kill();
        let _ = self.0.child.wait();
    }
}

/// Waits for a process to end; whether it did.
pub fn ends(pid: i32) -> bool {
    let Ok(process) = open_process(pid) else { return true };
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).expect("is not too long");
    poll(&mut fds, patience).expect("polls") == 1
}

fn command_line(pid: i32) -> String {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).replace('\0', " ")
}

/// The program, where `who` may start it: a target directory may be closed to others.
pub fn program(who: Who) -> &'static Path {
    static COPY: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    if who == Who::Root {
        return Path::new(PASTA);
    }
    let copy = COPY.get_or_init(|| {
        let open = |path: &Path| {
            fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 1 == 1)
        };
        if Path::new(PASTA).ancestors().all(open) {
            return None;
        }
        let directory = TempDir::new();
        let path = directory.join("pasta");
        fs::copy(PASTA, &path).expect("there is room");
        for path in [directory.path(), &path] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("is ours");
        }
        Some((directory, path))
    });
    copy.as_ref().map_or_else(|| Path::new(PASTA), |(_, path)| path)
}

//! A `pasta` between the "host" of a lab and a namespace of its own, as a daemon.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use passt::sys::process::open_process;

use super::net::{Lab, Namespace, PATIENCE};

/// The interface inside.
pub const INTERFACE: &str = "eth0";

/// A `pasta` that has said it is ready; ended on drop, with its namespace.
pub struct Pasta {
    pid: i32,
    /// The namespace that it serves.
    pub inside: Namespace,
    log: PathBuf,
}

impl Pasta {
    /// Starts `program` in "host", with a tap that has the addresses of "host", and `options`.
    pub fn start(lab: &Lab, program: &OsStr, options: &[&str]) -> Self {
        let inside = Namespace::alone("inside");
        Self::serve(lab, program, inside, options)
    }

    /// As [`Pasta::start`], for a namespace that is there.
    pub fn serve(lab: &Lab, program: &OsStr, inside: Namespace, options: &[&str]) -> Self {
        let (pid_file, log) = (lab.dir.join("pasta.pid"), lab.dir.join("pasta.log"));
        let output = lab
            .host
            .command(program)
            .args(["--config-net", "--netns-only", "--runas", "0", "-I", INTERFACE, "--log-file"])
            .arg(&log)
            .arg("--pid")
            .arg(&pid_file)
            .args(options)
            .arg("--netns")
            .arg(inside.path())
            .stdin(Stdio::null())
            .output()
            .expect("cannot run nsenter");
        // What a daemon says when it is ready is its exit status.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program:?} {options:?} failed: {said}");
        let pid = fs::read_to_string(&pid_file).expect("no pid file");
        Self { pid: pid.trim().parse().expect("a pid"), inside, log }
    }

    pub fn id(&self) -> i32 {
        self.pid
    }

    /// Waits for the process to end; whether it did.
    pub fn ends(&self) -> bool {
        let Ok(process) = open_process(self.pid) else { return true };
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("is not too long");
        poll(&mut fds, patience).expect("polls") == 1
    }

    /// Whether the process is there still.
    pub fn is_alive(&self) -> bool {
        fs::metadata(format!("/proc/{}", self.pid)).is_ok()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
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

    /// A line of the process's status, in KiB: `VmRSS:` is what it has in memory, `VmHWM:` the
    /// most that it ever had.
    pub fn memory_kib(&self, name: &str) -> u64 {
        kib(&self.proc_file("status"), name)
    }

    /// What all its processes have in memory, in KiB: `Rss:` counts what they share twice, `Pss:`
    /// by halves.
    pub fn memory_of_all_kib(&self, name: &str) -> u64 {
        let of = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
        self.processes().iter().map(|pid| kib(&of(pid).expect("pasta is gone"), name)).sum()
    }

    /// The one that serves, and those that are inside.
    fn processes(&self) -> Vec<i32> {
        let namespace = |path: PathBuf| fs::metadata(path).ok().map(|file| file.ino());
        let ours = namespace(self.inside.path());
        let is_inside = |pid: &i32| namespace(format!("/proc/{pid}/ns/net").into()) == ours;
        let all = fs::read_dir("/proc").expect("is mounted").flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        [self.pid].into_iter().chain(all.filter(is_inside)).collect()
    }

    fn proc_file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid)).expect("pasta is gone")
    }
}

/// The value of a line of a file in `/proc`.
fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
        self.ends();
        if std::thread::panicking() {
            eprintln!("pasta said:\n{}", self.log());
        }
    }
}

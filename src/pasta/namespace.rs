//! The namespaces that we serve: those of a process, those behind a file, or new ones.
//!
//! They are opened once, while we still may, and entered by the process that stays there
//! ([`crate::host::inside`]) and by the sandbox. Who opens and enters:
//!
//! | started by                     | user namespace of a command                   | we join        |
//! |--------------------------------|-----------------------------------------------|----------------|
//! | an ordinary user               | new; user 0 stands for that user, no other is | user, network  |
//! | root, also in a user namespace | new; every user there is stays the same       | network        |
//! | `--netns-only`                 | none: only for those who may do without       | network        |
//!
//! Root gets a user namespace too, so that the command has all rights over its network and none
//! over the host's; and since root may act for all users, all of them are known there.

use super::Error;
use crate::config::{Pasta, Target};
use crate::sys::process;
use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{getegid, geteuid};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Kinds of namespaces, by what their files are called.
const NETWORK: (&str, CloneFlags) = ("network", CloneFlags::CLONE_NEWNET);
const USER: (&str, CloneFlags) = ("user", CloneFlags::CLONE_NEWUSER);

/// Files below belong to processes, and end with them.
const PROC: &str = "/proc";

/// What ends with the namespace.
#[derive(Debug)]
pub enum Life {
    /// A process: a descriptor that polls readable when it has ended.
    Process(OwnedFd),
    /// A name in the file system.
    Name(PathBuf),
}

/// A network namespace, and the user namespace to join before it, by those who have to.
#[derive(Debug)]
pub struct Namespace {
    network: File,
    user: Option<File>,
}

impl Namespace {
    /// The namespaces that exist already and are to be joined, and what they end with; `None` for
    /// a command, whose namespaces are new.
    ///
    /// # Errors
    /// Something is not there, is not ours, or is no namespace.
    pub fn find(config: &Pasta) -> Result<Option<(Self, Life)>, Error> {
        let userns = config.userns.as_deref();
        match &config.target {
            Target::Command(_) | Target::Shell | Target::OfInterface(_) => Ok(None),
            Target::Pid(pid) => Self::of_pid(*pid, userns, config.netns_only).map(Some),
            Target::Path(path) => Self::of_path(path, userns).map(Some),
        }
    }

    fn of_pid(pid: i32, userns: Option<&Path>, netns_only: bool) -> Result<(Self, Life), Error> {
        // First, so that the number stands for the same process in all that follows.
        let life = hold(pid)?;
        let user = match userns {
            Some(path) => Some(open(path, USER)?),
            None if netns_only => None,
            None => Some(of_process(pid, "user")?),
        };
        let namespace = Self::new(of_process(pid, "net")?, user)?;
        if has_ended(life.as_fd()) {
            return Err(Error::NoProcess(pid));
        }
        Ok((namespace, Life::Process(life)))
    }

    fn of_path(path: &Path, userns: Option<&Path>) -> Result<(Self, Life), Error> {
        let namespace = Self::at(path, userns)?;
        let life = namespace.life_of(path)?;
        Ok((namespace, life))
    }

    pub(super) fn at(path: &Path, userns: Option<&Path>) -> Result<Self, Error> {
        let user = userns.map(|path| open(path, USER)).transpose()?;
        Self::new(open(path, NETWORK)?, user)
    }

    /// The namespaces of a child of ours that has made new ones.
    ///
    /// # Errors
    /// It has ended.
    pub fn of_child(pid: u32, own_user: bool) -> Result<Self, Error> {
        let pid = i32::try_from(pid).unwrap_or_default();
        let user = if own_user { Some(of_process(pid, "user")?) } else { None };
        Self::new(of_process(pid, "net")?, user)
    }

    /// A user namespace that we are in already cannot be joined again, and who has all rights here
    /// has them there too, if they can be had at all.
    fn new(network: File, user: Option<File>) -> Result<Self, Error> {
        let rights = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN);
        if rights.unwrap_or(false) {
            return Ok(Self { network, user: None });
        }
        let ours = identity(&open(Path::new("/proc/self/ns/user"), USER)?);
        let user = user.filter(|user| identity(user) != ours);
        Ok(Self { network, user })
    }

    /// What the namespace behind `path` ends with: below `/proc` that is a process.
    fn life_of(&self, path: &Path) -> Result<Life, Error> {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let Some(pid) = process_in(&absolute) else { return Ok(Life::Name(absolute)) };
        let gone = || Error::Vanished(path.display().to_string());
        let life = hold(pid).map_err(|e| match e {
            Error::NoProcess(_) => gone(),
            other => other,
        })?;
        // Still the same behind the name, after we hold the process?
        let now = open(path, NETWORK)?;
        if identity(&now) != identity(&self.network) {
            return Err(gone());
        }
        Ok(Life::Process(life))
    }

    /// Whether `path` still leads to the network namespace.
    pub fn is_at(&self, path: &Path) -> bool {
        open(path, NETWORK).is_ok_and(|file| identity(&file) == identity(&self.network))
    }

    /// The user namespace to join, if any, that owns or may use the network namespace.
    pub fn user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(File::as_fd)
    }

    /// Enters the namespaces, for ever: an ordinary user has no way back.
    ///
    /// # Errors
    /// They are not ours to enter.
    pub fn enter(&self) -> io::Result<()> {
        if let Some(user) = &self.user {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
        }
        setns(&self.network, CloneFlags::CLONE_NEWNET)?;
        Ok(())
    }
}

/// Keeps the number of the process `pid` from standing for another one, and tells of its end.
fn hold(pid: i32) -> Result<OwnedFd, Error> {
    process::open_process(pid).map_err(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => Error::NoProcess(pid),
        // Kernels differ in what they say of the number of a thread.
        Some(libc::EINVAL | libc::ENOENT) if pid > 0 => Error::Thread(pid),
        Some(libc::EINVAL) => Error::NoProcess(pid),
        _ => Error::Watch(e),
    })
}

fn of_process(pid: i32, kind: &str) -> Result<File, Error> {
    let file = File::open(format!("/proc/{pid}/ns/{kind}"));
    file.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::NoProcess(pid),
        _ => Error::Open { what: format!("the namespaces of process {pid}"), source: e },
    })
}

fn open(path: &Path, (kind, flag): (&'static str, CloneFlags)) -> Result<File, Error> {
    let fail = |source| {
        let what = format!("{kind} namespace {}", path.display());
        Error::Open { what, source }
    };
    let wrong = || Error::NotANamespace { kind, path: path.to_owned() };
    // Anything but a plain file may wait for somebody, or do something, when it is opened.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(wrong());
    }
    let file = File::open(path).map_err(fail)?;
    match process::namespace_kind(file.as_fd()) {
        Ok(found) if found == flag.bits() => Ok(file),
        _ => Err(wrong()),
    }
}

/// What tells namespaces apart.
fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The process whose file `path` is: `/proc/PID/…`, also of a thread.
fn process_in(path: &Path) -> Option<i32> {
    let mut parts = path.strip_prefix(PROC).ok()?.components();
    match parts.next()?.as_os_str().to_str()? {
        "self" | "thread-self" => i32::try_from(std::process::id()).ok(),
        number => number.parse().ok(),
    }
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Says which users and groups exist in the new user namespace of our child `pid`, and which of
/// ours they are.
///
/// # Errors
/// The kernel allows neither mapping.
pub fn map_ids(pid: u32) -> io::Result<()> {
    let all = geteuid().is_root() && map_all(pid).is_ok();
    if all { Ok(()) } else { map_own(pid) }
}

/// Every user and group that there is here is the same there.
fn map_all(pid: u32) -> io::Result<()> {
    let same = |table: &str| -> io::Result<String> {
        Ok(same_ids(&fs::read_to_string(format!("/proc/self/{table}"))?))
    };
    let (users, groups) = (same("uid_map")?, same("gid_map")?);
    fs::write(format!("/proc/{pid}/gid_map"), groups)?;
    fs::write(format!("/proc/{pid}/uid_map"), users)
}

/// A map that gives each id of this map's inside the same number once more.
fn same_ids(map: &str) -> String {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (first, _, count) = (fields.next()?, fields.next()?, fields.next()?);
        Some(format!("{first} {first} {count}\n"))
    };
    map.lines().filter_map(line).collect()
}

/// User and group 0 are our own, and there are no others: all that an ordinary user may ask for.
fn map_own(pid: u32) -> io::Result<()> {
    let write = |table: &str, text: String| {
        match fs::write(format!("/proc/{pid}/{table}"), text) {
            // Written already, by an attempt to map more.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) && is_mapped(pid, table) => Ok(()),
            written => written,
        }
    };
    // Who drops groups could open what is closed to them: to be denied before groups are mapped.
    write("setgroups", "deny".to_owned())?;
    write("gid_map", format!("0 {} 1", getegid()))?;
    write("uid_map", format!("0 {} 1", geteuid()))
}

/// Whether our own user exists in the user namespace that we are in: one that nobody has mapped
/// users into has none, and who is none may not make another one.
///
/// # Errors
/// `/proc` is not there.
pub fn is_known_here() -> io::Result<bool> {
    Ok(has_id(&fs::read_to_string("/proc/self/uid_map")?, geteuid().as_raw()))
}

/// Whether a map has `id` inside.
fn has_id(map: &str, id: u32) -> bool {
    let has = |line: &str| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let first = fields.next()?.ok()?;
        let count = fields.nth(1)?.ok()?;
        Some(id.checked_sub(first)? < count)
    };
    map.lines().filter_map(has).any(|has| has)
}

fn is_mapped(pid: u32, table: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/{table}"));
    text.is_ok_and(|text| !text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_of_a_map_stays_the_same_in_the_next() {
        let table = [
            ("         0          0 4294967295\n", "0 0 4294967295\n"),
            ("0 1000 1\n1 100000 65536\n", "0 0 1\n1 1 65536\n"),
            ("", ""),
        ];
        for (map, expected) in table {
            assert_eq!(same_ids(map), expected);
        }
    }

    #[test]
    fn a_map_has_the_ids_of_its_ranges() {
        let map = "0 1000 1\n1 100000 65536\n";
        assert!(has_id(map, 0) && has_id(map, 1) && has_id(map, 65536));
        assert!(!has_id(map, 65537) && !has_id("", 65534));
        assert!(has_id("         0          0 4294967295\n", 65534));
    }

    #[test]
    fn a_name_that_leads_elsewhere_meanwhile_has_gone() {
        let path = Path::new("/proc/self/ns/net");
        let other = File::open("/proc/self/ns/user").expect("is there");
        let namespace = Namespace { network: other, user: None };
        let error = namespace.life_of(path).expect_err("is another").to_string();
        assert_eq!(error, "/proc/self/ns/net has gone meanwhile");
        // A process that goes is no other matter.
        let path = Path::new("/proc/2147483647/ns/net");
        let error = namespace.life_of(path).expect_err("is none").to_string();
        assert_eq!(error, "/proc/2147483647/ns/net has gone meanwhile");
    }

    #[test]
    fn a_thread_is_told_from_a_process_that_is_not_there() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).expect("somebody listens");
            wait.recv()
        });
        let number = told.recv().expect("it runs");
        let line = |pid| hold(pid).expect_err("is no process").to_string();
        assert_eq!(line(number), format!("{number} is a thread: give the PID of its process"));
        for none in [i32::MAX, 0] {
            assert_eq!(line(none), format!("No process {none}: give the PID of one that runs"));
        }
        drop(stop);
        assert!(thread.join().expect("ends").is_err());
    }

    #[test]
    fn a_file_below_proc_belongs_to_a_process() {
        let table = [
            ("/proc/12/ns/net", Some(12)),
            ("/proc/12/task/13/ns/net", Some(12)),
            ("/proc/self/ns/net", Some(std::process::id().cast_signed())),
            ("/proc/net", None),
            ("/run/netns/a", None),
            ("/run/user/1000/netns/proc/12", None),
        ];
        for (path, expected) in table {
            assert_eq!(process_in(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_namespace_is_told_apart() {
        assert!(open(Path::new("/proc/self/ns/net"), NETWORK).is_ok());
        for path in ["/proc/self/ns/user", "/etc/passwd", "/dev/null", "/"] {
            let error = open(Path::new(path), NETWORK).expect_err("is none").to_string();
            assert_eq!(error, format!("{path} is no network namespace"));
        }
    }
}

//! The process itself: descriptors it inherits, forking, signals, capabilities.
//!
//! No policy: which descriptor to keep, when to fork and what to drop is decided by `daemon` and
//! `sandbox`.

use super::check;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which side of a [`fork`] we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that called; the number is the child's PID as this process sees it.
    Parent(u32),
    /// The new process.
    Child,
}

/// Whether this process has one thread. The kernel is asked first, for our root may be empty;
/// `/proc` answers where a container's filter refuses unshare(2).
fn is_single_threaded() -> io::Result<bool> {
    // SAFETY: no pointers. CLONE_THREAD changes nothing: it succeeds for the only thread of a
    // process and fails otherwise.
    match check(unsafe { libc::unshare(libc::CLONE_THREAD) }) {
        Ok(_) => return Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
        Err(_) => {}
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("Threads:"));
    Ok(line.is_some_and(|n| n.trim() == "1"))
}

/// fork(2). The child goes on as a copy of the only thread.
///
/// # Errors
/// `ResourceBusy` when the process has other threads: their locks would stay locked for ever in
/// the child.
pub fn fork() -> io::Result<Side> {
    if !is_single_threaded()? {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    // SAFETY: the only thread is the calling one, so that the child, a copy of it, finds no lock
    // held and may run any code.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(pid.unsigned_abs())),
    }
}

/// As [`fork`], with the child in new namespaces, `namespaces` being their CLONE_NEW* flags. Comes
/// with a descriptor of the child, which polls readable when the child has ended.
///
/// # Errors
/// As [`fork`]; `EPERM` where the namespaces are forbidden, `ENOSPC` where they are too many.
pub fn fork_into(namespaces: libc::c_int) -> io::Result<(Side, Option<OwnedFd>)> {
    if !is_single_threaded()? {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let flags = libc::c_long::from(namespaces | libc::CLONE_PIDFD | libc::SIGCHLD);
    let mut pidfd: libc::c_int = -1;
    let (stack, none) = (0_usize, 0_usize);
    // SAFETY: without a stack of its own the child goes on with a copy of ours, as fork(2) has
    // it, and, the only thread being the calling one, finds no lock held. The kernel stores one
    // int through the pointer, which outlives the call. The C library's handlers for fork do not
    // run: there are none, but for its locks, which are free.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, stack, &raw mut pidfd, none, none) };
    match check(libc::c_int::try_from(child).unwrap_or(-1))? {
        0 => Ok((Side::Child, None)),
        pid => {
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((Side::Parent(pid.unsigned_abs()), Some(pidfd)))
        }
    }
}

/// A descriptor of the process `pid`, which polls readable when it has ended.
///
/// # Errors
/// `ESRCH` when there is none, `EINVAL` when that is no process but a thread.
pub fn open_process(pid: libc::pid_t) -> io::Result<OwnedFd> {
    let no_flags = 0_u32;
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, no_flags) };
    let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process that `process` is a descriptor of.
///
/// # Errors
/// `ESRCH` when it has ended, `EPERM` when it is somebody else's.
pub fn send_signal(process: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    let (no_info, no_flags) = (std::ptr::null::<libc::siginfo_t>(), 0_u32);
    // SAFETY: without information about the signal the kernel makes its own, as kill(2) has it.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, no_flags)
    };
    check(libc::c_int::try_from(sent).unwrap_or(-1)).map(drop)
}

/// The kind of namespace that `fd` stands for, as its CLONE_NEW* flag.
///
/// # Errors
/// `ENOTTY` for anything else.
pub fn namespace_kind(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // include/uapi/linux/nsfs.h: _IO(0xb7, 0x3)
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) })
}

/// Ends the process at once, without exit handlers and destructors: for the parent of a fork,
/// which must not undo (unlink, flush) what now belongs to the child.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: no pointers; does not return.
    unsafe { libc::_exit(status) }
}

/// Ignores SIGPIPE: writing to a closed peer is an error of that write and no more.
pub fn ignore_sigpipe() -> io::Result<()> {
    // SAFETY: SIG_IGN is not a function; nothing of ours runs in signal context.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has children stay until they are waited for, whatever was inherited.
pub fn wait_for_children() -> io::Result<()> {
    // SAFETY: SIG_DFL is not a function; nothing of ours runs in signal context.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether `signal` is ignored. `false` for what is no signal.
pub fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed; the kernel fills in one structure, which outlives the call.
    let read = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    read == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Opens `/dev/null` on each of the descriptors 0 to 2 that is closed, so that no file of ours
/// can ever be taken for a standard stream. To be called before anything is opened.
pub fn fill_standard_streams() -> io::Result<()> {
    loop {
        // SAFETY: the path is a valid C string.
        let fd = check(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
        if fd > libc::STDERR_FILENO {
            // SAFETY: we have just opened it, and nobody else knows it.
            unsafe { libc::close(fd) };
            return Ok(());
        }
    }
}

/// The number that [`take_inherited`] gives to the descriptor it keeps.
pub const KEPT_FD: RawFd = 3;

/// Closes every descriptor from 3 up, except `keep`, which becomes [`KEPT_FD`] (close-on-exec)
/// and is returned.
///
/// To be called at start, after [`fill_standard_streams`] and before anything else is opened:
/// whoever owned one of the closed descriptors would be left with a stale number.
///
/// # Errors
/// `EBADF` when `keep` is not open.
pub fn take_inherited(keep: Option<RawFd>) -> io::Result<Option<OwnedFd>> {
    let Some(fd) = keep else {
        close_from(KEPT_FD)?;
        return Ok(None);
    };
    if fd == KEPT_FD {
        // SAFETY: no pointers; a number that is not open gives EBADF.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    } else {
        // SAFETY: no pointers. Whatever stood at 3 was inherited, and is to be closed anyway.
        check(unsafe { libc::dup3(fd, KEPT_FD, libc::O_CLOEXEC) })?;
    }
    close_from(KEPT_FD + 1)?;
    // SAFETY: descriptor 3 is open now, and by our contract nobody else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(KEPT_FD) }))
}

/// Closes all descriptors from `first` up. Kernels before 5.9 lack close_range(2); there each
/// number below the soft limit is closed.
fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: no pointers. The caller answers for nobody owning these descriptors.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first.unsigned_abs(), u32::MAX, 0_u32) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // SAFETY: no pointers.
    let limit = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    for fd in first..RawFd::try_from(limit).unwrap_or(1024).clamp(1024, 1 << 20) {
        // SAFETY: no pointers. The caller answers for nobody owning this descriptor.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Takes every capability out of the bounding set of this thread, also those that are newer than
/// any list of names.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP` in the effective set.
pub fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: no pointers.
        let held = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        match held {
            0 => {}
            1 => {
                // SAFETY: no pointers.
                check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
            }
            _ => break, // EINVAL: past the kernel's last capability
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness itself may run us as its only thread.
        let (held, holds) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || holds.recv());
        assert_eq!(fork().map_err(|e| e.kind()), Err(io::ErrorKind::ResourceBusy));
        drop(held);
        assert!(other.join().is_ok());
    }

    #[test]
    fn open_standard_streams_stay() {
        fill_standard_streams().expect("0 to 2 are open and /dev/null exists");
    }
}

//! The system calls that each role may use, and who needs them.
//!
//! Calls of the data path are allowed with any arguments: for those the kernel remembers the
//! verdict and does not even run the filter. Calls that can do harm are allowed with the
//! arguments that we use. Anything else kills the process.
//!
//! Missing on purpose: everything that takes a path, starts a program or a thread, makes memory
//! executable, sends a signal to others but our own command, or changes who we are.

use super::Role;
use libc::c_long;

/// A condition on one argument, of which the lower 32 bits are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// What it may be.
    pub value: Value,
}

/// What an argument may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// Just this.
    One(u32),
    /// Any of these.
    OneOf(&'static [i32]),
    /// In any of these ranges, both ends included.
    Within(&'static [(i32, i32)]),
    /// Equal in the bits of the mask, which comes first.
    Masked(u32, u32),
}

/// A system call and when it is allowed: when all conditions of one of the lists are met. No list
/// at all: always.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub call: c_long,
    pub when: &'static [&'static [Condition]],
}

const fn always(call: c_long) -> Entry {
    Entry { call, when: &[] }
}

const fn when(call: c_long, when: &'static [&'static [Condition]]) -> Entry {
    Entry { call, when }
}

const fn equal(argument: u8, value: i32) -> Condition {
    Condition { argument, value: Value::One(value.cast_unsigned()) }
}

const fn one_of(argument: u8, values: &'static [i32]) -> Condition {
    Condition { argument, value: Value::OneOf(values) }
}

const fn within(argument: u8, ranges: &'static [(i32, i32)]) -> Condition {
    Condition { argument, value: Value::Within(ranges) }
}

const fn masked(argument: u8, mask: i32, value: i32) -> Condition {
    Condition { argument, value: Value::Masked(mask.cast_unsigned(), value.cast_unsigned()) }
}

/// The low bits of socket(2)'s type; above them stand SOCK_NONBLOCK and SOCK_CLOEXEC.
const SOCK_TYPE_MASK: i32 = 0xf;

/// What Rust and the C library need, whatever a thread does.
const RUNTIME: &[Entry] = &[
    // Memory: malloc grows, shrinks and trims its heap.
    always(libc::SYS_brk),
    always(libc::SYS_munmap),
    always(libc::SYS_mremap),
    always(libc::SYS_madvise),
    // malloc, and maps of guest memory and of the migration log (link::vhost::memory): never
    // executable.
    when(libc::SYS_mmap, &[&[masked(2, libc::PROT_EXEC, 0)]]),
    when(libc::SYS_mprotect, &[&[masked(2, libc::PROT_EXEC, 0)]]),
    // Mutexes.
    always(libc::SYS_futex),
    always(libc::SYS_sched_yield),
    // Keys of hash tables; initial sequence numbers.
    always(libc::SYS_getrandom),
    // runtime reads the clock; a call only where the vDSO has no fast one.
    always(libc::SYS_clock_gettime),
    // Return from a stopped or handled signal.
    always(libc::SYS_rt_sigreturn),
    always(libc::SYS_restart_syscall),
    // The standard library's SIGSEGV and SIGBUS handler puts the default action back, so that we
    // end by that very signal; abort() unblocks SIGABRT.
    always(libc::SYS_rt_sigaction),
    always(libc::SYS_rt_sigprocmask),
    always(libc::SYS_getpid),
    always(libc::SYS_gettid),
    // process::exit: the standard library frees its signal stack first.
    always(libc::SYS_sigaltstack),
    always(libc::SYS_exit_group),
    // malloc asks how many processors there are before it makes an arena for a second thread.
    always(libc::SYS_sched_getaffinity),
];

/// host::sockets and host::listen: TCP, UDP and ping sockets of the internet. No raw sockets,
/// none of other families, none of TCP's other variants (MPTCP, SMC).
const SOCKETS: Entry = when(
    libc::SYS_socket,
    &[
        &[
            one_of(0, INTERNET),
            masked(1, SOCK_TYPE_MASK, libc::SOCK_STREAM),
            one_of(2, &[libc::IPPROTO_IP, libc::IPPROTO_TCP]),
        ],
        &[
            one_of(0, INTERNET),
            masked(1, SOCK_TYPE_MASK, libc::SOCK_DGRAM),
            one_of(2, &[libc::IPPROTO_IP, libc::IPPROTO_UDP]),
        ],
        &[
            equal(0, libc::AF_INET),
            masked(1, SOCK_TYPE_MASK, libc::SOCK_DGRAM),
            equal(2, libc::IPPROTO_ICMP),
        ],
        &[
            equal(0, libc::AF_INET6),
            masked(1, SOCK_TYPE_MASK, libc::SOCK_DGRAM),
            equal(2, libc::IPPROTO_ICMPV6),
        ],
    ],
);

const INTERNET: &[i32] = &[libc::AF_INET, libc::AF_INET6];

/// What every worker needs.
const WORKER: &[Entry] = &[
    // runtime::poller.
    always(libc::SYS_epoll_pwait2),
    always(libc::SYS_epoll_pwait),
    always(libc::SYS_epoll_ctl),
    // Kicks and calls of the guest, signals (daemon::Signals), captures, the log.
    always(libc::SYS_read),
    always(libc::SYS_write),
    always(libc::SYS_readv),
    always(libc::SYS_writev),
    // log: room on standard error; the standard library's own waits.
    always(libc::SYS_ppoll),
    #[cfg(target_arch = "x86_64")]
    always(libc::SYS_poll),
    // log::file cuts off the oldest lines in place.
    always(libc::SYS_pread64),
    always(libc::SYS_pwrite64),
    always(libc::SYS_fallocate),
    always(libc::SYS_ftruncate),
    // log::file and link::vhost::memory ask how large a file is: by its descriptor, not by a path.
    always(libc::SYS_lseek),
    always(libc::SYS_fstat),
    when(libc::SYS_newfstatat, &[&[masked(3, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH)]]),
    when(libc::SYS_statx, &[&[masked(2, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH)]]),
    // The data path: host::sockets, host::listen, host::netlink, link.
    always(libc::SYS_accept4),
    always(libc::SYS_bind),
    always(libc::SYS_listen),
    always(libc::SYS_connect),
    always(libc::SYS_sendto),
    always(libc::SYS_sendmsg),
    always(libc::SYS_sendmmsg),
    always(libc::SYS_recvfrom),
    always(libc::SYS_recvmsg),
    always(libc::SYS_recvmmsg),
    always(libc::SYS_shutdown),
    always(libc::SYS_close),
    always(libc::SYS_getsockname),
    always(libc::SYS_getpeername),
    always(libc::SYS_getsockopt),
    SOCKETS,
    // Options of those sockets, without those that load programs or modules into the kernel or
    // belong to packet filters and routing daemons.
    when(
        libc::SYS_setsockopt,
        &[
            &[equal(1, libc::SOL_SOCKET), within(2, SOCKET_OPTIONS)],
            // iptables begins at 64, multicast routing at 200.
            &[equal(1, libc::IPPROTO_IP), within(2, &[(0, 63)])],
            // ip6tables has 64 and 65.
            &[equal(1, libc::IPPROTO_IPV6), within(2, &[(0, 63), (66, 199)])],
            &[equal(1, libc::IPPROTO_TCP), within(2, TCP_OPTIONS)],
            &[equal(1, libc::IPPROTO_UDP), one_of(2, &[libc::UDP_SEGMENT, libc::UDP_GRO])],
        ],
    ),
    // Non-blocking sockets and copies of descriptors (File::try_clone); no ownership, no leases.
    // F_SETPIPE_SZ is host::sockets': how much a pipe holds.
    always(libc::SYS_dup),
    when(
        libc::SYS_fcntl,
        &[&[one_of(
            1,
            &[
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_DUPFD_CLOEXEC,
                libc::F_GET_SEALS,
                libc::F_SETPIPE_SZ,
            ],
        )]],
    ),
    // daemon::janitor has ended when we are ready; host::inside, when we end.
    always(libc::SYS_wait4),
    // How much waits in a socket, both ways; set_nonblocking and set_cloexec of the standard
    // library.
    when(libc::SYS_ioctl, &[&[one_of(1, &[FIONREAD, SIOCOUTQ, SIOCOUTQNSD, FIONBIO, FIOCLEX])]]),
];

/// All but SO_ATTACH_FILTER (26) and SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_* (50 to 52).
const SOCKET_OPTIONS: &[(i32, i32)] = &[
    (0, libc::SO_ATTACH_FILTER - 1),
    (libc::SO_ATTACH_FILTER + 1, libc::SO_ATTACH_BPF - 1),
    (libc::SO_ATTACH_REUSEPORT_EBPF + 1, i32::MAX),
];

/// All but TCP_ULP (31), which loads modules, and the keys of 14 and 38 onwards.
const TCP_OPTIONS: &[(i32, i32)] = &[
    (0, libc::TCP_MD5SIG - 1),
    (libc::TCP_MD5SIG + 1, libc::TCP_ULP - 1),
    (libc::TCP_ULP + 1, 37),
];

/// What `pesto` needs.
const CLIENT: &[Entry] = &[
    when(libc::SYS_socket, &[&[equal(0, libc::AF_UNIX)]]),
    always(libc::SYS_connect),
    // How long reads and writes may take.
    when(
        libc::SYS_setsockopt,
        &[&[equal(1, libc::SOL_SOCKET), one_of(2, &[libc::SO_RCVTIMEO, libc::SO_SNDTIMEO])]],
    ),
    always(libc::SYS_read),
    always(libc::SYS_recvfrom),
    // Standard output and standard error, too.
    always(libc::SYS_write),
    always(libc::SYS_sendto),
    always(libc::SYS_shutdown),
    always(libc::SYS_close),
    IS_OPEN,
];

/// Debug builds of the standard library ask whether what they close is open.
const IS_OPEN: Entry = when(libc::SYS_fcntl, &[&[equal(1, libc::F_GETFD)]]);

// Requests of ioctl(2), as include/uapi/asm-generic/ioctls.h and linux/sockios.h have them for
// all our machines; libc's own are of a type that differs between C libraries.
const SIOCOUTQ: i32 = 0x5411;
const FIONREAD: i32 = 0x541b;
const FIONBIO: i32 = 0x5421;
const FIOCLEX: i32 = 0x5451;
const SIOCOUTQNSD: i32 = 0x894b;

/// What the worker of a namespace needs besides.
const NAMESPACE: &[Entry] = &[
    // engine::splice: from socket to socket through pipes of the kernel's.
    always(libc::SYS_splice),
    always(libc::SYS_pipe2),
];

/// What the worker of a command needs besides, by its descriptor and not by a number
/// (pasta::running): its status, and what a terminal may send, or ends it.
const COMMAND: &[Entry] = &[
    when(libc::SYS_waitid, &[&[equal(0, libc::P_PIDFD.cast_signed())]]),
    when(
        libc::SYS_pidfd_send_signal,
        &[&[one_of(1, &[libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGKILL])]],
    ),
];

/// What the process inside a namespace needs (host::inside): to hear, to make a socket, to tell.
const INSIDE: &[Entry] = &[
    always(libc::SYS_recvfrom),
    always(libc::SYS_sendmsg),
    always(libc::SYS_close),
    IS_OPEN,
    SOCKETS,
];

/// The tables of a role.
pub(super) fn entries(role: Role) -> impl Iterator<Item = &'static Entry> {
    let tables: &'static [&'static [Entry]] = match role {
        // What a front-end's descriptors and memory need, or a stream's socket, is in the tables.
        Role::VhostUser | Role::Stream => &[RUNTIME, WORKER],
        Role::Client => &[RUNTIME, CLIENT],
        Role::Namespace => &[RUNTIME, WORKER, NAMESPACE],
        Role::Command => &[RUNTIME, WORKER, NAMESPACE, COMMAND],
        Role::Inside => &[RUNTIME, INSIDE],
    };
    tables.iter().copied().flatten()
}

/// abort() after a panic: SIGABRT, to ourselves.
pub(super) const fn own_abort(own_pid: u32) -> (c_long, [Condition; 2]) {
    let own = Condition { argument: 0, value: Value::One(own_pid) };
    (libc::SYS_tgkill, [own, equal(2, libc::SIGABRT)])
}

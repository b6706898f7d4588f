//! Memory that whoever shares it with us may take away: touching a mapping beyond the end of its
//! file raises SIGBUS, which would end the process.
//!
//! A [`Guard`] watches over one mapping. When its memory goes, the handler of SIGBUS puts empty
//! memory of our own in its place, all of it at once, and what was about to be read or written
//! goes on there; [`Guard::is_lost`] tells. System calls need no such help: they fail (EFAULT).

use super::check;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Mappings that can be watched over at a time.
const PLACES: usize = 256;

/// One mapping; its end is 0 while there is none.
struct Place {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

impl Place {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }
}

static WATCHED: [Place; PLACES] = [const { Place::new() }; PLACES];

/// How often memory was lost.
static LOST: AtomicU64 = AtomicU64::new(0);

/// How often memory was lost since the process began: a quick look before asking each [`Guard`].
pub fn count() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Watches over a mapping, until dropped.
#[derive(Debug)]
pub struct Guard {
    place: usize,
}

impl Guard {
    /// Watches over the mapping of `len` bytes at `start`, whole pages. To be dropped before the
    /// mapping is.
    ///
    /// # Errors
    /// Too many of them, or what sigaction says.
    pub fn new(start: *const u8, len: usize) -> io::Result<Self> {
        install()?;
        let take = |place: &Place| !place.taken.swap(true, Ordering::Acquire);
        let place = WATCHED.iter().position(take).ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(watched) = WATCHED.get(place) {
            let start = start.expose_provenance();
            watched.lost.store(false, Ordering::Relaxed);
            watched.start.store(start, Ordering::Relaxed);
            watched.end.store(start.saturating_add(len), Ordering::Release);
        }
        Ok(Self { place })
    }

    /// Whether the memory has been taken away.
    pub fn is_lost(&self) -> bool {
        WATCHED.get(self.place).is_some_and(|place| place.lost.load(Ordering::Relaxed))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(place) = WATCHED.get(self.place) {
            place.end.store(0, Ordering::Release);
            place.taken.store(false, Ordering::Release);
        }
    }
}

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let failed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeros is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action.sa_sigaction = on_bus as *const () as usize;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what may be
        // done in one; `action` outlives the call.
        let done =
            unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        check(done).err().map(|e| e.raw_os_error().unwrap_or(libc::EINVAL))
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// The handler: atomics and two system calls, nothing else.
extern "C" fn on_bus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands over a siginfo of the signal, alive during the call.
    let at = unsafe { (*info).si_addr() }.addr();
    for place in &WATCHED {
        let end = place.end.load(Ordering::Acquire);
        let start = place.start.load(Ordering::Relaxed);
        if (start..end).contains(&at) && replace(start, end) {
            place.lost.store(true, Ordering::Relaxed);
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
    // Not ours: the access is made again, and ends the process as if nobody had handled it.
    // SAFETY: SIG_DFL is no function.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Puts empty memory in place of what is mapped there.
fn replace(start: usize, end: usize) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let at = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a mapping that its owner has named with a `Guard` and has not unmapped,
    // and whose contents others may change at any time: so may this.
    let mapped = unsafe { libc::mmap(at, end - start, access, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

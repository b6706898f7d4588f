//! A log file that never outgrows its limit.
//!
//! When a line would pass the limit, the oldest 30 % go: the kernel cuts whole blocks off the
//! front (FALLOC_FL_COLLAPSE_RANGE), or, where the file system cannot, the rest is copied down.
//! Either way no file is opened or renamed, so this works in the sandbox.

use crate::sys::error_text;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Instant;

/// Cut off this share of the limit (in percent), rounded up to a block.
const CUT_PERCENT: u64 = 30;

/// The longest first line: its path is cut if need be.
const MAX_HEADER: usize = 1024;

/// How much is copied at once, and how far we look for the end of a torn line. More than the
/// longest line and the longest header together.
const CHUNK: usize = 64 << 10;

/// Why a log file cannot be used.
#[derive(Debug)]
pub enum FileError {
    /// Less than five blocks: cutting 30 % would leave too little.
    TooSmall {
        /// The smallest limit, in bytes.
        least: u64,
    },
    /// It cannot be opened. A symbolic link is not followed (ELOOP).
    Open(io::Error),
    /// Its first line cannot be written.
    Write(io::Error),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { least } => write!(f, "log size is below {least} bytes"),
            Self::Open(e) | Self::Write(e) => f.write_str(&error_text(e)),
        }
    }
}

impl std::error::Error for FileError {}

/// Least bytes of a log file's limit: five times the larger of 8 KiB and a page.
pub(super) fn least_limit() -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    5 * page.and_then(|n| u64::try_from(n).ok()).unwrap_or(0).max(8192)
}

/// An open log file.
#[derive(Debug)]
pub(super) struct LogFile {
    /// Appends, wherever the end is: somebody else may truncate the file.
    end: File,
    /// Writes at offsets; `None` for a pipe or a device, which has no beginning to cut off.
    inside: Option<File>,
    limit: u64,
    block: u64,
    /// Program and version.
    title: String,
    executable: String,
    pid: u32,
    clock: Instant,
}

impl LogFile {
    /// Opens `path`, empty, for the user who starts us only, and writes the first line.
    pub(super) fn open(
        path: &Path,
        title: String,
        limit: u64,
        clock: Instant,
    ) -> Result<Self, FileError> {
        let least = least_limit();
        if limit < least {
            return Err(FileError::TooSmall { least });
        }
        let mut options = OpenOptions::new();
        // O_NONBLOCK so that a pipe without a reader fails, and a full one drops lines.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).mode(0o600);
        let new = std::fs::symlink_metadata(path).is_err();
        let end = options.clone().append(true).create(true).open(path).map_err(FileError::Open)?;
        let facts = end.metadata().map_err(FileError::Open)?;
        let inside = if facts.is_file() {
            end.set_len(0).map_err(FileError::Open)?;
            let again = options.read(true).write(true).open(path).map_err(FileError::Open)?;
            let other = again.metadata().map_err(FileError::Open)?;
            if (facts.dev(), facts.ino()) != (other.dev(), other.ino()) {
                return Err(FileError::Open(io::ErrorKind::StaleNetworkFileHandle.into()));
            }
            Some(again)
        } else {
            None
        };
        let executable = std::env::current_exe().unwrap_or_default().display().to_string();
        let block = facts.blksize().clamp(4096, limit / 5).next_power_of_two();
        let pid = std::process::id();
        let file = Self { end, inside, limit, block, title, executable, pid, clock };
        let written = (&file.end).write_all(file.header(None).as_bytes());
        if written.is_err() && new {
            // The disk is full: what there is of a file helps nobody.
            let _ = std::fs::remove_file(path);
        }
        written.map_err(FileError::Write)?;
        Ok(file)
    }

    /// The process to name when the first line is written again.
    pub(super) const fn set_pid(&mut self, pid: u32) {
        self.pid = pid;
    }

    /// Appends a line. What cannot be written (a full disk) is lost: there is nobody to tell.
    pub(super) fn append(&mut self, line: &[u8]) {
        if let Some(inside) = &self.inside {
            let size = self.end.metadata().map_or(0, |m| m.len());
            if size.saturating_add(line.len() as u64) > self.limit
                && self.cut(inside, size).is_err()
            {
                return;
            }
        }
        let _ = (&self.end).write_all(line);
    }

    /// The first line; `cut_at` tells when the lines after it were cut off.
    fn header(&self, cut_at: Option<std::time::Duration>) -> String {
        let mut header = format!("{}: {}", self.title, self.executable);
        while header.len() > MAX_HEADER {
            header.pop();
        }
        header.push_str(&format!(" ({})", self.pid));
        if let Some(at) = cut_at {
            header.push_str(&format!(" - log truncated at {}", super::Seconds(at)));
        }
        header.push('\n');
        header
    }

    /// Cuts off the oldest part of a file of `size` bytes.
    fn cut(&self, file: &File, size: u64) -> io::Result<()> {
        let header = self.header(Some(self.clock.elapsed()));
        // Somebody else may have written far past our limit: whatever is too much goes too.
        let surplus = size.saturating_sub(self.limit);
        let wanted = (self.limit / 100).saturating_mul(CUT_PERCENT).saturating_add(surplus);
        let gone = wanted.next_multiple_of(self.block);
        if gone >= size {
            return restart(file, &header);
        }
        let offset = i64::try_from(gone).map_err(io::Error::other)?;
        if fallocate(file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, offset).is_ok() {
            overwrite_start(file, &header)
        } else {
            copy_down(file, &header, gone)
        }
    }
}

fn restart(file: &File, header: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(header.as_bytes(), 0)
}

/// Puts `header` over the torn line at the start, padded to the end of a line.
fn overwrite_start(file: &File, header: &str) -> io::Result<()> {
    let mut start = vec![0; CHUNK];
    let n = read_at(file, &mut start, 0)?;
    let body = header.len().saturating_sub(1);
    let rest = start.get(body..n).unwrap_or_default();
    let Some(padding) = rest.iter().position(|&b| b == b'\n') else {
        return restart(file, header);
    };
    let mut line = header.trim_end_matches('\n').to_owned();
    line.extend(std::iter::repeat_n(' ', padding));
    file.write_all_at(line.as_bytes(), 0)
}

/// Moves what follows the first line break from `from` on down, behind `header`.
fn copy_down(file: &File, header: &str, from: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let n = read_at(file, &mut chunk, from)?;
    let Some(torn) = chunk.get(..n).unwrap_or_default().iter().position(|&b| b == b'\n') else {
        return restart(file, header);
    };
    let mut from = from.saturating_add(torn as u64).saturating_add(1);
    file.write_all_at(header.as_bytes(), 0)?;
    let mut to = header.len() as u64;
    loop {
        let n = read_at(file, &mut chunk, from)?;
        let piece = chunk.get(..n).unwrap_or_default();
        if piece.is_empty() {
            return file.set_len(to);
        }
        file.write_all_at(piece, to)?;
        from = from.saturating_add(n as u64);
        to = to.saturating_add(n as u64);
    }
}

fn read_at(file: &File, into: &mut [u8], from: u64) -> io::Result<usize> {
    loop {
        match file.read_at(into, from) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// A folder of this test's own, in `base`.
    fn folder(base: &str, name: &str) -> PathBuf {
        let path = Path::new(base).join(format!("passt-log-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder for tests");
        path
    }

    fn open(path: &Path) -> LogFile {
        LogFile::open(path, "passt 1.2".into(), least_limit(), Instant::now()).expect("opens")
    }

    /// Fills the file three times over and checks every line that is left.
    fn fill(path: &Path) {
        let mut log = open(path);
        let limit = least_limit();
        let total = 3 * limit / 20;
        for i in 0..total {
            log.append(format!("line {i:014}\n").as_bytes());
            assert!(fs::metadata(path).expect("exists").len() <= limit);
        }
        let text = fs::read_to_string(path).expect("is text");
        let mut lines = text.lines();
        let header = lines.next().expect("has a first line");
        assert!(header.starts_with("passt 1.2: /"), "{header}");
        assert!(header.contains(&format!(" ({}) - log truncated at ", std::process::id())));
        let numbers: Vec<u64> =
            lines.map(|l| l.strip_prefix("line ").expect("whole").parse().expect("n")).collect();
        assert!(numbers.len() as u64 * 20 > limit / 2, "more was cut off than needed");
        assert_eq!(numbers.last(), Some(&(total - 1)), "the newest line is there");
        assert!(numbers.is_sorted() && numbers.windows(2).all(|w| w[1] - w[0] == 1), "no gap");
    }

    #[test]
    fn a_full_file_loses_its_oldest_lines_where_blocks_can_be_cut_off() {
        let folder = folder("/var/tmp", "collapse");
        fill(&folder.join("log"));
        fs::remove_dir_all(folder).expect("removes");
    }

    #[test]
    fn a_full_file_loses_its_oldest_lines_on_a_memory_file_system() {
        let folder = folder("/dev/shm", "copy");
        fill(&folder.join("log"));
        fs::remove_dir_all(folder).expect("removes");
    }

    #[test]
    fn copying_down_keeps_whole_lines() {
        let folder = folder("/var/tmp", "down");
        let path = folder.join("log");
        let log = open(&path);
        fs::write(&path, "first\nsecond\nthird\n").expect("writes");
        let file = log.inside.as_ref().expect("a regular file");
        copy_down(file, "head\n", 2).expect("copies");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "head\nsecond\nthird\n");
        fs::write(&path, "no line break at all").expect("writes");
        copy_down(file, "head\n", 2).expect("copies");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "head\n");
        fs::remove_dir_all(folder).expect("removes");
    }

    #[test]
    fn a_header_longer_than_the_torn_line_takes_the_next_ones_room() {
        let folder = folder("/var/tmp", "start");
        let path = folder.join("log");
        let log = open(&path);
        let file = log.inside.as_ref().expect("a regular file");
        fs::write(&path, "ab\ncdefgh\nij\n").expect("writes");
        overwrite_start(file, "head\n").expect("writes");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "head     \nij\n");
        fs::remove_dir_all(folder).expect("removes");
    }

    #[test]
    fn a_file_that_others_truncate_or_fill_stays_below_the_limit() {
        let folder = folder("/var/tmp", "others");
        let path = folder.join("log");
        let mut log = open(&path);
        fs::write(&path, vec![b'x'; 3 * least_limit() as usize]).expect("writes");
        log.append(b"after\n");
        assert!(fs::metadata(&path).expect("exists").len() <= least_limit());
        fs::write(&path, "").expect("truncates");
        log.append(b"again\n");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "again\n");
        fs::remove_dir_all(folder).expect("removes");
    }

    #[test]
    fn links_and_small_limits_are_refused_and_devices_taken() {
        let folder = folder("/var/tmp", "refused");
        let target = folder.join("target");
        fs::write(&target, "precious").expect("writes");
        let link = folder.join("link");
        std::os::unix::fs::symlink(&target, &link).expect("links");
        let error = LogFile::open(&link, "t".into(), least_limit(), Instant::now());
        assert!(matches!(error, Err(FileError::Open(e)) if e.raw_os_error() == Some(libc::ELOOP)));
        assert_eq!(fs::read_to_string(&target).expect("reads"), "precious");
        let error = LogFile::open(&target, "t".into(), least_limit() - 1, Instant::now());
        assert!(matches!(error, Err(FileError::TooSmall { least }) if least == least_limit()));
        open(Path::new("/dev/null")).append(b"gone\n");
        fs::remove_dir_all(folder).expect("removes");
    }

    #[test]
    fn only_its_owner_may_read_it() {
        let folder = folder("/var/tmp", "mode");
        let path = folder.join("log");
        open(&path);
        assert_eq!(fs::metadata(&path).expect("exists").mode() & 0o7777, 0o600);
        fs::remove_dir_all(folder).expect("removes");
    }
}

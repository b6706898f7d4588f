//! What a line looks like, and that nothing waits.

use super::*;
use std::io::Read as _;
use std::time::Duration;

fn line(heading: Heading<'_>, lost: u64, text: &str) -> String {
    let mut line = String::from("left over");
    compose(&mut line, heading, lost, &format_args!("{text}"));
    line
}

#[test]
fn a_line_begins_as_its_reader_expects() {
    let time = Duration::from_micros(12_034_567);
    let table = [
        (line(Heading::Terminal(None), 0, "a"), "a\n"),
        (line(Heading::Terminal(Some(time)), 0, "a"), "12.0345: a\n"),
        (line(Heading::Syslog(Level::Error, "passt"), 0, "a"), "<27>passt: a\n"),
        (line(Heading::Syslog(Level::Warn, "pasta"), 0, "a"), "<28>pasta: a\n"),
        (line(Heading::Syslog(Level::Info, "passt"), 3, "a"), "<30>passt: (3 messages lost) a\n"),
        (line(Heading::Syslog(Level::Debug, "passt"), 0, "a"), "<31>passt: a\n"),
        (line(Heading::File(Level::Error, time), 0, "a"), "12.0345: ERROR:   a\n"),
        (line(Heading::File(Level::Warn, time), 0, "a"), "12.0345: WARNING: a\n"),
        (line(Heading::File(Level::Info, time), 0, "a"), "12.0345: info:    a\n"),
        (line(Heading::File(Level::Trace, time), 0, "a"), "12.0345:          a\n"),
    ];
    for (made, expected) in table {
        assert_eq!(made, expected);
    }
}

#[test]
fn a_message_can_neither_forge_a_second_line_nor_outgrow_the_first() {
    let forged = line(Heading::Terminal(None), 0, "name\n0.0: ERROR: \x1b[2J\u{85}é");
    assert_eq!(forged, "name\\n0.0: ERROR: \\u{1b}[2J\\u{85}é\n");
    for unit in ["x", "é", "\n"] {
        let long = line(Heading::Terminal(None), 0, &unit.repeat(10_000));
        assert!(long.len() <= MAX_LINE && long.len() > MAX_LINE - 8, "{}", long.len());
        assert!(long.ends_with('\n'));
    }
}

#[test]
fn foreign_crates_are_told_from_ours() {
    assert!(is_ours("passt") && is_ours("passt::engine::tcp"));
    assert!(!is_ours("vhost::vhost_user") && !is_ours("virtio_queue::queue"));
    assert!(!is_ours("passt_other") && !is_ours(""));
}

#[test]
fn a_syslog_that_nobody_reads_costs_lines_and_not_time() {
    let (ours, daemons) = UnixDatagram::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("non-blocking");
    let mut state = State { stderr: false, remote: Remote::Syslog(ours), ..State::EARLY };
    while state.lost[1] == 0 {
        state.emit(Level::Info, &format_args!("one more"), Duration::ZERO);
    }
    state.emit(Level::Info, &format_args!("and another"), Duration::ZERO);
    let mut datagram = [0; 256];
    let n = daemons.recv(&mut datagram).expect("the first message");
    assert_eq!(&datagram[..n], b"<30>passt: one more");
    state.emit(Level::Warn, &format_args!("back"), Duration::ZERO);
    assert_eq!(state.lost[1], 0);
    daemons.set_nonblocking(true).expect("non-blocking");
    let mut last = Vec::new();
    while let Ok(n) = daemons.recv(&mut datagram) {
        last = datagram[..n].to_vec();
    }
    assert_eq!(last, b"<28>passt: (2 messages lost) back");
}

#[test]
fn with_a_file_the_terminal_is_spared_the_details() {
    let path = std::env::temp_dir().join(format!("passt-log-levels-{}", std::process::id()));
    let clock = std::time::Instant::now();
    let file = LogFile::open(&path, "passt 1".into(), file::least_limit(), clock).expect("opens");
    let mut state = State {
        verbosity: Verbosity::Trace,
        stderr: false,
        remote: Remote::File(file),
        ..State::EARLY
    };
    state.emit(Level::Trace, &format_args!("packet"), Duration::ZERO);
    state.emit(Level::Warn, &format_args!("news"), Duration::ZERO);
    let mut text = String::new();
    let mut file = std::fs::File::open(&path).expect("exists");
    file.read_to_string(&mut text).expect("is text");
    let lines: Vec<_> = text.lines().skip(1).collect();
    assert_eq!(lines, ["0.0000:          packet", "0.0000: WARNING: news"]);
    std::fs::remove_file(path).expect("removes");
}

#[test]
fn a_limited_message_evaluates_its_arguments_only_when_it_passes() {
    log::set_max_level(LevelFilter::Warn);
    let mut evaluated = 0;
    let mut count = || {
        evaluated += 1;
        evaluated
    };
    for _ in 0..9 {
        limited!(Instant::ZERO, Level::Warn, "number {}", count());
        limited!(Instant::ZERO, Level::Debug, "number {}", count());
    }
    assert_eq!(evaluated, 5);
}

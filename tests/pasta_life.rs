//! The life of `pasta`: namespaces, the command in them, statuses and signals, and the end; as root
//! and as an ordinary user. Each test is alone in a network namespace. Needs root.

mod common;

use common::net::Namespace;
use common::pasta::{Container, EVERYBODY, Place, Running, USER, Who, ends, program};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// No ports, and then the rest.
fn with<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    let no_ports = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];
    no_ports.iter().chain(rest).copied().collect()
}

/// A `pasta` without ports whose command waits for ever, and the command's process.
fn waiting(place: &Place<'_>, who: Who, options: &[&str]) -> (Running, i32) {
    common::pasta::waiting(place, who, &with(options))
}

/// The lines of `/proc/PID/status` that say what a process may do.
fn rights(pid: i32) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let names = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let of = |name: &&str| status.lines().find(|line| line.split(':').next() == Some(name));
    names.iter().filter_map(of).map(|line| line.replace('\t', " ")).collect()
}

#[test]
fn the_status_of_the_command_is_ours() {
    let place = Place::new();
    for who in EVERYBODY {
        for (command, status) in [
            (&["true"][..], 0),
            (&["false"], 1),
            (&["sh", "-c", "exit 7"], 7),
            (&["sh", "-c", "exit 255"], 255),
        ] {
            let output = place.run(who, &with(&[&["--"], command].concat()));
            assert_eq!(output.status.code(), Some(status), "{who:?} {command:?}: {output:?}");
            assert!(output.stderr.is_empty() && output.stdout.is_empty(), "{output:?}");
        }
        let (pasta, command) = waiting(&place, who, &[]);
        kill(Pid::from_raw(command), Signal::SIGKILL).expect("it lives");
        assert_eq!(pasta.end().0, Some(137), "{who:?}");
    }
    place.assert_nothing_is_left();
}

#[test]
fn the_command_can_be_ended_by_signals() {
    let place = Place::new();
    for who in EVERYBODY {
        // A shell would unblock them by itself.
        let text = place.prints(who, &with(&["--", "grep", "SigBlk", "/proc/self/status"]));
        assert_eq!(text, "SigBlk:\t0000000000000000\n", "{who:?}");
        // Unless whoever started us would not have it so.
        let mut command = place.command(who, "env");
        command.args(["--block-signal=USR1", "--block-signal=TERM"]).arg(program(who));
        let output = command.args(with(&["--", "grep", "SigBlk", "/proc/self/status"])).output();
        let text = String::from_utf8(output.expect("starts").stdout).expect("is text");
        assert_eq!(text, "SigBlk:\t0000000000004200\n", "{who:?}");
    }
}

#[test]
fn a_command_that_cannot_be_started_is_said_and_is_status_1() {
    let place = Place::new();
    let table = [
        ("no-such-program", "Failed to start command or shell: no-such-program: No such file"),
        ("/etc/passwd", "Failed to start command or shell: /etc/passwd: Permission denied"),
    ];
    for who in EVERYBODY {
        for (program, message) in table {
            let line = place.fails(who, &with(&["--", program]));
            assert!(line.starts_with(message), "{line}");
        }
    }
}

#[test]
fn the_command_is_root_in_namespaces_of_its_own_and_free() {
    let place = Place::new();
    let script = "id -u; id -g; cat /proc/self/uid_map; echo $$; hostname; ulimit -Sn
        cat /proc/sys/net/ipv4/ping_group_range; ls /proc/self/fd | wc -l
        ip -o link show lo; readlink /proc/self/ns/ipc /proc/self/ns/mnt /proc/self/ns/pid
        grep -E '^(Cap|NoNew|Seccomp:|SigBlk|SigIgn|SigPnd)' /proc/self/status";
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").expect("has a name");
    let ours: Vec<_> = ["ipc", "mnt", "pid"]
        .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).expect("is there"))
        .into_iter()
        .map(|link| link.display().to_string())
        .collect();
    for who in EVERYBODY {
        let mut limited = place.command(who, "sh");
        let pasta = place.pasta(who, &[]);
        let program = pasta.get_args().last().expect("the program").to_owned();
        limited.args(["-c", r#"ulimit -Sn 512; exec "$@""#, "sh"]).arg(program);
        let output = limited.args(with(&["--", "sh", "-c", script])).output().expect("starts");
        let text = String::from_utf8(output.stdout).expect("is text");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{who:?}");
        let lines: Vec<_> = text.lines().collect();
        // Root's command knows all users, another one only its own.
        let map = match who {
            Who::Root => vec!["0", "0", "4294967295"],
            Who::User => vec!["0", "1000", "1"],
        };
        assert_eq!(lines[..2], ["0", "0"], "{who:?}");
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), map, "{who:?}");
        let name = format!("pasta-{}", hostname.trim_end());
        assert_eq!(lines[3..6], ["1", &name, "512"], "{who:?}");
        // Three standard streams, and the directory that is being read.
        assert_eq!(lines[6..8], ["0\t0", "4"], "{who:?}");
        assert!(lines[8].contains(",UP"), "{who:?}: {}", lines[8]);
        assert!(lines[9..12].iter().all(|ns| !ours.contains(&(*ns).to_owned())), "{who:?}: {text}");
        let all = "000001ffffffffff";
        for line in [
            format!("CapPrm:\t{all}"),
            format!("CapEff:\t{all}"),
            format!("CapBnd:\t{all}"),
            "NoNewPrivs:\t0".to_owned(),
            "Seccomp:\t0".to_owned(),
            "SigBlk:\t0000000000000000".to_owned(),
        ] {
            assert!(lines.contains(&line.as_str()), "{who:?}: no {line} in {text}");
        }
        let ignored = lines.iter().find_map(|line| line.strip_prefix("SigIgn:\t"));
        let ignored = u64::from_str_radix(ignored.expect("is there"), 16).expect("is a number");
        // Signals 32 and 33 are the C library's own.
        assert_eq!(ignored & 0x7fff_ffff, 0, "{who:?}");
    }
}

#[test]
fn a_program_with_a_capability_of_its_own_serves_low_ports() {
    let place = Place::new();
    let path = place.copy_with("cap_net_bind_service+ep");
    let low = ["-t", "127.0.0.1/80:8080", "--config-net", "--host-lo-to-ns-lo"];
    // setpriv(1) itself has capabilities until another program is started.
    let mut command = place.command(Who::User, "env");
    command.arg(&path).args(low).args(["-u", "none", "-T", "none", "-U", "none"]);
    let (pasta, command) = common::pasta::waiting_for(command);
    let inside = format!("/proc/{command}/ns/net");
    let within = |work: fn() -> TcpListener| common::net::within(Path::new(&inside), work);
    let service = within(|| TcpListener::bind("127.0.0.1:8080").expect("binds"));
    let client = place.host().within(|| TcpStream::connect("127.0.0.1:80"));
    let mut client = client.expect("the low port is there");
    let (mut served, _) = service.accept().expect("accepts");
    client.write_all(b"a word").expect("sends");
    let mut bytes = [0; 6];
    served.read_exact(&mut bytes).expect("receives");
    assert_eq!(&bytes, b"a word");
    // Nothing of it is left to anybody, and nobody may look at us.
    assert!(rights(command).contains(&"CapEff: 000001ffffffffff".to_owned()));
    let environment = fs::metadata(format!("/proc/{}/environ", pasta.pid())).expect("lives");
    assert_eq!(environment.uid(), 0, "dumpable");
    kill(Pid::from_raw(command), Signal::SIGKILL).expect("it lives");
    assert_eq!(pasta.end().0, Some(137));
    place.assert_nothing_is_left();

    // Those who join a namespace need it as well.
    let container = Container::new(&place, Who::User);
    let mut command = place.command(Who::User, "env");
    let output = command.arg(&path).args(with(&["-q", "--config-net", &container.pid()])).output();
    let output = output.expect("starts");
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &[][..]), "{output:?}");
    container.kill();
    place.assert_nothing_is_left();
}

#[test]
fn roots_command_keeps_its_rights_over_files() {
    let place = Place::new();
    let file = place.dir.join("theirs");
    fs::write(&file, "").expect("is ours");
    let path = file.to_str().expect("is text");
    let script =
        format!("chown {USER}:{USER} {path} && chmod 0 {path} && cat {path} && stat -c %u {path}");
    assert_eq!(place.prints(Who::Root, &with(&["--", "sh", "-c", &script])), format!("{USER}\n"));
    // With --runas it is that user's command.
    let output = place
        .run(Who::Root, &with(&["--runas", "1000", "--", "sh", "-c", "cat /proc/self/uid_map"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1000", "1"], "{output:?}");
}

#[test]
fn without_a_user_namespace_only_who_may_anyway_gets_one() {
    let place = Place::new();
    let script = "readlink /proc/self/ns/user; grep CapEff /proc/self/status";
    let text = place.prints(Who::Root, &with(&["--netns-only", "--", "sh", "-c", script]));
    let ours = fs::read_link("/proc/self/ns/user").expect("is there");
    assert!(text.starts_with(&ours.display().to_string()), "{text}");
    let before = fs::read_to_string("/proc/self/status").expect("is there");
    let before = before.lines().find(|line| line.starts_with("CapEff")).expect("has rights");
    assert_eq!(text.lines().nth(1), Some(before));

    let line = place.fails(Who::User, &with(&["--netns-only", "true"]));
    assert_eq!(
        line,
        "Couldn't create network namespace: Operation not permitted; \
         only root may without a user namespace: omit --netns-only"
    );
}

#[test]
fn a_mount_of_the_command_stays_its_own() {
    let place = Place::new();
    let mounts = || {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("is there");
        // The names of network namespaces are mounts, and other tests have some.
        let lines = text.lines().filter(|line| !line.contains(" /run/netns/"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = mounts();
    for options in [&["--netns-only"][..], &[]] {
        let command = ["--", "sh", "-c", "mount -t tmpfs none /mnt && mountpoint -q /mnt"];
        place.prints(Who::Root, &with(&[options, &command].concat()));
    }
    assert_eq!(mounts(), before);
}

#[test]
fn without_a_command_there_is_a_login_shell() {
    let place = Place::new();
    for who in EVERYBODY {
        let mut command = place.pasta(who, &with(&["-H", "box"]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("is piped");
        stdin.write_all(b"echo $0; hostname; exit 3\n").expect("it listens");
        drop(stdin);
        let output = child.wait_with_output().expect("is ours");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "-/bin/sh\nbox\n", "{who:?}");
        assert_eq!(output.status.code(), Some(3), "{who:?}");
    }
}

#[test]
fn a_signal_ends_us_in_order_and_leaves_the_command() {
    let place = Place::new();
    for who in EVERYBODY {
        for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
            let (pasta, command) = waiting(&place, who, &[]);
            pasta.signal(signal);
            // Its output stays open: the command has it, too.
            let Running { mut child, .. } = pasta;
            assert_eq!(child.wait().expect("is ours").code(), Some(0), "{who:?} {signal}");
            assert!(Path::new("/proc").join(command.to_string()).exists(), "{who:?} {signal}");
            kill(Pid::from_raw(command), Signal::SIGKILL).expect("it lives");
            assert!(ends(command), "{who:?} {signal}");
            place.assert_nothing_is_left();
        }
        // Killed, it cannot even say good-bye.
        let (pasta, command) = waiting(&place, who, &[]);
        pasta.signal(Signal::SIGKILL);
        kill(Pid::from_raw(command), Signal::SIGKILL).expect("it lives");
        assert_eq!(pasta.end().0, Some(-9));
        place.assert_nothing_is_left();
    }
}

/// Who serves a namespace, next to `others`, has those rights left and no files, and whoever is
/// inside has none at all; both are `user`.
#[track_caller]
fn assert_both_are_locked_in(
    place: &Place<'_>,
    pasta: i32,
    others: &[i32],
    user: u32,
    rights_left: &str,
) {
    let is_inside = |pid: &i32| *pid != pasta && !others.contains(pid);
    let inside: Vec<_> = place.processes().into_iter().filter(is_inside).collect();
    let [inside] = inside[..] else { panic!("one is inside, and not {inside:?}") };
    for (pid, right) in [(pasta, rights_left), (inside, "0000")] {
        let expected = [
            "CapInh: 0000000000000000",
            &format!("CapPrm: 000000000000{right}"),
            &format!("CapEff: 000000000000{right}"),
            "CapBnd: 0000000000000000",
            "CapAmb: 0000000000000000",
            "NoNewPrivs: 1",
            "Seccomp: 2",
        ];
        assert_eq!(rights(pid), expected);
        let root = format!("/proc/{pid}/root");
        assert_eq!(fs::read_dir(root).expect("root may look").count(), 0);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let users = format!("Uid:\t{user}\t{user}\t{user}\t{user}\n");
        assert!(status.contains(&users), "{status}");
    }
}

const NOBODY: u32 = 65534;

/// CAP_NET_BIND_SERVICE.
const LOW_PORTS: &str = "0400";

/// CAP_KILL besides.
const LOW_PORTS_AND_SIGNALS: &str = "0420";

#[test]
fn who_serves_a_command_has_two_rights_left_and_no_files() {
    let place = Place::new();
    for (who, user) in [(Who::Root, NOBODY), (Who::User, USER)] {
        let (pasta, command) = waiting(&place, who, &[]);
        let others = [command];
        assert_both_are_locked_in(&place, pasta.pid(), &others, user, LOW_PORTS_AND_SIGNALS);
        kill(Pid::from_raw(command), Signal::SIGKILL).expect("it lives");
        assert_eq!(pasta.end().0, Some(137));
    }
}

#[test]
fn daemons_have_one_right_left_and_no_files() {
    let place = Place::new();
    let target = Namespace::alone("target");
    let path = target.path();
    let pasta = daemon(&place, Who::Root, &["--netns", path.to_str().expect("is text")]);
    assert_both_are_locked_in(&place, pasta, &[], NOBODY, LOW_PORTS);
    drop(target);
    assert!(ends(pasta));

    for who in EVERYBODY {
        let container = Container::new(&place, who);
        let pid = container.pid();
        let others = [pid.parse().expect("is a number")];
        let pasta = daemon(&place, who, &[&pid]);
        let user = if who == Who::Root { NOBODY } else { USER };
        assert_both_are_locked_in(&place, pasta, &others, user, LOW_PORTS);
        kill(Pid::from_raw(pasta), Signal::SIGTERM).expect("it lives");
        assert!(ends(pasta));
        if who == Who::User {
            // As podman does: root in the user namespace that owns the other one.
            let mut command = place.command(who, "nsenter");
            command.args(["--user", "--target", &pid, "--preserve-credentials", "--"]);
            command.arg(program(who));
            let path = format!("/proc/{pid}/ns/net");
            let pasta = daemon_by(&place, command, &["--netns", &path]);
            assert_both_are_locked_in(&place, pasta, &others, USER, LOW_PORTS);
        }
        container.kill();
        place.assert_nothing_is_left();
    }
}

#[test]
fn the_end_of_the_process_inside_is_ours_and_is_said() {
    let place = Place::new();
    for who in EVERYBODY {
        let container = Container::new(&place, who);
        let pid = container.pid();
        let mut command = place.pasta(who, &with(&["-f", "-q", "--config-net", &pid]));
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        let pasta = child.id().cast_signed();
        // Locked, it serves.
        eventually(|| rights(pasta).contains(&"Seccomp: 2".to_owned()).then_some(()));
        let [inside] = common::pasta::children(pasta)[..] else { panic!("{who:?}: not one child") };
        kill(Pid::from_raw(inside), Signal::SIGKILL).expect("it lives");
        let mut said = String::new();
        child.stderr.take().expect("is piped").read_to_string(&mut said).expect("is text");
        assert_eq!(child.wait().expect("is ours").code(), Some(1), "{who:?}: {said}");
        let line = "The process that makes our sockets in the namespace has ended, exiting";
        assert_eq!(said.lines().last(), Some(line), "{who:?}: {said}");

        let daemon = daemon(&place, who, &[&pid]);
        let is_inside = |other: &i32| *other != daemon && other.to_string() != pid;
        let inside = place.processes().into_iter().find(is_inside).expect("is there");
        kill(Pid::from_raw(inside), Signal::SIGKILL).expect("it lives");
        assert!(ends(daemon), "{who:?}");
        container.kill();
        place.assert_nothing_is_left();
    }
}

/// Asks until there is an answer, which must not take long.
#[track_caller]
fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + common::net::PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never");
        std::thread::yield_now();
    }
}

/// Starts a daemon; returns its process, by its PID file, which was read at once.
#[track_caller]
fn daemon(place: &Place<'_>, who: Who, arguments: &[&str]) -> i32 {
    daemon_by(place, place.pasta(who, &[]), arguments)
}

/// As [`daemon`], by a command that ends as `pasta`.
#[track_caller]
fn daemon_by(place: &Place<'_>, mut command: Command, arguments: &[&str]) -> i32 {
    let file = place.dir.join("pid");
    let file = file.to_str().expect("is text");
    command.args(with(&["--quiet", "--config-net", "--pid", file])).args(arguments);
    let output = command.output().expect("starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!((output.status.code(), &*said), (Some(0), ""), "{command:?}");
    let text = fs::read_to_string(file).expect("is there");
    fs::remove_file(file).expect("is ours");
    let pid = text.strip_suffix('\n').and_then(|pid| pid.parse().ok()).expect("is a number");
    assert!(place.processes().contains(&pid), "{pid} does not live");
    pid
}

#[test]
fn status_zero_means_ready_and_the_end_of_the_process_is_ours() {
    let place = Place::new();
    for who in EVERYBODY {
        for options in [&[][..], &["--no-netns-quit"]] {
            let container = Container::new(&place, who);
            let pid = container.pid();
            let pasta = daemon(&place, who, &[options, &["-I", "up0", &pid]].concat());
            let links = container.prints("ip -o link");
            assert!(links.contains("up0: <BROADCAST,MULTICAST,UP,LOWER_UP>"), "{links}");
            assert!(links.contains("lo: <LOOPBACK,UP,LOWER_UP>"), "{links}");
            // Low ports are all that is left.
            for line in ["Seccomp: 2", "CapPrm: 0000000000000400", "CapEff: 0000000000000400"] {
                assert!(rights(pasta).contains(&line.to_owned()), "{who:?}: {line}");
            }
            container.kill();
            if !options.is_empty() {
                // It holds the namespace, and ends when asked.
                kill(Pid::from_raw(pasta), Signal::SIGTERM).expect("it lives still");
            }
            assert!(ends(pasta), "{who:?} {options:?}");
            place.assert_nothing_is_left();
        }
    }
}

#[test]
fn the_files_of_a_process_go_with_it() {
    let place = Place::new();
    for who in EVERYBODY {
        let container = Container::new(&place, who);
        let pid = container.pid();
        let (user, net) = (format!("/proc/{pid}/ns/user"), format!("/proc/{pid}/ns/net"));
        let join: &[&str] = match who {
            Who::Root => &["--netns", &net],
            Who::User => &["--userns", &user, "--netns", &net],
        };
        let pasta = daemon(&place, who, join);
        assert!(container.prints("ip -o link").contains("tap0"));
        container.kill();
        assert!(ends(pasta), "{who:?}");
        place.assert_nothing_is_left();
    }
}

#[test]
fn a_namespace_with_a_name_is_served_until_the_name_goes() {
    let place = Place::new();
    for by_name in [true, false] {
        for quit in [true, false] {
            let target = Namespace::alone("target");
            let path = target.path();
            let name =
                if by_name { path.file_name().expect("has one").as_ref() } else { path.as_path() };
            let name = name.to_str().expect("is text").to_owned();
            let mut arguments = vec!["--netns", &name];
            arguments.extend((!quit).then_some("--no-netns-quit"));
            let pasta = daemon(&place, Who::Root, &arguments);
            drop(target);
            if !quit {
                kill(Pid::from_raw(pasta), Signal::SIGTERM).expect("it lives still");
            }
            assert!(ends(pasta), "{name} {quit}");
            place.assert_nothing_is_left();
        }
    }
}

#[test]
fn in_the_foreground_the_end_of_a_namespace_is_status_0() {
    let place = Place::new();
    for who in EVERYBODY {
        let container = Container::new(&place, who);
        let pid = container.pid();
        let mut command = place.pasta(who, &with(&["-f", &pid]));
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("is piped"));
        // It says what it serves before the sandbox is entered.
        let mut line = String::new();
        stderr.read_line(&mut line).expect("is text");
        assert_ne!(line, "");
        container.kill();
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).expect("is text");
        let status = child.wait().expect("is ours").code();
        // Ended before we were inside, it was never there.
        let gone = rest.ends_with("Namespace gone, exiting\n") && status == Some(0);
        let never = rest.trim_end().lines().count() > 0 && status == Some(1);
        assert!(gone || never, "{who:?} {status:?}: {rest}");
        place.assert_nothing_is_left();
    }
}

#[test]
fn what_cannot_be_served_is_one_line_and_leaves_nothing() {
    let place = Place::new();
    let gone = {
        let mut child = Command::new("true").spawn().expect("starts");
        child.wait().expect("is ours");
        child.id().to_string()
    };
    let no_process = format!("No process {gone}: give the PID of one that runs");
    let proc_path = format!("/proc/{gone}/ns/net");
    let no_path = format!("Couldn't open network namespace {proc_path}: No such file or directory");
    let table: [(&[&str], &str); 9] = [
        (&[&gone], &no_process),
        (&["--netns-only", &gone], &no_process),
        (&["--netns", &proc_path], &no_path),
        (&["--netns", "/nonexistent/a"], "Couldn't open network namespace /nonexistent/a: No such"),
        (&["--netns", "nonexistent"], "Couldn't open network namespace /run/netns/nonexistent: No"),
        (&["--netns", "/etc/passwd"], "/etc/passwd is no network namespace"),
        (&["--netns", "/dev/zero"], "/dev/zero is no network namespace"),
        (&["--netns", "/proc/self/ns/user"], "/proc/self/ns/user is no network namespace"),
        (
            &["--userns", "/proc/self/ns/net", "--netns", "/proc/self/ns/net"],
            "/proc/self/ns/net is no user namespace",
        ),
    ];
    let file = place.dir.join("pid");
    for who in EVERYBODY {
        for (arguments, message) in table {
            let file = file.to_str().expect("is text");
            let line = place.fails(who, &[&with(&["-q", "--pid", file]), arguments].concat());
            assert!(line.starts_with(message), "{who:?} {arguments:?}: {line}");
            assert!(!Path::new(file).exists(), "{who:?} {arguments:?}");
        }
    }
}

#[test]
fn a_namespace_of_others_is_refused_with_the_remedy() {
    let place = Place::new();
    let target = Namespace::alone("target");
    let path = target.path();
    let path = path.to_str().expect("is text");
    let line = place.fails(Who::User, &with(&["-q", "--netns", path]));
    assert_eq!(
        line,
        "Couldn't join the network namespace: Operation not permitted; \
         who does not own it needs --userns with the user namespace that does"
    );
    let line = place.fails(Who::User, &with(&["-q", "1"]));
    assert_eq!(
        line,
        "Couldn't open the namespaces of process 1: Permission denied; only its owner may join it"
    );
}

#[test]
fn without_the_user_namespace_of_a_process_its_network_is_not_joined() {
    let place = Place::new();
    let container = Container::new(&place, Who::User);
    let mut command = place.pasta(Who::User, &with(&["-q", "--netns-only", &container.pid()]));
    let output = command.output().expect("starts");
    assert_eq!(
        (output.status.code(), &*String::from_utf8_lossy(&output.stderr)),
        (
            Some(1),
            "Couldn't join the network namespace: Operation not permitted; \
             who does not own it needs --userns with the user namespace that does\n"
        )
    );
    // It would be enough.
    let pasta = daemon(&place, Who::User, &[&container.pid()]);
    container.kill();
    assert!(ends(pasta));
}

#[test]
fn a_user_who_does_not_exist_is_refused_in_known_words() {
    let place = Place::new();
    let mut command = place.command(Who::User, "unshare");
    // Nobody says which users there are in that namespace.
    command.args(["-U", "--"]).arg(program(Who::User)).args(with(&["--", "true"]));
    assert_eq!(place.refused(command), "Couldn't create user namespace: Operation not permitted");
}

#[test]
fn a_system_that_forbids_user_namespaces_is_named_with_the_remedy() {
    let place = Place::new();
    let script = r#"echo 0 > /proc/sys/user/max_user_namespaces && exec "$@""#;
    let pasta = place.pasta(Who::User, &with(&["--", "true"]));
    let words: Vec<_> = pasta.get_args().skip_while(|word| *word != "--").collect();
    // `-- setpriv … -- pasta …`: what comes behind the second.
    let pasta: Vec<_> = words[1..].iter().skip_while(|word| **word != "--").skip(1).collect();
    let mut command = place.command(Who::User, "unshare");
    command.args(["-Ur", "sh", "-c", script, "sh"]).args(pasta);
    let line = place.refused(command);
    assert_eq!(
        line,
        "Couldn't create user namespace: No space left on device; \
         too many of them: raise the sysctls user.max_*_namespaces"
    );
}

#[test]
fn without_a_tun_device_there_is_a_line_or_splice_only() {
    let place = Place::new();
    let script = r#"mount -t tmpfs none /dev/net && exec "$@""#;
    let run = |options: &[&str]| {
        let pasta = place.pasta(Who::Root, &[&with(options), &["--", "true"][..]].concat());
        let program: Vec<_> = pasta.get_args().skip_while(|word| *word != "--").skip(1).collect();
        let mut command = place.command(Who::Root, "unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.args(program);
        command
    };
    assert_eq!(
        place.refused(run(&[])),
        "Couldn't open /dev/net/tun: No such file or directory; \
         see that the module tun is loaded and the device is there, or use --splice-only"
    );
    let output = run(&["--splice-only"]).output().expect("starts");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn an_interface_name_that_is_taken_is_said() {
    let place = Place::new();
    let target = Namespace::alone("target");
    target.ip("link add taken0 type veth peer name taken1");
    let path = target.path();
    let path = path.to_str().expect("is text");
    let line = place.fails(Who::Root, &with(&["-q", "--netns", path, "-I", "taken0"]));
    assert!(line.starts_with("Couldn't create the tap taken0: "), "{line}");
}

/// `pasta`'s words in a user namespace that maps the user to root, as podman starts it.
fn as_podman(place: &Place<'_>, words: &[&str]) -> Command {
    let pasta = place.pasta(Who::User, words);
    let words: Vec<_> = pasta.get_args().skip_while(|word| *word != "--").collect();
    let pasta: Vec<_> = words[1..].iter().skip_while(|word| **word != "--").skip(1).collect();
    let mut command = place.command(Who::User, "unshare");
    command.args(["-Ur", "--"]).args(pasta);
    command
}

#[test]
fn in_a_user_namespace_root_needs_no_other() {
    let place = Place::new();
    let script = "id -u; cat /proc/self/uid_map";
    let output = as_podman(&place, &with(&["--", "sh", "-c", script])).output().expect("starts");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0", "1"]);
    assert_eq!(output.status.code(), Some(0));
    place.assert_nothing_is_left();
}

#[test]
fn podman_and_rootlesskit_are_served_as_they_ask() {
    let place = Place::new();
    let dir = place.dir.path().to_str().expect("is text").to_owned();
    // Podman makes a namespace with a file for a name, in a user and mount namespace of its own.
    let pasta = as_podman(&place, &[]);
    let program = pasta.get_args().last().expect("the program").to_str().expect("is text");
    let script = format!(
        "set -e
        touch {dir}/netns-1
        unshare --net={dir}/netns-1 true
        {program} --config-net -t 8080-8080:80-80 --dns-forward 169.254.1.1 -u none -T none \
            -U none --no-map-gw --quiet --pid {dir}/pid --netns {dir}/netns-1 \
            --map-guest-addr 169.254.1.2
        kill -0 $(cat {dir}/pid)
        nsenter --net={dir}/netns-1 ip -o link
        umount {dir}/netns-1
        rm {dir}/netns-1"
    );
    let mut command = place.command(Who::User, "unshare");
    command.args(["-Ur", "--mount", "sh", "-c", &script]);
    let output = command.output().expect("starts");
    assert!(output.stderr.is_empty(), "{output:?}");
    assert!(output.status.success(), "{output:?}");
    let links = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(links.contains("lo: <LOOPBACK,UP,LOWER_UP>") && links.contains("tap0"), "{links}");
    place.assert_nothing_is_left();

    // Rootlesskit has a process in namespaces of its own, and stays outside.
    let container = Container::new(&place, Who::User);
    let pid = container.pid();
    let output = place.run(
        Who::User,
        &[
            "--stderr",
            "--ns-ifname=tap0",
            "--mtu=65520",
            "--config-net",
            "--address=10.0.2.100",
            "--netmask=24",
            "--gateway=10.0.2.2",
            "--dns-forward=10.0.2.3",
            "--no-map-gw",
            "--ipv4-only",
            "--tcp-ports=auto",
            "--udp-ports=auto",
            "--host-lo-to-ns-lo",
            &pid,
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let addresses = container.prints("ip -4 -o address show tap0");
    assert!(addresses.contains("10.0.2.100/24"), "{addresses}");
    let routes = container.prints("ip -4 route");
    assert!(routes.contains("default via 10.0.2.2 dev tap0"), "{routes}");
    container.kill();
    place.assert_nothing_is_left();
}

/// Allows the user namespace that `pid` is in, as its root, so many namespaces of each kind that
/// `pasta` makes. The kernel counts all that there are, also those in which nobody is.
fn limit_namespaces(place: &Place<'_>, pid: i32, most: u32) {
    let script = format!(
        "for kind in user net mnt pid ipc uts
        do echo {most} > /proc/sys/user/max_${{kind}}_namespaces || exit 1
        done"
    );
    let mut command = place.command(Who::User, "nsenter");
    command.args(["--user", "--target", &pid.to_string(), "--preserve-credentials"]);
    let limited = command.args(["sh", "-c", &script]).status();
    assert!(limited.expect("starts").success());
}

/// More of one kind than a `pasta` has at a time.
const FEW: u32 = 4;

/// The descriptors of a process.
fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count()
}

#[test]
fn five_hundred_starts_and_stops_leave_nothing() {
    let place = Place::new();
    for _ in 0..50 {
        place.prints(Who::Root, &with(&["--config-net", "true"]));
    }
    place.assert_nothing_is_left();

    // As an ordinary user in a user namespace, for its count of namespaces. They go a while after
    // who was in them.
    let script = r#"
        ordinary="unshare --user --map-user=1000 --map-group=1000"
        echo ready; read -r word
        $ordinary sh -c '
            n=0; while [ $n -lt 400 ]; do "$@" || exit 1; n=$((n + 1)); done' sh "$@" || exit 1
        echo done; read -r word
        n=0; until $ordinary "$@" 2>/dev/null; do n=$((n + 1)); [ $n -lt 1000 ] || exit 2; done"#;
    let mut command = place.command(Who::User, "unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]);
    command.arg(program(Who::User)).args(with(&["--config-net", "--", "true"]));
    command.stdin(Stdio::piped());
    let (mut shell, _) = Running::start(command);
    let pid = shell.pid();
    let before = descriptors(pid);
    let mut stdin = shell.child.stdin.take().expect("is piped");
    stdin.write_all(b"go on\n").expect("it listens");
    let mut line = String::new();
    shell.stdout.read_line(&mut line).expect("is text");
    assert_eq!(line, "done\n");
    assert_eq!((place.processes(), descriptors(pid)), (vec![pid], before));
    limit_namespaces(&place, pid, FEW);
    stdin.write_all(b"go on\n").expect("it listens");
    assert_eq!(shell.end().0, Some(0), "namespaces are left");
    place.assert_nothing_is_left();

    let container = Container::new(&place, Who::User);
    let pid = container.pid();
    let number = pid.parse().expect("is a number");
    let before = descriptors(number);
    for _ in 0..50 {
        let pasta = daemon(&place, Who::User, &["-I", "tap0", &pid]);
        kill(Pid::from_raw(pasta), Signal::SIGTERM).expect("it lives");
        assert!(ends(pasta));
        // The interface goes with who made it.
        assert!(!container.prints("ip -o link").contains("tap0"));
    }
    assert_eq!(descriptors(number), before);
    limit_namespaces(&place, number, FEW);
    let start = || place.run(Who::User, &with(&["-q", "-I", "tap0", &pid])).status.success();
    eventually(|| start().then_some(()));
    container.kill();
    place.assert_nothing_is_left();
}

#[test]
fn a_start_that_fails_as_somebody_else_leaves_nothing() {
    let place = Place::new();
    // Only root removes anything here.
    let folder = place.dir.join("roots");
    fs::create_dir(&folder).expect("is ours");
    let path = |name: &str| folder.join(name).to_str().expect("is text").to_owned();
    let (pid, control, capture) = (path("pid"), path("control"), path("pcap"));
    let files = ["-q", "--runas", "1000", "--pid", &pid, "-c", &control, "-p", &capture];
    for rest in [&["--netns", "nonexistent"][..], &["-f", "--netns", "nonexistent"]] {
        let line = place.fails(Who::Root, &with(&[&files, rest].concat()));
        assert!(line.starts_with("Couldn't open network namespace "), "{line}");
        assert_eq!(fs::read_dir(&folder).expect("is there").count(), 0, "{rest:?}");
    }
}

#[test]
fn who_starts_us_may_ignore_the_end_of_children() {
    let place = Place::new();
    for who in EVERYBODY {
        let pasta = place.pasta(who, &with(&["--", "sh", "-c", "exit 7"]));
        let mut command = Command::new("sh");
        command.args(["-c", r#"trap '' CHLD; exec "$@""#, "sh"]);
        command.arg(pasta.get_program()).args(pasta.get_args());
        let output = command.output().expect("starts");
        assert_eq!(output.status.code(), Some(7), "{who:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

/// Waits until `pid` has done what `script` did before it slept: the shell says so.
fn running(place: &Place<'_>, who: Who, script: &str) -> Running {
    let script = format!("{script}; echo ready; sleep infinity & wait; wait; exit 5");
    let pasta = place.pasta(who, &with(&["--", "sh", "-c", &script]));
    let mut command = place.command(Who::Root, "env");
    // Whoever runs the tests may have them ignored.
    command.arg("--default-signal=INT,HUP").arg(pasta.get_program()).args(pasta.get_args());
    let (pasta, said) = Running::start(command);
    assert_eq!(said, "ready");
    pasta
}

#[test]
fn what_would_end_the_command_ends_it_and_us() {
    let place = Place::new();
    for who in EVERYBODY {
        for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
            let pasta = running(&place, who, "true");
            pasta.signal(signal);
            assert_eq!(pasta.end().0, Some(status), "{who:?} {signal}");
            place.assert_nothing_is_left();
        }
    }
}

#[test]
fn what_the_command_handles_it_gets_and_what_it_ignores_it_does_not() {
    let place = Place::new();
    for who in EVERYBODY {
        let handler = "trap 'echo got INT; kill $!; exit 3' INT; trap '' HUP";
        let pasta = running(&place, who, handler);
        pasta.signal(Signal::SIGHUP);
        pasta.signal(Signal::SIGINT);
        assert_eq!(pasta.end(), (Some(3), "got INT\n".to_owned()), "{who:?}");
        // Ignored from the start on, as by nohup(1).
        let words = with(&["--", "sh", "-c", "echo ready; read line; echo $line"]);
        let pasta = place.pasta(who, &words);
        let mut command = place.command(Who::Root, "sh");
        command.args(["-c", r#"trap '' HUP INT; exec "$@""#, "sh"]);
        command.arg(pasta.get_program()).args(pasta.get_args()).stdin(Stdio::piped());
        let (mut pasta, _) = Running::start(command);
        pasta.signal(Signal::SIGHUP);
        pasta.signal(Signal::SIGINT);
        let mut stdin = pasta.child.stdin.take().expect("is piped");
        stdin.write_all(b"still here\n").expect("it listens");
        assert_eq!(pasta.end(), (Some(0), "still here\n".to_owned()), "{who:?}");
        place.assert_nothing_is_left();
    }
}

/// `pasta` in front of a terminal, on which keys can be typed.
struct Terminal {
    script: Running,
    keys: std::io::PipeWriter,
}

impl Terminal {
    /// The command says `ready`, perhaps because that was `typed`. If there is more to be read, it
    /// has set `noflsh`: otherwise keys that send a signal make the terminal forget what it has not
    /// shown yet.
    fn start(place: &Place<'_>, who: Who, command: &[&str], typed: &[u8]) -> Self {
        common::net::need("script", "bsdutils");
        let pasta = place.pasta(who, &with(command));
        let words: Vec<_> = [pasta.get_program()].into_iter().chain(pasta.get_args()).collect();
        let quote = |word: &&std::ffi::OsStr| {
            format!("'{}'", word.to_str().expect("is text").replace('\'', r"'\''"))
        };
        let heeded = "exec env --default-signal=INT,QUIT,HUP".to_owned();
        let line = [heeded].into_iter().chain(words.iter().map(quote));
        let line = line.collect::<Vec<_>>().join(" ");
        let mut command = place.command(Who::Root, "script");
        let (read, mut keys) = std::io::pipe().expect("pipes are there");
        keys.write_all(typed).expect("there is room");
        // As a shell with job control starts it: in a group of its own, which has the terminal.
        command.args(["-q", "-e", "-E", "never", "-c", &line, "/dev/null"]).stdin(read);
        let (script, said) = Running::start(command);
        assert_eq!(said, "ready");
        Self { script, keys }
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("it listens");
    }

    /// Reads up to a line with `word` in it.
    #[track_caller]
    fn read_to(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(self.script.stdout.read_line(&mut line).expect("is text"), 0, "no {word}");
        }
    }
}

#[test]
fn what_is_typed_to_end_a_command_ends_it_and_us() {
    let place = Place::new();
    for who in EVERYBODY {
        for (key, status) in [(b"\x03", 130), (b"\x1c", 131)] {
            // No shell: that has handlers, until it starts a program.
            let mut terminal = Terminal::start(&place, who, &["--", "cat"], b"ready\n");
            terminal.type_keys(key);
            assert_eq!(terminal.script.end().0, Some(status), "{who:?}");
            place.assert_nothing_is_left();
        }
    }
}

#[test]
fn who_handles_what_is_typed_gets_it_once_and_goes_on() {
    let place = Place::new();
    for who in EVERYBODY {
        // A program that stays in our group, as interpreters do.
        let script = "stty noflsh; trap 'n=x$n; echo got $n' INT; echo ready; \
                      until read line; do :; done; echo line $line $n; exit 4";
        let mut terminal = Terminal::start(&place, who, &["--", "sh", "-c", script], b"");
        terminal.type_keys(b"\x03");
        terminal.read_to("got x");
        terminal.type_keys(b"a\n");
        terminal.read_to("line a x\r\n");
        assert_eq!(terminal.script.end().0, Some(4), "{who:?}");
        // A shell that takes the terminal for itself.
        let command = ["--", "sh", "-c", "stty noflsh; echo ready; exec sh -i"];
        let mut terminal = Terminal::start(&place, who, &command, b"");
        terminal.type_keys(b"PS1='prompt\n'\n");
        terminal.read_to("prompt\r\n");
        terminal.type_keys(b"\x03");
        terminal.read_to("prompt\r\n");
        terminal.type_keys(b"echo s$((1 + 1))ill; exit\n");
        terminal.read_to("s2ill\r\n");
        // Some shells end with a status of their own where they cannot give the terminal back.
        assert!(![Some(130), Some(137)].contains(&terminal.script.end().0), "{who:?}");
        place.assert_nothing_is_left();
    }
}
